// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
)

// deliver finds, for each packet from outside that has no session, what its destination is.
func (w *Worker) deliver(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.act == actNone {
			if s, ok := w.late(p.outsideKey(), p); ok && !p.uninvited(s) {
				w.fromOutside(s, p)
			} else if r := w.deliverOne(p); r == punted {
				w.serve(b.Port, p)
				continue
			} else if r != drop.Pass {
				if r == drop.TTLExceeded {
					w.answer(b.Port, p, r, 0)
				}
				w.drop(p, r)
				continue
			}
		}
		if p.act == actReset {
			w.drop(p, drop.TCPReset)
			continue
		}
		keep = append(keep, i)
	}
	b.live = keep
}

func (w *Worker) deliverOne(p *Packet) drop.Reason {
	g := w.gen
	h := g.Host(0, p.local)
	switch {
	case p.local == p.remote && !p.turned:
		return drop.Martian
	case p.turned:
	case g.Own(p.remote):
		return drop.OwnSource
	}
	if h != nil && h.Kind == generation.HostOwn {
		return punted
	}
	if !p.turned && martian(p.remote) {
		return drop.Martian
	}
	if h == nil && !p.turned {
		if in, known := g.PrivateOwner(p.local); known {
			return w.deliverPrivate(p, in)
		}
	}
	if !p.turned && private(p.remote) {
		return drop.Martian
	}
	if h == nil {
		if r := g.Find(generation.AttachedTables+uint32(p.family), p.local); r != 0 {
			if p.expired {
				return drop.TTLExceeded
			}
			in := &g.Instances[g.Attached[r-1].Instance]
			p.act, p.outPort, p.neighbor = actInPlain, in.Port[p.family], in.Neighbor[p.family]
			return drop.Pass
		}
		return drop.UnknownDestination
	}
	if p.kind >= kindError {
		return w.errorIn(p, h)
	}
	if h.Kind == generation.HostSNAT {
		return w.invited(p, h)
	}
	switch {
	case p.expired:
		return drop.TTLExceeded
	case p.pinned:
		return drop.Untranslatable
	}
	w.inbound(p, &g.Instances[h.Index], h)
	return drop.Pass
}

// deliverPrivate delivers a packet to the private address of an instance, nil for none, as it is, if it comes from a partner: one that a route leads to
// untranslated. ICMP errors about what the instance sent to one come from any router.
func (w *Worker) deliverPrivate(p *Packet, in *generation.Instance) drop.Reason {
	q := &p.quote
	switch {
	case in == nil:
		return drop.UnknownDestination
	case w.gen.Partner(in, p.remote):
	case p.kind == kindError && q.fault == drop.Pass && q.local == p.local && w.gen.Partner(in, q.remote):
	default:
		return drop.NoPartner
	}
	if p.expired {
		return drop.TTLExceeded
	}
	p.act, p.outPort, p.neighbor = actInPlain, in.Port[p.family], in.Neighbor[p.family]
	return drop.Pass
}
