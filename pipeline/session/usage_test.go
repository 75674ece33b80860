// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/rand/v2"
	"testing"
)

// What PortUse counts are the ports that mappings have, and those that nobody holds.
func TestPortUse(t *testing.T) {
	m, _ := newMappings(t, 200)
	r := rand.New(rand.NewPCG(3, 3))
	random := newRand(3)
	held := map[uint16]uint32{}
	resting := map[uint16]bool{}
	for i := range uint16(120) {
		ref, result := m.Create(1, private(int(i)), 7, UDPPorts, 1, []PortRange{{100, 700}}, random, 0)
		if result != Mapped {
			t.Fatal(result)
		}
		held[m.At(ref).ExternalPort] = ref
	}
	for port, ref := range held {
		if r.IntN(3) == 0 {
			m.Release(ref, 0)
			resting[port] = true
		}
	}
	for range 2000 {
		first := uint16(r.UintN(800))
		last := first + uint16(r.UintN(300))
		taken, rest := 0, 0
		for port := range held {
			if first <= port && port <= last {
				taken++
				if resting[port] {
					rest++
				}
			}
		}
		if a, b := m.PortUse(1, UDPPorts, PortRange{first, last}); a != taken || b != rest {
			t.Fatalf("%d-%d: %d taken, %d of them resting; expected %d, %d", first, last, a, b, taken, rest)
		}
	}
	if a, b := m.PortUse(1, TCPPorts, PortRange{0, 65535}); a != 0 || b != 0 {
		t.Errorf("TCP: %d, %d", a, b)
	}
	if a, b := m.PortUse(99, UDPPorts, PortRange{0, 65535}); a != 0 || b != 0 {
		t.Errorf("an address without memory: %d, %d", a, b)
	}
}
