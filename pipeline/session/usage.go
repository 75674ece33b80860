// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"sync/atomic"
)

// PortUse returns how many ports of a range of an external address are taken, and how many of those
// rest. Others change them meanwhile. With ports that are overloaded, none is ever taken.
func (m *Mappings) PortUse(address uint32, space PortSpace, r PortRange) (taken, resting int) {
	if int(address) >= m.Addresses() {
		return 0, 0
	}
	used, rests := m.wordsOf(address, space), m.restingOf(address, space)
	for word := r.First >> 6; word <= r.Last>>6; word++ {
		mask := ^uint64(0)
		if word == r.First>>6 {
			mask <<= r.First & 63
		}
		if word == r.Last>>6 {
			mask &= ^uint64(0) >> (63 - r.Last&63)
		}
		bit := atomic.LoadUint64(&used[word]) & mask
		taken += bits.OnesCount64(bit)
		resting += bits.OnesCount64(bit & atomic.LoadUint64(&rests[word]))
	}
	return taken, resting
}
