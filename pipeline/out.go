// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
)

// verdict says what became of a packet. A reason is no verdict and no verdict a reason, so that one
// in the other's place does not compile: see refuse.
type verdict uint16

const (
	goesOn verdict = 0 // to the next stage

	// Between them lie the drops: the reasons themselves.

	punted    verdict = 0x100 + iota // for weir itself: answered, or for control to learn from
	held                             // until its neighbor is resolved or its first fragment comes
	handed                           // to the worker that owns its flow
	follows                          // goes on after the first fragment, which is in the same burst
	duplicate                        // the same piece of a datagram has been seen; dropped alone
)

// refuse is the verdict of a stage that drops a packet for reason r; drop.Pass refuses nothing.
func refuse(r drop.Reason) verdict { return verdict(r) }

// dropped reports whether a packet is dropped, and reason why.
func (v verdict) dropped() bool       { return v != goesOn && v < 0x100 }
func (v verdict) reason() drop.Reason { return drop.Reason(v) }

// out is the one way out: each packet that does not go on to a queue ends here, with its verdict,
// and is counted here. port and inside are where it came in; of a packet that a port refused, that
// port. A packet that is held comes to queue or here again. What is sent ends in queue and Sent
// instead.
func (w *Worker) out(p *Packet, port int, inside bool, v verdict) {
	switch v {
	case punted:
		w.counts.punted++
	case handed:
		w.counters.Handed++ // before the other worker can see it
		return              // its buffer is the other worker's
	case held:
		return // flush counts what is held
	default:
		if p.fragmented {
			p.condemn(v.reason())
		}
		w.dropped[v.reason()]++
		w.counts.dropped = true
	}
	w.Done = append(w.Done, p.Handle)
}

// outFrame is out for a packet of which only the frame is left: it was held, or is in a queue.
func (w *Worker) outFrame(frame []byte, handle uintptr, port int, inside bool, v verdict) {
	w.out(&Packet{Data: frame, Handle: handle}, port, inside, v)
}
