// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"testing"
)

// A slot of a name that is gone serves another name only when there is no other and no session
// counts in it.
func TestSlotsAreReclaimed(t *testing.T) {
	sessions := map[uint32]int{}
	s := newSlots[string]("thing", 4, func(slot uint32) int { return sessions[slot] })
	generation := func(names ...string) error {
		taken := map[string]uint32{}
		for _, n := range names {
			if _, err := s.get(n, taken); err != nil {
				return err
			}
		}
		s.Current = taken
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(generation("a", "b", "c"))
	a := s.Current["a"]
	if err := generation("a", "b", "c", "d"); err == nil {
		t.Fatal("four names have three slots")
	}
	must(generation("b", "c"))
	sessions[a] = 1
	if err := generation("b", "c", "d"); err == nil {
		t.Fatal("a slot in which a session counts serves another name")
	}
	must(generation("b", "c"))
	sessions[a] = 0
	must(generation("b", "c", "d"))
	if s.Current["d"] != a {
		t.Errorf("d has slot %d, want a's %d", s.Current["d"], a)
	}
	for name, slot := range s.Current {
		if slot == 0 {
			t.Errorf("%s has slot 0, which names nobody", name)
		}
	}
}
