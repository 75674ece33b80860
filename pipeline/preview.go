// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/session"
)

// Preview compiles cfg as the next generation would be, for questions about it. It touches neither the state nor the
// compiler, and may run beside the compiler's own goroutine when c is a Clone.
func (c *Compiler) Preview(cfg *config.Config) (*Generation, error) {
	scratch, err := NewState(StateConfig{Workers: 1, Instances: len(c.state.instances)/2 + 1})
	if err != nil {
		return nil, fmt.Errorf("preview: %w", err)
	}
	defer scratch.Segment.Close()
	p := NewCompiler(scratch, nil)
	p.number = c.number
	p.vpcs.known, p.vpcs.current, p.vpcs.next = maps.Clone(c.vpcs.known), c.vpcs.current, c.vpcs.next
	p.instances.known, p.instances.current, p.instances.next = maps.Clone(c.instances.known), c.instances.current, c.instances.next
	p.addresses = c.addresses
	p.addresses.known = maps.Clone(c.addresses.known)
	return p.Compile(cfg)
}

// Clone returns a copy for Preview in another goroutine.
func (c *Compiler) Clone() *Compiler {
	d := *c
	d.vpcs.known, d.vpcs.current = maps.Clone(c.vpcs.known), maps.Clone(c.vpcs.current)
	d.instances.known, d.instances.current = maps.Clone(c.instances.known), maps.Clone(c.instances.current)
	d.addresses.known, d.addresses.current = maps.Clone(c.addresses.known), maps.Clone(c.addresses.current)
	return &d
}

// Fate counts what becomes of sessions under another generation.
type Fate struct {
	Keep  int `json:"keep"`
	Drain int `json:"drain"`
	End   int `json:"end"`
}

// Add adds the counts of another Fate.
func (f *Fate) Add(o Fate) { f.Keep, f.Drain, f.End = f.Keep+o.Keep, f.Drain+o.Drain, f.End+o.End }

// Fates walks the live sessions and counts, by "VPC/instance", what generation g would do with them. A session of an
// instance that the compiler does not know any more stands under "". The workers go on meanwhile. Of a session that some of
// the changes concerns, t, unless nil, takes note.
func (c *Compiler) Fates(g *Generation, t *Tally) map[string]Fate {
	s := c.state
	names := make(map[uint32]string, len(c.instances.known))
	for name, slot := range c.instances.known {
		names[slot] = name
	}
	fates := map[string]Fate{}
	for w := range s.Workers() {
		table := s.Table(w)
		for ref := range uint32(table.Capacity()) {
			e := table.At(ref)
			if session.StateOf(e.Load()) == session.Free {
				continue
			}
			copied := *e
			var one Fate
			switch {
			case !g.recheck(&copied, 0):
				one.End = 1
			case copied.Flags&session.Draining != 0:
				one.Drain = 1
			default:
				one.Keep = 1
			}
			f := fates[names[e.Instance]]
			f.Add(one)
			fates[names[e.Instance]] = f
			if t != nil {
				copied = *e
				t.count(&copied, one)
			}
		}
	}
	return fates
}

// Tally counts sessions by the changes that concern them: those of their instance, their VPC, the route that decides about their
// remote address, before or after, the gateway it leads to, the pool of their external address, and the ports they use. A session
// counts with each of them, by what becomes of it in the end.
type Tally struct {
	Fates []Fate // by change

	everything    []int // changes that concern all sessions
	before, after side
	concerned     []int // of the session in hand
}

// side is a generation and where the changes stand in its configuration.
type side struct {
	gen     *Generation
	pools   []poolRange
	slots   map[uint32]uint32 // 1 + index of the instance
	firsts  []uint32          // index of each VPC's first instance
	changes map[ref]int       // 1 + index
}

type ref struct {
	kind config.Kind
	config.Place
}

// NewTally returns a Tally over the changes from one configuration to another, of which before and after are the compiled
// forms that Preview gives.
func NewTally(old, new *config.Config, before, after *Generation, changes []config.Change) *Tally {
	t := &Tally{Fates: make([]Fate, len(changes)), before: newSide(old, before), after: newSide(new, after)}
	for i, c := range changes {
		if c.Kind == config.KindSessions {
			t.everything = append(t.everything, i)
		}
		for _, at := range []struct {
			*side
			config.Place
		}{{&t.before, c.Old}, {&t.after, c.New}} {
			if at.Place != config.None {
				at.changes[ref{c.Kind, at.Place}] = i + 1
			}
		}
	}
	return t
}

func newSide(cfg *config.Config, g *Generation) side {
	s := side{gen: g, slots: make(map[uint32]uint32, len(g.instances)), changes: map[ref]int{}}
	for i := range g.instances {
		s.slots[g.instances[i].Slot] = uint32(i) + 1
	}
	for i, p := range cfg.Pools {
		for _, r := range p.Ranges {
			s.pools = append(s.pools, poolRange{r, i})
		}
	}
	slices.SortFunc(s.pools, func(x, y poolRange) int { return x.From.Compare(y.From) })
	first := 0
	for _, v := range cfg.VPCs {
		s.firsts = append(s.firsts, uint32(first))
		first += len(v.Instances)
	}
	return s
}

// poolOf returns the pool that holds an address, or -1.
func (s *side) poolOf(a netip.Addr) int {
	i, found := slices.BinarySearchFunc(s.pools, a, func(r poolRange, a netip.Addr) int { return r.From.Compare(a) })
	if !found {
		i--
	}
	if i < 0 || !s.pools[i].Contains(a) {
		return -1
	}
	return s.pools[i].pool
}

// count notes what becomes of a session.
func (t *Tally) count(e *session.Session, f Fate) {
	for _, i := range t.Concerned(e) {
		t.Fates[i].Add(f)
	}
}

// Concerned returns the indexes of the changes that concern a session, until the next call.
func (t *Tally) Concerned(e *session.Session) []int {
	t.concerned = append(t.concerned[:0], t.everything...)
	t.concern(&t.before, e)
	t.concern(&t.after, e)
	slices.Sort(t.concerned)
	return slices.Compact(t.concerned)
}

// concern adds the changes that concern a session on one side.
func (t *Tally) concern(s *side, e *session.Session) {
	t.note(s, config.KindPool, 0, s.poolOf(e.External.Netip()))
	for port := range s.gen.ports {
		if e.Ports&(1<<port) != 0 || int(e.InPort) == port {
			t.note(s, config.KindPort, 0, port)
		}
	}
	// The remote address may be one of weir's own, before or after.
	if a := s.gen.find(attachedTables+uint32(e.Remote.Family()), e.Remote); a != 0 {
		t.noteInstance(s, s.gen.attached[a-1].Instance)
	}
	if h := s.gen.host(0, e.Remote); h != nil {
		switch h.Kind {
		case hostOwn:
			t.note(s, config.KindPort, 0, int(h.Port))
		case hostFloating, hostEphemeral:
			t.noteInstance(s, h.Index)
		case hostSNAT:
			for _, r := range s.gen.snat[h.Index : h.Index+uint32(h.Ranges)] {
				t.noteInstance(s, r.Instance)
			}
		}
	}
	i, known := s.slots[e.Instance]
	if !known {
		return
	}
	t.noteInstance(s, i-1)
	in := &s.gen.instances[i-1]
	t.note(s, config.KindVPC, 0, int(in.VPC))
	if r := s.gen.find(in.Routes[e.Private.Family()], e.Remote); r != 0 {
		t.note(s, config.KindRoute, int(in.VPC), int(s.gen.routes[r-1].Index))
		if s.gen.routes[r-1].Kind == routeGateway {
			t.note(s, config.KindGateway, 0, int(s.gen.routes[r-1].Gateway))
		}
	}
}

func (t *Tally) noteInstance(s *side, i uint32) {
	vpc := s.gen.instances[i].VPC
	t.note(s, config.KindInstance, int(vpc), int(i-s.firsts[vpc]))
}

// note adds the change of an object, if it has one.
func (t *Tally) note(s *side, kind config.Kind, vpc, index int) {
	if i := s.changes[ref{kind, config.Place{VPC: vpc, Index: index}}]; i != 0 {
		t.concerned = append(t.concerned, i-1)
	}
}
