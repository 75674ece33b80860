// SPDX-License-Identifier: Apache-2.0

package session

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// filled returns a table with overflow buckets, some sessions of which have been removed again, and
// the live ones.
func filled(t *testing.T) (*Table, map[uint32]flow) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 8))
	table := newTable(t, 4000, randomSecret(r))
	live := map[uint32]flow{}
	for i := range 3900 {
		f := smallFlow(r)
		f.pp, f.rp, f.ep = uint16(i), uint16(i>>4), uint16(i)
		if ref, ok := add(table, f); ok {
			live[ref] = f
		}
	}
	if table.h.spare == 1 {
		t.Fatal("no overflow bucket was needed: the table is no test")
	}
	for n, ref := range slices.Sorted(maps.Keys(live)) { // in an order of its own, so that every run is the same
		if n%3 == 0 {
			table.Remove(ref)
			delete(live, ref)
		}
	}
	if err := table.Check(); err != nil {
		t.Fatal(err)
	}
	return table, live
}

// Check finds each kind of damage that a death between two stores can do, and Rebuild mends all of
// them.
func TestCheckAndRebuild(t *testing.T) {
	some := func(table *Table) (uint32, *Session) {
		for ref := range uint32(table.Capacity()) {
			if s := table.At(ref); s.word != 0 {
				return ref, s
			}
		}
		panic("no session lives")
	}
	for _, damage := range []struct {
		name string
		do   func(table *Table)
		live int // sessions more or less, after Rebuild
	}{
		{"taken and never published", func(table *Table) { table.Alloc() }, 0},
		{"published and not linked", func(table *Table) {
			_, s, _ := table.Alloc()
			s.word = Word(1, 2, 60000, 99, UDP)
		}, 1},
		{"linked in one direction", func(table *Table) {
			ref, s, _ := table.Alloc()
			s.word = Word(1, 2, 60000, 99, UDP)
			inside, _ := s.keys()
			table.insert(table.secret.hash(&inside), ref)
		}, 1},
		{"removed and still linked", func(table *Table) { _, s := some(table); s.word = 0 }, -1},
		{"removed and half linked", func(table *Table) {
			ref, s := some(table)
			inside, _ := s.keys()
			s.word = 0
			table.unlink(table.secret.hash(&inside), ref)
		}, -1},
		{"removed, unlinked and not free", func(table *Table) {
			ref, _ := some(table)
			table.Remove(ref)
			table.h.free--
		}, -1},
		{"overflow bucket lost", func(table *Table) { table.h.spare = uint64(table.overflow[table.h.spare-1].next) }, 0},
		{"overflow bucket reached twice", func(table *Table) {
			for i := range table.buckets {
				if next := table.buckets[i].next; next != 0 {
					table.h.spare = uint64(next)
					return
				}
			}
		}, 0},
		{"twice on the free stack", func(table *Table) { table.free[1] = table.free[0] }, 0},
		{"free stack too high", func(table *Table) { table.h.free = uint64(len(table.free)) + 1 }, 0},
		{"entry of a stranger", func(table *Table) {
			b := &table.buckets[0]
			b.tags[0], b.refs[0] = 1, uint32(table.Capacity())
		}, 0},
		{"state that is none", func(table *Table) { _, s := some(table); s.word |= 0xff << stateShift }, -1},
		{"the sweep itself died half-way", func(table *Table) {
			n := 0
			defer func() { recover() }()
			table.Rebuild(func(uint32, *Session) bool {
				if n++; n == 1000 {
					panic("dead")
				}
				return true
			})
		}, 0},
	} {
		t.Run(damage.name, func(t *testing.T) {
			table, live := filled(t)
			damage.do(table)
			if err := table.Check(); err == nil {
				t.Error("Check does not see it")
			}
			kept := 0
			table.Rebuild(func(ref uint32, s *Session) bool {
				kept++
				return true
			})
			if err := table.Check(); err != nil {
				t.Errorf("after Rebuild: %v", err)
			}
			if want := len(live) + damage.live; table.Len() != want || kept != want {
				t.Errorf("%d sessions live after Rebuild, which showed %d; expected %d", table.Len(), kept, want)
			}
		})
	}
}
