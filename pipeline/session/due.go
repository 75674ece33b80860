// SPDX-License-Identifier: Apache-2.0

package session

import "sync/atomic"

// Used returns how many mappings there have ever been: from this index on none was.
func (m *Mappings) Used() int { return int(atomic.LoadUint64(&m.h.top)) }

// Resting returns how many of rest milliseconds a mapping has left at millisecond now; false where
// it does not rest.
func (m *Mappings) Resting(ref, now, rest uint32) (left uint32, ok bool) {
	e := &m.mappings[ref]
	w := atomic.LoadUint64(&e.word)
	if w&(stateMask|holdsMask) != mappingLive {
		return 0, false
	}
	idle := now - atomic.LoadUint32(&e.last)
	if w&mappingRests == 0 || idle >= rest {
		return 0, true
	}
	return rest - idle, true
}

// ReapOne takes a mapping away that has rested for long enough, as Reap does, and reports whether
// it had. The reaper calls it.
func (m *Mappings) ReapOne(ref, now, rest uint32) bool {
	e := &m.mappings[ref]
	w, ok := e.over(now, rest)
	if !ok || !e.take(w) {
		return false
	}
	m.takeAway(ref, true)
	return true
}
