// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/config"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// meaning lists what a generation says, without the indexes that its tables name each other by.
func (g *Generation) meaning(cfg *config.Config, s *state.State) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	neighbor := func(slot uint32) string {
		if slot == state.NoNeighbor {
			return "none"
		}
		at, a := s.Neighbors.At(slot)
		return fmt.Sprintf("%v by %v", a, at)
	}
	name := func(i uint32) string {
		if in := g.Instances[i]; in.Slot == 0 {
			return "DEAD"
		}
		in := &g.Instances[i]
		return fmt.Sprintf("%s/%v", g.name(int(in.VPC)), in.identity(0).Addr)
	}
	gateways := func(set uint32) string {
		of := g.sets[set]
		return fmt.Sprint(g.gateways[of.First:of.End()])
	}
	ranges := func(table uint32, result func(uint32) string) string {
		if table == NoTable {
			return "no table"
		}
		var b strings.Builder
		t := g.ranges[table]
		for i := t.First; i < t.End(); i++ {
			fmt.Fprintf(&b, " %v:", g.starts[i])
			if r := g.results[i]; r != 0 {
				b.WriteString(result(r - 1))
			}
		}
		return b.String()
	}
	source := func(i uint32) string {
		r := g.Sources[i]
		if r.Kind == SourceAttached {
			return fmt.Sprintf("attached to %s: %v", name(r.Instance), g.Attached[r.Attached].First)
		}
		return "transit of " + name(r.Instance)
	}
	add("header %v %d %d %d %d", g.Header.Timeouts, g.Header.Drain, g.Header.PortRest, g.Header.Spread, g.Header.OnMove)
	for i, p := range g.Ports {
		add("port %d: %+v", i, p)
	}
	for _, p := range g.OnLink {
		add("on link: %+v", p)
	}
	for _, h := range g.Hops {
		add("hop %v of %v: neighbor %s", h.Addr, h.At, neighbor(h.Neighbor))
	}
	for _, h := range g.Routers {
		add("router %v of %v: neighbor %s", h.Addr, h.At, neighbor(h.Neighbor))
	}
	for i := range g.Attachments {
		a := g.Attachments[i]
		found, ok := g.Attachment(a.At)
		add("attachment %+v: %v %v", a, found == uint32(i), ok)
	}
	add("groups %v, links %v", g.Groups, g.Links)
	for f := range 2 {
		add("attached: %s", ranges(AttachedTables+uint32(f), func(i uint32) string {
			a := g.Attached[i]
			return fmt.Sprintf("%s %v-%v %s %b", name(a.Instance), a.First, a.Last, gateways(a.Set), a.Ports)
		}))
	}
	for f := range 2 {
		add("private: %s", ranges(PrivateTables+uint32(f), func(i uint32) string { return g.name(int(i)) }))
	}
	for i, v := range g.VPCs {
		add("vpc %s: slot %d, limit %d, tags %d, sources %s, %s", g.name(i), v.Slot, v.Limit, v.Tags, ranges(v.Sources[0], source), ranges(v.Sources[1], source))
	}
	for i, in := range g.Instances {
		if in.Slot == 0 {
			continue
		}
		add("instance %s: %v, slot %d, limit %d, ports %v, neighbors %s, %s", name(uint32(i)), in.Addr, in.Slot, in.Limit, in.At, neighbor(in.Neighbor[0]), neighbor(in.Neighbor[1]))
		for f := range 2 {
			add("instance %s: routes %s", name(uint32(i)), ranges(in.Routes[f], func(r uint32) string { return fmt.Sprintf("%+v", g.Routes[r]) }))
		}
		for t := range 2 * g.VPCs[in.VPC].Tags {
			s := g.Selections[in.Selections+t]
			add("instance %s: tag %d, family %d: kind %d", name(uint32(i)), t/2, t%2, s.Kind)
			for _, c := range g.Candidates[s.Candidates.First:s.Candidates.End()] {
				add("instance %s: tag %d, family %d: %v, ports %b, rules %d, forwards %v", name(uint32(i)), t/2, t%2, c.Addr, c.Ports, c.Rules, g.Forwards[c.Forwards.First:c.Forwards.End()])
				for space, r := range c.Ranges {
					add("instance %s: tag %d, family %d: %v, of space %d %v", name(uint32(i)), t/2, t%2, c.Addr, space, g.PortRanges[r.First:r.End()])
				}
			}
		}
	}
	for i := range g.Hosts {
		h := &g.Hosts[i]
		if h.Kind == 0 {
			continue
		}
		if g.Host(h.Domain, h.Addr) != h {
			add("%v in domain %d is not found", h.Addr, h.Domain)
		}
		whose := ""
		switch h.Kind {
		case HostInstance, hostFloating, hostEphemeral:
			whose = name(h.Index)
		case HostSNAT:
			for _, r := range g.SNAT[h.Index : h.Index+uint32(h.Ranges)] {
				whose += fmt.Sprintf(" %s %d-%d %v", name(r.Instance), r.First, r.Last, g.Forwards[r.Forwards.First:r.Forwards.End()])
			}
		}
		set := ""
		if h.Kind > HostInstance {
			set = gateways(h.Set)
		}
		add("host %v in domain %d: kind %d, port %d, ports %b, gateways %s, rules %d: %s", h.Addr, h.Domain, h.Kind, h.Port, h.Ports, set, h.Rules, whose)
	}
	slices.Sort(lines)
	return lines
}

// known lists what is known of neighbors.
func known(n *state.Neighbors) []string {
	var lines []string
	for slot := range n.Live() {
		if n.Entries[slot].Word == 0 {
			continue
		}
		now, mac := n.Get(uint32(slot))
		port, a := n.At(uint32(slot))
		lines = append(lines, fmt.Sprintf("%v by %d: %v %v", a, port, now, mac))
	}
	slices.Sort(lines)
	return lines
}

// townsman writes configurations of several VPCs, a file for each, which change one by one.
type townsman struct{ *rand.Rand }

func (m townsman) any(list ...string) string { return list[m.IntN(len(list))] }

const towns = 6

func (m townsman) global() string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\ndataplane: {sessions: 4096}\nsessions: {on_move: %s, mapping: %s}\nports:\n", m.any("keep", "drain"), m.any("endpoint-independent", "address-and-port-dependent"))
	for v := range towns {
		fmt.Fprintf(&b, "  - {name: in%d, device: net_null%d, side: inside}\n", v, v)
	}
	fmt.Fprintf(&b, "  - {name: out, device: net_null9, side: outside, addresses: [198.51.100.2/24, \"2001:db8::2/64\"], next_hops: [198.51.100.1, \"2001:db8::1\"]}\n"+
		"pools: [{name: p, ranges: [192.0.2.0/24, \"2001:db8:1::/64\"]}, {name: q, ranges: [203.0.113.0/24]}]\ngateways:\n"+
		"  - {name: g, id: 00000000-0000-4000-8000-000000000001, pools: %s}\n"+
		"  - {name: h, id: 00000000-0000-4000-8000-000000000002, pools: [q], addresses: [192.0.2.7, 192.0.2.8, 192.0.2.200]}\n", m.any("[p]", "[p, q]"))
	return b.String()
}

func (m townsman) vpc(v int) string {
	var b strings.Builder
	hops := m.any("", "", "", ", next_hops: [10.0.0.2]")
	if m.IntN(3) > 0 {
		hops = ""
	}
	fmt.Fprintf(&b, "version: 1\nvpcs:\n  - name: v%d\n    attach: [{port: in%d, addresses: [10.0.0.1/24, \"fd00::1/64\"]%s}]\n    subnets: [10.0.0.0/24, 10.0.1.0/24, 10.%d.2.0/24, \"fd00::/64\"]\n    limits: {per_vpc: %d}\n    routes: [%s%s]\n    instances:\n",
		v, v, hops, 100+v, m.IntN(2)*100, m.any("{to: 0.0.0.0/0, gateway: g}", "{to: 0.0.0.0/0, gateway: h}, {to: \"::/0\", gateway: g}", "{to: 0.0.0.0/0, gateway: unnamed}"),
		m.any("", ", {to: 8.8.8.0/24, gateway: h}", ", {to: 8.8.8.0/24, gateway: h, from: 10.0.1.0/24}, {to: 8.0.0.0/8, drop: true}", ", {to: 10.9.0.0/16, address: 10.0.0.9}",
			m.any("", "", fmt.Sprintf(", {to: 100.64.0.0/10, gateway: g, translate: false, from: 10.%d.2.0/24}", 100+v))))
	for i := range 2 + m.IntN(4) {
		if m.IntN(4) == 0 {
			continue
		}
		one := v*30 + i*3 + m.IntN(2)
		external := m.any(fmt.Sprintf("{floating: [192.0.2.%d]}", one), fmt.Sprintf("{floating: [192.0.2.%d, 203.0.113.%d, \"2001:db8:1::%x\"]}", one, one, one+1), fmt.Sprintf("{ephemeral: [203.0.113.%d]}", one),
			fmt.Sprintf("{snat: [{address: 192.0.2.%d, ports: %d-%d%s}]}", 200+m.IntN(3), 1024+one*200, 1024+one*200+99,
				m.any("", fmt.Sprintf(", forward: [{protocol: tcp, port: %d, to_port: 22}, {protocol: udp, port: %d}]", 1024+one*200, 1024+one*200+m.IntN(100)))),
			fmt.Sprintf("{snat: [{address: 192.0.2.200, ports: %d-%d}, {address: 192.0.2.200, ports: %d-%d}, {address: 203.0.113.220, ports: %d-%d}]}",
				40000+one*100, 40000+one*100+40, 40000+one*100+50, 40000+one*100+90, 1024+one*100, 1024+one*100+99),
			"{}")
		if m.IntN(25) == 0 {
			external = fmt.Sprintf("{attached: [203.0.113.%d/32]}", one)
		}
		mac, transit := "", ""
		if m.IntN(3) > 0 {
			mac = fmt.Sprintf(", mac: \"02:00:00:00:0%d:%02x\"", m.IntN(2), i)
		}
		if m.IntN(4) == 0 {
			transit = fmt.Sprintf(", transit: [10.8.%d.0/24]", i)
		}
		fmt.Fprintf(&b, "      - {name: %s%d, addresses: [10.0.%d.%d, \"fd00::%x\"]%s%s, external: %s}\n", m.any("i", "r"), i, m.IntN(2), 10+i, 10+i, mac, transit, external)
	}
	b.WriteString("      - {name: last, addresses: [10.0.0.200]}\n")
	return b.String()
}

// Over random configurations and random changes of them, Follow makes of each what Compile makes,
// and leaves the same behind: the same neighbors, the same slots. A generation that is discarded
// leaves nothing.
func TestFollow(t *testing.T) {
	followed, whole, discarded := 0, 0, 0
	seeds := 60
	if testing.Short() {
		seeds = 6
	}
	for seed := range uint64(seeds) {
		m := townsman{rand.New(rand.NewPCG(seed, 7))}
		var states [2]*state.State
		var compilers [2]*Compiler
		for i := range states {
			var err error
			if states[i], err = state.New(state.Sizes{Workers: 1, Sessions: 4096, Seed: &[32]byte{1, 2, 3}}); err != nil {
				t.Fatal(err)
			}
			compilers[i] = NewCompiler(states[i], &[32]byte{1, 2, 3})
		}
		texts := []config.File{{Name: "global.yaml", Data: []byte(m.global())}}
		for v := range towns {
			texts = append(texts, config.File{Name: fmt.Sprintf("v%d.yaml", v), Data: []byte(m.vpc(v))})
		}
		var parser config.Parser
		var running *Generation
		var was *config.Config
		for round := range 40 {
			cfg, _, err := parser.Parse(texts)
			if err != nil {
				t.Fatalf("%v\n%s", err, texts)
			}
			follow := func() *Generation {
				if running == nil {
					g, err := compilers[0].Compile(cfg)
					if err != nil {
						t.Fatal(err)
					}
					return g
				}
				g, err := compilers[0].Follow(running, was, cfg)
				if err != nil {
					t.Fatal(err)
				}
				return g
			}
			if running != nil && m.IntN(4) == 0 {
				last, before := compilers[0].last, known(states[0].Neighbors)
				current, neighbors := maps.Clone(compilers[0].Instances.Current), maps.Clone(compilers[0].neighbors)
				g := follow()
				compilers[0].Discard()
				g.Close()
				discarded++
				if compilers[0].last != last || !maps.Equal(compilers[0].Instances.Current, current) || !maps.Equal(compilers[0].neighbors, neighbors) || !slices.Equal(known(states[0].Neighbors), before) {
					t.Fatalf("seed %d, round %d: what was discarded has left something", seed, round)
				}
			}
			g := follow()
			want, err := compilers[1].Compile(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want.meaning(cfg, states[1]), g.meaning(cfg, states[0])); d != "" {
				t.Fatalf("seed %d, round %d (-Compile +Follow):\n%s", seed, round, d)
			}
			if g.Number != want.Number {
				t.Fatalf("generation %d, want %d", g.Number, want.Number)
			}
			if running != nil && g.Header.HostSecret == running.Header.HostSecret {
				followed++
			} else {
				whole++
			}
			compilers[0].Retire()
			compilers[1].Retire()
			if d := cmp.Diff(known(states[1].Neighbors), known(states[0].Neighbors)); d != "" {
				t.Fatalf("seed %d, round %d: neighbors (-Compile +Follow):\n%s", seed, round, d)
			}
			if !maps.Equal(compilers[0].neighbors, compilers[1].neighbors) && len(compilers[0].neighbors) != len(compilers[1].neighbors) {
				t.Fatalf("seed %d, round %d: %d neighbors are named, want %d", seed, round, len(compilers[0].neighbors), len(compilers[1].neighbors))
			}
			if !maps.Equal(compilers[0].Instances.Current, compilers[1].Instances.Current) || !slices.Equal(keys(compilers[0].Addresses.Current), keys(compilers[1].Addresses.Current)) {
				t.Fatalf("seed %d, round %d: slots %v %v, want %v %v", seed, round, compilers[0].Instances.Current, compilers[0].Addresses.Current,
					compilers[1].Instances.Current, compilers[1].Addresses.Current)
			}
			expectSlots(t, g, compilers[0])
			// Whoever takes over finds the same.
			resumed := Resume(states[0], g)
			if !maps.Equal(resumed.Instances.Current, compilers[0].Instances.Current) || !maps.Equal(resumed.neighbors, compilers[0].neighbors) ||
				!maps.Equal(resumed.Addresses.Current, compilers[0].Addresses.Current) {
				t.Fatalf("seed %d, round %d: who resumes knows %v, want %v", seed, round, resumed.Instances.Current, compilers[0].Instances.Current)
			}
			want.Close()
			if running != nil {
				compilers[0].Release(running)
			}
			running, was = g, cfg
			texts = slices.Clone(texts)
			switch m.IntN(12) {
			case 0:
				texts[0].Data = []byte(m.global())
			case 1:
				for range 3 {
					v := m.IntN(towns)
					texts[1+v].Data = []byte(m.vpc(v))
				}
			default:
				v := m.IntN(towns)
				texts[1+v].Data = []byte(m.vpc(v))
			}
		}
		running.Close()
		compilers[0].spare.Close()
		for _, s := range states {
			s.Close()
		}
	}
	t.Logf("%d followed, %d compiled, %d discarded", followed, whole, discarded)
	if followed < 5*seeds || whole < 5*seeds || discarded < seeds {
		t.Error("the changes are too easy, or too hard")
	}
}

func keys(m map[netip.Addr]uint32) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}

// expectSlots fails the test if an SNAT address has not the slot that the compiler keeps for it.
func expectSlots(t *testing.T, g *Generation, c *Compiler) {
	t.Helper()
	slot := func(a inet.Addr) uint32 { return c.Addresses.Current[a.Netip()] }
	for i := range g.Hosts {
		if h := &g.Hosts[i]; h.Kind == HostSNAT && h.Slot != slot(h.Addr) {
			t.Errorf("%v has slot %d, expected %d", h.Addr, h.Slot, slot(h.Addr))
		}
	}
	for _, in := range g.Instances {
		if in.Slot == 0 {
			continue
		}
		for i := range 2 * g.VPCs[in.VPC].Tags {
			s := g.Selections[in.Selections+i]
			for _, n := range g.Candidates[s.Candidates.First:s.Candidates.End()] {
				if s.Kind == SelectSNAT && n.Slot != slot(n.Addr) {
					t.Errorf("%v has slot %d, expected %d", n.Addr, n.Slot, slot(n.Addr))
				}
			}
		}
	}
}
