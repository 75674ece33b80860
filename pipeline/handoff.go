// SPDX-License-Identifier: Apache-2.0

package pipeline

import "sync/atomic"

// Handoff is how packets come to the worker that owns them from those that received them: a ring from each worker to each other. It
// belongs to the process that has the packets' buffers.
type Handoff struct {
	workers int
	rings   []handoffRing // from*workers + to
}

// handoffSlots is how many packets a ring holds: a few bursts.
const handoffSlots = 256

// handoffRing has one writer and one reader.
type handoffRing struct {
	head  uint64 // written by the writer: packets that are there for the reader
	next  uint64 // the writer's: beyond head, not yet announced
	_     [6]uint64
	tail  uint64 // written by the reader
	_     [7]uint64
	slots [handoffSlots]handed
}

// handed is a classified packet on its way to its owner.
type handed struct {
	Packet
	port   uint8
	inside bool
}

// NewHandoff returns the rings between so many workers.
func NewHandoff(workers int) *Handoff {
	return &Handoff{workers, make([]handoffRing, workers*workers)}
}

// steer hands those packets of a burst that other workers own to them, from the first-th live one on.
func (w *Worker) steer(b *Burst, first int) {
	if w.handoff == nil {
		return
	}
	rings := w.handoff.rings[w.index*w.handoff.workers:][:w.handoff.workers]
	keep := b.live[:first]
	given := uint64(0) // a bit for each worker
	n := uint64(0)
	for _, i := range b.live[first:] {
		p := &b.Packets[i]
		to := w.owner(p)
		if int(to) == w.index {
			keep = append(keep, i)
			continue
		}
		r := &rings[to]
		if r.next-atomic.LoadUint64(&r.tail) == handoffSlots {
			w.drop(p, HandoffFull)
			continue
		}
		slot := &r.slots[r.next%handoffSlots]
		slot.Packet, slot.port, slot.inside = *p, uint8(b.Port), b.inside
		slot.datagram = nil // this worker's
		r.next++
		n++
		given |= 1 << to
	}
	b.live = keep
	w.counters.Handed += n // first: a packet that has another owner is counted
	for to := range rings {
		if given>>to&1 != 0 {
			atomic.StoreUint64(&rings[to].head, rings[to].next)
		}
	}
}

// Adopt takes a burst that another worker handed over all its way, as Process does, and returns how many packets it had. The driver calls
// it every turn for each other worker, and empties the queues after it.
func (w *Worker) Adopt(from int) int {
	r := &w.handoff.rings[from*w.handoff.workers+w.index]
	tail, head := r.tail, atomic.LoadUint64(&r.head)
	if tail == head {
		return 0
	}
	b := &w.adopted
	first := &r.slots[tail%handoffSlots]
	b.Port, b.inside, b.fragments, b.N = int(first.port), first.inside, false, 0
	for ; tail != head && b.N < MaxBurst; tail++ {
		slot := &r.slots[tail%handoffSlots]
		if int(slot.port) != b.Port || slot.inside != b.inside {
			break
		}
		b.Packets[b.N] = slot.Packet
		b.fragments = b.fragments || slot.fragmented
		b.index[b.N] = uint8(b.N)
		b.N++
	}
	atomic.StoreUint64(&r.tail, tail)
	b.live, b.back = b.index[:b.N], b.turned[:0]
	w.counters.Adopted += uint64(b.N)
	w.reassemble(b)
	w.lookupAll(b)
	w.forward(b)
	w.turnBack(b)
	w.follow(b)
	w.flush()
	return b.N
}
