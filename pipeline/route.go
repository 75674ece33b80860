// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// route sends each packet from inside that has no session where its VPC's routes say: on inside the
// VPC, or tagged with an Internet gateway and on to selectSource.
func (w *Worker) route(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.act == actNone {
			if s, ok := w.late(p.insideKey(w.gen.VPCs[w.vpc(p)].Slot), p); ok && w.sends(s, p, true) {
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
	if attached != nil {
		if g.Eligible(attached.Set, rt.Gateway) {
			p.act, p.ports = actOutPlain, attached.Ports
			return goesOn
		}
		if !from.own {
			return refuse(drop.NoEligible)
		}
	}
	return refuse(w.selectSource(p, in, rt.Tag))
}
