// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"unsafe"

	"weir/pipeline/state"

	"golang.org/x/sys/unix"

	"weir/appliance/link"
	"weir/config"
	"weir/dpdk"
	"weir/pipeline"
)

// Worker is where dpdk and pipeline meet: one pinned thread, one loop.
type Worker struct {
	Index       int
	Core        int
	Ports       []*dpdk.Port
	Devices     []Device // those of Ports; nil: each has one
	Pool        *dpdk.Mempool
	Pipe        *pipeline.Worker
	State       *state.State
	Inject      state.Ring // what control has to say
	Generations *Generations
	Seen        uint64 // number of the generation in use
	Idle        config.Idle
	Backoff     Backoff
	Stop        *atomic.Bool
	Waiter      *dpdk.Waiter // for the interrupts of its queues; nil: not all have them, or none is wanted

	Rx    dpdk.RxBurst // what Enter takes
	burst pipeline.Burst
	mbufs [pipeline.MaxSpare]dpdk.Mbuf
	armed bool // the interrupts are switched on
	empty int  // turns without work, in a row
}

// BurstSize is how many packets one receive asks for: large enough that calls into C weigh little,
// small enough that headers and sessions of a burst stay in the first cache.
const BurstSize = 32

// loop runs until Stop is set.
func (w *Worker) loop() {
	if w.Devices == nil {
		w.Devices = Devices(w.Ports, nil)
	}
	var last int64
	before := link.Monotonic()
	for !w.Stop.Load() {
		now := link.Monotonic()
		w.Pipe.Turned(now - before)
		before = now
		if n := w.State.Published(); n != w.Seen {
			w.Pipe.SetGeneration(w.Generations.At(n))
			w.Seen = n
		}
		w.Pipe.SetClock(now)
		polls, hits := len(w.Devices), 0
		for i := range w.Devices {
			d := &w.Devices[i]
			if w.Index >= d.Port.RxQueues() || d.Port.Receive(w.Index, &w.Rx, BurstSize) == 0 {
				continue
			}
			hits++
			if d.ByVID == nil {
				w.Process(d.Index)
			} else {
				w.divide(d)
			}
		}
		work := hits > 0
		for from := range w.State.Workers() {
			if from != w.Index && w.adopt(from) > 0 {
				work = true
			}
		}
		if w.Inject.Peek() != nil {
			w.originate()
			work = true
		}
		w.Pipe.Release()
		w.send()
		if elapsed := now - last; elapsed > 1e6 {
			w.expire(elapsed)
			last = now
		}
		if work {
			w.Pipe.Polled(polls, polls-hits, link.Monotonic()-now)
			w.empty = 0
			if w.armed { // it came between the end of a wait and this turn
				w.disarm()
			}
		} else {
			w.Pipe.Polled(polls, polls, 0)
			if w.rest() {
				before = link.Monotonic()
			}
		}
	}
	w.Finish()
}

// Finish gives every buffer back.
func (w *Worker) Finish() {
	w.Pipe.Abandon()
	w.free()
}

// Process takes what port p has received, in Rx, through the pipeline and sends the result.
func (w *Worker) Process(p int) {
	w.Enter(p)
	w.send()
}

// Enter takes what port p has received, in Rx, through the pipeline. The result is in Pipe.Out and
// Pipe.Done.
func (w *Worker) Enter(p int) {
	w.stock()
	b := &w.burst
	b.Port, b.N = p, w.Rx.N
	for i := range w.Rx.N {
		w.fill(&b.Packets[i], i)
	}
	w.Pipe.Process(b)
}

// fill makes a packet of the i-th frame in Rx.
func (w *Worker) fill(k *pipeline.Packet, i int) {
	k.Data = unsafe.Slice((*byte)(w.Rx.Data[i]), w.Rx.Len[i])
	k.Handle = uintptr(w.Rx.Mbufs[i])
	k.Front = uint16(w.Rx.Mbufs[i].Headroom())
	k.Long = w.Rx.Segs[i] > 1 || w.Rx.PktLen[i] != uint32(w.Rx.Len[i])
}

// mostAdopted bounds what a worker takes from another one in a turn: what their ring holds.
const mostAdopted = 256

// adopt takes what another worker has handed over through the pipeline, group by group, as many as
// it finds: a sender writes a group for each port that it polls.
func (w *Worker) adopt(from int) (all int) {
	for all < mostAdopted {
		w.stock()
		n := w.Pipe.Adopt(from)
		if n == 0 {
			break
		}
		w.send()
		all += n
	}
	return all
}

// send empties the pipeline's queues: one call of C for each port, and one to free what was
// dropped.
func (w *Worker) send() {
	for p, port := range w.Ports {
		q := &w.Pipe.Out[p]
		if q.N == 0 {
			continue
		}
		mbufs := mbufsOf(q.Handles[:q.N])
		for i, m := range mbufs {
			m.SetBytes(q.Frames[i]) // tags came off and on, padding was cut
		}
		n := port.Transmit(w.Index, mbufs)
		if n < q.N { // once more, then it is the queue's fault
			n += port.Transmit(w.Index, mbufs[n:])
		}
		w.Pipe.Sent(p, n)
	}
	w.free()
}

func (w *Worker) free() {
	dpdk.Free(mbufsOf(w.Pipe.Done))
	w.Pipe.Done = w.Pipe.Done[:0]
}

// mbufsOf returns the buffers that the pipeline knows by their numbers. It is the same memory.
func mbufsOf(handles []uintptr) []dpdk.Mbuf {
	return unsafe.Slice((*dpdk.Mbuf)(unsafe.Pointer(unsafe.SliceData(handles))), len(handles))
}

// stock fills up the buffers that the pipeline takes for further fragments. A pool that has none
// left is no fault: it does without.
func (w *Worker) stock() {
	s := &w.Pipe.Spare
	n := pipeline.MaxSpare - s.N
	if n == 0 || w.Pool.Alloc(w.mbufs[:n]) != nil {
		return
	}
	for _, m := range w.mbufs[:n] {
		b := m.Bytes()
		s.Handles[s.N], s.Data[s.N], s.Front = uintptr(m), b[:cap(b)], uint16(m.Headroom())
		s.N++
	}
}

// sendOne sends a frame of control through a port, or reports that there is no buffer or no room.
func (w *Worker) sendOne(port int, data []byte) bool {
	if w.Pool.Alloc(w.mbufs[:1]) != nil {
		return false
	}
	b := w.mbufs[0]
	b.SetLen(copy(b.Bytes()[:cap(b.Bytes())], data))
	if w.Ports[port].Transmit(w.Index, w.mbufs[:1]) != 1 {
		dpdk.Free(w.mbufs[:1])
		return false
	}
	w.Pipe.Originated(port, 1, uint64(len(data)))
	return true
}

// originate sends what control has to say, a burst at the most.
func (w *Worker) originate() {
	for range BurstSize {
		m := w.Inject.Peek()
		if m == nil {
			return
		}
		if m.Kind == state.InjectFrame && m.At.Port() < len(w.Ports) && !w.sendOne(m.At.Port(), m.Data()) {
			w.Pipe.Unsent(1)
		}
		w.Inject.Pop()
	}
}

// The whole table is walked about once in walkTime; no turn walks more than maxWalk sessions.
const (
	walkTime = int64(4e9)
	maxWalk  = 2048
)

func (w *Worker) expire(elapsed int64) {
	n := int64(w.Pipe.Capacity()) * min(elapsed, walkTime) / walkTime
	w.Pipe.Expire(int(min(n+1, maxWalk)))
}

// Run pins the thread and loops until Stop is set. ready is told once the thread is registered, or
// why it could not be.
func (w *Worker) Run(ready chan<- error, done func()) {
	defer done()
	if err := dpdk.RegisterThread(w.Core); err != nil {
		ready <- err
		return
	}
	defer dpdk.UnregisterThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // sleep as long as asked; best effort
	ready <- nil
	w.loop()
}
