// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"net/netip"
	"slices"
)

// unnamed is the gateway of a route to the unnamed gateway.
const unnamed = "unnamed"

// placeVPCs sorts the VPCs and gives each the instances that are listed outside it.
func (c *checker) placeVPCs() {
	if n := len(c.doc.vpcs); n > MaxVPCs {
		c.faults.add(c.doc.vpcs[MaxVPCs].spot, "there are %d VPCs; expected at most %d", n, MaxVPCs)
	}
	c.vpcs = sortNamed(c, c.doc.vpcs, "VPC", func(v *vpcText) at[string] { return v.name })
	for _, i := range c.doc.instances {
		if !i.vpc.ok {
			continue
		}
		v, known := c.vpcs[i.vpc.value]
		if !known {
			c.faults.add(i.vpc.spot, "no VPC is named %q; expected a name under vpcs", i.vpc.value)
			continue
		}
		c.doc.vpcs[v].instances = append(c.doc.vpcs[v].instances, i)
	}
}

// vpcChecker checks one VPC.
type vpcChecker struct {
	*checker
	index   int
	text    *vpcText
	vpc     VPC
	subnets spans                // index: into text.subnets
	broken  bool                 // some subnet is not known
	taken   map[netip.Addr]owner // addresses in the VPC
	transit map[netip.Prefix]owner
}

func (c *checker) checkVPCs() {
	c.attached, c.udpPorts = map[attachKey]owner{}, map[kindKey]udpPortOf{}
	for i := range c.doc.vpcs {
		c.config.VPCs = append(c.config.VPCs, VPC{Name: c.doc.vpcs[i].name.value}) // claims look there for the name
		c.config.VPCs[i] = c.checkVPC(i)
	}
}

// checkVPC checks a VPC by itself, and notes what it shares with others.
func (c *checker) checkVPC(i int) VPC {
	t := &c.doc.vpcs[i]
	v := vpcChecker{checker: c, index: i, text: t, taken: map[netip.Addr]owner{}, transit: map[netip.Prefix]owner{}}
	v.vpc.Name = t.name.value
	v.vpc.Weight = t.weight.or(1)
	v.vpc.PerVPC = t.limits.perVPC.or(c.config.Sessions.PerVPC)
	v.checkSubnets()
	for j := range t.attach {
		v.attach(&t.attach[j])
	}
	slices.SortFunc(v.vpc.Attach, compareAttachments)
	v.checkRoutes()
	v.checkInstances()
	return v.vpc
}

func (v *vpcChecker) checkSubnets() {
	for i, s := range v.text.subnets {
		if !s.ok {
			v.broken = true
			continue
		}
		v.subnets = append(v.subnets, span{rangeOf(s.value), s.spot, i})
	}
	v.subnets.sort()
	for a, b := range v.subnets.overlaps() {
		v.broken = true
		v.faults.add(b.spot, "subnet %v overlaps %v at %v; expected subnets that do not overlap", b.Range, a.Range, a.spot)
	}
	for _, s := range v.subnets {
		v.vpc.Subnets = append(v.vpc.Subnets, v.text.subnets[s.index].value)
	}
}

// attach checks one attachment.
func (v *vpcChecker) attach(t *attachmentText) {
	if !t.port.ok {
		return
	}
	port, known := v.ports[t.port.value]
	if !known || v.doc.ports[port].side.ok && v.doc.ports[port].side.value != Inside {
		v.faults.add(t.port.spot, "no inside port is named %q; expected the name of one under ports", t.port.value)
		return
	}
	a := Attachment{Port: port}
	v.place(t, port, &a)
	for _, own := range t.addresses {
		if !own.ok {
			continue
		}
		v.take(own.value.Addr(), owner{"the attachment to port", t.port.value, own.spot})
		if own.value.Addr().Is6() {
			v.wide6(&v.doc.ports[port], own.spot)
		}
		a.Addresses = append(a.Addresses, own.value)
	}
	a.NextHops = v.nextHops(t.nextHops, t.addresses, "the attachment's")
	for _, hop := range t.nextHops {
		if o := v.taken[hop.address.value]; hop.address.ok && o.spot != nil {
			v.faults.add(hop.address.spot, "next hop %v is weir's own address, of %v; expected a router's", hop.address.value, o)
		}
	}
	v.vpc.Attach = append(v.vpc.Attach, a)
}

// take records the owner of an address in the VPC.
func (v *vpcChecker) take(a netip.Addr, by owner) {
	if o := v.taken[a]; o.spot != nil {
		v.faults.add(by.spot, "%v of %s %q is already used by %v; expected each address of a VPC once", a, by.what, by.name, o)
		return
	}
	v.taken[a] = by
}

func (v *vpcChecker) inSubnet(a at[netip.Addr]) {
	if _, in := v.subnets.find(a.value); !in && !v.broken {
		v.faults.add(a.spot, "%v is not in any subnet of VPC %q; expected an address within its subnets", a.value, v.vpc.Name)
	}
}

func (v *vpcChecker) isSubnet(p at[netip.Prefix]) {
	if s, in := v.subnets.find(p.value.Addr()); (!in || v.text.subnets[s.index].value != p.value) && !v.broken {
		v.faults.add(p.spot, "%v is not a subnet of VPC %q; expected one of its subnets", p.value, v.vpc.Name)
	}
}

func (v *vpcChecker) checkRoutes() {
	type key struct {
		to, from netip.Prefix
		class    Class
	}
	slices.SortStableFunc(v.text.routes, func(a, b routeText) int {
		return cmp.Or(comparePrefix(a.to.value, b.to.value), comparePrefix(a.from.value, b.from.value),
			cmp.Compare(a.class.or(Custom), b.class.or(Custom)))
	})
	seen := make(map[key]*spot, len(v.text.routes))
	for i := range v.text.routes {
		t := &v.text.routes[i]
		r := v.route(t)
		v.vpc.Routes = append(v.vpc.Routes, r)
		if !t.to.ok || t.from.given() && !t.from.ok {
			continue
		}
		k := key{r.To, r.From, r.Class}
		if s := seen[k]; s != nil {
			v.faults.add(t.spot, "the route to %v is already defined at %v with the same from and class; expected only one of them", r.To, s)
			continue
		}
		seen[k] = t.spot
	}
	v.claimUntranslated()
}

// claimUntranslated notes the subnets that leave untranslated, for the check across VPCs: each with
// the first route that says so.
func (v *vpcChecker) claimUntranslated() {
	claimed := map[netip.Prefix]bool{}
	for i := range v.vpc.Routes {
		r := &v.vpc.Routes[i]
		if !r.Untranslated || !v.text.routes[i].to.ok {
			continue
		}
		for s := range v.vpc.Untranslated(r) {
			if !claimed[s] {
				claimed[s] = true
				v.external.untranslated = append(v.external.untranslated, span{rangeOf(s), v.text.routes[i].spot, v.index})
			}
		}
	}
}

// comparePrefix orders prefixes by address, shorter ones first.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func (v *vpcChecker) route(t *routeText) Route {
	r := Route{To: t.to.value, From: t.from.value, Class: t.class.or(Custom)}
	if t.from.ok {
		v.sameFamily(t, t.from.spot, "from", t.from.value.Addr())
		v.isSubnet(t.from)
	}
	targets := 0
	if t.drop.given() {
		targets++
		r.Target = TargetDrop
	}
	if t.gateway.given() {
		targets++
		r.Target, r.Gateway = TargetGateway, v.gateway(t.gateway)
	}
	if t.address.given() {
		targets++
		r.Target, r.Address = TargetAddress, t.address.value
	}
	if t.subnet.given() {
		targets++
		r.Target, r.Subnet = TargetSubnet, t.subnet.value
	}
	if targets != 1 {
		v.faults.add(t.spot, "the route has %d targets; expected exactly one of drop: true, gateway, address, subnet", targets)
	}
	if t.translate.ok {
		if targets == 1 && r.Target != TargetGateway {
			v.faults.add(t.translate.spot, "translate is for routes to a gateway: nothing inside a VPC is translated; expected it with gateway only")
		}
		r.Untranslated = r.Target == TargetGateway && !t.translate.value
	}
	if t.address.ok {
		v.sameFamily(t, t.address.spot, "target", t.address.value)
		v.inSubnet(t.address)
		if o := v.taken[t.address.value]; o.spot != nil {
			v.faults.add(t.address.spot, "target %v is weir's own address, of %v; expected an instance's", t.address.value, o)
		}
	}
	if t.subnet.ok {
		v.sameFamily(t, t.subnet.spot, "target", t.subnet.value.Addr())
		v.isSubnet(t.subnet)
	}
	return r
}

// sameFamily reports an address of another family than the route's destination.
func (v *vpcChecker) sameFamily(t *routeText, s *spot, what string, a netip.Addr) {
	if t.to.ok && t.to.value.Addr().BitLen() != a.BitLen() {
		v.faults.add(s, "the route to %v has an %s %s; expected the same family", t.to.value, familyOf(a), what)
	}
}

// gateway finds the gateway that a route of this VPC names: unnamed, an ID, a private name, a
// global name.
func (v *vpcChecker) gateway(g at[string]) int {
	if !g.ok || g.value == unnamed {
		return UnnamedGateway
	}
	if id, err := parseID(g.value); err == nil {
		if i, known := v.ids[id]; known {
			if owner := v.config.Gateways[i].VPC; owner >= 0 && owner != v.index {
				v.foreign(g, i)
			}
			return i
		}
	}
	for _, vpc := range []int{v.index, -1} {
		if i, known := v.checker.gateways[gatewayKey{vpc, g.value}]; known {
			return i
		}
	}
	if i, known := v.private[g.value]; known {
		v.foreign(g, i)
		return i
	}
	v.faults.add(g.spot, "no gateway is named %q; expected a name or ID under gateways, or %q", clip(g.value), unnamed)
	return UnnamedGateway
}

// foreign reports a gateway that is private to another VPC.
func (v *vpcChecker) foreign(g at[string], i int) {
	v.faults.add(g.spot, "gateway %q is private to VPC %q at %v; expected a gateway of this VPC or a global one",
		g.value, v.doc.vpcs[v.config.Gateways[i].VPC].name.value, v.doc.gateways[i].spot)
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func (v *vpcChecker) checkInstances() {
	list := v.text.instances
	sortNamed(v.checker, list, "instance", func(i *instanceText) at[string] { return i.name })
	v.vpc.Instances = slices.Grow(v.vpc.Instances, len(list))
	for i := range list {
		v.vpc.Instances = append(v.vpc.Instances, v.instance(&list[i]))
	}
}

func (v *vpcChecker) instance(t *instanceText) Instance {
	i := Instance{Name: t.name.value, MAC: t.mac.value}
	i.PerInstance = t.limits.perInstance.or(v.text.limits.perInstance.or(v.config.Sessions.PerInstance))
	v.addresses(t, &i)
	v.hosts(t, &i)
	i.Transit = v.checkTransit(t)
	v.claim(t, &i)
	return i
}

// addresses checks an instance's private addresses, at most one of each family.
func (v *vpcChecker) addresses(t *instanceText, i *Instance) {
	if len(t.addresses) == 0 {
		v.faults.add(t.spot, "the instance has no addresses; expected an IPv4 address, an IPv6 address, or both")
	}
	for _, a := range t.addresses {
		if !a.ok {
			continue
		}
		mine := &i.Address4
		if a.value.Is6() {
			mine = &i.Address6
		}
		if mine.IsValid() {
			v.faults.add(a.spot, "%v is the instance's second %s address; expected at most one of each family", a.value, familyOf(a.value))
			continue
		}
		*mine = a.value
		v.inSubnet(a)
		v.take(a.value, owner{"instance", i.Name, a.spot})
	}
}

// checkTransit reads the further sources of an instance: two instances with the same would share
// its packets by chance.
func (v *vpcChecker) checkTransit(t *instanceText) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range t.transit {
		if !p.ok {
			continue
		}
		if slices.Contains(all, p.value) {
			v.faults.add(p.spot, "%v is listed twice; expected each prefix once", p.value)
			continue
		}
		if o := v.transit[p.value]; o.spot != nil {
			v.faults.add(p.spot, "transit prefix %v of instance %q already belongs to %v; expected each prefix on one instance of the VPC",
				p.value, t.name.value, o)
			continue
		}
		v.transit[p.value] = owner{"instance", t.name.value, p.spot}
		all = append(all, p.value)
	}
	slices.SortFunc(all, comparePrefix)
	return all
}
