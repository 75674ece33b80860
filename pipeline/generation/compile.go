// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"weir/config"
	"weir/pipeline/memory"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// UnconfirmedTimeout ends a session that began from outside and got no answer.
const UnconfirmedTimeout = 30 * time.Second

// PressedTimeout ends, while the table is nearly full, what has not been answered: a client's SYN
// comes a second, three and seven seconds after the first.
const PressedTimeout = 10 * time.Second

// Compiler turns configurations into generations for one State. It lives in control, and remembers
// which slots VPCs, instances and neighbors have, so that sessions find them again in the next
// generation. It is not safe for use by several goroutines.
type Compiler struct {
	Source []byte // kept with the next generation, for whoever resumes from it

	state     *state.State
	Number    uint64
	VPCs      Slots[string]
	Instances Slots[InstanceID]
	Addresses Slots[netip.Addr] // of SNAT
	neighbors map[uint32]int    // slots that the last compiled generation names, and how often
	random    func() uint64
	scratch   bool // nobody will run what it compiles

	attachments map[string]string // of the last compiled configuration, or nil: VPCs by the set of their attachments

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

// NewCompiler returns a compiler for state. With a seed the secrets of generations are always the
// same.
func NewCompiler(s *state.State, seed *[32]byte) *Compiler {
	mappings := s.Mappings()
	return &Compiler{
		state:     s,
		VPCs:      newSlots[string]("VPC", state.VPCSlots, s.VPCSessions),
		Instances: newSlots[InstanceID]("instance", state.InstanceSlots, s.InstanceSessions),
		Addresses: newSlots[netip.Addr]("SNAT address", state.AddressSlots, mappings.InUse),
		neighbors: map[uint32]int{},
		random:    state.NewRandom(seed).Uint64,
	}
}

// Resume returns a compiler that goes on from generation g, which another process compiled for s.
func Resume(s *state.State, g *Generation) *Compiler {
	c := NewCompiler(s, nil)
	c.Number = g.Number
	for i := range g.VPCs {
		c.VPCs.resume(g.name(i), g.VPCs[i].Slot)
	}
	for i := range g.Instances {
		in := &g.Instances[i]
		if in.Slot == 0 {
			continue // followed by another record
		}
		c.Instances.resume(in.identity(g.VPCs[in.VPC].Slot), in.Slot)
		for f := range in.Neighbor {
			if in.Neighbor[f] != state.NoNeighbor {
				c.neighbors[in.Neighbor[f]]++
			}
		}
	}
	for i := range g.Hosts {
		if h := &g.Hosts[i]; h.Kind == HostSNAT {
			c.Addresses.resume(h.Addr.Netip(), h.Slot)
		}
	}
	for i := range g.Hops {
		c.neighbors[g.Hops[i].Neighbor]++
	}
	for i := range g.Routers {
		c.neighbors[g.Routers[i].Neighbor]++
	}
	s.Neighbors.Recount()
	c.VPCs.passOver()
	c.Instances.passOver()
	c.Addresses.passOver()
	return c
}

// Settle brings into force what cfg, from which the resumed generation was compiled, says of
// neighbors: whoever published that generation may have died before Retire.
func (c *Compiler) Settle(cfg *config.Config) error {
	b := newBuilder(c, cfg)
	if err := c.begin(cfg); err != nil {
		return err
	}
	if err := b.build(); err != nil {
		c.abandon(b.created)
		return err
	}
	if err := c.reserve(); err != nil {
		c.abandon(b.created)
		return err
	}
	c.neighbors, c.created, c.pending, c.attachments = b.neighbors, b.created, b.pending, attachmentsOf(cfg)
	c.Retire()
	return nil
}

// Compile makes the next generation. On an error everything stays as it was. What it yields is
// followed by Retire, when it is in force, or by Discard.
func (c *Compiler) Compile(cfg *config.Config) (*Generation, error) {
	b := newBuilder(c, cfg)
	if err := c.begin(cfg); err != nil {
		return nil, err
	}
	if err := b.build(); err != nil {
		c.abandon(b.created)
		return nil, err
	}
	h := Header{Number: c.Number + 1, HostSecret: b.hostSecret, Made: time.Now().Unix(), Spread: uint8(cfg.Sessions.Spread),
		OnMove: uint8(cfg.Sessions.OnMove), Drain: uint32(cfg.Sessions.DrainTimeout.Milliseconds()),
		PortRest: uint32(cfg.Sessions.PortRest.Milliseconds()), UnknownTCP: uint8(cfg.Sessions.UnknownTCP), MSSClamp: clampOf(cfg.Sessions.MSSClamp)}
	t := cfg.Sessions.Timeouts
	for s, d := range map[session.State]time.Duration{
		session.UDP: t.UDP, session.ICMP: t.ICMP, session.Other: t.Other, session.TCPOpening: t.TCPPartiallyOpen,
		session.TCPOpen: t.TCPEstablished, session.TCPClosing: t.TCPClosing, session.Unconfirmed: UnconfirmedTimeout,
	} {
		h.Timeouts[0][s], h.Timeouts[1][s] = uint32(d.Milliseconds()), uint32(d.Milliseconds())
	}
	for _, s := range []session.State{session.TCPOpening, session.Unconfirmed} {
		h.Timeouts[1][s] = min(h.Timeouts[1][s], uint32(PressedTimeout.Milliseconds()))
	}
	h.Floors = h.Timeouts[0]
	floors := config.TimeoutFloors()
	h.Floors[session.UDP] = min(h.Floors[session.UDP], uint32(floors.UDP.Milliseconds()))
	h.Floors[session.ICMP] = min(h.Floors[session.ICMP], uint32(floors.ICMP.Milliseconds()))
	h.Floors[session.TCPOpening] = min(h.Floors[session.TCPOpening], uint32(floors.TCPPartiallyOpen.Milliseconds()))
	h.Floors[session.TCPOpen] = min(h.Floors[session.TCPOpen], uint32(floors.TCPEstablished.Milliseconds()))
	h.Floors[session.TCPClosing] = min(h.Floors[session.TCPClosing], uint32(floors.TCPClosing.Milliseconds()))
	h.ZeroCount = uint16(copy(h.ZeroPorts[:], cfg.Sessions.AllowUDP6Zero))
	h.UDPCount = uint16(len(t.UDPPorts))
	for i, p := range t.UDPPorts {
		h.UDPPorts[1+i], h.UDPTimeouts[1+i] = p.Port, uint32(p.Timeout.Milliseconds())
	}
	b.source = c.Source
	g, err := store(h, &b.Tables)
	if err != nil {
		c.abandon(b.created)
		return nil, err
	}
	if err := c.reserve(); err != nil {
		c.abandon(b.created)
		g.Close()
		return nil, err
	}
	c.Number++
	vpcs, instances, addresses, neighbors, last, attachments := c.VPCs.Current, c.Instances.Current, c.Addresses.Current, c.neighbors, c.last, c.attachments
	c.undo = func() {
		c.VPCs.Current, c.Instances.Current, c.Addresses.Current, c.neighbors, c.last, c.attachments = vpcs, instances, addresses, neighbors, last, attachments
		for _, r := range slices.Backward(b.renames) {
			c.VPCs.swap(r.from, r.to)
		}
		c.forget()
	}
	for _, r := range b.renames {
		c.VPCs.swap(r.from, r.to)
	}
	c.attachments = attachmentsOf(cfg)
	c.VPCs.Current, c.Instances.Current, c.Addresses.Current, c.neighbors = b.newVPCs, b.newInstances, b.newAddresses, b.neighbors
	for slot := range neighbors {
		if c.neighbors[slot] == 0 {
			c.gone = append(c.gone, slot)
		}
	}
	c.created, c.pending = b.created, b.pending
	c.last = compiled{number: c.Number, hosts: len(b.hostList)}
	return g, nil
}

// Retire brings into force what the last compiled generation changes of neighbors, and lets go of
// those that only older ones name. Call it when every worker is past them.
func (c *Compiler) Retire() {
	for _, p := range c.pending {
		atomic.StoreUint64(&c.state.Neighbors.Entries[p.slot].Word, p.word)
	}
	c.remove(c.gone)
	c.created, c.pending, c.gone, c.undo = nil, nil, nil, nil
}

// Discard forgets the last compiled generation: it never came into force.
func (c *Compiler) Discard() {
	c.Number--
	c.remove(c.created)
	c.undo()
	c.created, c.pending, c.gone, c.undo = nil, nil, nil, nil
}

// begin makes room for the neighbors of cfg, which are entered while it is compiled, and for as
// many again of those that only the running generation names or that are learned.
func (c *Compiler) begin(cfg *config.Config) error {
	c.VPCs.begin()
	c.Instances.begin()
	c.Addresses.begin()
	n := c.state.Neighbors.Used + learned*len(cfg.Ports)
	for i := range cfg.VPCs {
		n += 2 * len(cfg.VPCs[i].Instances)
		for _, a := range cfg.VPCs[i].Attach {
			n += len(a.NextHops)
		}
	}
	for _, p := range cfg.Ports {
		n += len(p.NextHops)
	}
	return c.state.ReserveNeighbors(n)
}

// learned is how many neighbors that no configuration names a port may have.
const learned = 1024

// reserve takes memory for all slots that have been given.
func (c *Compiler) reserve() error {
	if c.scratch {
		return nil
	}
	return c.state.Reserve(int(c.VPCs.Next), int(c.Instances.Next), int(c.Addresses.Next))
}

// abandon takes back what a compilation that fails has done.
func (c *Compiler) abandon(created []uint32) {
	c.remove(created)
	c.forget()
}

// forget takes back the slots that the last compilation has given.
func (c *Compiler) forget() {
	c.VPCs.undo()
	c.Instances.undo()
	c.Addresses.undo()
}

func (c *Compiler) remove(neighbors []uint32) {
	for _, slot := range neighbors {
		c.state.Neighbors.Remove(slot)
	}
}
