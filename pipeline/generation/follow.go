// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"
	"slices"
	"time"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/inet"
	"weir/pipeline/memory"
	"weir/pipeline/state"
)

// Follow makes the next generation as Compile does, from old, which c has compiled last, out of
// was, and which is still open. When the two configurations differ in no more than what some VPCs
// hold, it copies old as it is and makes only those VPCs anew: their routes and instances are added
// at the end of the tables, what they replace is dead, and the hash table of addresses is mended.
// When there is much that is dead, or no room left, it compiles all of it.
func (c *Compiler) Follow(old *Generation, was, cfg *config.Config) (*Generation, error) {
	dirty, ok := c.followable(old, was, cfg)
	if !ok || uint64(len(c.Source)) > old.Header.Sections[sourceSection].Cap {
		return c.Compile(cfg)
	}
	g, err := c.copy(old)
	if err != nil {
		return nil, err
	}
	f := follower{builder: newBuilder(c, cfg), was: was, last: c.last, dead: map[uint32]bool{}, shared: map[inet.Addr][]SNATRange{}}
	if err := c.begin(cfg); err != nil {
		g.Close()
		return nil, err
	}
	f.indexPools()
	f.Tables, f.hostSecret = g.Tables, g.Header.HostSecret
	if err := f.build(dirty); err != nil {
		c.abandon(f.created)
		g.Close()
		return nil, err
	}
	f.source = append(f.source[:0], c.Source...)
	f.last.hosts += len(f.hostList)
	if !g.take(&f.Tables) || f.last.hosts > len(f.Hosts)/8*5 {
		c.abandon(f.created)
		g.Close()
		return c.Compile(cfg)
	}
	if err := c.reserve(); err != nil {
		c.abandon(f.created)
		g.Close()
		return nil, err
	}
	for _, h := range f.hostList {
		f.insertHost(h)
	}
	c.Number++
	g.Header.Number, g.Number = c.Number, c.Number
	g.Header.Made = time.Now().Unix()
	g.Segment.SealWhole(genLayout)
	f.last.number = c.Number
	f.commit()
	return g, nil
}

// followable returns the VPCs that differ, unless something else does too.
func (c *Compiler) followable(old *Generation, was, cfg *config.Config) (dirty []int, ok bool) {
	if c.last.number != old.Number || c.Number != old.Number {
		return nil, false
	}
	instances := 0
	for _, change := range config.Changes(was, cfg) {
		switch change.Kind {
		case config.KindInstance, config.KindRoute:
			dirty = append(dirty, max(change.Old.VPC, change.New.VPC))
		case config.KindVPC:
			i := change.Old.Index
			if i < 0 || change.New.Index != i {
				return nil, false
			}
			if was.VPCs[i].Name != cfg.VPCs[i].Name || !slices.EqualFunc(was.VPCs[i].Attach, cfg.VPCs[i].Attach, sameAttachment) {
				return nil, false
			}
			dirty = append(dirty, i)
		case config.KindSection:
		default:
			return nil, false
		}
	}
	slices.Sort(dirty)
	dirty = slices.Compact(dirty)
	attached := func(in config.Instance) bool { return len(in.Attached) > 0 || len(in.Hosts) > 0 }
	untranslated := func(r config.Route) bool { return r.Untranslated }
	for _, i := range dirty {
		a, b := &was.VPCs[i], &cfg.VPCs[i]
		if slices.ContainsFunc(a.Instances, attached) || slices.ContainsFunc(b.Instances, attached) ||
			slices.ContainsFunc(a.Routes, untranslated) || slices.ContainsFunc(b.Routes, untranslated) {
			return nil, false // they stand in tables of all VPCs; hosts have links
		}
		instances += len(a.Instances)
	}
	return dirty, c.last.dead+instances <= len(old.Instances)/4+8
}

func sameAttachment(a, b config.Attachment) bool {
	return a.Encap == config.NoEncap && b.Encap == config.NoEncap && a.Port == b.Port && a.VLAN == b.VLAN && a.PCP == b.PCP &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.NextHops, b.NextHops)
}

// Release takes over a generation that nobody uses any more, here or in the data plane: its memory,
// which is there already, serves the next that Follow makes.
func (c *Compiler) Release(g *Generation) {
	if g.Segment.ReadOnly() { // another control's, which made it
		g.Close()
		return
	}
	c.spare.Close()
	c.spare, g.Segment = g.Segment, memory.Segment{}
}

// copy returns a generation with the tables of g, with room at their ends, in a segment of its own
// that is not sealed yet.
func (c *Compiler) copy(g *Generation) (*Generation, error) {
	s := &c.spare
	if s.Size() != g.Segment.Size() {
		var err error
		if s, err = memory.New("generation", g.Segment.Size(), false); err != nil {
			return nil, err
		}
	}
	n := &Generation{Segment: *s}
	*s = memory.Segment{} // it is the generation's
	s = &n.Segment
	h := memory.At[Header](s, 0)
	*h = *g.Header
	h.Header = memory.Header{}
	n.Header = h
	for i, c := range n.columns() {
		c.extend(s, h.Sections[i])
		g.columns()[i].copyTo(c)
	}
	return n, nil
}

// take makes t, which began as g's own tables, what the generation holds. False: something has
// outgrown its room.
func (g *Generation) take(t *Tables) bool {
	for i, c := range t.columns() {
		if c.count() > g.Header.Sections[i].Cap {
			return false
		}
		g.Header.Sections[i].Count = c.count()
	}
	g.view()
	return true
}

// follower holds one run of Follow. The builder's tables lie in the new generation.
type follower struct {
	*builder
	was    *config.Config
	last   compiled
	dead   map[uint32]bool // instances, by index
	shared map[inet.Addr][]SNATRange

	goneInstances []InstanceID
	goneAddresses []netip.Addr
}

func (f *follower) build(dirty []int) error {
	for _, v := range dirty {
		f.bury(v)
	}
	var attached [2][]rangeItem // stay empty
	for _, v := range dirty {
		rec, err := f.buildVPC(v, &attached, f.shared)
		if err != nil {
			return err
		}
		f.VPCs[v] = rec
	}
	for addr, list := range f.shared {
		if at := f.hostAt(0, addr); at >= 0 {
			h := f.Hosts[at]
			for _, r := range f.SNAT[h.Index : h.Index+uint32(h.Ranges)] {
				if !f.dead[r.Instance] {
					list = append(list, r)
				}
			}
			f.removeHost(uint32(at))
		}
		if len(list) == 0 {
			f.goneAddresses = append(f.goneAddresses, addr.Netip())
			continue
		}
		if err := f.addShared(addr, list); err != nil {
			return err
		}
	}
	return nil
}

// bury takes out what a VPC has held.
func (f *follower) bury(vpc int) {
	v := &f.was.VPCs[vpc]
	for i := range v.Instances {
		in := &v.Instances[i]
		f.goneInstances = append(f.goneInstances, IdentityOf(f.VPCs[vpc].Slot, in))
		index := f.Hosts[f.hostAt(uint32(vpc)+1, inet.FromNetip(in.Identity()))].Index
		for _, slot := range f.Instances[index].Neighbor {
			if slot != state.NoNeighbor {
				f.neighbors[slot]--
			}
		}
		f.Instances[index] = Instance{Routes: [2]uint32{NoTable, NoTable}, Neighbor: [2]uint32{state.NoNeighbor, state.NoNeighbor}, At: [2]attach.Word{attach.None, attach.None}}
		f.dead[index] = true
		f.last.dead++
		if in.Address4.IsValid() {
			f.removeHost(uint32(f.hostAt(uint32(vpc)+1, inet.FromNetip(in.Address4))))
		}
		if in.Address6.IsValid() {
			f.removeHost(uint32(f.hostAt(uint32(vpc)+1, inet.FromNetip(in.Address6))))
		}
		for _, a := range in.Floating {
			f.removeHost(uint32(f.hostAt(0, inet.FromNetip(a))))
		}
		for _, a := range in.Ephemeral {
			f.removeHost(uint32(f.hostAt(0, inet.FromNetip(a))))
		}
		for _, n := range in.SNAT {
			f.shared[inet.FromNetip(n.Address)] = nil // its ranges are listed anew
		}
	}
}

// hostAt returns where an address stands in the hash table, -1 if nowhere.
func (f *follower) hostAt(domain uint32, a inet.Addr) int {
	mask := uint32(len(f.Hosts) - 1)
	for at := inet.Hash(f.hostSecret, domain, a) & mask; f.Hosts[at].Kind != 0; at = (at + 1) & mask {
		if f.Hosts[at].Addr == a && f.Hosts[at].Domain == domain {
			return int(at)
		}
	}
	return -1
}

// removeHost takes an entry out of the hash table and moves up those that a look-up would not find
// over the gap.
func (f *follower) removeHost(at uint32) {
	mask := uint32(len(f.Hosts) - 1)
	for next := (at + 1) & mask; f.Hosts[next].Kind != 0; next = (next + 1) & mask {
		home := inet.Hash(f.hostSecret, f.Hosts[next].Domain, f.Hosts[next].Addr) & mask
		if (next-home)&mask >= (next-at)&mask { // the gap lies between its home and where it stands
			f.Hosts[at] = f.Hosts[next]
			at = next
		}
	}
	f.Hosts[at] = Host{}
	f.last.hosts--
}

// commit notes in the compiler what the new generation has of slots and neighbors, and how to take
// that back.
func (f *follower) commit() {
	c, last := f.c, f.c.last
	instances := c.Instances.replace(f.goneInstances, f.newInstances)
	addresses := c.Addresses.replace(f.goneAddresses, f.newAddresses)
	count := func(sign int) (zero []uint32) {
		for slot, n := range f.neighbors {
			if c.neighbors[slot] += sign * n; c.neighbors[slot] == 0 {
				delete(c.neighbors, slot)
				zero = append(zero, slot)
			}
		}
		return zero
	}
	c.gone = count(1)
	c.undo = func() {
		instances()
		addresses()
		count(-1)
		c.last = last
		c.forget()
	}
	c.created, c.pending, c.last = f.created, f.pending, f.last
}

// replace takes keys that are gone out of what is current and puts others in; undo reverses that.
func (s *Slots[K]) replace(gone []K, taken map[K]uint32) (undo func()) {
	before := make(map[K]uint32, len(gone)+len(taken))
	for _, key := range gone {
		before[key] = s.Current[key]
		delete(s.Current, key)
	}
	for key, slot := range taken {
		if old, was := s.Current[key]; was {
			before[key] = old
		}
		s.Current[key] = slot
	}
	return func() {
		for key := range taken {
			delete(s.Current, key)
		}
		for key, slot := range before {
			s.Current[key] = slot
		}
	}
}
