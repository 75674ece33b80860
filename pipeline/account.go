// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"math/bits"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/state"
)

// among returns how many of the first n frames of a queue are in a set.
func among(set *[queueSize / 64]uint64, n int) (count int) {
	for i, word := range set {
		if left := n - 64*i; left < 64 {
			word &= 1<<max(left, 0) - 1
		}
		count += bits.OnesCount64(word)
	}
	return count
}

// Sent books the fate of queue port: its first n frames were sent, bytes long in all, the others
// refused. It empties the queue, and leaves what was refused in Done.
func (w *Worker) Sent(port, n int) {
	q := &w.Out[port]
	bytes := q.bytes
	for _, f := range q.Frames[n:q.N] {
		bytes -= uint64(len(f))
	}
	extras, owns := 0, 0 // of those sent; a refused one is no packet that was received
	if q.extras > 0 {
		extras = among(&q.extra, n)
	}
	if q.owns > 0 {
		owns = among(&q.own, n)
	}
	w.counters.Transmitted[port] += uint64(n)
	w.counters.TransmittedBytes[port] += bytes
	w.counters.Forwarded += uint64(n - extras - owns)
	w.counters.Originated += uint64(owns)
	w.counters.Fragmented += uint64(extras)
	if n < q.N {
		w.refused(q, port, n)
	}
	if q.extras > 0 {
		q.extra, q.extras = [len(q.extra)]uint64{}, 0
	}
	if q.owns > 0 {
		q.own, q.owns = [len(q.own)]uint64{}, 0
	}
	q.N, q.bytes = 0, 0
}

// refused ends the frames of a queue from the n-th on, which port did not take.
func (w *Worker) refused(q *Queue, port, n int) {
	inside := w.gen.Ports[port].Side == uint8(config.Inside)
	for i := n; i < q.N; i++ {
		if q.extra[i/64]>>(i%64)&1 != 0 { // no packet that was received
			w.Done = append(w.Done, q.Handles[i])
			continue
		}
		if q.own[i/64]>>(i%64)&1 != 0 {
			w.Done = append(w.Done, q.Handles[i])
			w.Unsent(1)
			continue
		}
		w.outFrame(q.Frames[i], q.Handles[i], port, inside, refuse(drop.TxFull))
	}
	w.flush()
}

// Originated books frames of weir itself that the driver sent through port.
func (w *Worker) Originated(port, frames int, bytes uint64) {
	w.counters.Originated += uint64(frames)
	w.counters.Transmitted[port] += uint64(frames)
	w.counters.TransmittedBytes[port] += bytes
}

// Unsent counts frames of weir itself for which the driver had no buffer, or the port no room.
func (w *Worker) Unsent(frames int) { w.counters.Unsent += uint64(frames) }

// Turned counts one turn of the loop that took so many nanoseconds.
func (w *Worker) Turned(nanos int64) {
	w.counters.Turns[min(bits.Len64(uint64(nanos)), state.TurnBuckets-1)]++
	w.counters.TurnsNanoseconds += uint64(nanos)
}

// Polled counts n receive calls, empty of which brought nothing, and the nanoseconds of turns with
// work.
func (w *Worker) Polled(n, empty int, busy int64) {
	w.counters.Polls += uint64(n)
	w.counters.EmptyPolls += uint64(empty)
	w.counters.BusyNanoseconds += uint64(busy)
}
