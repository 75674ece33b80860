// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// claim is an instance's hold on an external address or, with ports, on a share of one.
type claim struct {
	address  netip.Addr
	ports    ports
	spot     *spot
	vpc      int
	instance *instanceText
}

// claims is what all instances hold, for the checks across them.
type claims struct {
	whole    []claim // floating and ephemeral
	shared   []claim // SNAT
	attached spans   // index: into owners
	owners   []claim

	untranslated spans // private subnets that a route without translation is for; index: the VPC
}

// claim checks what one instance holds by itself and notes it for checkExternal.
func (v *vpcChecker) claim(t *instanceText, i *Instance) {
	i.Floating = v.whole(t, i, t.floating, "floating", MaxFloating)
	i.Ephemeral = v.whole(t, i, t.ephemeral, "ephemeral", 1)
	for _, s := range t.snat {
		if !s.address.ok {
			continue
		}
		v.hasFamily(t, i, s.address.spot, s.address.value)
		v.inPool(s.address)
		if s.ports.ok {
			v.external.shared = append(v.external.shared, claim{s.address.value, s.ports.value, s.spot, v.index, t})
			i.SNAT = append(i.SNAT, SNAT{s.address.value, s.ports.value.first, s.ports.value.last})
		}
	}
	i.SNAT = joinSNAT(i.SNAT)
	v.forwards(t, i)
	for _, p := range t.attached {
		if !p.ok {
			continue
		}
		v.hasFamily(t, i, p.spot, p.value.Addr())
		r := rangeOf(p.value)
		v.external.attached = append(v.external.attached, span{r, p.spot, len(v.external.owners)})
		v.external.owners = append(v.external.owners, claim{p.value.Addr(), ports{}, p.spot, v.index, t})
		v.prefixInPool(p, r)
		i.Attached = append(i.Attached, p.value)
	}
	slices.SortFunc(i.Attached, comparePrefix)
}

// forwards checks the ports that always lead to the instance. A share has them to itself, so
// instances cannot disagree about one.
func (v *vpcChecker) forwards(t *instanceText, i *Instance) {
	type key struct {
		address  netip.Addr
		protocol Protocol
		port     uint16
		inside   bool
	}
	seen := map[key]*spot{}
	first := func(k key, s *spot) *spot {
		if other := seen[k]; other != nil {
			return other
		}
		seen[k] = s
		return nil
	}
	for _, s := range t.snat {
		for _, f := range s.forwards {
			if !s.address.ok || !s.ports.ok || !f.protocol.ok || !f.port.ok || !f.toPort.ok {
				continue
			}
			n := Forward{s.address.value, f.protocol.value, uint16(f.port.value), uint16(f.toPort.value)}
			if n.Port < s.ports.value.first || n.Port > s.ports.value.last {
				v.faults.add(f.port.spot, "port %d is outside %d-%d, the share at %v; expected a port of this share", n.Port,
					s.ports.value.first, s.ports.value.last, s.ports.spot)
				continue
			}
			if o := first(key{n.Address, n.Protocol, n.Port, false}, f.port.spot); o != nil {
				v.faults.add(f.port.spot, "%v port %d of %v is already forwarded at %v; expected each port once", n.Protocol, n.Port, n.Address, o)
				continue
			}
			if o := first(key{n.Address, n.Protocol, n.ToPort, true}, f.toPort.spot); o != nil {
				v.faults.add(f.toPort.spot, "another port of %v already leads to %v port %d of instance %q at %v; expected one, which is also what the instance sends from",
					n.Address, n.Protocol, n.ToPort, i.Name, o)
				continue
			}
			i.Forwards = append(i.Forwards, n)
		}
	}
	slices.SortFunc(i.Forwards, func(a, b Forward) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
}

// whole checks addresses that only one instance has, at most limit of each family.
func (v *vpcChecker) whole(t *instanceText, i *Instance, list []at[netip.Addr], what string, limit int) []netip.Addr {
	var all []netip.Addr
	count := map[int]int{} // by bits
	for _, a := range list {
		if !a.ok {
			continue
		}
		v.hasFamily(t, i, a.spot, a.value)
		v.inPool(a)
		count[a.value.BitLen()]++
		if count[a.value.BitLen()] == limit+1 {
			v.faults.add(a.spot, "%v is one %s %s address too many; expected at most %d", a.value, what, familyOf(a.value), limit)
		}
		v.external.whole = append(v.external.whole, claim{a.value, ports{}, a.spot, v.index, t})
		all = append(all, a.value)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// joinSNAT sorts ranges and joins adjacent ranges of one address.
func joinSNAT(list []SNAT) []SNAT {
	slices.SortFunc(list, func(a, b SNAT) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.First, b.First))
	})
	var joined []SNAT
	for _, s := range list {
		if n := len(joined); n > 0 && joined[n-1].Address == s.Address && int(joined[n-1].Last)+1 == int(s.First) {
			joined[n-1].Last = s.Last
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// hasFamily reports something external of a family in which the instance has no private address.
func (v *vpcChecker) hasFamily(t *instanceText, i *Instance, s *spot, a netip.Addr) {
	if a.Is4() && i.Address4.IsValid() || a.Is6() && i.Address6.IsValid() {
		return
	}
	if slices.ContainsFunc(t.addresses, func(a at[netip.Addr]) bool { return !a.ok }) {
		return // it may have been meant as one
	}
	v.faults.add(s, "%v is %s, but instance %q has no %s address; expected one under addresses",
		a, familyOf(a), i.Name, familyOf(a))
}

// prefixInPool reports an attached prefix that is not within one pool.
func (c *checker) prefixInPool(p at[netip.Prefix], r Range) {
	if c.poolsBroken {
		return
	}
	if s, in := c.ranges.find(r.From); in && s.Contains(r.To) {
		return
	}
	c.faults.add(p.spot, "%v is not within one pool; expected a prefix within the ranges of one pool", p.value)
}

// checkExternal checks that no two instances hold the same address or share. Sorting keeps it
// nearly linear.
func (c *checker) checkExternal() {
	x := &c.external
	x.attached.sort()
	for a, b := range x.attached.overlaps() {
		c.faults.add(b.spot, "%v of %s overlaps %v of %s; expected attached prefixes that do not overlap",
			b.Range, c.instance(x.owners[b.index]), a.Range, c.holder(x.owners[a.index]))
	}
	slices.SortStableFunc(x.whole, compareWhole)
	slices.SortStableFunc(x.shared, compareShared)
	for _, h := range x.whole {
		c.notOwn(h)
		c.notAttached(h)
	}
	for i, h := range x.shared {
		if i == 0 || x.shared[i-1].address != h.address {
			c.notOwn(h)
			c.notAttached(h)
		}
	}
	c.checkDistinct()
	c.checkUntranslated()
	for address, o := range c.own {
		if r, in := x.attached.find(address); in {
			c.faults.add(r.spot, "%v of %s contains %v of %v; expected a prefix without it", r.Range, c.instance(x.owners[r.index]), address, o)
		}
	}
}

// checkUntranslated checks that the private addresses that others outside know are one VPC's, and
// nothing else out there.
func (c *checker) checkUntranslated() {
	list := c.external.untranslated
	list.sort()
	for a, b := range list.overlaps() {
		if a.index != b.index {
			c.faults.add(b.spot, "subnet %v of VPC %q leaves untranslated, and overlaps %v of VPC %q, which does so at %v; expected subnets that do not overlap, or a translation",
				b.Range, c.config.VPCs[b.index].Name, a.Range, c.config.VPCs[a.index].Name, a.spot)
		}
	}
	for _, s := range list {
		vpc := c.config.VPCs[s.index].Name
		for _, r := range c.ranges {
			if s.meets(r.Range) {
				c.faults.add(s.spot, "subnet %v of VPC %q leaves untranslated, and overlaps %v of pool %q at %v; expected a subnet outside the pools, or a translation",
					s.Range, vpc, r.Range, c.config.Pools[r.index].Name, r.spot)
			}
		}
		for i := range c.doc.ports {
			for _, a := range c.doc.ports[i].addresses {
				if a.ok && c.config.Ports[i].Side == Outside && s.meets(rangeOf(a.value.Masked())) {
					c.faults.add(s.spot, "subnet %v of VPC %q leaves untranslated, and overlaps %v, the network of outside port %q at %v; expected another subnet, or a translation",
						s.Range, vpc, a.value.Masked(), c.config.Ports[i].Name, a.spot)
				}
			}
		}
	}
}

// checkDistinct checks that of sorted claims no two are on one address or share. An SNAT address is
// never also a 1:1 address.
func (c *checker) checkDistinct() {
	x := &c.external
	for i, h := range x.whole {
		if i > 0 && x.whole[i-1].address == h.address {
			c.faults.add(h.spot, "%v of %s already belongs to %s; expected each address once", h.address, c.instance(h), c.holder(x.whole[i-1]))
		}
	}
	reach := 0 // the entry of the same address that ends last so far
	for i, h := range x.shared {
		if i == 0 || x.shared[i-1].address != h.address {
			reach = i
		}
		if n, whole := slices.BinarySearchFunc(x.whole, h, compareWhole); whole {
			c.faults.add(h.spot, "%v, on which %s has SNAT ports, is a floating or ephemeral address of %s; expected an address that no instance owns",
				h.address, c.instance(h), c.holder(x.whole[n]))
		}
		if before := x.shared[reach]; reach != i && h.ports.first <= before.ports.last {
			c.faults.add(h.spot, "ports %d-%d of %v of %s overlap %d-%d of %s; expected ranges that do not overlap", h.ports.first, h.ports.last,
				h.address, c.instance(h), before.ports.first, before.ports.last, c.holder(before))
		}
		if h.ports.last > x.shared[reach].ports.last {
			reach = i
		}
	}
}

// notOwn reports an external address that a port or a next hop has.
func (c *checker) notOwn(h claim) {
	if o := c.own[h.address]; o.spot != nil {
		c.faults.add(h.spot, "%v of %s is already used by %v; expected another address", h.address, c.instance(h), o)
	}
}

// notAttached reports an external address within an attached prefix.
func (c *checker) notAttached(h claim) {
	if r, in := c.external.attached.find(h.address); in {
		c.faults.add(h.spot, "%v of %s lies in %v, attached to %s; expected an address outside it", h.address, c.instance(h), r.Range,
			c.holder(c.external.owners[r.index]))
	}
}

// instance names the instance that has a claim.
func (c *checker) instance(h claim) string {
	return fmt.Sprintf("instance %q of VPC %q", h.instance.name.value, c.config.VPCs[h.vpc].Name)
}

// holder names the instance that has a claim, and where that is written.
func (c *checker) holder(h claim) string { return fmt.Sprintf("%s at %v", c.instance(h), h.spot) }
