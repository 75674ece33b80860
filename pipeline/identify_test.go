// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"testing"

	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// What a receiver sees of identifications tells nothing of other people's datagrams: neither the
// steps between its own, nor, from own addresses that share a counter, who else shares one.
func TestIdentificationsTellNothing(t *testing.T) {
	ids := new(identifications)
	ids.init(state.NewRandom(new([32]byte{7})))
	v4 := func(n uint32) inet.Addr { return inet.Addr{Lo: 0xffff<<32 | uint64(n)} }
	external := v4(0xc000020e)

	// A counter that nobody else uses, seen from many triples: no step is more frequent than
	// chance.
	steps := map[uint16]int{}
	const triples, each = 4096, 16
	for n := range uint32(triples) {
		last := ids.nextID(external, v4(n), header.ProtocolUDP)
		for range each {
			id := ids.nextID(external, v4(n), header.ProtocolUDP)
			steps[id-last]++
			last = id
		}
	}
	for step, n := range steps {
		if n > 40 { // of 65,536 steps, one of each is expected
			t.Errorf("%d of %d identifications come %d after the one before", n, triples*each, step)
		}
	}

	// Remotes that share a counter share none when both are moved by the same distance.
	counter := func(remote uint32) uint64 {
		return ids.hash(external, v4(remote), header.ProtocolUDP) >> (64 - idBits)
	}
	by := map[uint64]uint32{}
	pairs, still := 0, 0
	for n := range uint32(1 << 17) {
		c := counter(n)
		if other, shared := by[c]; shared {
			for _, distance := range []uint32{1, 256, 1 << 20, 3<<24 + 5} {
				pairs++
				if counter(other+distance) == counter(n+distance) {
					still++
				}
			}
		}
		by[c] = n
	}
	if pairs < 100_000 || still > 50 { // by chance: 1 of 65,536
		t.Errorf("of %d pairs that share a counter, moved alike, %d share one still", pairs, still)
	}
}
