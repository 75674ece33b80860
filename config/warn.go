// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// smallSNAT is the number of ports below which an instance with many connections runs out of them.
const smallSNAT = 1024

// warnings is what was found, by what it is about.
type warnings struct {
	general []Warning   // ports and pools
	vpcs    [][]Warning // by VPC
}

// all returns the warnings by file and line.
func (w *warnings) all() []Warning {
	var f findings
	f.join(w.general)
	for _, list := range w.vpcs {
		f.join(list)
	}
	return f.sorted()
}

// warner looks through a Config without faults for what is legal but probably wrong.
type warner struct {
	*checker
	found        findings
	poolGateways [][]int              // gateways of each pool
	single       map[netip.Addr][]int // gateways of single addresses
	associated   bool                 // any pool or address belongs to a gateway
	missing      map[missing][]lacking
}

// warn looks through all of c.
func (c *checker) warn() {
	w := c.warner()
	c.warned.vpcs = make([][]Warning, len(c.config.VPCs))
	for i := range c.config.VPCs {
		c.warned.vpcs[i] = w.warnVPC(i)
	}
}

// warnAgain looks through what differs from before: the dirty VPCs.
func (c *checker) warnAgain(before *checker, dirty map[int]bool) {
	w := c.warner()
	c.warned.vpcs = slices.Clone(before.warned.vpcs)
	for i := range dirty {
		c.warned.vpcs[i] = w.warnVPC(i)
	}
}

// warner returns a warner that has been through ports and pools.
func (c *checker) warner() *warner {
	w := &warner{checker: c, poolGateways: make([][]int, len(c.config.Pools)), single: map[netip.Addr][]int{}}
	for i, g := range c.config.Gateways {
		w.associated = w.associated || len(g.Pools)+len(g.Addresses) > 0
		for _, p := range g.Pools {
			w.poolGateways[p] = append(w.poolGateways[p], i)
		}
		for _, a := range g.Addresses {
			w.single[a] = append(w.single[a], i)
		}
	}
	w.warnAPI()
	w.warnPorts()
	w.warnPools()
	if s := c.config.Sessions; s.PerVPC > 0 || s.PerInstance != DefaultConfig.Sessions.PerInstance { // not where it is left out
		w.warnLimits("sessions", limitsText{at[int]{s.PerInstance, c.doc.sections["sessions"], true}, at[int]{s.PerVPC, c.doc.sections["sessions"], true}})
	}
	c.warned.general = w.found.list
	return w
}

// warnAPI warns of an API that more than this host can reach.
func (w *warner) warnAPI() {
	listen := w.config.API.Listen
	if listen == "" || Loopback(listen) {
		return
	}
	w.add("open-api", listen, w.doc.sections["api"], "api.listen %q is reached from other hosts, without authentication: metrics tell anybody there who the tenants are; "+
		"expected a loopback address, or metrics: {tenants: ids} and a firewall", listen)
}

// Loopback reports whether only this host reaches a listener at host:port.
func Loopback(listen string) bool {
	host, _, _ := net.SplitHostPort(listen)
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

func (w *warner) warnPorts() {
	used := map[int]bool{}
	for _, v := range w.config.VPCs {
		for _, a := range v.Attach {
			used[a.Port] = true
		}
	}
	var external [2]bool // by family
	for _, list := range [][]claim{w.external.whole, w.external.shared, w.external.owners} {
		for _, h := range list {
			external[family(h.address)] = true
		}
	}
	if len(w.config.Ports) == 0 {
		w.add("no-ports", "ports", w.doc.first, "there are no ports: weir forwards nothing; expected an inside and an outside port")
	}
	for i, p := range w.config.Ports {
		s := w.doc.ports[i].spot
		if p.Side == Inside {
			if !used[i] {
				w.add("port-without-vpc", p.Name, s, "inside port %q is attached to no VPC: it drops everything it receives; expected it under vpcs[].attach", p.Name)
			}
			continue
		}
		var reaches, leads [2]bool
		for _, a := range p.Addresses {
			reaches[family(a.Addr())] = true
		}
		for _, h := range p.NextHops {
			leads[family(h.Address)] = true
		}
		for f, name := range []string{"IPv4", "IPv6"} {
			switch {
			case external[f] && !reaches[f]: // a next hop lies in the prefix of an address
				w.add("no-next-hop", p.Name, s, "outside port %q has no %s address and next hop: no %s packet leaves through it", p.Name, name, name)
			case external[f] && !leads[f]:
				w.add("no-next-hop", p.Name, s, "outside port %q has no %s next hop: %s packets reach only its own network through it; expected a router under next_hops",
					p.Name, name, name)
			}
		}
	}
}

// family returns 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// private reports whether an address is no public one.
func private(a netip.Addr) bool {
	return a.IsPrivate() || netip.MustParsePrefix("100.64.0.0/10").Contains(a) || a.IsLinkLocalUnicast()
}

func (w *warner) warnPools() {
	var public [2]bool // families in which an outside port has a public address
	for _, p := range w.config.Ports {
		for _, a := range p.Addresses {
			if p.Side == Outside && !private(a.Addr()) {
				public[family(a.Addr())] = true
			}
		}
	}
	for i, p := range w.config.Pools {
		for _, r := range p.Ranges {
			if public[family(r.From)] && private(r.From) {
				w.add("private-pool", p.Name, w.doc.pools[i].spot, "pool %q has private addresses (%v), and an outside port public ones: nobody on the Internet answers to them", p.Name, r)
				break
			}
		}
	}
	if !w.associated {
		return // the unnamed gateway has them all
	}
	named := map[int]bool{} // pools with single addresses in a gateway
	for a := range w.single {
		if s, in := w.ranges.find(a); in {
			named[s.index] = true
		}
	}
	for i, p := range w.config.Pools {
		if len(w.poolGateways[i]) == 0 && !named[i] {
			w.add("pool-without-gateway", p.Name, w.doc.pools[i].spot, "pool %q is in no gateway: no route to a named gateway uses its addresses", p.Name)
		}
	}
}

// warnLimits warns of limits of what that are more than the session table holds: others refuse
// flows long before.
func (w *warner) warnLimits(what string, l limitsText) {
	table := w.config.Dataplane.Sessions
	for _, limit := range []struct {
		name string
		at[int]
	}{{"per_instance", l.perInstance}, {"per_vpc", l.perVPC}} {
		if limit.ok && limit.value > table {
			w.add("limit-beyond-table", strings.ReplaceAll(strings.TrimPrefix(what, "VPC "), `"`, ""), limit.spot, "%s: %s of %d is more than the table has (dataplane.sessions: %d): it limits nothing; expected less, or a larger table",
				what, limit.name, limit.value, table)
		}
	}
}

// tag is a gateway that routes of a VPC lead to, by family and source.
type tag struct {
	gateway int // len(gateways): the unnamed one
	family  int
	from    netip.Prefix
	route   *spot
}

// beginsAt reports whether an outside port lists private sources that hold all of p.
func (w *warner) beginsAt(p netip.Prefix) bool {
	return slices.ContainsFunc(w.config.Ports, func(o Port) bool { return covered(o.PrivateSources, p) })
}

// warnVPC returns the warnings about one VPC.
func (w *warner) warnVPC(index int) []Warning {
	w.found, w.missing = findings{}, map[missing][]lacking{}
	var tags []tag
	var unnamedRoute [2]bool
	for i, r := range w.config.VPCs[index].Routes {
		if r.Target != TargetGateway {
			continue
		}
		if r.Untranslated {
			w.warnUntranslated(w.config.VPCs[index].Name, &r, w.doc.vpcs[index].routes[i].spot)
			continue
		}
		if r.To.Bits() > 0 && covered(privateNetworks, r.To) && !w.beginsAt(r.To) {
			w.add("private-destination", w.config.VPCs[index].Name+"/"+r.To.String(), w.doc.vpcs[index].routes[i].spot, "route to %v leads outside, to private addresses that no outside port has under private_sources: from there only packets of sessions come in", r.To)
		}
		g := tag{r.Gateway, family(r.To.Addr()), r.From, w.doc.vpcs[index].routes[i].spot}
		if g.gateway == UnnamedGateway {
			g.gateway = len(w.config.Gateways)
			unnamedRoute[g.family] = true
		}
		tags = append(tags, g)
	}
	if t := &w.doc.vpcs[index]; len(t.instances) > 0 && len(t.attach) == 0 {
		w.add("vpc-without-attachment", w.config.VPCs[index].Name, t.spot, "VPC %q has instances (%v) but no attachment: nothing reaches them; expected at least one under attach", w.config.VPCs[index].Name, t.instances[0].spot)
	}
	w.warnLimits(fmt.Sprintf("VPC %q", w.config.VPCs[index].Name), w.doc.vpcs[index].limits)
	marks := make([][2]int, len(w.config.Gateways)+1) // the last instance, from 1, with something eligible there
	for i := range w.config.VPCs[index].Instances {
		w.warnInstance(index, i, tags, unnamedRoute, marks)
	}
	w.warnMissing(w.config.VPCs[index].Name)
	w.warnNetwork(index)
	return w.found.list
}

// never are destinations that no packet from inside is forwarded to.
var never = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast is not forwarded"},
	{netip.MustParsePrefix("240.0.0.0/4"), "class E is nobody's"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses are on no wire"},
	{netip.MustParsePrefix("ff00::/8"), "multicast is not forwarded"},
	{netip.MustParsePrefix("::1/128"), "the loopback address is on no wire"},
}

// warnNetwork warns of attachments and routes of a VPC.
func (w *warner) warnNetwork(index int) {
	v, t := &w.config.VPCs[index], &w.doc.vpcs[index]
	in := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	six := slices.ContainsFunc(v.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	for i := range t.attach {
		a := &t.attach[i]
		object := v.Name + "/" + a.port.value
		for _, own := range a.addresses {
			if own.ok && !in(v.Subnets, own.value.Addr()) {
				w.add("attachment-outside-subnets", object, own.spot, "%v is in no subnet of VPC %q: its instances do not reach weir there; expected an address within its subnets",
					own.value.Addr(), v.Name)
			}
		}
		if port, known := w.ports[a.port.value]; known && six && w.config.Ports[port].MTU < 1280 {
			w.add("interface-mtu", object, a.port.spot, "port %q has MTU %d, and VPC %q has IPv6 subnets; expected at least 1280 (RFC 8200 section 5)",
				a.port.value, w.config.Ports[port].MTU, v.Name)
		}
	}
	for i, r := range v.Routes {
		for _, n := range never {
			if n.prefix.Bits() <= r.To.Bits() && n.prefix.Contains(r.To.Addr()) {
				w.add("route-without-match", v.Name+"/"+r.To.String(), t.routes[i].spot, "the route to %v never matches: %s", r.To, n.why)
			}
		}
	}
}

// warnUntranslated warns of a route by which nothing leaves: the pools of its gateway say by which
// ports.
func (w *warner) warnUntranslated(vpc string, r *Route, s *spot) {
	for p := range w.config.Pools {
		of := w.poolGateways[p]
		if r.Gateway == UnnamedGateway && len(of) == 0 || slices.Contains(of, r.Gateway) {
			return
		}
	}
	name := unnamed
	if r.Gateway != UnnamedGateway {
		if name = w.config.Gateways[r.Gateway].Name; len(w.config.Gateways[r.Gateway].Addresses) > 0 {
			return
		}
	}
	w.add("untranslated-without-pool", vpc+"/"+r.To.String(), s, "gateway %q has no pool, whose ports untranslated packets would leave by: they are dropped; expected a gateway with a pool", name)
}

func (w *warner) warnInstance(vpc, index int, tags []tag, unnamedRoute [2]bool, marks [][2]int) {
	i, t := &w.config.VPCs[vpc].Instances[index], &w.doc.vpcs[vpc].instances[index]
	serial := index + 1
	w.warnLimits(fmt.Sprintf("instance %q", i.Name), t.limits)
	held := 0
	hold := func(a netip.Addr, s *spot) {
		held++
		pool, _ := w.ranges.find(a)
		gateways, single := w.poolGateways[pool.index], w.single[a]
		for _, g := range gateways {
			marks[g][family(a)] = serial
		}
		for _, g := range single {
			marks[g][family(a)] = serial
		}
		if len(gateways)+len(single) > 0 {
			return
		}
		marks[len(marks)-1][family(a)] = serial
		if w.associated && !unnamedRoute[family(a)] {
			w.add("address-without-gateway", w.config.VPCs[vpc].Name+"/"+i.Name, s, "%v is in no gateway: it receives packets, but instance %q never sends from it; "+
				"expected the address or its pool in a gateway, or a route to %q", a, i.Name, unnamed)
		}
	}
	for _, a := range t.floating {
		hold(a.value, a.spot)
	}
	for _, a := range t.ephemeral {
		hold(a.value, a.spot)
	}
	for _, a := range t.snat {
		hold(a.address.value, a.spot)
	}
	for _, p := range t.attached {
		hold(p.value.Addr(), p.spot)
	}
	w.warnSNAT(w.config.VPCs[vpc].Name, i, t)
	if held == 0 {
		return // an instance without anything external stays inside by intent
	}
	for _, g := range tags {
		own := i.Address4
		if g.family == 1 {
			own = i.Address6
		}
		if !own.IsValid() || g.from.IsValid() && !g.from.Contains(own) || marks[g.gateway][g.family] == serial {
			continue
		}
		marks[g.gateway][g.family] = serial // once is enough
		name := unnamed
		if g.gateway < len(w.config.Gateways) {
			name = w.config.Gateways[g.gateway].Name
		}
		if object := w.config.VPCs[vpc].Name + "/" + i.Name; !w.ignored(noAddressForRoute, object) {
			m := missing{g.route, familyOf(own), name}
			w.missing[m] = append(w.missing[m], lacking{t.spot, object, i.Name})
		}
	}
}

const noAddressForRoute = "no-address-for-route"

// missing is a gateway that a route leads to, and lacking an instance without an address of a
// family there.
type missing struct {
	route           *spot
	family, gateway string
}

type lacking struct {
	spot         *spot
	object, name string
}

// warnMissing says what instances lack, a line for each route: one that leads to a partner would
// otherwise have a line for each instance that has nothing to do with it.
func (w *warner) warnMissing(vpc string) {
	for m, list := range w.missing {
		if len(list) == 1 {
			w.add(noAddressForRoute, list[0].object, list[0].spot, "instance %q has no external %s address in gateway %q, the target of the route at %v: "+
				"its packets there are dropped", list[0].name, m.family, m.gateway, m.route)
			continue
		}
		var names []string
		for _, l := range list[:min(len(list), 3)] {
			names = append(names, fmt.Sprintf("%q", l.name))
		}
		if len(list) > 3 {
			names = append(names, "...")
		}
		w.add(noAddressForRoute, vpc+"/*", m.route, "%d instances have no external %s address in gateway %q, the route's target: their packets there are dropped (%s)",
			len(list), m.family, m.gateway, strings.Join(names, ", "))
	}
}

// add notes a warning, unless warnings.ignore silences it.
func (w *warner) add(name, object string, s *spot, format string, args ...any) {
	if w.ignored(name, object) {
		return
	}
	n := len(w.found.list)
	if w.found.add(s, format, args...); len(w.found.list) > n {
		w.found.list[n].Name, w.found.list[n].Object = name, object
	}
}

// ignored reports whether warnings.ignore has NAME:OBJECT, or NAME: and how the object begins and
// *.
func (w *warner) ignored(name, object string) bool {
	return slices.ContainsFunc(w.config.Warnings.Ignore, func(s string) bool {
		n, o, _ := strings.Cut(s, ":")
		beginning, open := strings.CutSuffix(o, "*")
		return n == name && (o == object || open && strings.HasPrefix(object, beginning))
	})
}

// warningNames are the names that warnings.ignore takes.
var warningNames = []string{"address-without-gateway", "attachment-outside-subnets", "few-ports", "interface-mtu", "limit-beyond-table", noAddressForRoute, "no-next-hop", "no-ports",
	"open-api", "pool-without-gateway", "port-without-vpc", "private-destination", "private-pool", "route-without-match", "untranslated-without-pool", "vpc-without-attachment"}

// warnSNAT warns of addresses on which an instance has few ports.
func (w *warner) warnSNAT(vpc string, i *Instance, t *instanceText) {
	total := map[netip.Addr]int{}
	for _, s := range i.SNAT {
		total[s.Address] += int(s.Last) - int(s.First) + 1
	}
	for _, s := range t.snat {
		if n := total[s.address.value]; n > 0 && n < smallSNAT {
			w.add("few-ports", vpc+"/"+i.Name, s.spot, "instance %q has only %d ports of %v: too few for many simultaneous connections; expected %d or more",
				i.Name, n, s.address.value, smallSNAT)
			delete(total, s.address.value)
		}
	}
}
