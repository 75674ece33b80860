// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"container/heap"

	"weir/pipeline/session"
)

// Clock lets time pass for a worker whose frames come from a capture, so that nothing runs between
// them: sessions end and ports have rested at the millisecond at which their time is over, however
// long a gap is. It knows when that is. What it does not know of is what frames have begun or
// changed since it last looked through the tables; as no timer is shorter than a second, it looks
// again a second later.
type Clock struct {
	w       *Worker
	now     int64 // milliseconds; the worker's tick is its lower half
	due     timers
	looked  int64  // when it looked through the tables
	fresh   bool   // no frame has come since
	settled int64  // until then there is something to do every millisecond
	began   uint64 // sessions that had ever begun when it last ran
	lived   int    // and those that lived
	used    int    // of the table: from this index on no session ever was
	walk    int    // the next of them to look at out of turn
	gen     uint64 // the generation that the sessions were held against
	pressed int    // with these timeouts,
	rest    uint32 // and mappings with this rest
}

const (
	lookEvery = 1000            // milliseconds: the shortest timeout
	longTurn  = 24 * 3600 * 1e3 // milliseconds: so that no age wraps unseen
	shortWalk = 64              // of the tables, a turn
)

// timer is when to look at a session, or at a mapping.
type timer struct {
	at      int64
	ref     uint32
	mapping bool
}

// NewClock returns the clock of a worker, the only one of its state.
func NewClock(w *Worker) *Clock {
	return &Clock{w: w, looked: -lookEvery, began: w.counters.SessionsCreated}
}

// Advance lets the time pass from the last call to this one, in nanoseconds, of which the first
// call's is the beginning. The caller then takes frames through Worker.Process.
func (c *Clock) Advance(nanos int64) {
	to := nanos / 1e6
	if c.now == 0 {
		c.now, c.looked = to, to-lookEvery
	}
	n := c.w.sessions.Len()
	c.used = min(max(c.used, n, c.lived+int(c.w.counters.SessionsCreated-c.began)), c.w.sessions.Capacity())
	c.fresh = false
	c.settled = max(c.settled, c.now+3) // mappings may have yielded their ports: see Reap
	if c.w.gen.Number != c.gen || c.stressed() {
		c.look()
	}
	for next := c.next(); next < to; next = c.next() {
		c.turn(next)
	}
	if to > c.now {
		c.turn(to)
	}
	c.w.SetClock(nanos)
	c.lived, c.began = c.w.sessions.Len(), c.w.counters.SessionsCreated
}

// next returns when the next turn with something to do is.
func (c *Clock) next() int64 {
	next := c.now + longTurn
	if len(c.due) > 0 {
		next = min(next, c.due[0].at)
	}
	if c.now < c.settled {
		next = c.now + 1
	}
	if !c.fresh {
		next = min(next, c.looked+lookEvery)
	}
	return max(next, c.now)
}

// turn is a worker's turn without frames, at a millisecond.
func (c *Clock) turn(at int64) {
	w := c.w
	if at > c.now {
		c.now = at
		w.SetClock(at * 1e6)
	}
	w.Release()
	w.weigh()
	w.mappings.Reap(shortWalk, w.tick, w.rest(), w.state.OldestTurn(w.tick))
	for len(c.due) > 0 && c.due[0].at <= c.now {
		t := heap.Pop(&c.due).(timer)
		if t.mapping {
			c.mapping(t.ref)
			c.settled = max(c.settled, c.now+2) // if it is gone, it takes two more turns until it is free
		} else {
			c.session(t.ref)
		}
	}
	for range min(shortWalk, c.used) { // a frame may have made some shorter
		c.walk = (c.walk + 1) % c.used
		c.live(uint32(c.walk))
	}
	if c.stressed() || !c.fresh && c.now >= c.looked+lookEvery {
		c.look()
	}
}

// stressed reports whether the tables have become, or are no longer, so full that other times hold.
func (c *Clock) stressed() bool {
	c.w.weigh()
	return c.pressed != c.w.pressed || c.rest != c.w.rest()
}

// look looks through the tables for everything that has a time.
func (c *Clock) look() {
	w := c.w
	c.due = c.due[:0]
	c.gen, c.pressed, c.rest = w.gen.Number, w.pressed, w.rest()
	c.looked, c.fresh = c.now, true
	for ref := range uint32(w.mappings.Used()) { // first: of a session that ends, the mapping comes again
		c.mapping(ref)
	}
	for ref := range uint32(c.used) {
		c.session(ref)
	}
}

// session ends a session if it is over, and otherwise notes when it may be.
func (c *Clock) session(ref uint32) {
	if !c.live(ref) {
		return
	}
	w := c.w
	s := w.sessions.At(ref)
	left := int64(w.limit(s)) - int64(w.tick-s.Last) + 1
	if s.Flags&session.Draining != 0 {
		left = min(left, int64(int32(s.Drain-w.tick)))
	}
	heap.Push(&c.due, timer{c.now + left, ref, false})
}

// live reports whether a session lives. It ends it if it is over.
func (c *Clock) live(ref uint32) bool {
	w := c.w
	s := w.sessions.At(ref)
	if s.State() == session.Free {
		return false
	}
	mapping := s.Mapping
	if w.usable(ref, s) {
		return true
	}
	w.counters.Sessions = uint64(w.sessions.Len())
	if mapping != session.None {
		c.mapping(mapping)
	}
	return false
}

// mapping takes a mapping away that has rested, and otherwise notes when it will have.
func (c *Clock) mapping(ref uint32) {
	m := c.w.mappings
	left, ok := m.Resting(ref, c.w.tick, c.rest)
	switch {
	case !ok:
	case left > 0:
		heap.Push(&c.due, timer{c.now + int64(left), ref, true})
	case m.ReapOne(ref, c.w.tick, c.rest):
		c.settled = max(c.settled, c.now+2)
	}
}

// timers is a heap, the next one first.
type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	last := len(*t) - 1
	x := (*t)[last]
	*t = (*t)[:last]
	return x
}
