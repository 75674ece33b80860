// SPDX-License-Identifier: Apache-2.0

package pipeline

import "weir/pipeline/tsc"

// The stages that StageCounts counts, and Stages names.
const (
	stageClassify   = iota // and steer, and what lookup does ahead
	stageReassemble        // and looking up again
	stageShort
	stageApply
	stageRoute // or, from outside, deliver
	stageEgress
	stageRewrite
	stageTransmit
	stageFlush // and the turning of hairpins and the fragments that follow
	numStages
)

// Stages are the names of the stages.
var Stages = [numStages]string{"classify", "reassemble", "short", "apply", "route", "egress", "rewrite", "transmit", "flush"}

// StageCounts adds up, per stage, counts of the time stamp counter. Each end of a stage has one
// reading of the counter in it.
type StageCounts struct {
	Counts [numStages]uint64
	at     uint64 // when the stage began
}

// begin begins the first stage, if stages are timed.
func (c *StageCounts) begin() {
	if c != nil {
		c.at = tsc.Read()
	}
}

// end ends a stage and begins the next, if stages are timed.
func (c *StageCounts) end(stage int) {
	if c != nil {
		c.next(stage)
	}
}

func (c *StageCounts) next(stage int) {
	now := tsc.Read()
	c.Counts[stage] += now - c.at
	c.at = now
}
