// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"sync/atomic"

	"weir/pipeline/session"
)

// Sweep makes everything valid again after a data plane died, whatever it was doing, at millisecond
// now: it counts what it had in hand as dropped, empties the rings, and rebuilds index, mappings,
// limits and lists from the sessions. Of these keep decides, and says in which slot the external
// address of one that has a mapping is; it may change a session, but not its keys. No worker may
// run.
func (s *State) Sweep(now uint32, keep func(s *session.Session) (address uint32, ok bool)) {
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
			address, ok := keep(e)
			if !ok || uint64(e.VPC) >= room.VPCs || uint64(e.Instance) >= room.Instances || e.Mapping != session.None && !mappings.Adopt(e, address) {
				mappings.Forsake(e, now)
				c.SessionsEnded++
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
		atomic.StoreUint64(&c.Sessions, uint64(t.Len()))
	}
	mappings.Settle(now)
	settleRings(counters)
}
