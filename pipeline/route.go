// SPDX-License-Identifier: Apache-2.0

package pipeline

import "weir/pipeline/inet"

// route sends each packet from inside that has no session where its VPC's routes say: on inside the VPC, or tagged
// with an Internet gateway and on to selectSource.
func (w *Worker) route(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.act == actNone {
			if s, ok := w.late(p.insideKey(w.gen.vpcs[w.gen.ports[b.Port].VPC].Slot), p); ok {
				w.fromInside(s, p)
				keep = append(keep, i)
				continue
			}
			r := w.routeOne(b.Port, p)
			if r == punted {
				w.serve(b.Port, p)
				continue
			}
			if r != Pass {
				w.answer(b.Port, p, r, 0)
				w.drop(p, r)
				continue
			}
		}
		keep = append(keep, i)
	}
	b.live = keep
}

func (w *Worker) routeOne(port int, p *Packet) Reason {
	g := w.gen
	vi := uint32(g.ports[port].VPC)
	domain := vi + 1
	if p.local == p.remote {
		return Martian
	}
	if martian(p.remote) {
		return Martian
	}
	// Whose is the source: an instance's own address, or a prefix behind an instance.
	var in *instanceRecord
	var attached *attachedRecord
	own, transit := false, false
	if from := g.host(domain, p.local); from != nil && from.Kind == hostInstance {
		in, own = &g.instances[from.Index], true
	}
	if r := g.find(g.vpcs[vi].Sources[p.family], p.local); r != 0 {
		s := &g.sources[r-1]
		if in == nil {
			in = &g.instances[s.Instance]
			transit = s.Kind == sourceTransit
		}
		if s.Kind == sourceAttached && in == &g.instances[s.Instance] {
			attached = &g.attached[s.Attached]
		}
	}
	if in == nil {
		return AntiSpoof
	}
	if to := g.host(domain, p.remote); to != nil && to.Kind == hostOwn {
		return punted
	}
	if p.expired {
		return TTLExceeded
	}
	r := g.find(in.Routes[p.family], p.remote)
	if r == 0 {
		return NoRoute
	}
	rt := &g.routes[r-1]
	switch {
	case rt.Kind == routeDrop:
		return RouteDrop
	case rt.Kind == routeInternal:
		if attached != nil && !own {
			return PublicSource
		}
		p.act, p.outPort, p.neighbor, p.hop = actInPlain, rt.Port, NoNeighbor, rt.Hop
		if p.hop == (inet.Addr{}) {
			p.hop = p.remote
		}
		return Pass
	case transit:
		return PublicSource
	}
	if g.own(p.remote) {
		if to := g.host(0, p.remote); to != nil && to.Kind == hostOwn {
			return NoService
		}
		p.hairpin = true
	}
	if attached != nil {
		if g.eligible(attached.Set, rt.Gateway) {
			p.act, p.ports = actOutPlain, attached.Ports
			return Pass
		}
		if !own {
			return NoEligible
		}
	}
	return w.selectSource(p, in, rt.Tag)
}

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
			} else if r != Pass {
				if r == TTLExceeded {
					w.answer(b.Port, p, r, 0)
				}
				w.drop(p, r)
				continue
			}
		}
		if p.act == actReset {
			w.drop(p, TCPReset)
			continue
		}
		keep = append(keep, i)
	}
	b.live = keep
}

func (w *Worker) deliverOne(p *Packet) Reason {
	g := w.gen
	h := g.host(0, p.local)
	switch {
	case p.local == p.remote && !p.turned:
		return Martian
	case p.turned:
	case g.own(p.remote):
		return OwnSource
	}
	if h != nil && h.Kind == hostOwn {
		return punted
	}
	if !p.turned && (martian(p.remote) || private(p.remote)) {
		return Martian
	}
	if h == nil {
		if r := g.find(attachedTables+uint32(p.family), p.local); r != 0 {
			if p.expired {
				return TTLExceeded
			}
			in := &g.instances[g.attached[r-1].Instance]
			p.act, p.outPort, p.neighbor = actInPlain, in.Port[p.family], in.Neighbor[p.family]
			return Pass
		}
		return UnknownDestination
	}
	if p.kind >= kindError {
		return w.errorIn(p, h)
	}
	if h.Kind == hostSNAT {
		return w.invited(p, h)
	}
	switch {
	case p.expired:
		return TTLExceeded
	case p.pinned:
		return Untranslatable
	}
	w.inbound(p, &g.instances[h.Index], h)
	return Pass
}
