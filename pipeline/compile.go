// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"weir/config"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// unconfirmedTimeout ends a session that began from outside and got no answer (design: 30 s).
const unconfirmedTimeout = 30 * time.Second

// pressedTimeout ends, while the table is nearly full, what has not been answered: a client's SYN comes a second, three and
// seven seconds after the first.
const pressedTimeout = 10 * time.Second

// Compiler turns configurations into generations for one State. It lives in control, and remembers which slots
// VPCs, instances and neighbors have, so that sessions find them again in the next generation. It is not safe for
// use by several goroutines.
type Compiler struct {
	Source []byte // kept with the next generation, for whoever resumes from it

	state     *State
	number    uint64
	vpcs      slots
	instances slots
	addresses slots          // of SNAT
	neighbors map[uint32]int // slots that the last compiled generation names, and how often
	random    func() uint64

	last    compiled
	spare   memory.Segment   // what Release has left; none: closed
	created []uint32         // until Retire or Discard: what the last compilation did to the table of neighbors,
	pending []neighborChange // what it changes there when it is in force,
	gone    []uint32         // what nobody names then any more,
	undo    func()           // and what takes back all that is noted of it here
}

// compiled is what Follow has to know of the last compiled generation.
type compiled struct {
	number uint64 // 0: it cannot be followed
	hosts  int    // addresses in its table
	dead   int    // instances that stand there and are no more
}

// NewCompiler returns a compiler for state. With a seed the secrets of generations are always the same.
func NewCompiler(s *State, seed *[32]byte) *Compiler {
	mappings := s.Mappings()
	return &Compiler{
		state:     s,
		vpcs:      newSlots("VPC", vpcSlots, s.VPCSessions),
		instances: newSlots("instance", len(s.instances), s.InstanceSessions),
		addresses: newSlots("SNAT address", mappings.Addresses(), func(slot uint32) int { return mappings.InUse(slot) }),
		neighbors: map[uint32]int{},
		random:    newRandom(seed).Uint64,
	}
}

// Resume returns a compiler that goes on from generation g, which another process compiled for s.
func Resume(s *State, g *Generation) *Compiler {
	c := NewCompiler(s, nil)
	c.number = g.Number
	for i := range g.vpcs {
		c.vpcs.resume(g.name(i), g.vpcs[i].Slot)
	}
	for i := range g.instances {
		in := &g.instances[i]
		if in.Slot == 0 {
			continue // followed by another record
		}
		c.instances.resume(g.name(int(in.VPC))+"/"+g.name(len(g.vpcs)+i), in.Slot)
		for f := range in.Neighbor {
			if in.Neighbor[f] != NoNeighbor {
				c.neighbors[in.Neighbor[f]]++
			}
		}
	}
	for i := range g.hosts {
		if h := &g.hosts[i]; h.Kind == hostSNAT {
			c.addresses.resume(h.Addr.Netip().String(), h.Slot)
		}
	}
	for i := range g.hops {
		c.neighbors[g.hops[i].Neighbor]++
	}
	s.Neighbors.recount()
	c.vpcs.passOver()
	c.instances.passOver()
	c.addresses.passOver()
	return c
}

// Settle brings into force what cfg, from which the resumed generation was compiled, says of neighbors: whoever published that
// generation may have died before Retire.
func (c *Compiler) Settle(cfg *config.Config) error {
	b := newBuilder(c, cfg)
	if err := b.build(); err != nil {
		c.remove(b.created)
		return err
	}
	c.neighbors, c.created, c.pending = b.neighbors, b.created, b.pending
	c.Retire()
	return nil
}

// Compile makes the next generation. On an error everything stays as it was. What it yields is followed by Retire, when it is
// in force, or by Discard.
func (c *Compiler) Compile(cfg *config.Config) (*Generation, error) {
	b := newBuilder(c, cfg)
	if err := b.build(); err != nil {
		c.remove(b.created)
		return nil, err
	}
	h := genHeader{Number: c.number + 1, HostSecret: b.hostSecret, Spread: uint8(cfg.Sessions.Spread),
		OnMove: uint8(cfg.Sessions.OnMove), Drain: uint32(cfg.Sessions.DrainTimeout.Milliseconds()),
		PortRest: uint32(cfg.Sessions.PortRest.Milliseconds()), UnknownTCP: uint8(cfg.Sessions.UnknownTCP), MSSClamp: clampOf(cfg.Sessions.MSSClamp)}
	t := cfg.Sessions.Timeouts
	for s, d := range map[session.State]time.Duration{
		session.UDP: t.UDP, session.ICMP: t.ICMP, session.Other: t.Other, session.TCPOpening: t.TCPPartiallyOpen,
		session.TCPOpen: t.TCPEstablished, session.TCPClosing: t.TCPClosing, session.Unconfirmed: unconfirmedTimeout,
	} {
		h.Timeouts[0][s], h.Timeouts[1][s] = uint32(d.Milliseconds()), uint32(d.Milliseconds())
	}
	for _, s := range []session.State{session.TCPOpening, session.Unconfirmed} {
		h.Timeouts[1][s] = min(h.Timeouts[1][s], uint32(pressedTimeout.Milliseconds()))
	}
	h.UDPCount = uint16(len(t.UDPPorts))
	for i, p := range t.UDPPorts {
		h.UDPPorts[1+i], h.UDPTimeouts[1+i] = p.Port, uint32(p.Timeout.Milliseconds())
	}
	b.source = c.Source
	g, err := store(h, &b.tables)
	if err != nil {
		c.remove(b.created)
		return nil, err
	}
	c.number++
	vpcs, instances, addresses, neighbors, last := c.vpcs.current, c.instances.current, c.addresses.current, c.neighbors, c.last
	c.undo = func() {
		c.vpcs.current, c.instances.current, c.addresses.current, c.neighbors, c.last = vpcs, instances, addresses, neighbors, last
	}
	c.vpcs.current, c.instances.current, c.addresses.current, c.neighbors = b.newVPCs, b.newInstances, b.newAddresses, b.neighbors
	for slot := range neighbors {
		if c.neighbors[slot] == 0 {
			c.gone = append(c.gone, slot)
		}
	}
	c.created, c.pending = b.created, b.pending
	c.last = compiled{number: c.number, hosts: len(b.hostList)}
	return g, nil
}

// Retire brings into force what the last compiled generation changes of neighbors, and lets go of those that only older ones
// name. Call it when every worker is past them.
func (c *Compiler) Retire() {
	for _, p := range c.pending {
		atomic.StoreUint64(&c.state.Neighbors.entries[p.slot].word, p.word)
	}
	c.remove(c.gone)
	c.created, c.pending, c.gone, c.undo = nil, nil, nil, nil
}

// Discard forgets the last compiled generation: it never came into force.
func (c *Compiler) Discard() {
	c.number--
	c.remove(c.created)
	c.undo()
	c.created, c.pending, c.gone, c.undo = nil, nil, nil, nil
}

func (c *Compiler) remove(neighbors []uint32) {
	for _, slot := range neighbors {
		c.state.Neighbors.Remove(slot)
	}
}

// slots gives names numbers that stay as long as the name does. A number whose name is gone serves another name
// only when no session counts in it any more.
type slots struct {
	what     string
	capacity int
	current  map[string]uint32
	known    map[string]uint32 // also names that are gone
	next     uint32
	sessions func(slot uint32) int
}

func newSlots(what string, capacity int, sessions func(uint32) int) slots {
	// Slot 0 is never given: a zero key names nobody.
	return slots{what: what, capacity: capacity, known: map[string]uint32{}, current: map[string]uint32{}, next: 1, sessions: sessions}
}

func (s *slots) resume(name string, slot uint32) {
	s.known[name], s.current[name] = slot, slot
	s.next = max(s.next, slot+1)
}

// passOver keeps slots from being given that sessions of names that are gone still count in.
func (s *slots) passOver() {
	for slot := s.next; int(slot) < s.capacity; slot++ {
		if s.sessions(slot) != 0 {
			s.next = slot + 1
		}
	}
}

func (s *slots) get(name string, taken map[string]uint32) (uint32, error) {
	slot, ok := s.known[name]
	if !ok {
		if int(s.next) < s.capacity {
			slot = s.next
			s.next++
		} else if slot, ok = s.reclaim(taken); !ok {
			return 0, fmt.Errorf("more than %d %ss since start; restart weir", s.capacity-1, s.what)
		}
		s.known[name] = slot
	}
	taken[name] = slot
	return slot, nil
}

func (s *slots) reclaim(taken map[string]uint32) (uint32, bool) {
	for name, slot := range s.known {
		_, live := s.current[name]
		if _, ours := taken[name]; !live && !ours && s.sessions(slot) == 0 {
			delete(s.known, name)
			return slot, true
		}
	}
	return 0, false
}

// builder holds one compilation.
type builder struct {
	tables
	c   *Compiler
	cfg *config.Config

	poolRanges   []poolRange
	poolGateways [][]int32 // per pool: the gateways it is associated with
	poolPorts    []uint32
	poolRules    []rules
	single       map[netip.Addr][]int32 // gateways of addresses named beside pools

	hostList              []host
	hostSecret            uint64
	neighbors             map[uint32]int
	created               []uint32 // entries of the neighbor table that the compilation made
	pending               []neighborChange
	newVPCs, newInstances map[string]uint32
	newAddresses          map[string]uint32
}

func newBuilder(c *Compiler, cfg *config.Config) *builder {
	return &builder{c: c, cfg: cfg, neighbors: map[uint32]int{}, newVPCs: map[string]uint32{}, newInstances: map[string]uint32{}, newAddresses: map[string]uint32{}}
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
	b.indexPools()
	for _, list := range b.poolGateways { // set i is that of pool i
		b.addSet(list)
	}
	if err := b.buildPorts(); err != nil {
		return err
	}
	b.ranges = make(table[rangeTable], 2) // attachedTables, filled last
	var attached [2][]rangeItem
	shared := map[inet.Addr][]snatRange{}
	for v := range b.cfg.VPCs {
		if err := b.buildAttachments(v); err != nil {
			return err
		}
		rec, err := b.buildVPC(v, &attached, shared)
		if err != nil {
			return err
		}
		b.vpcs = append(b.vpcs, rec)
	}
	for i := range b.cfg.VPCs {
		b.addName(b.cfg.VPCs[i].Name)
	}
	for i := range b.cfg.VPCs {
		for j := range b.cfg.VPCs[i].Instances {
			b.addName(b.cfg.VPCs[i].Instances[j].Name)
		}
	}
	for f := range attached {
		b.ranges[attachedTables+f] = b.rangeTable(attached[f])
	}
	for addr, list := range shared {
		if err := b.addShared(addr, list); err != nil {
			return err
		}
	}
	b.buildHosts()
	return nil
}

// addShared notes an SNAT address with all its ranges.
func (b *builder) addShared(addr inet.Addr, list []snatRange) error {
	slot, err := b.addressSlot(addr.Netip())
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(x, y snatRange) int { return cmp.Compare(x.First, y.First) })
	b.hostList = append(b.hostList, host{Addr: addr, Kind: hostSNAT, Index: uint32(len(b.snat)), Ranges: uint16(len(list)),
		Ports: b.poolPorts[b.poolOf(addr.Netip())], Set: b.setOf(addr.Netip()), Rules: b.poolRules[b.poolOf(addr.Netip())], Slot: slot})
	b.snat = append(b.snat, list...)
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
		b.poolRules[i] = rulesOf(p.Sessions)
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
		r |= overload
	}
	switch t.Filtering {
	case config.EndpointIndependentFiltering:
		r |= filterNone
	case config.AddressAndPortDependentFiltering:
		r |= filterPort
	}
	if t.Fragments == config.DropFragments {
		r |= dropFragments
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

// eligible reports whether address a may be a source for gateway: associated with it by itself or by its pool;
// for the unnamed gateway, associated with none.
func (b *builder) eligible(a netip.Addr, gateway int32) bool {
	pool, single := b.poolGateways[b.poolOf(a)], b.single[a]
	if gateway == config.UnnamedGateway {
		return len(pool) == 0 && len(single) == 0
	}
	return slices.Contains(pool, gateway) || slices.Contains(single, gateway)
}

func (b *builder) buildPorts() error {
	for i, p := range b.cfg.Ports {
		r := portRecord{Side: uint8(p.Side), MTU: uint16(p.MTU), VPC: -1, MAC: p.MAC}
		for _, a := range p.Addresses {
			if p.Side == config.Outside {
				b.hostList = append(b.hostList, host{Addr: inet.FromNetip(a.Addr()), Kind: hostOwn, Port: uint8(i)})
				first, last := inet.PrefixRange(a)
				b.onLink = append(b.onLink, prefixRecord{First: first, Last: last, Port: uint8(i)})
			}
		}
		for _, h := range p.NextHops {
			if err := b.addHop(i, h); err != nil {
				return err
			}
		}
		b.ports = append(b.ports, r)
	}
	return nil
}

// addHop notes a router: an outside port's, which flows are spread over, or an attachment's. All of them are kept resolved.
func (b *builder) addHop(port int, h config.NextHop) error {
	a := inet.FromNetip(h.Address)
	slot, err := b.neighbor(port, a, h.MAC)
	if err == nil {
		b.hops = append(b.hops, hopRecord{Addr: a, Neighbor: slot, Port: uint8(port), Family: uint8(a.Family())})
	}
	return err
}

// neighbor makes sure that the neighbor table has an entry, which keeps what was resolved already.
func (b *builder) neighbor(port int, a inet.Addr, mac config.MAC) (uint32, error) {
	n := b.c.state.Neighbors
	slot := n.Find(uint8(port), a)
	var was uint64
	if slot != NoNeighbor {
		was = atomic.LoadUint64(&n.entries[slot].word)
	}
	word := was
	if static := NeighborState(was>>48) == NeighborStatic; mac != (config.MAC{}) {
		word = uint64(NeighborStatic)<<48 | macWord(mac)
	} else if static || was == 0 {
		word = uint64(NeighborIncomplete) << 48
	}
	switch {
	case was == 0:
		var err error
		if slot, err = n.Set(uint8(port), a, NeighborState(word>>48), macOf(word)); err != nil {
			return slot, err
		}
		b.created = append(b.created, slot)
	case word != was: // the running generation uses the entry too: not before the new one is in force
		b.pending = append(b.pending, neighborChange{slot, word})
	}
	b.neighbors[slot]++
	return slot, nil
}

// noPort is where a VPC without attachment is reached: nowhere.
const noPort = 0xff

// via says how a VPC-internal address is reached: by which port, and through which hop; a zero hop is the address itself.
func via(v *config.VPC, a netip.Addr) (port int, hop config.NextHop) {
	if len(v.Attach) == 0 {
		return noPort, config.NextHop{}
	}
	at := v.Attach[0]
	for _, t := range v.Attach {
		if slices.ContainsFunc(t.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
			return t.Port, config.NextHop{}
		}
	}
	for _, h := range at.NextHops {
		if h.Address.BitLen() == a.BitLen() {
			return at.Port, h
		}
	}
	return at.Port, config.NextHop{}
}

func (b *builder) buildAttachments(vi int) error {
	for _, a := range b.cfg.VPCs[vi].Attach {
		b.ports[a.Port].VPC = int32(vi)
		for _, p := range a.Addresses {
			b.hostList = append(b.hostList, host{Addr: inet.FromNetip(p.Addr()), Domain: uint32(vi) + 1, Kind: hostOwn, Port: uint8(a.Port)})
		}
		for _, h := range a.NextHops {
			if err := b.addHop(a.Port, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// buildVPC compiles a VPC but for its attachments.
func (b *builder) buildVPC(vi int, attached *[2][]rangeItem, shared map[inet.Addr][]snatRange) (rec vpcRecord, err error) {
	v := &b.cfg.VPCs[vi]
	slot, err := b.c.vpcs.get(v.Name, b.newVPCs)
	if err != nil {
		return rec, err
	}
	routing := b.buildRoutes(v)
	rec = vpcRecord{Slot: slot, Limit: uint32(v.PerVPC), Tags: uint32(len(routing.gateways))}
	var sources [2][]rangeItem
	for i := range v.Instances {
		in := &v.Instances[i]
		index := uint32(len(b.instances))
		r, err := b.buildInstance(v, in, uint32(vi), routing)
		if err != nil {
			return rec, err
		}
		b.instances = append(b.instances, r)
		for _, p := range in.Transit {
			b.sources = append(b.sources, sourceRecord{Kind: sourceTransit, Instance: index})
			f := familyOf(p.Addr())
			sources[f] = append(sources[f], itemOf(p, uint32(len(b.sources))))
		}
		for _, p := range in.Attached {
			item := b.buildAttached(p, index)
			f := familyOf(p.Addr())
			attached[f] = append(attached[f], item)
			b.sources = append(b.sources, sourceRecord{Kind: sourceAttached, Instance: index, Attached: item.result - 1})
			sources[f] = append(sources[f], itemOf(p, uint32(len(b.sources))))
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
	add := func(rec routeRecord, port int, hop config.NextHop) uint32 {
		rec.Port, rec.Hop = uint8(port), inet.FromNetip(hop.Address)
		b.routes = append(b.routes, rec)
		return uint32(len(b.routes) - 1)
	}
	var entries []entry
	froms := map[netip.Prefix][]entry{}
	for _, s := range v.Subnets {
		port, hop := via(v, s.Addr())
		entries = append(entries, entry{s, false, -1, add(routeRecord{Kind: routeInternal, Index: -1}, port, hop)})
	}
	for i, rt := range v.Routes {
		e := entry{to: rt.To, custom: rt.Class == config.Custom, from: -1}
		rec := routeRecord{Index: int32(i)}
		var port int
		var hop config.NextHop
		switch rt.Target {
		case config.TargetDrop:
			rec.Kind = routeDrop
		case config.TargetGateway:
			rec.Kind, rec.Gateway, rec.Tag = routeGateway, int32(rt.Gateway), tag(int32(rt.Gateway))
		case config.TargetAddress:
			rec.Kind = routeInternal
			if port, hop = via(v, rt.Address); !hop.Address.IsValid() {
				hop.Address = rt.Address
			}
		case config.TargetSubnet:
			rec.Kind = routeInternal
			port, hop = via(v, rt.Subnet.Addr())
		}
		e.route = add(rec, port, hop)
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

// beats orders routes to one prefix: custom before system, with from before without, a longer from before a shorter.
func (e entry) beats(o entry) bool {
	if e.custom != o.custom {
		return e.custom
	}
	return e.from > o.from
}

func (b *builder) buildInstance(v *config.VPC, in *config.Instance, vi uint32, r *routing) (rec instanceRecord, err error) {
	rec = instanceRecord{
		Addr:       [2]inet.Addr{inet.FromNetip(in.Address4), inet.FromNetip(in.Address6)},
		VPC:        vi,
		Limit:      uint32(in.PerInstance),
		Selections: uint32(len(b.selections)),
		Routes:     [2]uint32{NoTable, NoTable},
		Neighbor:   [2]uint32{NoNeighbor, NoNeighbor},
	}
	if rec.Slot, err = b.c.instances.get(v.Name+"/"+in.Name, b.newInstances); err != nil {
		return rec, err
	}
	for f, a := range []netip.Addr{in.Address4, in.Address6} {
		if !a.IsValid() {
			continue
		}
		rec.Routes[f] = r.of(v, a)
		port, hop := via(v, a)
		mac := in.MAC
		if hop.Address.IsValid() {
			mac = hop.MAC
		} else {
			hop.Address = a
		}
		if rec.Port[f] = uint8(port); port == noPort {
			continue
		}
		if rec.Neighbor[f], err = b.neighbor(port, inet.FromNetip(hop.Address), mac); err != nil {
			return rec, err
		}
	}
	for _, gateway := range r.gateways {
		for _, a := range []netip.Addr{in.Address4, in.Address6} {
			s, err := b.selectionFor(in, a, gateway)
			if err != nil {
				return rec, err
			}
			b.selections = append(b.selections, s)
		}
	}
	return rec, nil
}

// SNATAddresses returns how many different addresses SNAT uses in a configuration: StateConfig.Addresses.
func SNATAddresses(cfg *config.Config) int {
	all := map[netip.Addr]bool{}
	for i := range cfg.VPCs {
		for j := range cfg.VPCs[i].Instances {
			for _, n := range cfg.VPCs[i].Instances[j].SNAT {
				all[n.Address] = true
			}
		}
	}
	return len(all)
}

// addressSlot returns the slot that an SNAT address keeps over generations: its ports are counted there.
func (b *builder) addressSlot(a netip.Addr) (uint32, error) {
	return b.c.addresses.get(a.String(), b.newAddresses)
}

// selectionFor compiles "floating before ephemeral before SNAT" for one instance address and gateway.
func (b *builder) selectionFor(in *config.Instance, private netip.Addr, gateway int32) (s selection, err error) {
	s.Candidates.First = uint32(len(b.candidates))
	if !private.IsValid() {
		return s, nil
	}
	add := func(kind uint8, a netip.Addr) *candidate {
		s.Kind = kind
		s.Candidates.Count++
		pool := b.poolOf(a)
		b.candidates = append(b.candidates, candidate{Addr: inet.FromNetip(a), Ports: b.poolPorts[pool], Rules: b.poolRules[pool]})
		return &b.candidates[len(b.candidates)-1]
	}
	may := func(a netip.Addr) bool { return a.BitLen() == private.BitLen() && b.eligible(a, gateway) }
	for _, a := range in.Floating {
		if may(a) {
			add(selectFloating, a)
		}
	}
	if s.Kind != selectNone {
		return s, nil
	}
	for _, a := range in.Ephemeral {
		if may(a) {
			add(selectEphemeral, a)
			return s, nil
		}
	}
	// Over several SNAT addresses the private address picks one; the ranges of that one are one range.
	var best netip.Addr
	var weight uint64
	f := flowKey{private: inet.FromNetip(private)}
	for _, n := range in.SNAT {
		if may(n.Address) {
			if w := rendezvous(&f, config.SpreadInstance, inet.FromNetip(n.Address)); !best.IsValid() || w > weight {
				best, weight = n.Address, w
			}
		}
	}
	if !best.IsValid() {
		return s, nil
	}
	c := add(selectSNAT, best)
	c.Ranges.First = uint32(len(b.portRanges))
	for _, n := range in.SNAT {
		if n.Address == best {
			c.Ranges.Count++
			b.portRanges = append(b.portRanges, session.PortRange{First: n.First, Last: n.Last})
		}
	}
	c.Slot, err = b.addressSlot(best)
	return s, err
}

func (b *builder) buildAttached(p netip.Prefix, instance uint32) rangeItem {
	pool := b.poolOf(p.Addr())
	r := attachedRecord{Instance: instance, Ports: b.poolPorts[pool], Set: uint32(pool)}
	r.First, r.Last = inet.PrefixRange(p)
	b.attached = append(b.attached, r)
	return itemOf(p, uint32(len(b.attached)))
}

func (b *builder) addHosts(in *config.Instance, index, vi uint32, shared map[inet.Addr][]snatRange) {
	for _, a := range []netip.Addr{in.Address4, in.Address6} {
		if a.IsValid() {
			b.hostList = append(b.hostList, host{Addr: inet.FromNetip(a), Domain: vi + 1, Kind: hostInstance, Index: index})
		}
	}
	external := func(list []netip.Addr, kind uint8) {
		for _, a := range list {
			b.hostList = append(b.hostList, host{Addr: inet.FromNetip(a), Kind: kind, Index: index, Ports: b.poolPorts[b.poolOf(a)], Set: b.setOf(a), Rules: b.poolRules[b.poolOf(a)]})
		}
	}
	external(in.Floating, hostFloating)
	external(in.Ephemeral, hostEphemeral)
	for _, n := range in.SNAT {
		a := inet.FromNetip(n.Address)
		shared[a] = append(shared[a], snatRange{index, n.First, n.Last})
	}
}

func (b *builder) buildHosts() {
	b.hostSecret = b.c.random()
	b.hosts = make(table[host], 1<<bits.Len(uint(2*len(b.hostList)+1)))
	for _, h := range b.hostList {
		b.insertHost(h)
	}
}

func (b *builder) insertHost(h host) {
	mask := uint32(len(b.hosts) - 1)
	at := addressHash(b.hostSecret, h.Domain, h.Addr) & mask
	for b.hosts[at].Kind != 0 {
		at = (at + 1) & mask
	}
	b.hosts[at] = h
}

// rangeItem is a prefix on its way into a range table.
type rangeItem struct {
	first, last inet.Addr
	result      uint32 // 1 + index
}

func itemOf(p netip.Prefix, result uint32) rangeItem {
	first, last := inet.PrefixRange(p)
	return rangeItem{first, last, result}
}

// addTable appends a range table and returns its index; an empty one is NoTable.
func (b *builder) addTable(items []rangeItem) uint32 {
	if len(items) == 0 {
		return NoTable
	}
	b.ranges = append(b.ranges, b.rangeTable(items))
	return uint32(len(b.ranges) - 1)
}

// rangeTable flattens nested prefixes, no two of them equal, into disjoint ranges, the longest prefix on top.
func (b *builder) rangeTable(items []rangeItem) rangeTable {
	slices.SortFunc(items, func(x, y rangeItem) int {
		switch {
		case x.first.Less(y.first):
			return -1
		case y.first.Less(x.first):
			return 1
		case y.last.Less(x.last): // the shorter prefix first
			return -1
		}
		return 1
	})
	first := uint32(len(b.starts))
	emit := func(at inet.Addr, result uint32) {
		n := uint32(len(b.starts))
		switch {
		case n > first && b.starts[n-1] == at:
			b.results[n-1] = result
		case n > first && b.results[n-1] == result:
		default:
			b.starts, b.results = append(b.starts, at), append(b.results, result)
		}
	}
	var open []rangeItem
	end := func() { // the innermost open prefix ends; what is around it goes on
		last := open[len(open)-1].last
		open = open[:len(open)-1]
		if next := last.Next(); next != (inet.Addr{}) {
			result := uint32(0)
			if len(open) > 0 {
				result = open[len(open)-1].result
			}
			emit(next, result)
		}
	}
	for _, it := range items {
		for len(open) > 0 && open[len(open)-1].last.Less(it.first) {
			end()
		}
		emit(it.first, it.result)
		open = append(open, it)
	}
	for len(open) > 0 {
		end()
	}
	return rangeTable{span{first, uint32(len(b.starts)) - first}}
}

// Published returns the number of the generation that workers should be at.
func (s *State) Published() uint64 { return atomic.LoadUint64(&s.h.Generation) }

// Publish tells the workers of generation number. They have it mapped already.
func (s *State) Publish(number uint64) { atomic.StoreUint64(&s.h.Generation, number) }
