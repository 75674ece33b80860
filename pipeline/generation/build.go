// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// builder holds one compilation.
type builder struct {
	Tables
	c   *Compiler
	cfg *config.Config

	poolRanges   []poolRange
	poolGateways [][]int32 // per pool: the gateways it is associated with
	poolPorts    []uint32
	poolRules    []rules
	single       map[netip.Addr][]int32 // gateways of addresses named beside pools

	hostList     []Host
	hostSecret   uint64
	neighbors    map[uint32]int
	created      []uint32 // entries of the neighbor table that the compilation made
	pending      []neighborChange
	newVPCs      map[string]uint32
	newInstances map[InstanceID]uint32
	newAddresses map[netip.Addr]uint32
	renames      []rename
	links        map[Link]uint16
	endpoints    map[endpointKey]bool
}

func newBuilder(c *Compiler, cfg *config.Config) *builder {
	return &builder{c: c, cfg: cfg, neighbors: map[uint32]int{}, newVPCs: map[string]uint32{}, newInstances: map[InstanceID]uint32{}, newAddresses: map[netip.Addr]uint32{}, endpoints: map[endpointKey]bool{}}
}

// neighborChange is what the word of an entry is to become.
type neighborChange struct {
	slot uint32
	word uint64
}

type poolRange struct {
	config.Range
	pool int
}

func (b *builder) build() error {
	b.inherit()
	b.indexPools()
	for _, list := range b.poolGateways { // set i is that of pool i
		b.addSet(list)
	}
	if err := b.buildPorts(); err != nil {
		return err
	}
	b.ranges = make(table[rangeTable], 4) // AttachedTables and PrivateTables, filled last
	var attached [2][]rangeItem
	shared := map[inet.Addr][]SNATRange{}
	for v := range b.cfg.VPCs {
		if err := b.buildAttachments(v); err != nil {
			return err
		}
		rec, err := b.buildVPC(v, &attached, shared)
		if err != nil {
			return err
		}
		b.VPCs = append(b.VPCs, rec)
	}
	for i := range b.Attachments {
		b.Attachments[i].Slot = b.VPCs[b.Attachments[i].VPC].Slot
	}
	for i := range b.cfg.VPCs {
		b.addName(b.cfg.VPCs[i].Name)
	}
	for f := range attached {
		b.ranges[AttachedTables+f] = b.rangeTable(attached[f])
	}
	b.buildPrivate()
	for addr, list := range shared {
		if err := b.addShared(addr, list); err != nil {
			return err
		}
	}
	b.buildHosts()
	b.buildTags()
	return nil
}

// addShared notes an SNAT address with all its ranges.
func (b *builder) addShared(addr inet.Addr, list []SNATRange) error {
	slot, err := b.addressSlot(addr.Netip())
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(x, y SNATRange) int { return cmp.Compare(x.First, y.First) })
	b.hostList = append(b.hostList, Host{Addr: addr, Kind: HostSNAT, Index: uint32(len(b.SNAT)), Ranges: uint16(len(list)),
		Ports: b.poolPorts[b.poolOf(addr.Netip())], Set: b.setOf(addr.Netip()), Rules: b.poolRules[b.poolOf(addr.Netip())], Slot: slot})
	b.SNAT = append(b.SNAT, list...)
	return nil
}

func (b *builder) addName(name string) {
	b.names = append(b.names, name...)
	b.nameEnds = append(b.nameEnds, uint32(len(b.names)))
}

// indexPools prepares the questions "which pool", "which gateways", "which ports" of an address.
func (b *builder) indexPools() {
	var outside uint32
	for i, p := range b.cfg.Ports {
		if p.Side == config.Outside {
			outside |= 1 << i
		}
	}
	b.group(outside)
	b.poolGateways = make([][]int32, len(b.cfg.Pools))
	b.poolPorts = make([]uint32, len(b.cfg.Pools))
	b.poolRules = make([]rules, len(b.cfg.Pools))
	for i, p := range b.cfg.Pools {
		for _, r := range p.Ranges {
			b.poolRanges = append(b.poolRanges, poolRange{r, i})
		}
		for _, port := range p.Ports {
			b.poolPorts[i] |= 1 << port
		}
		if len(p.Ports) == 0 {
			b.poolPorts[i] = outside
		}
		b.group(b.poolPorts[i])
		b.poolRules[i] = rulesOf(p.Sessions)
	}
	for _, ways := range privateWays(b.cfg.Ports) {
		for _, ports := range b.poolPorts {
			b.group(ports & ways)
		}
	}
	slices.SortFunc(b.poolRanges, func(x, y poolRange) int { return x.From.Compare(y.From) })
	b.single = map[netip.Addr][]int32{}
	for i, g := range b.cfg.Gateways {
		for _, p := range g.Pools {
			b.poolGateways[p] = append(b.poolGateways[p], int32(i))
		}
		for _, a := range g.Addresses {
			b.single[a] = append(b.single[a], int32(i))
		}
	}
}

func rulesOf(t config.Translation) (r rules) {
	if t.Mapping == config.AddressAndPortDependentMapping {
		r |= Overload
	}
	switch t.Filtering {
	case config.EndpointIndependentFiltering:
		r |= FilterNone
	case config.AddressAndPortDependentFiltering:
		r |= FilterPort
	}
	if t.Fragments == config.DropFragments {
		r |= DropFragments
	}
	if t.InboundRefresh == config.RefreshOn {
		r |= InboundRefresh
	}
	return r
}

func (b *builder) addSet(list []int32) uint32 {
	b.sets = append(b.sets, span{uint32(len(b.gateways)), uint32(len(list))})
	b.gateways = append(b.gateways, list...)
	return uint32(len(b.sets) - 1)
}

// setOf returns the set of gateways of an address: its pool's, and those that name it alone.
func (b *builder) setOf(a netip.Addr) uint32 {
	pool := b.poolOf(a)
	if single := b.single[a]; len(single) > 0 {
		return b.addSet(slices.Concat(b.poolGateways[pool], single))
	}
	return uint32(pool)
}

// poolOf returns the pool of an address; config guarantees that there is one.
func (b *builder) poolOf(a netip.Addr) int {
	i, found := slices.BinarySearchFunc(b.poolRanges, a, func(r poolRange, a netip.Addr) int { return r.From.Compare(a) })
	if !found {
		i--
	}
	return b.poolRanges[i].pool
}

// eligible reports whether address a may be a source for gateway: associated with it by itself or
// by its pool; for the unnamed gateway, associated with none.
func (b *builder) eligible(a netip.Addr, gateway int32) bool {
	pool, single := b.poolGateways[b.poolOf(a)], b.single[a]
	if gateway == config.UnnamedGateway {
		return len(pool) == 0 && len(single) == 0
	}
	return slices.Contains(pool, gateway) || slices.Contains(single, gateway)
}

func (b *builder) buildPorts() error {
	for i, p := range b.cfg.Ports {
		own := wordOf(i, p.VLAN)
		r := Port{Side: uint8(p.Side), MTU: uint16(p.MTU), Own: Place{own, Unattached}, MAC: p.MAC, Answer: uint8(p.Answer), Tagged: !own.Plain()}
		b.Links = append(b.Links, Link{MTU: r.MTU, PCP: p.PCP})
		for _, a := range p.Addresses {
			if p.Side == config.Outside {
				b.hostList = append(b.hostList, Host{Addr: inet.FromNetip(a.Addr()), Kind: HostOwn, Port: uint8(i)})
				first, last := inet.PrefixRange(a)
				b.OnLink = append(b.OnLink, Prefix{First: first, Last: last, At: own})
			}
		}
		for _, p := range p.PrivateSources {
			first, last := inet.PrefixRange(p)
			b.Private = append(b.Private, Prefix{First: first, Last: last, At: own})
		}
		if p.Side == config.Inside {
			if err := b.buildEnds(i, &r); err != nil {
				return err
			}
			b.Ports = append(b.Ports, r)
			continue
		}
		for _, h := range p.NextHops {
			hop, err := b.hop(own, h)
			if err != nil {
				return err
			}
			b.Hops = append(b.Hops, hop)
		}
		b.Ports = append(b.Ports, r)
	}
	return nil
}

// hop compiles a router. All of them are kept resolved.
func (b *builder) hop(at attach.Word, h config.NextHop) (Hop, error) {
	a := inet.FromNetip(h.Address)
	slot, err := b.neighbor(at, a, h.MAC)
	return Hop{Addr: a, Neighbor: slot, At: at, Family: uint8(a.Family())}, err
}

// group returns the number of a set of ports.
func (b *builder) group(ports uint32) uint16 {
	for i := range b.Groups {
		if b.Groups[i].Ports == ports {
			return uint16(i)
		}
	}
	b.Groups = append(b.Groups, Group{Ports: ports})
	return uint16(len(b.Groups) - 1)
}

// neighbor makes sure that the neighbor table has an entry, which keeps what was resolved already.
func (b *builder) neighbor(at attach.Word, a inet.Addr, mac config.MAC) (uint32, error) {
	n := b.c.state.Neighbors
	slot := n.Find(at, a)
	var was uint64
	if slot != state.NoNeighbor {
		was = atomic.LoadUint64(&n.Entries[slot].Word)
	}
	word := was
	if static := state.NeighborState(was>>48) == state.NeighborStatic; mac != (config.MAC{}) {
		word = uint64(state.NeighborStatic)<<48 | state.MACWord(mac)
	} else if static || was == 0 {
		word = uint64(state.NeighborIncomplete) << 48
	}
	switch {
	case was == 0:
		var err error
		if slot, err = n.Set(at, a, state.NeighborState(word>>48), state.MACOf(word)); err != nil {
			return slot, err
		}
		b.created = append(b.created, slot)
	case word != was: // the running generation uses the entry too: not before the new one is in force
		b.pending = append(b.pending, neighborChange{slot, word})
	}
	b.neighbors[slot]++
	return slot, nil
}

// way is how something is reached: through which attachment, and over which link.
type way struct {
	at   attach.Word
	link uint16
}

// via says how a VPC-internal address is reached, and through which hop; a zero hop is the address
// itself. A VPC without attachment is reached nowhere.
func (b *builder) via(v *config.VPC, a netip.Addr) (by way, hop config.NextHop) {
	if len(v.Attach) == 0 {
		return way{at: attach.None}, config.NextHop{}
	}
	t := v.Via(a)
	by = b.wayOf(t)
	if slices.ContainsFunc(t.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
		return by, config.NextHop{}
	}
	for _, h := range t.NextHops {
		if h.Address.BitLen() == a.BitLen() {
			return by, h
		}
	}
	return by, config.NextHop{}
}

func (b *builder) buildAttachments(vi int) error {
	list := b.cfg.VPCs[vi].Attach
	for i := range list {
		a := &list[i]
		by := b.wayOf(a)
		if a.Encap != config.NoEncap {
			b.Ports[a.Port].UDP[a.Encap-config.VXLAN] = a.Tunnel.UDPPort
		}
		b.addAttachment(Attachment{At: by.at, VPC: uint32(vi), MTU: b.Links[by.link].MTU, Link: by.link})
		for _, p := range a.Addresses {
			b.hostList = append(b.hostList, Host{Addr: inet.FromNetip(p.Addr()), Domain: uint32(vi) + 1, Kind: HostOwn, Port: uint8(a.Port), Index: uint32(len(b.Attachments) - 1)})
		}
		for _, h := range a.NextHops {
			hop, err := b.hop(by.at, h)
			if err != nil {
				return err
			}
			b.Routers = append(b.Routers, hop)
		}
	}
	return nil
}
