// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"strings"
	"testing"

	"weir/pipeline/memory"
)

// No page, however large, holds parts of workers on different nodes; where all are on one, nothing
// is moved.
func TestStateKeepsNodesApart(t *testing.T) {
	const workers = 64
	plain, err := New(Sizes{Workers: workers, Sessions: 1024, Seed: &[32]byte{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := plain.PlacementRefused(); err != nil {
		t.Errorf("nothing was asked, and refused: %v", err)
	}
	nodes := make([]int, workers)
	for w := range nodes {
		nodes[w] = 1020 + w%4
	}
	nodes[5] = -1
	s, err := New(Sizes{Workers: workers, Sessions: 1024, Nodes: nodes, Seed: &[32]byte{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.PlacementRefused(); err == nil || !strings.Contains(err.Error(), "[1020 1021 1022 1023]") {
		t.Errorf("what is shared should lie on all four nodes, which this machine has not: %v", err)
	}
	if more := s.Segment.Size() - plain.Segment.Size(); more > 5*memory.HugePage {
		t.Errorf("%d bytes are lost between five parts", more)
	}
	type span struct {
		begin, end uint64
		node       int
	}
	shared := span{0, max(s.fixed.Mappings.Header, s.fixed.Mappings.Mappings, s.fixed.Mappings.Inside, s.fixed.Mappings.Outside), -2}
	spans := []span{shared}
	for w := range workers {
		r := s.fixed.Worker[w]
		parts := []uint64{r.Counters, r.Punt, r.Inject, r.Table.Header, r.Table.Sessions, r.Table.Buckets, r.Table.Overflow, r.Table.Free}
		spans = append(spans, span{slices.Min(parts), slices.Max(parts), nodes[w]})
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.begin) - int(b.begin) })
	changes := 0
	for i, next := range spans[1:] {
		before := spans[i]
		if next.begin <= before.end {
			t.Errorf("%+v overlaps %+v", next, before)
		}
		if next.node == before.node {
			continue
		}
		if changes++; next.begin/memory.HugePage == before.end/memory.HugePage {
			t.Errorf("%+v and %+v share a huge page", before, next)
		}
	}
	if changes != 5 {
		t.Errorf("%d changes of node, want one to each of four and one to any", changes)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if _, err := New(Sizes{Workers: 2, Sessions: 64, Nodes: []int{0}}); err == nil {
		t.Error("a node for one of two workers is accepted")
	}
}
