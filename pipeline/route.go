// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// route sends each packet from inside that has no session where its VPC's routes say: on inside the
// VPC, or tagged with an Internet gateway and on to selectSource.
func (w *Worker) route(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.act == actNone {
			if s := w.late(p.insideKey(w.vpcSlot(p)), p); s != nil && w.sends(s, p, true) {
				w.fromInside(s, p)
				keep = append(keep, i)
				continue
			}
			v := w.routeOne(p)
			if v == punted {
				w.serve(b, p)
				continue
			}
			if v != goesOn {
				w.answer(p, v.reason(), 0)
				w.out(p, b.Port, b.inside, v)
				continue
			}
		}
		keep = append(keep, i)
	}
	b.live = keep
}

// vpc returns the index of the VPC that a packet from inside came from.
func (w *Worker) vpc(p *Packet) uint32 { return w.gen.Attachments[p.from.Index].VPC }

// vpcSlot returns the slot of that VPC in the shared memory.
func (w *Worker) vpcSlot(p *Packet) uint32 { return w.gen.Attachments[p.from.Index].Slot }

func (w *Worker) routeOne(p *Packet) verdict {
	g := w.gen
	vi := w.vpc(p)
	domain := vi + 1
	if p.local == p.remote {
		return refuse(drop.Martian)
	}
	if martian(p.remote) {
		return refuse(drop.Martian)
	}
	from, spoofed := w.sender(p)
	if spoofed != drop.Pass {
		return refuse(spoofed)
	}
	in, attached := from.in, from.attached
	if p.via != 0 && from.own {
		w.learn(in, p)
	}
	if to := g.Host(domain, p.remote); to != nil && to.Kind == generation.HostOwn {
		return punted
	}
	if p.expired {
		return refuse(drop.TTLExceeded)
	}
	r := g.Find(in.Routes[p.family], p.remote)
	if r == 0 {
		return refuse(drop.NoRoute)
	}
	rt := &g.Routes[r-1]
	switch {
	case rt.Kind == generation.RouteDrop:
		return refuse(drop.RouteDrop)
	case rt.Kind == generation.RouteInternal:
		if attached != nil && !from.own {
			return refuse(drop.PublicSource)
		}
		p.act, p.to, p.neighbor, p.hop = actInPlain, way{rt.At, rt.Link}, state.NoNeighbor, rt.Hop
		if p.hop == (inet.Addr{}) {
			p.hop = p.remote
		}
		return goesOn
	case from.transit:
		return refuse(drop.PublicSource)
	}
	if g.Own(p.remote) {
		if to := g.Host(0, p.remote); to != nil && to.Kind == generation.HostOwn {
			return refuse(drop.NoService)
		}
		p.hairpin = true
	}
	ways := ^uint32(0)
	if !p.hairpin {
		if ways = g.Ways(rt, p.remote); ways == 0 {
			return refuse(drop.PrivateDestination)
		}
	}
	if attached != nil {
		if g.Eligible(attached.Set, rt.Gateway) {
			p.act, p.ports = actOutPlain, attached.Ports&ways
			return goesOn
		}
		if !from.own {
			return refuse(drop.NoEligible)
		}
	}
	// What goes to an external address of weir's own is translated all the same.
	var reason drop.Reason
	if rt.Plain && !p.hairpin {
		reason = w.untranslated(p, in, rt)
	} else {
		reason = w.selectSource(p, in, rt.Tag)
	}
	p.ports &= ways
	return refuse(reason)
}

// untranslated lets a packet from an instance's own address leave as it is, for a partner that
// knows the VPC's addresses. A packet of a session has its session's address before it comes here,
// and so has an ICMP error about one.
func (w *Worker) untranslated(p *Packet, in *generation.Instance, rt *generation.Route) drop.Reason {
	if q := &p.quote; p.kind == kindError && q.fault == drop.Pass && q.local == p.local && q.remote == p.remote &&
		w.liveSession(session.InsideKey(w.gen.VPCs[in.VPC].Slot, q.local, q.remote, q.localPort, q.remotePort, q.proto)) != nil {
		return w.selectSource(p, in, rt.Tag)
	}
	if rt.Ports == 0 {
		return drop.NoEligible
	}
	p.act, p.ports = actOutPlain, rt.Ports
	return drop.Pass
}
