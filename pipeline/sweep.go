// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/generation"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// Sweep makes a state valid again that a dead data plane has left, at a time in nanoseconds of the
// workers' clock: what stays of the sessions fits generation g. See state.Sweep.
func Sweep(s *state.State, g *generation.Generation, nanos int64) {
	tick := uint32(uint64(nanos) / 1e6)
	s.Sweep(tick, func(s *session.Session) (uint32, bool) { return g.Restore(s, tick) })
}

// Empty is Sweep that keeps no session.
func Empty(s *state.State, nanos int64) {
	s.Sweep(uint32(uint64(nanos)/1e6), func(*session.Session) (uint32, bool) { return 0, false })
}
