// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
)

// lookup asks for the sessions of the packets from the first-th live one on: first for the buckets
// that they are found by, and for the sessions of those a step before, whose buckets should have
// come. Packets from a port that no VPC is attached to end here.
func (w *Worker) lookup(b *Burst, first int) {
	live := b.live[first:]
	vpc := uint32(0)
	if b.inside {
		port := &w.gen.Ports[b.Port]
		if port.Tagged {
			w.lookupTagged(b, first)
			return
		}
		at := port.Own.Index
		if at == generation.Unattached {
			for _, i := range live {
				w.out(&b.Packets[i], b.Port, b.inside, refuse(drop.AntiSpoof))
			}
			b.live = b.live[:first]
			return
		}
		vpc = w.gen.Attachments[at].Slot
	}
	keys := w.batch.Keys[first:][:len(live)]
	for k, i := range live {
		p := &b.Packets[i]
		if b.inside {
			keys[k].SetInside(vpc, p.local, p.remote, p.localPort, p.remotePort, p.proto)
		} else {
			keys[k].SetOutside(p.local, p.remote, p.localPort, p.remotePort, p.proto)
		}
	}
	w.sessions.Hash(&w.batch, len(b.live))
	w.sessions.Match(&w.batch, max(0, first-step))
}

// lookupTagged is lookup for a port whose packets come from several attachments.
func (w *Worker) lookupTagged(b *Burst, first int) {
	live := b.live[:first]
	for _, i := range b.live[first:] {
		p := &b.Packets[i]
		if p.from.Index == generation.Unattached {
			if end := w.gen.Ports[b.Port].Ends[p.family]; end != (inet.Addr{}) && end == p.remote {
				w.serve(b, p)
				continue
			}
			w.out(p, b.Port, b.inside, refuse(drop.AntiSpoof))
			continue
		}
		w.batch.Keys[len(live)].SetInside(w.vpcSlot(p), p.local, p.remote, p.localPort, p.remotePort, p.proto)
		live = append(live, i)
	}
	b.live = live
	w.sessions.Hash(&w.batch, len(b.live))
	w.sessions.Match(&w.batch, max(0, first-step))
}
