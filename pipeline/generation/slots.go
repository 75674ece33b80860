// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"fmt"
)

// Slots gives names numbers that stay as long as the name does. A number whose name is gone serves
// another name only when no session counts in it any more.
type Slots struct {
	what     string
	Capacity int
	Current  map[string]uint32
	Known    map[string]uint32 // also names that are gone
	Next     uint32
	sessions func(slot uint32) int
}

func newSlots(what string, capacity int, sessions func(uint32) int) Slots {
	// Slot 0 is never given: a zero key names nobody.
	return Slots{what: what, Capacity: capacity, Known: map[string]uint32{}, Current: map[string]uint32{}, Next: 1, sessions: sessions}
}

func (s *Slots) resume(name string, slot uint32) {
	s.Known[name], s.Current[name] = slot, slot
	s.Next = max(s.Next, slot+1)
}

// passOver keeps slots from being given that sessions of names that are gone still count in.
func (s *Slots) passOver() {
	for slot := s.Next; int(slot) < s.Capacity; slot++ {
		if s.sessions(slot) != 0 {
			s.Next = slot + 1
		}
	}
}

func (s *Slots) get(name string, taken map[string]uint32) (uint32, error) {
	slot, ok := s.Known[name]
	if !ok {
		if int(s.Next) < s.Capacity {
			slot = s.Next
			s.Next++
		} else if slot, ok = s.reclaim(taken); !ok {
			return 0, fmt.Errorf("more than %d %ss since start; restart weir", s.Capacity-1, s.what)
		}
		s.Known[name] = slot
	}
	taken[name] = slot
	return slot, nil
}

func (s *Slots) reclaim(taken map[string]uint32) (uint32, bool) {
	for name, slot := range s.Known {
		_, live := s.Current[name]
		if _, ours := taken[name]; !live && !ours && s.sessions(slot) == 0 {
			delete(s.Known, name)
			return slot, true
		}
	}
	return 0, false
}
