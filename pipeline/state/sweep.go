// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"

	"weir/pipeline/session"
)

// Sweep makes everything valid again after a data plane died, whatever it was doing: counts what it
// had in hand as dropped, empties the rings, and rebuilds index, mappings, limits and lists from
// the sessions. No worker may run.
func (s *State) Sweep() {
	room := s.Room()
	clear(s.VPCs[:room.VPCs])
	clear(s.Instances[:room.Instances])
	mappings := s.Mappings()
	mappings.Rebuild()
	var counters []*Counters
	for w := range s.Workers() {
		c := s.Counters(w)
		c.settle()
		counters = append(counters, c)
		s.Punt(w).Reset()
		s.Inject(w).Reset()
		lists := s.Unconfirmed(w)
		clearLists(lists[:room.Instances])
		var waiting []uint32
		t := s.Table(w)
		t.Rebuild(func(ref uint32, e *session.Session) bool {
			if e.State() == session.Unconfirmed {
				e.Mapping = session.None
			}
			if uint64(e.VPC) >= room.VPCs || uint64(e.Instance) >= room.Instances || e.Mapping != session.None && !mappings.Adopt(e) {
				return false
			}
			s.Acquire(e.VPC, e.Instance)
			if e.State() == session.Unconfirmed {
				s.Instances[e.Instance].Unconfirmed++
				s.VPCs[e.VPC].Unconfirmed++
				waiting = append(waiting, ref)
			}
			return true
		})
		slices.SortStableFunc(waiting, func(a, b uint32) int { return int(int32(t.At(a).Created - t.At(b).Created)) })
		for _, ref := range waiting { // oldest first, as they gave way before
			e := t.At(ref)
			lists[e.Instance].Push(t, ref, e)
		}
		c.Sessions = uint64(t.Len())
	}
	mappings.Settle()
	settleRings(counters)
}
