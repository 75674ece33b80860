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
			if s := w.late(p.outsideKey(), p); s != nil && !p.uninvited(s) && !w.astray(s, p) {
				w.fromOutside(s, p)
			} else if v := w.deliverOne(p); v == punted {
				w.serve(b, p)
				continue
			} else if v != goesOn {
				if v == refuse(drop.TTLExceeded) {
					w.answer(p, v.reason(), 0)
				}
				w.out(p, b.Port, b.inside, v)
				continue
			}
		}
		if p.act == actReset {
			w.out(p, b.Port, b.inside, refuse(drop.TCPReset))
			continue
		}
		keep = append(keep, i)
	}
	b.live = keep
}

func (w *Worker) deliverOne(p *Packet) verdict {
	g := w.gen
	h := g.Host(0, p.local)
	switch {
	case p.local == p.remote && !p.turned:
		return refuse(drop.Martian)
	case p.turned:
	case g.Own(p.remote):
		return refuse(drop.OwnSource)
	}
	if h != nil && h.Kind == generation.HostOwn {
		return punted
	}
	if h == nil && !p.turned && (!martian(p.remote) || linkLocal(p.remote) && p.kind == kindError) {
		if in, known := g.PrivateOwner(p.local); known {
			return w.deliverPrivate(p, in)
		}
	}
	if !p.turned && w.strange(p) {
		return refuse(drop.Martian)
	}
	if h == nil {
		if r := g.Find(generation.AttachedTables+uint32(p.family), p.local); r != 0 {
			return p.comeInPlain(&g.Instances[g.Attached[r-1].Instance])
		}
		return refuse(drop.UnknownDestination)
	}
	if p.kind >= kindError {
		return refuse(w.errorIn(p, h))
	}
	if h.Kind == generation.HostSNAT {
		return refuse(w.invited(p, h))
	}
	switch {
	case p.expired:
		return refuse(drop.TTLExceeded)
	case p.pinned:
		return refuse(drop.Untranslatable)
	}
	w.inbound(p, &g.Instances[h.Index], h)
	return goesOn
}

// deliverPrivate delivers a packet to the private address of an instance, nil for none, as it is,
// if it comes from a partner: one that a route leads to untranslated. ICMP errors about what the
// instance sent to one come from any router.
func (w *Worker) deliverPrivate(p *Packet, in *generation.Instance) verdict {
	q := &p.quote
	switch {
	case in == nil:
		return refuse(drop.UnknownDestination)
	case w.gen.Partner(in, p.remote):
	case p.kind == kindError && q.fault == drop.Pass && q.local == p.local && w.gen.Partner(in, q.remote):
	default:
		return refuse(drop.NoPartner)
	}
	return p.comeInPlain(in)
}

// comeInPlain notes that a packet goes to an instance as it is.
func (p *Packet) comeInPlain(in *generation.Instance) verdict {
	if p.expired {
		return refuse(drop.TTLExceeded)
	}
	p.act = actInPlain
	p.reach(in)
	return goesOn
}

// strange reports whether a packet that came by an outside port claims to be from where none comes
// from there. Flows begin from the private networks that the port lists. An ICMP error begins
// nothing, and any router on the way may send it, whatever its own address: one about a packet of
// its receiver is let on, to be held against sessions and addresses (RFC 5508 REQ-4, RFC 4787
// REQ-12a).
func (w *Worker) strange(p *Packet) bool {
	scoped := linkLocal(p.remote)
	switch {
	case !p.remote.Private() && !scoped:
		return martian(p.remote)
	case p.kind == kindError && p.quote.fault == drop.Pass && p.quote.local == p.local:
		return false
	}
	return scoped || !w.gen.PrivateSource(p.from.At.Port(), p.remote)
}
