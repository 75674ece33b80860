// SPDX-License-Identifier: Apache-2.0

package pipeline

import "weir/pipeline/tsc"

// Stages are the names of what StageCounts counts, in their order. Route is also what packets from outside have in its
// place; steer is also reassembly, flush the turning of hairpins and the fragments that follow.
var Stages = [...]string{"received", "classify", "steer", "lookup", "route", "egress", "rewrite", "transmit", "flush"}

// StageCounts adds up, per stage, counts of the time stamp counter. Each burst's has one reading of the counter in it.
type StageCounts struct {
	Counts [len(Stages)]uint64
	at     uint64 // when the stage began
}

// end ends a stage, and begins the next.
func (c *StageCounts) end(stage int) {
	now := tsc.Read()
	c.Counts[stage] += now - c.at
	c.at = now
}

// ProcessTimed is Process with the counter read between stages, for weir bench. It and forwardTimed are copies, so that
// Process has no cost of it; a test compares them.
func (w *Worker) ProcessTimed(b *Burst, c *StageCounts) {
	c.at = tsc.Read()
	w.received(b)
	c.end(0)
	w.classify(b)
	c.end(1)
	w.steer(b)
	w.reassemble(b)
	c.end(2)
	w.forwardTimed(b, c)
	w.turnBack(b)
	w.follow(b)
	w.flush()
	c.end(8)
}

func (w *Worker) forwardTimed(b *Burst, c *StageCounts) {
	w.lookup(b)
	c.end(3)
	if b.inside {
		w.route(b)
	} else {
		w.deliver(b)
	}
	c.end(4)
	w.egress(b)
	c.end(5)
	w.rewrite(b)
	c.end(6)
	w.transmit(b)
	c.end(7)
}
