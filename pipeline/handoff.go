// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"weir/pipeline/generation"
	"weir/pipeline/prefetch"
)

// Handoff is how packets come to the worker that owns them from those that received them: lanes
// from each worker to each other. It belongs to the process that has the packets' buffers.
type Handoff struct {
	workers int
	lanes   []handoffLane // from*workers + to
}

// handoffLane is the way from one worker to another. The owner parses frames again, which costs
// less than moving the first worker's notes from cache to cache. What has turned back knows more
// than its bytes say, and is rare.
type handoffLane struct {
	frames handoffRing[handedFrame]
	turned handoffRing[handedPacket]
}

// handoffSlots is how many frames a ring holds: a few bursts.
const handoffSlots = 256

// turnedSlots is how many packets that turned back a ring holds: fewer where many workers have many
// rings.
func turnedSlots(workers int) int { return min(handoffSlots, 2048>>bits.Len(uint(workers-1))) }

// handedFrame is a frame that a worker has found to be good, as it came in at a port.
type handedFrame struct {
	data   []byte
	handle uintptr
	from   generation.Place
	port   uint8
	inside bool
	front  uint16
	tci    uint16
	via    uint16
}

// handedPacket is a packet that has turned back.
type handedPacket struct {
	Packet
	port uint8
}

// handoffRing has one writer and one reader, each with a line of the cache for what it changes.
type handoffRing[T any] struct {
	slots []T
	_     [5]uint64
	head  uint64 // written by the writer: how many there were for the reader
	_     [7]uint64
	next  uint64 // the writer's: beyond head, not yet announced
	limit uint64 // the writer's: where next would meet what was the tail
	_     [6]uint64
	tail  uint64 // written by the reader: how many it has taken
	_     [7]uint64
}

// slot returns the next free slot, or nil. It is handed over once announced.
func (r *handoffRing[T]) slot() *T {
	n := uint64(len(r.slots))
	if r.next == r.limit {
		if r.limit = atomic.LoadUint64(&r.tail) + n; r.next == r.limit {
			return nil
		}
	}
	s := &r.slots[r.next&(n-1)]
	r.next++
	return s
}

// announce leaves the reader's copy of the line alone where nothing is new.
func (r *handoffRing[T]) announce() {
	if r.head != r.next {
		atomic.StoreUint64(&r.head, r.next)
	}
}

// waiting returns how many there are for the reader; at is the i-th of them, and taken gives n
// back.
func (r *handoffRing[T]) waiting() int  { return int(atomic.LoadUint64(&r.head) - r.tail) }
func (r *handoffRing[T]) at(i int) *T   { return &r.slots[(r.tail+uint64(i))&uint64(len(r.slots)-1)] }
func (r *handoffRing[T]) taken(n int)   { atomic.StoreUint64(&r.tail, r.tail+uint64(n)) }
func (r *handoffRing[T]) open(size int) { r.slots, r.limit = make([]T, size), uint64(size) }

// NewHandoff returns the lanes between so many workers.
func NewHandoff(workers int) *Handoff {
	h := &Handoff{workers, make([]handoffLane, workers*workers)}
	for i := range h.lanes {
		if i/workers != i%workers {
			h.lanes[i].frames.open(handoffSlots)
			h.lanes[i].turned.open(turnedSlots(workers))
		}
	}
	return h
}

// give puts a packet into a lane, if there is room.
func (l *handoffLane) give(b *Burst, p *Packet) bool {
	if p.turned {
		s := l.turned.slot()
		if s == nil {
			return false
		}
		s.Packet, s.port = *p, uint8(b.Port)
		s.datagram = nil // this worker's
		return true
	}
	s := l.frames.slot()
	if s == nil {
		return false
	}
	*s = handedFrame{p.Data, p.Handle, p.from, uint8(b.Port), b.inside, p.Front, p.tci, p.via}
	return true
}

// Adopt takes a burst that another worker handed over all its way, as Process does, and returns how
// many packets it had. The driver calls it every turn for each other worker, and empties the queues
// after it. Where both rings have something they take turns: neither waits for a flood in the other
// to end.
func (w *Worker) Adopt(from int) int {
	l := &w.handoff.lanes[from*w.handoff.workers+w.index]
	b := &w.adopted
	frames, turned, bit := l.frames.waiting(), l.turned.waiting(), uint64(1)<<from
	if frames+turned == 0 {
		return 0
	}
	w.Timed.begin()
	if turned > 0 && (frames == 0 || w.alternate&bit == 0) {
		w.alternate |= bit
		w.adoptTurned(b, &l.turned, turned)
	} else {
		w.alternate &^= bit
		w.adoptFrames(b, &l.frames, frames)
	}
	w.finish(b)
	return b.N
}

// adoptFrames takes those that came in at the same port as the first, n at most.
func (w *Worker) adoptFrames(b *Burst, r *handoffRing[handedFrame], n int) {
	first := r.at(0)
	b.Port, b.N = int(first.port), 0
	b.begin(first.inside)
	b.opened = true
	for n = min(n, MaxBurst); b.N < n; b.N++ {
		s := r.at(b.N)
		if int(s.port) != b.Port || s.inside != b.inside {
			break
		}
		p := &b.Packets[b.N]
		p.Data, p.Handle, p.Long = s.data, s.handle, false
		p.from, p.Front, p.tci, p.via = s.from, s.front, s.tci, s.via
		w.frames[b.N] = unsafe.Pointer(unsafe.SliceData(s.data))
	}
	prefetch.Lines(&w.frames[0], b.N) // they lie in the other worker's cache
	r.taken(b.N)
	w.counters.Adopted += uint64(b.N)
	w.intake(b, false)
}

// adoptTurned takes those that turned back at the same port as the first, n at most.
func (w *Worker) adoptTurned(b *Burst, r *handoffRing[handedPacket], n int) {
	b.Port, b.N = int(r.at(0).port), 0
	b.begin(false)
	for n = min(n, MaxBurst); b.N < n && int(r.at(b.N).port) == b.Port; b.N++ {
		b.Packets[b.N] = r.at(b.N).Packet
		b.live = append(b.live, uint8(b.N))
	}
	r.taken(b.N)
	w.counters.Adopted += uint64(b.N)
	w.lookupAll(b)
}
