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
