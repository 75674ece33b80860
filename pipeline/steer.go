// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/state"
)

// steer hands those packets of a burst that other workers own to them, from the first-th live one
// on.
func (w *Worker) steer(b *Burst, first int) {
	lanes := w.handoff.lanes[w.index*w.handoff.workers:][:w.handoff.workers]
	keep := b.live[:first]
	given := uint64(0) // a bit for each worker
	for _, i := range b.live[first:] {
		p := &b.Packets[i]
		to := w.owner(p)
		switch {
		case int(to) == w.index:
			keep = append(keep, i)
		case !lanes[to].give(b, p):
			w.out(p, b.Port, b.inside, refuse(drop.HandoffFull))
		default:
			w.out(p, b.Port, b.inside, handed)
			given |= 1 << to
		}
	}
	b.live = keep
	for to := range lanes {
		if given>>to&1 != 0 {
			lanes[to].frames.announce()
			lanes[to].turned.announce()
		}
	}
}

// owner returns the worker that a packet is for.
func (w *Worker) owner(p *Packet) uint8 {
	return w.state.Ownership().Owners[w.toeplitz.Hash(p.remoteOwner())%state.OwnerSlots]
}
