// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sort"
)

// checker turns a document into a Config. In order: ports, pools and gateways (this file), VPCs
// with their routes and instances (vpc.go), external addresses (external.go); warnings last, of a
// Config without faults.
//
// A faulty value is reported where it is read and left out here. Checks that depend on it are
// skipped.
type checker struct {
	faults findings
	doc    *document
	config Config

	ports    map[string]int // by name, indexes into config
	pools    map[string]int
	vpcs     map[string]int
	gateways map[gatewayKey]int
	private  map[string]int // gateways private to any VPC
	ids      map[ID]int

	ranges      spans                // of all pools; index: the pool
	poolsBroken bool                 // some range is not known
	own         map[netip.Addr]owner // addresses of the ports and their next hops
	external    claims
	attached    map[attachKey]owner // VPCs, by the attachment that they have
	outer       map[outerTag]owner  // outside ports, by the frames that are theirs
	udpPorts    map[kindKey]udpPortOf
	warned      warnings
}

// gatewayKey is what a route names a gateway by. Private gateways of different VPCs may share a
// name.
type gatewayKey struct {
	vpc  int // -1: global
	name string
}

func (c *checker) check() {
	c.checkPorts()
	c.checkPools()
	c.placeVPCs()
	c.checkGateways()
	c.checkVPCs()
	c.checkExternal()
	c.checkAmounts()
}

// sortNamed reports duplicate names in list, sorts it by name and returns the index of each name.
func sortNamed[T any](c *checker, list []T, what string, name func(*T) at[string]) map[string]int {
	first := make(map[string]*spot, len(list))
	for i := range list {
		n := name(&list[i])
		if !n.ok {
			continue
		}
		if s := first[n.value]; s != nil {
			c.faults.add(n.spot, "%s %q is already defined at %v; expected another name", what, n.value, s)
			continue
		}
		first[n.value] = n.spot
	}
	// By index: comparing large elements by value would copy each of them to the heap.
	sort.SliceStable(list, func(i, j int) bool { return name(&list[i]).value < name(&list[j]).value })
	index := make(map[string]int, len(list))
	for i := range list {
		n := name(&list[i])
		if _, twice := index[n.value]; n.ok && !twice {
			index[n.value] = i
		}
	}
	return index
}

func (c *checker) checkPorts() {
	if n := len(c.doc.ports); n > MaxPorts {
		c.faults.add(c.doc.ports[MaxPorts].spot, "there are %d ports; expected at most %d", n, MaxPorts)
	}
	c.ports = sortNamed(c, c.doc.ports, "port", func(p *portText) at[string] { return p.name })
	c.own = map[netip.Addr]owner{}
	c.checkDevices()
	for i := range c.doc.ports {
		p := &c.doc.ports[i]
		c.config.Ports = append(c.config.Ports, c.port(i, p))
	}
	for i := range c.doc.ports {
		for _, hop := range c.doc.ports[i].nextHops {
			if o := c.own[hop.address.value]; hop.address.ok && o.spot != nil {
				c.faults.add(hop.address.spot, "next hop %v is weir's own address, of %v; expected a router's", hop.address.value, o)
			}
		}
	}
	for i := range c.doc.ports {
		for _, hop := range c.doc.ports[i].nextHops {
			if hop.address.ok && c.own[hop.address.value].spot == nil {
				c.own[hop.address.value] = owner{"a next hop of port", c.doc.ports[i].name.value, hop.address.spot}
			}
		}
	}
}

// port checks one port and notes its addresses as weir's own.
func (c *checker) port(i int, p *portText) Port {
	port := Port{
		Name:   p.name.value,
		Device: p.device.value,
		Side:   p.side.value,
		MTU:    p.mtu.or(DefaultMTU),
		MAC:    p.mac.value,
		Answer: p.answer.value,
	}
	if p.side.ok && p.side.value == Inside {
		c.inside(i, p, &port)
		return port
	}
	for _, a := range p.addresses {
		if !a.ok {
			continue
		}
		if o := c.own[a.value.Addr()]; o.spot != nil {
			c.faults.add(a.spot, "%v of port %q is already used by %v; expected another address", a.value.Addr(), port.Name, o)
			continue
		}
		c.own[a.value.Addr()] = owner{"port", port.Name, a.spot}
		if a.value.Addr().Is6() {
			c.wide6(p, a.spot)
		}
		port.Addresses = append(port.Addresses, a.value)
	}
	port.VLAN, port.PCP = p.vlan.value, p.pcp.value
	if p.pcp.given() && port.VLAN == (VLAN{}) {
		c.faults.add(p.pcp.spot, "a port without vlan has no tag to write a priority in; expected pcp beside vlan")
	}
	port.NextHops = c.nextHops(p.nextHops, p.addresses, "the port's")
	port.PrivateSources = c.privateSources(p)
	return port
}

// privateNetworks are those of RFC 1918 and RFC 4193.
var privateNetworks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7")}

// covered reports whether one of a list of prefixes holds all of p.
func covered(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

// privateSources returns the private networks that flows may begin from outside, sorted.
func (c *checker) privateSources(t *portText) (list []netip.Prefix) {
	for i, a := range t.privateSources {
		switch {
		case !a.ok:
			continue
		case !covered(privateNetworks, a.value):
			c.faults.add(a.spot, "%v is no private network: flows may begin there anyway; expected prefixes within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fc00::/7", a.value)
			continue
		}
		for _, o := range t.privateSources[:i] {
			if o.ok && o.value.Overlaps(a.value) {
				c.faults.add(a.spot, "%v overlaps %v at %v; expected prefixes apart", a.value, o.value, o.spot)
			}
		}
		list = append(list, a.value)
	}
	slices.SortFunc(list, comparePrefix)
	return list
}

// wide6 reports a port that carries IPv6, as the value at s says, with too small an MTU (RFC 8200
// section 5).
func (c *checker) wide6(p *portText, s *spot) {
	if p.mtu.ok && p.mtu.value < 1280 {
		c.faults.add(p.mtu.spot, "MTU %d is too small for IPv6 (%v); expected at least 1280", p.mtu.value, s)
	}
}

// nextHops checks routers against the prefixes that they must be reached in, and returns them
// sorted.
func (c *checker) nextHops(list []nextHopText, prefixes []at[netip.Prefix], whose string) []NextHop {
	var hops []NextHop
	seen := map[netip.Addr]*spot{}
	for _, hop := range list {
		a := hop.address
		if !a.ok {
			continue
		}
		if s := seen[a.value]; s != nil {
			c.faults.add(a.spot, "%v is already listed at %v; expected each next hop once", a.value, s)
			continue
		}
		seen[a.value] = a.spot
		within := func(p at[netip.Prefix]) bool { return !p.ok || p.value.Contains(a.value) }
		if !slices.ContainsFunc(prefixes, within) {
			c.faults.add(a.spot, "next hop %v is not within any of %s prefixes; expected a neighbor's address", a.value, whose)
		}
		hops = append(hops, NextHop{a.value, hop.mac.value})
	}
	slices.SortFunc(hops, func(a, b NextHop) int { return a.Address.Compare(b.Address) })
	return hops
}

func (c *checker) checkPools() {
	c.pools = sortNamed(c, c.doc.pools, "pool", func(p *poolText) at[string] { return p.name })
	c.config.Sessions.Translation = c.translation(&c.doc.sessions, DefaultConfig.Sessions.Translation)
	for i := range c.doc.pools {
		p := &c.doc.pools[i]
		for _, r := range p.ranges {
			if !r.ok {
				c.poolsBroken = true
				continue
			}
			c.ranges = append(c.ranges, span{r.value, r.spot, i})
		}
		c.config.Pools = append(c.config.Pools, Pool{Name: p.name.value, Ports: c.outside(p.ports),
			Sessions: c.translation(&p.translation, c.config.Sessions.Translation)})
	}
	c.ranges.sort()
	for a, b := range c.ranges.overlaps() {
		c.poolsBroken = true
		c.faults.add(b.spot, "%v of pool %q overlaps %v of pool %q at %v; expected pools that do not overlap",
			b.Range, c.config.Pools[b.index].Name, a.Range, c.config.Pools[a.index].Name, a.spot)
	}
	c.ranges = c.ranges.joined()
	for _, s := range c.ranges {
		p := &c.config.Pools[s.index]
		p.Ranges = append(p.Ranges, s.Range)
	}
}

// translation returns what t says, and def where it says nothing. When an external port serves many
// remote endpoints at once, only the endpoint says which instance owns a packet, so such a mapping
// filters by it.
func (c *checker) translation(t *translationText, def Translation) Translation {
	n := Translation{t.mapping.or(def.Mapping), t.filtering.or(def.Filtering), t.fragments.or(def.Fragments), t.refresh.or(def.InboundRefresh)}
	if n.Mapping == AddressAndPortDependentMapping && n.Filtering != AddressAndPortDependentFiltering {
		if t.filtering.ok {
			c.faults.add(t.filtering.spot, "mapping address-and-port-dependent requires filtering by address and port; expected filtering: address-and-port-dependent, or another mapping")
		}
		n.Filtering = AddressAndPortDependentFiltering
	}
	return n
}

// outside resolves names of outside ports.
func (c *checker) outside(names []at[string]) []int {
	return c.resolve(names, c.ports, "outside port", "the name of an outside port", func(i int) bool {
		side := c.doc.ports[i].side
		return !side.ok || side.value == Outside
	})
}

// resolve returns the sorted indexes of what a list names, each once.
func (c *checker) resolve(names []at[string], index map[string]int, what, expected string, fits func(int) bool) []int {
	var all []int
	seen := map[string]*spot{}
	for _, n := range names {
		if !n.ok {
			continue
		}
		i, known := index[n.value]
		switch {
		case seen[n.value] != nil:
			c.faults.add(n.spot, "%q is already listed at %v; expected each once", n.value, seen[n.value])
		case !known || !fits(i):
			c.faults.add(n.spot, "no %s is named %q; expected %s", what, n.value, expected)
		default:
			all = append(all, i)
		}
		seen[n.value] = n.spot
	}
	slices.Sort(all)
	return all
}

func (c *checker) checkGateways() {
	list := c.doc.gateways
	first := map[ID]owner{}
	for _, g := range list {
		if o := first[g.id.value]; g.id.ok && o.spot != nil {
			c.faults.add(g.id.spot, "ID %v of gateway %q is already used by %v; expected another ID", g.id.value, g.name.value, o)
		} else if g.id.ok {
			first[g.id.value] = owner{"gateway", g.name.value, g.id.spot}
		}
	}
	names := map[gatewayKey]*spot{}
	for _, g := range list {
		key := gatewayKey{c.owner(&g), g.name.value}
		if s := names[key]; g.name.ok && s != nil {
			c.faults.add(g.name.spot, "gateway %q is already defined at %v; expected another name, or another vpc", g.name.value, s)
		} else if g.name.ok {
			names[key] = g.name.spot
		}
		if _, known := c.vpcs[g.vpc.value]; g.vpc.ok && !known {
			c.faults.add(g.vpc.spot, "no VPC is named %q; expected a name under vpcs", g.vpc.value)
		}
	}
	slices.SortStableFunc(list, func(a, b gatewayText) int { return bytes.Compare(a.id.value[:], b.id.value[:]) })
	c.gateways, c.private, c.ids = map[gatewayKey]int{}, map[string]int{}, map[ID]int{}
	for i := range list {
		g := &list[i]
		c.gateways[gatewayKey{c.owner(g), g.name.value}] = i
		if c.owner(g) >= 0 {
			c.private[g.name.value] = i
		}
		c.ids[g.id.value] = i
		c.config.Gateways = append(c.config.Gateways, Gateway{
			Name:      g.name.value,
			ID:        g.id.value,
			Pools:     c.resolve(g.pools, c.pools, "pool", "a name under pools", func(int) bool { return true }),
			Addresses: c.gatewayAddresses(g.addresses),
			VPC:       c.owner(g),
		})
	}
}

// owner returns the index of the VPC that a gateway is private to, or -1.
func (c *checker) owner(g *gatewayText) int {
	if i, known := c.vpcs[g.vpc.value]; g.vpc.ok && known {
		return i
	}
	return -1
}

// gatewayAddresses checks single external addresses of a gateway and returns them sorted.
func (c *checker) gatewayAddresses(list []at[netip.Addr]) []netip.Addr {
	var all []netip.Addr
	seen := map[netip.Addr]*spot{}
	for _, a := range list {
		if !a.ok {
			continue
		}
		if s := seen[a.value]; s != nil {
			c.faults.add(a.spot, "%v is already listed at %v; expected each address once", a.value, s)
			continue
		}
		seen[a.value] = a.spot
		c.inPool(a)
		all = append(all, a.value)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// inPool reports an external address that lies in no pool.
func (c *checker) inPool(a at[netip.Addr]) {
	if _, in := c.ranges.find(a.value); !in && !c.poolsBroken {
		c.faults.add(a.spot, "%v is not in any pool; expected an address within the ranges under pools", a.value)
	}
}

// span is a range and where it is written.
type span struct {
	Range
	spot  *spot
	index int // of its owner
}

// meets reports whether the two ranges have an address in common.
func (r Range) meets(o Range) bool {
	return r.From.BitLen() == o.From.BitLen() && r.From.Compare(o.To) <= 0 && o.From.Compare(r.To) <= 0
}

// spans is a list of ranges, sorted by their beginnings.
type spans []span

func (s spans) sort() {
	slices.SortStableFunc(s, func(a, b span) int { return a.From.Compare(b.From) })
}

// overlaps yields pairs: an earlier range, and a later one that overlaps it; s is sorted.
func (s spans) overlaps() iter.Seq2[span, span] {
	return func(yield func(a, b span) bool) {
		reach := 0 // the range that ends last so far
		for i := 1; i < len(s); i++ {
			if s[i].From.Compare(s[reach].To) <= 0 && !yield(s[reach], s[i]) {
				return
			}
			if s[i].To.Compare(s[reach].To) > 0 {
				reach = i
			}
		}
	}
}

// joined merges adjacent ranges of one owner; s is sorted and its ranges do not overlap.
func (s spans) joined() spans {
	var all spans
	for _, next := range s {
		if n := len(all); n > 0 && all[n-1].index == next.index && all[n-1].To.Next() == next.From {
			all[n-1].To = next.To
			continue
		}
		all = append(all, next)
	}
	return all
}

// find returns the range that holds a; s is sorted and its ranges do not overlap.
func (s spans) find(a netip.Addr) (span, bool) {
	i, exact := slices.BinarySearchFunc(s, a, func(s span, a netip.Addr) int { return s.From.Compare(a) })
	if exact {
		return s[i], true
	}
	if i > 0 && s[i-1].Contains(a) {
		return s[i-1], true
	}
	return span{}, false
}

// String returns the range as the configuration has it: a prefix, one address, or first-last.
func (r Range) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	for bits := r.From.BitLen() - 1; bits >= 0; bits-- {
		p := netip.PrefixFrom(r.From, bits)
		if p != p.Masked() {
			break
		}
		if rangeOf(p) == r {
			return p.String()
		}
	}
	return fmt.Sprintf("%v-%v", r.From, r.To)
}
