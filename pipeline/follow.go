// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/session"
)

// follow takes the pieces whose first one has just gone ahead, or has been dropped, its way.
func (w *Worker) follow(first *Burst) {
	if !first.fragments {
		return
	}
	v := &w.pieces
	b := &v.later
	inside := b.inside
	side := v.side(inside)
	for n := 0; n < len(v.followers); {
		b.N = 0
		for ; n < len(v.followers) && b.N < MaxBurst; n++ {
			f := v.followers[n]
			if r := f.packet.datagram.refusal; r != drop.Pass {
				w.out(f.packet, b.Port, inside, refuse(r))
			} else {
				b.Packets[b.N], b.index[b.N] = *f.packet, uint8(b.N)
				b.N++
			}
			if f.slot != 0 {
				side.vacate(f.slot)
			}
		}
		b.live, b.back, b.inside = b.index[:b.N], b.turned[:0], inside
		w.lookupAll(b)
		w.forward(b)
		w.hairpin(b)
	}
	v.followers = v.followers[:0]
	for _, d := range v.complete {
		if d.proto == header.ProtocolTCP && d.refusal == drop.Pass && !d.dead {
			w.trackWhole(d, inside)
		}
		side.forget(side.find(&d.key, d.hash))
	}
	v.complete = v.complete[:0]
}

// trackWhole tracks a TCP segment once all its pieces have passed: the first has counted, as any
// segment, with its own bytes only. A blind attacker gains nothing by pieces, since the whole is
// checked against the same numbers again.
func (w *Worker) trackWhole(d *datagram, inside bool) {
	g := d.segment
	g.end += d.total
	k := &d.key
	if !inside {
		if s := w.liveSession(session.OutsideKey(k.local, k.remote, d.localPort, d.remotePort, header.ProtocolTCP)); s != nil {
			w.changeTCP(s, &g, false)
		}
		return
	}
	s := w.liveSession(session.InsideKey(k.vpc, k.local, k.remote, d.localPort, d.remotePort, header.ProtocolTCP))
	if s == nil {
		return
	}
	w.changeTCP(s, &g, true)
	// It has come in by another session too, which may be this worker's.
	if s.Flags&session.Hairpin != 0 {
		if s = w.liveSession(session.OutsideKey(s.Remote, s.External, s.RemotePort(), s.ExternalPort(), header.ProtocolTCP)); s != nil {
			w.changeTCP(s, &g, false)
		}
	}
}

// condemn remembers why the first piece of a datagram was dropped: the others share its fate.
func (p *Packet) condemn(r drop.Reason) {
	if p.datagram != nil && p.kind != kindPiece {
		p.datagram.refusal = r
	}
}
