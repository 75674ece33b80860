// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/inet"
)

// routing is what the instances of one VPC share.
type routing struct {
	gateways []int32                    // per tag
	tables   map[netip.Prefix][2]uint32 // per subnet that some route names as its from: range table per family
	common   [2]uint32                  // for all others
}

func (r *routing) of(v *config.VPC, a netip.Addr) uint32 {
	for _, s := range v.Subnets {
		if t, ok := r.tables[s]; ok && s.Contains(a) {
			return t[familyOf(a)]
		}
	}
	return r.common[familyOf(a)]
}

// entry is a route with what decides between routes to one prefix.
type entry struct {
	to     netip.Prefix
	custom bool
	from   int // length of its from, -1: none
	route  uint32
}

func (b *builder) buildRoutes(v *config.VPC) *routing {
	r := &routing{tables: map[netip.Prefix][2]uint32{}}
	tag := func(gateway int32) uint32 {
		i := slices.Index(r.gateways, gateway)
		if i < 0 {
			i = len(r.gateways)
			r.gateways = append(r.gateways, gateway)
		}
		return uint32(i)
	}
	add := func(rec Route, by way, hop config.NextHop) uint32 {
		rec.At, rec.Link, rec.Hop = by.at, by.link, inet.FromNetip(hop.Address)
		b.Routes = append(b.Routes, rec)
		return uint32(len(b.Routes) - 1)
	}
	var entries []entry
	froms := map[netip.Prefix][]entry{}
	for _, s := range v.Subnets {
		by, hop := b.via(v, s.Addr())
		entries = append(entries, entry{s, false, -1, add(Route{Kind: RouteInternal, Index: -1}, by, hop)})
	}
	for i, rt := range v.Routes {
		e := entry{to: rt.To, custom: rt.Class == config.Custom, from: -1}
		rec := Route{Index: int32(i)}
		by := way{at: attach.None}
		if rt.To.Bits() == 0 {
			rec.All = 1
		}
		var hop config.NextHop
		switch rt.Target {
		case config.TargetDrop:
			rec.Kind = RouteDrop
		case config.TargetGateway:
			rec.Kind, rec.Gateway, rec.Tag = RouteGateway, int32(rt.Gateway), tag(int32(rt.Gateway))
			if rt.Untranslated {
				rec.Plain, rec.Ports = true, b.gatewayPorts(int32(rt.Gateway))
			}
		case config.TargetAddress:
			rec.Kind = RouteInternal
			if by, hop = b.via(v, rt.Address); !hop.Address.IsValid() {
				hop.Address = rt.Address
			}
		case config.TargetSubnet:
			rec.Kind = RouteInternal
			by, hop = b.via(v, rt.Subnet.Addr())
		}
		e.route = add(rec, by, hop)
		if rt.From.IsValid() {
			e.from = rt.From.Bits()
			froms[rt.From] = append(froms[rt.From], e)
		} else {
			entries = append(entries, e)
		}
	}
	compile := func(list []entry) (t [2]uint32) {
		var items [2][]rangeItem
		best := map[netip.Prefix]entry{}
		for _, e := range list {
			if o, ok := best[e.to]; !ok || e.beats(o) {
				best[e.to] = e
			}
		}
		for p, e := range best {
			f := familyOf(p.Addr())
			items[f] = append(items[f], itemOf(p, e.route+1))
		}
		for f := range items {
			t[f] = b.addTable(items[f])
		}
		return t
	}
	r.common = compile(entries)
	for from, list := range froms {
		r.tables[from] = compile(append(slices.Clone(entries), list...))
	}
	return r
}

// beats orders routes to one prefix: custom before system, with from before without, a longer from
// before a shorter.
func (e entry) beats(o entry) bool {
	if e.custom != o.custom {
		return e.custom
	}
	return e.from > o.from
}

// gatewayPorts returns the outside ports that a gateway leads to: those of its pools, and of the
// pools of its single addresses.
func (b *builder) gatewayPorts(gateway int32) (ports uint32) {
	for pool, of := range b.poolGateways {
		if gateway == config.UnnamedGateway && len(of) == 0 || slices.Contains(of, gateway) {
			ports |= b.poolPorts[pool]
		}
	}
	for a, of := range b.single {
		if slices.Contains(of, gateway) {
			ports |= b.poolPorts[b.poolOf(a)]
		}
	}
	return ports
}

// buildPrivate makes the tables of the subnets that leave untranslated: whose address it is that a
// partner outside sends to.
func (b *builder) buildPrivate() {
	var items [2][]rangeItem
	for i := range b.cfg.VPCs {
		v := &b.cfg.VPCs[i]
		seen := map[netip.Prefix]bool{}
		for j := range v.Routes {
			if !v.Routes[j].Untranslated {
				continue
			}
			for s := range v.Untranslated(&v.Routes[j]) {
				if f := familyOf(s.Addr()); !seen[s] {
					seen[s] = true
					items[f] = append(items[f], itemOf(s, uint32(i)+1))
				}
			}
		}
	}
	for f := range items {
		b.ranges[PrivateTables+f] = b.rangeTable(items[f])
	}
}

// Partner reports whether an instance and a remote address know each other untranslated: by the
// instance's own routes.
func (g *Generation) Partner(in *Instance, remote inet.Addr) bool {
	r := g.Find(in.Routes[remote.Family()], remote)
	return r != 0 && g.Routes[r-1].Kind == RouteGateway && g.Routes[r-1].Plain
}

// PrivateOwner returns the instance that has a private address, nil for none, and whether some
// partner outside knows the subnet.
func (g *Generation) PrivateOwner(a inet.Addr) (in *Instance, known bool) {
	r := g.Find(PrivateTables+uint32(a.Family()), a)
	if r == 0 {
		return nil, false
	}
	// The domain of a VPC is 1 + its index, as r is.
	if h := g.Host(r, a); h != nil && h.Kind == HostInstance {
		in = &g.Instances[h.Index]
	}
	return in, true
}
