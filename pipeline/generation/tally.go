// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/session"
)

// Tally counts sessions by the changes that concern them: those of their instance, their VPC, the
// route that decides about their remote address, before or after, the gateway it leads to, the pool
// of their external address, and the ports they use. A session counts with each of them, by what
// becomes of it in the end.
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

// NewTally returns a Tally over the changes from one configuration to another, of which before and
// after are the compiled forms that Preview gives.
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
	s := side{gen: g, slots: make(map[uint32]uint32, len(g.Instances)), changes: map[ref]int{}}
	for i := range g.Instances {
		s.slots[g.Instances[i].Slot] = uint32(i) + 1
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
	var leaves uint32
	if h := s.gen.Host(0, e.External); h != nil {
		leaves = h.Ports
	}
	for port := range s.gen.Ports {
		if leaves&(1<<port) != 0 || e.At != attach.None && e.At.Port() == port {
			t.note(s, config.KindPort, 0, port)
		}
	}
	// The remote address may be one of weir's own, before or after.
	if a := s.gen.Find(AttachedTables+uint32(e.Remote.Family()), e.Remote); a != 0 {
		t.noteInstance(s, s.gen.Attached[a-1].Instance)
	}
	if h := s.gen.Host(0, e.Remote); h != nil {
		switch h.Kind {
		case HostOwn:
			t.note(s, config.KindPort, 0, int(h.Port))
		case hostFloating, hostEphemeral:
			t.noteInstance(s, h.Index)
		case HostSNAT:
			for _, r := range s.gen.SNAT[h.Index : h.Index+uint32(h.Ranges)] {
				t.noteInstance(s, r.Instance)
			}
		}
	}
	i, known := s.slots[e.Instance]
	if !known {
		return
	}
	t.noteInstance(s, i-1)
	in := &s.gen.Instances[i-1]
	t.note(s, config.KindVPC, 0, int(in.VPC))
	if r := s.gen.Find(in.Routes[e.Private.Family()], e.Remote); r != 0 {
		t.note(s, config.KindRoute, int(in.VPC), int(s.gen.Routes[r-1].Index))
		if s.gen.Routes[r-1].Kind == RouteGateway {
			t.note(s, config.KindGateway, 0, int(s.gen.Routes[r-1].Gateway))
		}
	}
}

func (t *Tally) noteInstance(s *side, i uint32) {
	vpc := s.gen.Instances[i].VPC
	t.note(s, config.KindInstance, int(vpc), int(i-s.firsts[vpc]))
}

// note adds the change of an object, if it has one.
func (t *Tally) note(s *side, kind config.Kind, vpc, index int) {
	if i := s.changes[ref{kind, config.Place{VPC: vpc, Index: index}}]; i != 0 {
		t.concerned = append(t.concerned, i-1)
	}
}
