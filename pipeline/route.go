// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// route sends each packet from inside that has no session where its VPC's routes say: on inside the VPC, or tagged
// with an Internet gateway and on to selectSource.
func (w *Worker) route(b *Burst) {
	keep := b.live[:0]
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.act == actNone {
			if s, ok := w.late(p.insideKey(w.gen.VPCs[w.gen.Ports[b.Port].VPC].Slot), p); ok {
				w.fromInside(s, p)
				keep = append(keep, i)
				continue
			}
			r := w.routeOne(b.Port, p)
			if r == punted {
				w.serve(b.Port, p)
				continue
			}
			if r != drop.Pass {
				w.answer(b.Port, p, r, 0)
				w.drop(p, r)
				continue
			}
		}
		keep = append(keep, i)
	}
	b.live = keep
}

func (w *Worker) routeOne(port int, p *Packet) drop.Reason {
	g := w.gen
	vi := uint32(g.Ports[port].VPC)
	domain := vi + 1
	if p.local == p.remote {
		return drop.Martian
	}
	if martian(p.remote) {
		return drop.Martian
	}
	// Whose is the source: an instance's own address, or a prefix behind an instance.
	var in *generation.Instance
	var attached *generation.Attached
	own, transit := false, false
	if from := g.Host(domain, p.local); from != nil && from.Kind == generation.HostInstance {
		in, own = &g.Instances[from.Index], true
	}
	if r := g.Find(g.VPCs[vi].Sources[p.family], p.local); r != 0 {
		s := &g.Sources[r-1]
		if in == nil {
			in = &g.Instances[s.Instance]
			transit = s.Kind == generation.SourceTransit
		}
		if s.Kind == generation.SourceAttached && in == &g.Instances[s.Instance] {
			attached = &g.Attached[s.Attached]
		}
	}
	if in == nil {
		return drop.AntiSpoof
	}
	if to := g.Host(domain, p.remote); to != nil && to.Kind == generation.HostOwn {
		return punted
	}
	if p.expired {
		return drop.TTLExceeded
	}
	r := g.Find(in.Routes[p.family], p.remote)
	if r == 0 {
		return drop.NoRoute
	}
	rt := &g.Routes[r-1]
	switch {
	case rt.Kind == generation.RouteDrop:
		return drop.RouteDrop
	case rt.Kind == generation.RouteInternal:
		if attached != nil && !own {
			return drop.PublicSource
		}
		p.act, p.outPort, p.neighbor, p.hop = actInPlain, rt.Port, state.NoNeighbor, rt.Hop
		if p.hop == (inet.Addr{}) {
			p.hop = p.remote
		}
		return drop.Pass
	case transit:
		return drop.PublicSource
	}
	if g.Own(p.remote) {
		if to := g.Host(0, p.remote); to != nil && to.Kind == generation.HostOwn {
			return drop.NoService
		}
		p.hairpin = true
	}
	ways := ^uint32(0)
	if !p.hairpin {
		if ways = g.Ways(rt, p.remote); ways == 0 {
			return drop.PrivateDestination
		}
	}
	if attached != nil {
		if g.Eligible(attached.Set, rt.Gateway) {
			p.act, p.ports = actOutPlain, attached.Ports&ways
			return drop.Pass
		}
		if !own {
			return drop.NoEligible
		}
	}
	reason := w.selectSource(p, in, rt.Tag)
	p.ports &= ways
	return reason
}
