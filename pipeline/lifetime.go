// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/session"
)

// usable ends a session that is over, by time or by a newer generation, and reports whether it
// lives.
func (w *Worker) usable(ref uint32, s *session.Session) bool {
	// The check comes first: Timer is an index into the generation's own table.
	if s.Generation != uint32(w.gen.Number) && !w.gen.Recheck(s, w.tick) || w.over(s) {
		w.end(ref)
		return false
	}
	return true
}

// liveSession returns the live session that a key names, or nil.
func (w *Worker) liveSession(k session.Key) *session.Session {
	ref := w.sessions.Find(&k)
	if ref == session.None || !w.usable(ref, w.sessions.At(ref)) {
		return nil
	}
	return w.sessions.At(ref)
}

// Under pressure from three quarters of the table on, and until it is down to five eighths.
const (
	pressFrom = 6 // eighths
	pressTo   = 5
)

// pressedRest is how long a port rests, in milliseconds, while the table of mappings is as full:
// ranges belong to one instance, so that RFC 6888 REQ-8 asks for no rest, and a full table would
// refuse everybody.
const pressedRest = 1000

// weigh decides whether what has not been answered ends early. Established sessions never do.
func (w *Worker) weigh() {
	switch {
	case w.filled(pressFrom):
		w.pressed = 1
	case !w.filled(pressTo):
		w.pressed = 0
	}
	w.timeouts = &w.gen.Header.Timeouts[w.pressed]
	w.counters.Pressed = uint64(w.pressed)
}

// Expire ends the sessions among the next n that have been idle for too long or that a newer
// generation ends, and returns how many. Called every turn, it walks the table in slices. The first
// worker also lets go of mappings.
func (w *Worker) Expire(n int) int {
	ended := 0
	w.weigh()
	w.reweigh(n)
	for range n {
		s := w.sessions.At(w.expireAt)
		switch {
		case s.State() == session.Free:
		case !w.usable(w.expireAt, s):
			ended++
		case w.gives(s):
			w.end(w.expireAt)
			ended++
		}
		if w.expireAt++; w.expireAt == uint32(w.sessions.Capacity()) {
			w.expireAt = 0
		}
	}
	if ended > 0 {
		w.counters.Sessions = uint64(w.sessions.Len())
	}
	if w.index == 0 {
		w.mappings.Reap(n, w.tick, w.rest(), w.state.OldestTurn(w.tick))
	}
	return ended
}

// rest returns for how many milliseconds ports rest.
func (w *Worker) rest() uint32 {
	if w.mappings.Len() >= w.mappings.Capacity()/8*pressFrom {
		return min(w.gen.Header.PortRest, pressedRest)
	}
	return w.gen.Header.PortRest
}

// filled reports whether eighths of the session table are in use. The last eighth is for SNAT,
// which cannot do without a session; the eighth before it is for 1:1 flows that begin inside too;
// what the Internet begins has to stay below both.
func (w *Worker) filled(eighths int) bool {
	return w.sessions.Len() >= w.sessions.Capacity()/8*eighths
}
