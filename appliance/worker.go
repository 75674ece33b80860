// SPDX-License-Identifier: Apache-2.0

package main

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/generation"
	"weir/pipeline/state"
)

// worker is where dpdk and pipeline meet: one pinned thread, one loop.
type worker struct {
	index  int
	core   int
	ports  []*dpdk.Port
	pool   *dpdk.Mempool
	pipe   *pipeline.Worker
	state  *state.State
	inject state.Ring
	gens   *[generations]generation.Generation
	seen   uint64 // number of the generation in use
	idle   config.Idle
	nap    backoff
	stop   *atomic.Bool

	waiter *dpdk.Waiter // for the interrupts of its queues; nil: not all have them, or none is wanted
	armed  bool         // they are switched on

	rx    dpdk.RxBurst
	burst pipeline.Burst
	mbufs [pipeline.MaxSpare]dpdk.Mbuf
	empty int // turns without work, in a row
}

// burstSize is how many packets one receive asks for: large enough that calls into C weigh little, small enough that
// headers and sessions of a burst stay in the first cache.
const burstSize = 32

// loop runs until stop is set.
func (w *worker) loop() {
	var last int64
	before := monotonic()
	for !w.stop.Load() {
		now := monotonic()
		w.pipe.Turned(now - before)
		before = now
		if n := w.state.Published(); n != w.seen {
			w.pipe.SetGeneration(&w.gens[n%generations])
			w.seen = n
		}
		w.pipe.SetClock(now)
		polls, hits := len(w.ports), 0
		for p, port := range w.ports {
			if w.index >= port.RxQueues() {
				continue
			}
			if n := port.Receive(w.index, &w.rx, burstSize); n > 0 {
				hits++
				w.process(p)
			}
		}
		work := hits > 0
		for from := range w.state.Workers() {
			if from != w.index && w.adopt(from) > 0 {
				work = true
			}
		}
		if w.inject.Peek() != nil {
			w.originate()
			work = true
		}
		w.pipe.Release()
		w.send()
		if elapsed := now - last; elapsed > 1e6 {
			w.expire(elapsed)
			last = now
		}
		if work {
			w.pipe.Polled(polls, polls-hits, monotonic()-now)
			w.empty = 0
			if w.armed { // it came between the end of a wait and this turn
				w.disarm()
			}
		} else {
			w.pipe.Polled(polls, polls, 0)
			if w.rest() {
				before = monotonic()
			}
		}
	}
	w.finish()
}

// finish gives every buffer back.
func (w *worker) finish() {
	w.pipe.Abandon()
	w.free()
}

// process takes what was received by port p through the pipeline and sends the result.
func (w *worker) process(p int) {
	w.stock()
	b := &w.burst
	b.Port, b.N = p, w.rx.N
	for i := range w.rx.N {
		k := &b.Packets[i]
		k.Data = unsafe.Slice((*byte)(w.rx.Data[i]), w.rx.Len[i])
		k.Handle = uintptr(w.rx.Mbufs[i])
		k.Long = w.rx.Segs[i] > 1 || w.rx.PktLen[i] != uint32(w.rx.Len[i])
	}
	w.pipe.Process(b)
	w.send()
}

// mostAdopted bounds what a worker takes from another one in a turn: what their ring holds.
const mostAdopted = 256

// adopt takes what another worker has handed over through the pipeline, run by run, as many as it finds: a sender writes a run for each
// port that it polls.
func (w *worker) adopt(from int) (all int) {
	for all < mostAdopted {
		w.stock()
		n := w.pipe.Adopt(from)
		if n == 0 {
			break
		}
		w.send()
		all += n
	}
	return all
}

// send empties the pipeline's queues: one call of C for each port, and one to free what was dropped.
func (w *worker) send() {
	for p, port := range w.ports {
		q := &w.pipe.Out[p]
		if q.N == 0 {
			continue
		}
		mbufs := mbufsOf(q.Handles[:q.N])
		for i, m := range mbufs {
			m.SetLen(len(q.Frames[i])) // Ethernet padding was cut
		}
		n := port.Transmit(w.index, mbufs)
		if n < q.N { // once more, then it is the queue's fault
			n += port.Transmit(w.index, mbufs[n:])
		}
		w.pipe.Sent(p, n)
	}
	w.free()
}

func (w *worker) free() {
	dpdk.Free(mbufsOf(w.pipe.Done))
	w.pipe.Done = w.pipe.Done[:0]
}

// mbufsOf returns the buffers that the pipeline knows by their numbers. It is the same memory.
func mbufsOf(handles []uintptr) []dpdk.Mbuf {
	return unsafe.Slice((*dpdk.Mbuf)(unsafe.Pointer(unsafe.SliceData(handles))), len(handles))
}

// stock fills up the buffers that the pipeline takes for further fragments. A pool that has none left is no fault: it does
// without.
func (w *worker) stock() {
	s := &w.pipe.Spare
	n := pipeline.MaxSpare - s.N
	if n == 0 || w.pool.Alloc(w.mbufs[:n]) != nil {
		return
	}
	for _, m := range w.mbufs[:n] {
		b := m.Bytes()
		s.Handles[s.N], s.Data[s.N] = uintptr(m), b[:cap(b)]
		s.N++
	}
}

// originate sends what control has to say, a burst at the most.
func (w *worker) originate() {
	for range burstSize {
		m := w.inject.Peek()
		if m == nil {
			return
		}
		if m.Kind == state.InjectFrame && m.At.Port() < len(w.ports) && w.pool.Alloc(w.mbufs[:1]) == nil {
			b := w.mbufs[0]
			data := m.Data()
			b.SetLen(copy(b.Bytes()[:cap(b.Bytes())], data))
			if w.ports[m.At.Port()].Transmit(w.index, w.mbufs[:1]) == 1 {
				w.pipe.Originated(m.At.Port(), 1, uint64(len(data)))
			} else {
				dpdk.Free(w.mbufs[:1])
			}
		}
		w.inject.Pop()
	}
}

// The whole table is walked about once in walkTime; no turn walks more than maxWalk sessions.
const (
	walkTime = int64(4e9)
	maxWalk  = 2048
)

func (w *worker) expire(elapsed int64) {
	n := int64(w.pipe.Capacity()) * min(elapsed, walkTime) / walkTime
	w.pipe.Expire(int(min(n+1, maxWalk)))
}

// backoff says how a worker rests while its queues are empty: it spins for so many turns, then sleeps least, and twice as
// long after every step turns more, up to most. A Go sleep on a locked thread takes a millisecond at least, nanosleep does
// not. docs/performance.md has what each setting costs and gives.
//
// Where all its queues have interrupts, the worker waits for them instead, and as long as it would sleep: they tell nothing of
// sessions that are to end, of a new generation, of what control or another worker puts into a ring.
type backoff struct {
	spin, step  int
	least, most int64 // nanoseconds
}

var defaultBackoff = backoff{spin: 200, step: 8, least: 20_000, most: 700_000}

// wokenBackoff is for a worker that waits for interrupts and takes nothing from other workers: shorter sleeps gain nothing there.
var wokenBackoff = backoff{spin: defaultBackoff.spin, step: 1, least: defaultBackoff.most, most: defaultBackoff.most}

func (w *worker) rest() (slept bool) {
	w.empty++
	if w.idle == config.IdleBusy || w.empty < w.nap.spin {
		return false
	}
	nap := min(w.nap.least<<min((w.empty-w.nap.spin)/w.nap.step, 10), w.nap.most)
	switch {
	case w.waiter == nil:
		ts := unix.Timespec{Nsec: nap}
		unix.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
		return true
	case !w.armed: // a packet may have come just before, for which no interrupt comes: one more turn
		w.waiter.Enable()
		w.armed = true
		return false
	}
	if w.waiter.Wait(time.Duration(nap)) {
		w.disarm()
	}
	return true
}

func (w *worker) disarm() {
	w.waiter.Disable()
	w.armed = false
}

// run pins the thread and loops. ready is told once the thread is registered, or why it could not be.
func (w *worker) run(ready chan<- error, done func()) {
	defer done()
	if err := dpdk.RegisterThread(w.core); err != nil {
		ready <- err
		return
	}
	defer dpdk.UnregisterThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // sleep as long as asked; best effort
	ready <- nil
	w.loop()
}
