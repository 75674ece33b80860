// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/inet"
	"weir/pipeline/rendezvous"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// buildVPC compiles a VPC but for its attachments.
func (b *builder) buildVPC(vi int, attached *[2][]rangeItem, shared map[inet.Addr][]SNATRange) (rec VPC, err error) {
	v := &b.cfg.VPCs[vi]
	slot, err := b.c.VPCs.get(v.Name, b.newVPCs)
	if err != nil {
		return rec, err
	}
	routing := b.buildRoutes(v)
	rec = VPC{Slot: slot, Limit: uint32(v.PerVPC), Weight: uint32(max(v.Weight, 1)), Tags: uint32(len(routing.gateways))}
	var sources [2][]rangeItem
	for i := range v.Instances {
		in := &v.Instances[i]
		index := uint32(len(b.Instances))
		r, err := b.buildInstance(v, in, uint32(vi), slot, routing)
		if err != nil {
			return rec, err
		}
		b.Instances = append(b.Instances, r)
		for _, p := range in.Transit {
			b.Sources = append(b.Sources, Source{Kind: SourceTransit, Instance: index})
			f := familyOf(p.Addr())
			sources[f] = append(sources[f], itemOf(p, uint32(len(b.Sources))))
		}
		for _, p := range in.Attached {
			item := b.buildAttached(p, index)
			f := familyOf(p.Addr())
			attached[f] = append(attached[f], item)
			b.Sources = append(b.Sources, Source{Kind: SourceAttached, Instance: index, Attached: item.result - 1})
			sources[f] = append(sources[f], itemOf(p, uint32(len(b.Sources))))
		}
		b.addHosts(in, index, uint32(vi), shared)
	}
	for f := range sources {
		rec.Sources[f] = b.addTable(sources[f])
	}
	return rec, nil
}

func familyOf(a netip.Addr) inet.Family {
	if a.Is4() {
		return inet.V4
	}
	return inet.V6
}

func (b *builder) buildInstance(v *config.VPC, in *config.Instance, vi, vpc uint32, r *routing) (rec Instance, err error) {
	rec = Instance{
		Addr:       [2]inet.Addr{inet.FromNetip(in.Address4), inet.FromNetip(in.Address6)},
		VPC:        vi,
		Limit:      uint32(in.PerInstance),
		Selections: uint32(len(b.Selections)),
		Routes:     [2]uint32{NoTable, NoTable},
		Neighbor:   [2]uint32{state.NoNeighbor, state.NoNeighbor},
		At:         [2]attach.Word{attach.None, attach.None},
	}
	if rec.Slot, err = b.c.Instances.get(IdentityOf(vpc, in), b.newInstances); err != nil {
		return rec, err
	}
	for f, a := range []netip.Addr{in.Address4, in.Address6} {
		if !a.IsValid() {
			continue
		}
		rec.Routes[f] = r.of(v, a)
		by, hop := b.via(v, a)
		mac := in.MAC
		if t := v.Via(a); t != nil && len(t.NextHops) == 0 {
			rec.MAC[f] = state.MACWord(mac)
		}
		if hop.Address.IsValid() {
			mac = hop.MAC
		} else {
			hop.Address = a
		}
		if rec.At[f], rec.Link[f] = by.at, by.link; by.at == attach.None {
			continue
		}
		if t := v.Via(a); t.Encap != config.NoEncap {
			if err := b.hosts(&rec, f, in, t); err != nil {
				return rec, err
			}
			rec.Link[f] = b.Endpoints[rec.Hosts[f].First]
		}
		if rec.Neighbor[f], err = b.neighbor(by.at, inet.FromNetip(hop.Address), mac); err != nil {
			return rec, err
		}
	}
	for _, gateway := range r.gateways {
		for _, a := range []netip.Addr{in.Address4, in.Address6} {
			s, err := b.selectionFor(in, a, gateway)
			if err != nil {
				return rec, err
			}
			b.Selections = append(b.Selections, s)
		}
	}
	return rec, nil
}

// addressSlot returns the slot that an SNAT address keeps over generations: its ports are counted
// there.
func (b *builder) addressSlot(a netip.Addr) (uint32, error) {
	return b.c.Addresses.get(a, b.newAddresses)
}

// selectionFor compiles "floating before ephemeral before SNAT" for one instance address and
// gateway.
func (b *builder) selectionFor(in *config.Instance, private netip.Addr, gateway int32) (s Selection, err error) {
	s.Candidates.First = uint32(len(b.Candidates))
	if !private.IsValid() {
		return s, nil
	}
	add := func(kind uint8, a netip.Addr) *Candidate {
		s.Kind = kind
		s.Candidates.Count++
		pool := b.poolOf(a)
		b.Candidates = append(b.Candidates, Candidate{Addr: inet.FromNetip(a), Ports: b.poolPorts[pool], Rules: b.poolRules[pool]})
		return &b.Candidates[len(b.Candidates)-1]
	}
	may := func(a netip.Addr) bool { return a.BitLen() == private.BitLen() && b.eligible(a, gateway) }
	for _, a := range in.Floating {
		if may(a) {
			add(SelectFloating, a)
		}
	}
	if s.Kind != SelectNone {
		return s, nil
	}
	for _, a := range in.Ephemeral {
		if may(a) {
			add(SelectEphemeral, a)
			return s, nil
		}
	}
	// Over several SNAT addresses the private address picks one; the ranges of that one are one
	// range.
	var best netip.Addr
	var weight uint64
	f := rendezvous.Flow{Private: inet.FromNetip(private)}
	for _, n := range in.SNAT {
		if may(n.Address) {
			if w := rendezvous.Weight(&f, config.SpreadInstance, inet.FromNetip(n.Address)); !best.IsValid() || w > weight {
				best, weight = n.Address, w
			}
		}
	}
	if !best.IsValid() {
		return s, nil
	}
	c := add(SelectSNAT, best)
	for space := range c.Ranges {
		c.Ranges[space] = b.addPortRanges(in, best, session.PortSpace(space))
	}
	c.Forwards = b.addForwards(in, best, 0, 65535, byPrivate)
	c.Slot, err = b.addressSlot(best)
	return s, err
}

func (b *builder) buildAttached(p netip.Prefix, instance uint32) rangeItem {
	pool := b.poolOf(p.Addr())
	r := Attached{Instance: instance, Ports: b.poolPorts[pool], Set: uint32(pool)}
	r.First, r.Last = inet.PrefixRange(p)
	b.Attached = append(b.Attached, r)
	return itemOf(p, uint32(len(b.Attached)))
}
