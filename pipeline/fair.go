// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/generation"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// A worker divides its session table between the VPCs: while it is fuller than seven eighths, those
// that have more than the water level begin no SNAT sessions, and their idle sessions end at the
// floors of the RFCs. What is left above the level is for the others.

// newLevel counts the sessions that a table has.
func newLevel(shares []state.Share, t *session.Table, g *generation.Generation) *state.Level {
	weights := make(map[uint32]uint16, len(g.VPCs))
	for i := range g.VPCs {
		weights[g.VPCs[i].Slot] = uint16(g.VPCs[i].Weight)
	}
	l := state.NewLevel(shares, t.Capacity())
	for ref, left := uint32(0), t.Len(); left > 0 && int(ref) < t.Capacity(); ref++ {
		if s := t.At(ref); s.State() != session.Free {
			l.Add(s.VPC, max(weights[s.VPC], 1))
			left--
		}
	}
	return l
}

// reweigh lets the next n VPCs of a new generation count with their weights.
func (w *Worker) reweigh(n int) {
	for n = min(n, len(w.gen.VPCs)-w.weighed); n > 0; n-- {
		v := &w.gen.VPCs[w.weighed]
		w.level.Weigh(v.Slot, uint16(v.Weight))
		w.weighed++
	}
}

// crowds reports whether a VPC has more of the table than is fair.
func (w *Worker) crowds(v *generation.VPC) bool {
	if !w.filled(7) {
		return false
	}
	w.level.Weigh(v.Slot, uint16(v.Weight))
	return w.level.Above(v.Slot)
}

// gives reports whether a session of a VPC that has more than is fair has been idle for as long as
// the RFCs have a NAT wait.
func (w *Worker) gives(s *session.Session) bool {
	limit := w.gen.Header.Floors[s.State()%session.NumStates]
	if s.Timer != 0 && s.State() == session.UDP {
		limit = min(limit, w.gen.Header.UDPTimeouts[s.Timer])
	}
	return w.tick-s.Last > limit && w.filled(7) && w.level.Above(s.VPC)
}
