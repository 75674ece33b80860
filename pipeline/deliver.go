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
			} else if r := w.deliverOne(b.Port, p); r == punted {
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

func (w *Worker) deliverOne(port int, p *Packet) drop.Reason {
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
	if !p.turned && w.strange(port, p) {
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

// strange reports whether a packet that came by an outside port claims to be from where none comes from there. Flows begin from the private
// networks that the port lists. An ICMP error begins nothing, and any router on the way may send it, whatever its own address: one about
// a packet of its receiver is let on, to be held against sessions and addresses (RFC 5508 REQ-4, RFC 4787 REQ-12a).
func (w *Worker) strange(port int, p *Packet) bool {
	scoped := linkLocal(p.remote)
	switch {
	case !p.remote.Private() && !scoped:
		return martian(p.remote)
	case p.kind == kindError && p.quote.fault == drop.Pass && p.quote.local == p.local:
		return false
	}
	return scoped || !w.gen.PrivateSource(port, p.remote)
}
