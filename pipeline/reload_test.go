// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// onMove is rigConfig with sessions.on_move, and with or without the association of the pool that
// all external addresses lie in.
func onMove(policy string, associated bool) string {
	text := strings.Replace(rigConfig, "vpcs:", "sessions: {on_move: "+policy+", drain_timeout: 10m}\nvpcs:", 1)
	if !associated {
		text = strings.Replace(text, "pools: [p, attached]", "pools: [attached]", 1)
	}
	return text
}

// What sessions.on_move does to sessions whose address is not eligible any more, in time. Each step
// is a reload or a wait, and then says whether the session lives.
func TestOnMove(t *testing.T) {
	const (
		fromInside  = "udp 10.0.0.5:1000 > 8.8.8.8:4500"
		fromOutside = "udp 8.8.8.8:4500 > 192.0.2.21:1000" // to one of the three addresses of 10.0.0.7, not the one that the function gives
		tcp         = "tcp 10.0.0.6:1000 > 8.8.8.8:4500 SYN"
	)
	type step struct {
		reload string // "": none
		wait   time.Duration
		lives  bool
	}
	drain, keep, cut := onMove("drain", false), onMove("keep", false), onMove("cut", false)
	for _, c := range []struct {
		name  string
		begin string // the session's first packet
		steps []step
	}{
		{"keep", fromInside, []step{{keep, 0, true}, {"", 4 * time.Minute, true}}},
		{"cut", fromInside, []step{{cut, 0, false}}},
		{"cut, and still eligible", fromInside, []step{{onMove("cut", true), 0, true}}},
		{"drain to its deadline", fromInside, []step{{drain, 0, true}, {"", 4 * time.Minute, true}, {"", 4 * time.Minute, true}, {"", 2*time.Minute + 1e6, false}}},
		{"drain, just before", fromInside, []step{{drain, 0, true}, {"", 4 * time.Minute, true}, {"", 4 * time.Minute, true}, {"", 2*time.Minute - 1e6, true}}},
		{"a reload without meaning does not begin anew", fromInside, []step{
			{drain, 0, true}, {"", 4 * time.Minute, true}, {strings.Replace(drain, "name: none", "name: nobody", 1), 4 * time.Minute, true}, {"", 2*time.Minute + 1e6, false}}},
		{"drain cancelled: eligible again", fromInside, []step{
			{drain, 0, true}, {"", 4 * time.Minute, true}, {onMove("drain", true), 4 * time.Minute, true}, {"", 4 * time.Minute, true}}},
		{"drain cancelled: keep", fromInside, []step{{drain, 0, true}, {keep, 4 * time.Minute, true}, {"", 4 * time.Minute, true}, {"", 4 * time.Minute, true}}},
		{"drained twice: the second deadline is a new one", fromInside, []step{
			{drain, 4 * time.Minute, true}, {onMove("drain", true), 4 * time.Minute, true}, {drain, 4 * time.Minute, true}, {"", 4 * time.Minute, true}, {"", 3 * time.Minute, false}}},
		{"drain, then cut", fromInside, []step{{drain, 0, true}, {cut, 0, false}}},
		{"SNAT drains", tcp, []step{{drain, 0, true}, {"", 3 * time.Minute, true}, {"", 3 * time.Minute, true}, {"", 3 * time.Minute, true}, {"", 61 * time.Second, false}}},
		{"SNAT is cut", tcp, []step{{cut, 0, false}}},
		{"begun from outside: it replies whichever gateway", fromOutside, []step{{cut, 0, true}, {drain, 0, true}, {"", 20 * time.Second, true}}},
		{"begun from outside, and no route any more", fromOutside, []step{{strings.Replace(rigConfig, "{to: 0.0.0.0/0, gateway: g}, ", "", 1), 0, false}}},
	} {
		for _, idle := range []bool{false, true} {
			name := c.name
			if idle {
				name += ", idle"
			}
			t.Run(name, func(t *testing.T) {
				r := newRig(t, rigConfig, config.MAC{})
				port := 0
				if c.begin == fromOutside {
					port = 1
				}
				r.send(port, c.begin)
				first := r.only()
				public, created := first.External, first.Created
				for i, s := range c.steps {
					if s.reload != "" {
						r.reload(s.reload)
					}
					// An idle session is met by the walk alone, the other one by its own packets;
					// both soon after the reload.
					touch := func() {
						if idle {
							first.Last = r.tick // as if it were not idle: only its generation and its drain may end it
							r.Expire(r.Capacity())
						} else {
							r.send(port, c.begin)
						}
					}
					touch()
					r.after(s.wait)
					touch()
					lives := first.State() != session.Free && first.External == public && first.Created == created
					if lives != s.lives {
						t.Fatalf("step %d: lives: %t, want %t", i, lives, s.lives)
					}
				}
				if err := r.state.Check(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// mover writes configurations that differ in what decides about sessions.
type mover struct{ *rand.Rand }

func (m mover) any(list ...string) string { return list[m.IntN(len(list))] }

// config is a configuration out of all that mover writes.
func (m mover) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
dataplane: {sessions: 4096}
ports:
  - {name: in, device: net_null0, side: inside}
  - {name: out, device: net_null1, side: outside, addresses: [198.51.100.2/24], next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}]}
pools:
  - {name: a, ranges: [192.0.2.0/25]}
  - {name: b, ranges: [192.0.2.128/25]}
gateways:
  - {name: g, id: 00000000-0000-4000-8000-000000000001, pools: %s}
  - {name: h, id: 00000000-0000-4000-8000-000000000002, pools: %s}
sessions: {on_move: %s, drain_timeout: %s}
vpcs:
  - name: v
    attach: [{port: in, addresses: [10.0.0.1/16]}]
    subnets: [10.0.0.0/16]
    routes: [%s]
    instances:
`, m.any("[a]", "[a, b]", "[]"), m.any("[b]", "[a, b]", "[]"), m.any("keep", "drain", "cut"), m.any("1m", "10m"),
		m.any("{to: 0.0.0.0/0, gateway: g}", "{to: 0.0.0.0/0, gateway: h}", "{to: 0.0.0.0/0, gateway: g}, {to: 8.8.4.0/24, gateway: h}",
			"{to: 0.0.0.0/0, gateway: unnamed}", "{to: 0.0.0.0/0, gateway: g}, {to: 8.8.4.0/24, drop: true}", "{to: 8.8.8.0/24, gateway: g}"))
	for i := range 4 {
		floating := m.any("192.0.2.%d", "192.0.2.%d, 192.0.2.2%[1]d", "192.0.2.2%d", "192.0.2.1%d")
		if m.IntN(8) > 0 {
			fmt.Fprintf(&b, "      - {name: one%d, addresses: [10.0.0.%d], mac: \"02:00:00:00:01:05\", external: {floating: [%s]}}\n", i, 10+i+m.IntN(2)*100, fmt.Sprintf(floating, 10+i))
		}
	}
	for i := range 3 {
		if m.IntN(8) > 0 {
			first := 1024 + i*1024 + m.IntN(2)*512
			fmt.Fprintf(&b, "      - {name: shared%d, addresses: [10.0.1.%d], mac: \"02:00:00:00:01:05\", external: {snat: [{address: %s, ports: %d-%d}]}}\n",
				i, i, m.any("192.0.2.2", "192.0.2.202"), first, first+511)
		}
	}
	return b.String()
}

// traffic begins sessions of all instances, from inside and from outside.
func (m mover) traffic(r *rig) {
	for range 200 {
		remote := m.any("8.8.8.8", "8.8.4.4")
		switch m.IntN(3) {
		case 0:
			r.send(0, fmt.Sprintf("udp 10.0.0.%d:%d > %s:53", 10+m.IntN(4)+m.IntN(2)*100, 1000+m.IntN(2000), remote))
		case 1:
			r.send(0, fmt.Sprintf("tcp 10.0.1.%d:%d > %s:53 SYN", m.IntN(3), 1000+m.IntN(2000), remote))
		case 2:
			r.send(1, fmt.Sprintf("udp %s:53 > 192.0.2.%s%d:%d", remote, m.any("", "1", "2"), 10+m.IntN(4), 1000+m.IntN(2000)))
		}
	}
}

// becomes counts by instance what has become of sessions that stood under these names.
func (r *rig) becomes(before map[uint32]string) map[string]generation.Fate {
	fates := map[string]generation.Fate{}
	for ref, name := range before {
		s := r.sessions.At(ref)
		f := fates[name]
		switch {
		case s.State() == session.Free:
			f.End++
		case s.Flags&session.Draining != 0:
			f.Drain++
		default:
			f.Keep++
		}
		fates[name] = f
	}
	return fates
}

// byName lists the live sessions with the instances that they belong to.
func (r *rig) byName() map[uint32]string {
	names := r.gen.InstanceNames(r.cfg)
	list := map[uint32]string{}
	for ref := range uint32(r.Capacity()) {
		if s := r.sessions.At(ref); s.State() != session.Free {
			list[ref] = names[s.Instance]
		}
	}
	return list
}

// What a preview says of the live sessions is what then happens to them, and asking changes
// nothing.
func TestPreviewAgrees(t *testing.T) {
	total := generation.Fate{}
	seeds := uint64(60)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		m := mover{rand.New(rand.NewPCG(seed, 1))}
		current := m.config()
		r := newRig(t, current, config.MAC{})
		m.traffic(r)
		for round := range 3 {
			next := m.config()
			before := r.byName()
			neighbors := slices.Clone(r.state.Neighbors.Live())
			clone := r.compiler.Clone()
			g, err := clone.Preview(parseConfig(t, next))
			if err != nil {
				t.Fatal(err)
			}
			old, err := clone.Preview(parseConfig(t, current))
			if err != nil {
				t.Fatal(err)
			}
			changes := config.Changes(parseConfig(t, current), parseConfig(t, next))
			tally := generation.NewTally(parseConfig(t, current), parseConfig(t, next), old, g, changes)
			said := clone.Fates(g, old.InstanceNames(parseConfig(t, current)), tally)
			expectTally(t, old, g, tally, changes, said, r)
			old.Close()
			g.Close()
			current = next
			if again := r.byName(); !maps.Equal(again, before) || !slices.Equal(r.state.Neighbors.Live(), neighbors) {
				t.Fatal("a preview changed something")
			}
			r.reload(next)
			r.Expire(r.Capacity())
			if got := r.becomes(before); !maps.Equal(got, said) {
				t.Fatalf("seed %d, round %d: the preview says %v, then happens %v\n%s", seed, round, said, got, next)
			}
			for _, f := range said {
				total.Keep, total.Drain, total.End = total.Keep+f.Keep, total.Drain+f.Drain, total.End+f.End
			}
			m.traffic(r)
		}
		if err := r.state.Check(); err != nil {
			t.Fatal(err)
		}
		for _, g := range r.gens {
			g.Close()
		}
		r.gens = nil
		r.state.Close()
	}
	if total.Keep == 0 || total.Drain == 0 || total.End == 0 {
		t.Errorf("the questions are too easy: %+v", total)
	}
	t.Logf("%+v", total)
}

// limit lowers a resource limit of this process and returns what restores it.
func limit(t *testing.T, resource int, to uint64) (restore func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(resource, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: to, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(resource, &was); err != nil {
			t.Fatal(err)
		}
	}
}

// addressSpace returns how many bytes this process maps.
func addressSpace(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var pages uint64
	fmt.Sscan(string(b), &pages)
	return pages * uint64(os.Getpagesize())
}

// neighborWords returns what is known of each neighbor.
func (r *rig) neighborWords() (words []uint64) {
	for i := range r.state.Neighbors.Live() {
		words = append(words, r.state.Neighbors.Live()[i].Word)
	}
	return words
}

// Whatever a compilation lacks, it fails with a reason, and everything stays: numbers, slots,
// neighbors, descriptors, traffic. When it is there again the same configuration compiles.
func TestCompileWithoutResources(t *testing.T) {
	signal.Ignore(unix.SIGXFSZ) // a file that would be too long: an error, not the end
	defer signal.Reset(unix.SIGXFSZ)
	// Without what stands in tables of all VPCs, so that Follow has something to do.
	base := strings.Replace(rigConfig, `, attached: [203.0.113.16/28, "2001:db8:2::/64"]`, "", 1)
	more := strings.Replace(base, "instances:\n", `instances:
      - {name: more0, addresses: [10.0.2.1, "fd00::2:1"], external: {floating: [192.0.2.60]}}
      - {name: more1, addresses: [10.0.2.2, "fd00::2:2"], mac: "02:00:00:00:03:02", external: {floating: [192.0.2.61]}}
`, 1)
	more = strings.Replace(more, "02:00:00:00:01:05", "02:00:00:00:01:55", 1)
	for _, c := range []struct {
		name string
		take func(t *testing.T, r *rig) (restore func())
		want string
	}{
		{"descriptors", func(t *testing.T, _ *rig) func() { return limit(t, unix.RLIMIT_NOFILE, 0) }, "memfd_create: too many open files"},
		{"room in the segment", func(t *testing.T, _ *rig) func() { return limit(t, unix.RLIMIT_FSIZE, 4096) }, "file too large"},
		{"address space", func(t *testing.T, _ *rig) func() {
			// Room for Go itself, and not for the segment, which this source text makes large.
			return limit(t, unix.RLIMIT_AS, addressSpace(t)+(64<<20))
		}, "mmap of 286 MiB: cannot allocate memory"},
		{"neighbor entries", func(t *testing.T, r *rig) func() {
			// The table is full: all that is free is taken by another port's.
			var taken []uint32
			for i := range r.state.Neighbors.Live() {
				if e := &r.state.Neighbors.Live()[i]; e.Word == 0 {
					e.Link, e.Word = 99, 1
					taken = append(taken, uint32(i))
				}
			}
			return func() {
				for _, slot := range taken {
					r.state.Neighbors.Live()[slot] = state.Neighbor{}
				}
			}
		}, "neighbor table: no room"},
		{"instance slots", func(t *testing.T, r *rig) func() {
			was := r.compiler.Instances.Capacity
			r.compiler.Instances.Capacity = int(r.compiler.Instances.Next) + 1
			return func() { r.compiler.Instances.Capacity = was }
		}, "places for instances are not enough"},
		{"VPC slots", func(t *testing.T, r *rig) func() {
			was := r.compiler.VPCs.Capacity
			r.compiler.VPCs.Capacity = int(r.compiler.VPCs.Next)
			return func() { r.compiler.VPCs.Capacity = was }
		}, "places for VPCs are not enough"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, base, config.MAC{})
			text := more
			if c.name == "VPC slots" {
				text = strings.Replace(more, "  - name: v\n", "  - {name: w, subnets: [10.0.0.0/16]}\n  - name: v\n", 1)
			}
			cfg := parseConfig(t, text)
			if c.name == "address space" {
				r.compiler.Source = make([]byte, 255<<20)
			}
			r.expect(0, "udp 10.0.0.5:1 > 8.8.8.8:2", "udp 192.0.2.5:1 > 8.8.8.8:2")
			number, used, descriptors := r.compiler.Number, r.state.Neighbors.Used, openDescriptors(t)
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // no thread of the collector's may begin while there is nothing
			restore := c.take(t, r)
			words := r.neighborWords()
			var errs []error
			for range 5 {
				_, err := r.compiler.Compile(cfg)
				_, other := r.compiler.Follow(r.gens[0], r.cfg, cfg)
				errs = append(errs, err, other)
			}
			same := slices.Equal(words, r.neighborWords())
			restore()
			for _, err := range errs {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, expected %q", err, c.want)
				}
			}
			if !same || r.state.Neighbors.Used != used {
				t.Errorf("neighbors are not what they were: %d entries, %d before", r.state.Neighbors.Used, used)
			}
			if r.compiler.Number != number {
				t.Errorf("generation %d, was %d", r.compiler.Number, number)
			}
			if now := openDescriptors(t); now != descriptors {
				t.Errorf("%d descriptors are open, %d were", now, descriptors)
			}
			r.expect(0, "udp 10.0.0.5:1 > 8.8.8.8:2", "udp 192.0.2.5:1 > 8.8.8.8:2")
			r.compiler.Source = nil
			r.reload(text)
			if got := r.gens[1].Number; got != number+1 {
				t.Errorf("then generation %d, expected %d", got, number+1)
			}
			r.expect(1, "udp 8.8.8.8:2 > 192.0.2.61:3", "udp 8.8.8.8:2 > 10.0.2.2:3")
			if _, mac := r.state.Neighbors.Get(r.state.Neighbors.Find(0, inside4(5))); mac[5] != 0x55 {
				t.Errorf("the neighbor's MAC is %v, expected the new one", mac)
			}
		})
	}
}

// A generation that the data plane refuses is as if it had never been compiled, as often as that
// happens.
func TestDiscard(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	words, used := r.neighborWords(), r.state.Neighbors.Used
	text := strings.Replace(rigConfig, "instances:\n", "instances:\n      - {name: more, addresses: [10.0.2.1], external: {floating: [192.0.2.60]}}\n", 1)
	text = strings.Replace(text, "02:00:00:00:01:05", "02:00:00:00:01:55", 1)
	text = strings.Replace(text, "      - {name: brief,", "      - {name: renamed,", 1)
	for range 10 {
		g, err := r.compiler.Compile(parseConfig(t, text))
		if err != nil {
			t.Fatal(err)
		}
		anySource(g)
		if g.Number != 2 {
			t.Fatalf("generation %d, expected 2 again", g.Number)
		}
		g.Close()
		r.compiler.Discard()
		if used != r.state.Neighbors.Used || !slices.Equal(words, r.neighborWords()) {
			t.Fatalf("neighbors are not what they were: %d entries, %d before", r.state.Neighbors.Used, used)
		}
	}
	r.reload(text)
	r.expect(1, "udp 8.8.8.8:2 > 192.0.2.5:3", "udp 8.8.8.8:2 > 10.0.0.5:3")
	if _, mac := r.state.Neighbors.Get(r.state.Neighbors.Find(0, inside4(5))); mac[5] != 0x55 {
		t.Errorf("the neighbor's MAC is %v, expected the new one", mac)
	}
}

// content returns what a generation says as text, without what differs each time: the places of the
// hosts, which depend on a secret, and the order in which shared addresses' ranges lie.
func content(g *generation.Generation) string {
	t := g.Tables
	t.Hosts, t.SNAT = nil, nil
	var hosts []string
	for _, h := range g.Hosts {
		var ranges []generation.SNATRange
		if h.Kind == generation.HostSNAT {
			ranges = g.SNAT[h.Index : h.Index+uint32(h.Ranges)]
			h.Index = 0
		}
		hosts = append(hosts, fmt.Sprintf("%+v %+v\n", h, ranges))
	}
	slices.Sort(hosts)
	return fmt.Sprintf("%+v\n%s", t, hosts)
}

// A compiler that goes on from another one's generation gives names the numbers that they have, and
// compiles the same configuration to the same tables.
func TestResume(t *testing.T) {
	for seed := range uint64(20) {
		m := mover{rand.New(rand.NewPCG(seed, 2))}
		r := newRig(t, m.config(), config.MAC{})
		m.traffic(r)
		r.reload(m.config())
		m.traffic(r)
		g := r.gens[1]
		c := generation.Resume(r.state, g)
		if err := c.Settle(r.cfg); err != nil {
			t.Fatal(err)
		}
		if got, want := c.Instances.Current, r.compiler.Instances.Current; !maps.Equal(got, want) {
			t.Fatalf("instances %v, expected %v", got, want)
		}
		if got, want := c.VPCs.Current, r.compiler.VPCs.Current; !maps.Equal(got, want) {
			t.Fatalf("VPCs %v, expected %v", got, want)
		}
		r.Expire(r.Capacity())
		words := r.neighborWords()
		again, err := c.Compile(r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		anySource(again)
		if again.Number != g.Number+1 {
			t.Errorf("generation %d after %d", again.Number, g.Number)
		}
		if got, want := content(again), content(g); got != want {
			t.Errorf("seed %d: the same configuration compiles to other tables:\n%s\n%s", seed, got, want)
		}
		c.Retire()
		if !slices.Equal(words, r.neighborWords()) {
			t.Error("the neighbors changed")
		}
		// No session is concerned.
		n := r.sessions.Len()
		r.SetGeneration(again)
		if ended := r.Expire(r.Capacity()); ended != 0 {
			t.Errorf("%d of %d sessions ended", ended, n)
		}
		r.SetGeneration(g)
		again.Close()
	}
}

// Control may die when its generation is published and the neighbors are not what that says: the
// next one sees to it.
func TestSettle(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	cfg := parseConfig(t, strings.Replace(rigConfig, "02:00:00:00:01:05", "02:00:00:00:01:55", 1))
	g, err := r.compiler.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	anySource(g)
	defer g.Close()
	r.SetGeneration(g)
	c := generation.Resume(r.state, g)
	if err := c.Settle(cfg); err != nil {
		t.Fatal(err)
	}
	if _, mac := r.state.Neighbors.Get(r.state.Neighbors.Find(0, inside4(5))); mac[5] != 0x55 {
		t.Errorf("the neighbor's MAC is %v, expected the new one", mac)
	}
	if n := c.Number; n != g.Number {
		t.Errorf("the compiler is at generation %d, expected %d", n, g.Number)
	}
}

// The number of a name that is gone serves nobody else while sessions count in it, though the
// compiler that knew the name is gone.
func TestResumePassesOver(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	for i := range 10 {
		r.send(0, fmt.Sprintf("udp 10.0.0.7:%d > 8.8.8.8:53", 1000+i))
	}
	gone := r.slotOf("several")
	without := func(name string) string {
		var lines []string
		for line := range strings.Lines(rigConfig) {
			lines = append(lines, line)
		}
		i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "{name: "+name+",") })
		return strings.Join(slices.Delete(lines, i, i+2), "")
	}
	r.reload(without("several"))
	if n := r.state.InstanceSessions(gone); n != 10 {
		t.Fatalf("%d sessions count in the slot, expected 10", n)
	}
	r.compiler = generation.Resume(r.state, r.gens[1])
	if err := r.compiler.Settle(r.cfg); err != nil {
		t.Fatal(err)
	}
	r.reload(strings.Replace(without("several"), "instances:\n", "instances:\n      - {name: new0, addresses: [10.0.2.1]}\n      - {name: new1, addresses: [10.0.2.2]}\n", 1))
	for _, name := range []string{"new0", "new1"} {
		if r.slotOf(name) == gone {
			t.Errorf("%s has the slot of an instance that is gone and still has sessions", name)
		}
	}
	r.Expire(r.Capacity())
	if n := r.state.InstanceSessions(gone); n != 0 || r.sessions.Len() != 0 {
		t.Errorf("%d sessions count in the slot, expected none", n)
	}
	if err := r.state.Check(); err != nil {
		t.Error(err)
	}
}

// Two starts without a seed choose different ports: the secrets of each are the system's (RFC 6056
// section 4). 40 ports of 64,512 are the same by chance never.
func TestStartsChooseOtherPorts(t *testing.T) {
	cfg := parseConfig(t, rigConfig)
	var lists [2]string
	for i := range lists {
		s, err := state.New(state.Sizes{Workers: 1, Sessions: 1024})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		g, err := generation.NewCompiler(s, nil).Compile(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		anySource(g)
		w := NewWorker(s, 0, g, WorkerConfig{MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, AssumeMAC: config.MAC{2, 0, 0, 0, 0, 3}})
		w.SetClock(1e9)
		for n := range 40 {
			var b Burst
			b.N, b.Packets[0].Data, b.Packets[0].Handle = 1, parseLine(t, 0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:53", 1000+n)), 1
			if w.Process(&b); w.Out[1].N != 1 {
				t.Fatalf("flow %d does not leave: %v", n, s.Counters(0).Dropped)
			}
			lists[i] += fmt.Sprintf("%d ", portOf(w.Out[1].Frames[0]))
			w.Sent(1, 1)
		}
	}
	if lists[0] == lists[1] {
		t.Errorf("both starts choose %s", lists[0])
	}
}

// After a restart, with other secrets and without a session, the same configuration gives every
// flow the same 1:1 address, and SNAT the same address and range.
func TestRestartChoosesAlike(t *testing.T) {
	for seed := range uint64(20) {
		m := mover{rand.New(rand.NewPCG(seed, 3))}
		text := m.config()
		first := newRig(t, text, config.MAC{})
		second := newRig(t, text, config.MAC{})
		other := testSeed
		other[0]++
		c := generation.NewCompiler(second.state, &other)
		g, err := c.Compile(second.cfg)
		if err != nil {
			t.Fatal(err)
		}
		anySource(g)
		defer g.Close()
		second.SetGeneration(g)
		for i := range 60 {
			remote := m.any("8.8.8.8", "8.8.4.4")
			line := fmt.Sprintf("udp 10.0.0.%d:%d > %s:53", 10+i%4, 1000+i, remote)
			if a, b := first.send(0, line), second.send(0, line); a != b {
				t.Errorf("%s: %s, after a restart %s", line, a, b)
			}
			line = fmt.Sprintf("udp 10.0.1.%d:%d > %s:53", i%3, 1000+i, remote)
			a, b := strings.Fields(first.send(0, line)), strings.Fields(second.send(0, line))
			if a[0] != b[0] || a[0] == "drop" {
				if !slices.Equal(a, b) {
					t.Errorf("%s: %s, after a restart %s", line, a, b)
				}
				continue
			}
			x, y := netip.MustParseAddrPort(a[1]), netip.MustParseAddrPort(b[1])
			if x.Addr() != y.Addr() || x.Port()/512 != y.Port()/512 { // ranges begin and end at multiples of 512
				t.Errorf("%s: %v, after a restart %v", line, x, y)
			}
		}
	}
}

// expectTally fails the test if a change counts more sessions than there are, or if a session that
// does not stay, and would have stayed without a change, counts with none.
func expectTally(t *testing.T, before, after *generation.Generation, tally *generation.Tally, changes []config.Change, said map[string]generation.Fate, r *rig) {
	t.Helper()
	var total generation.Fate
	for _, f := range said {
		total.Add(f)
	}
	for i, f := range tally.Fates {
		if f.Keep > total.Keep || f.Drain > total.Drain || f.End > total.End {
			t.Errorf("%s: %+v, of all sessions %+v", changes[i].Text, f, total)
		}
	}
	for ref := range uint32(r.sessions.Capacity()) {
		e := r.sessions.At(ref)
		if e.State() == session.Free {
			continue
		}
		unchanged, changed := *e, *e
		moves := before.Recheck(&unchanged, 0) && (!after.Recheck(&changed, 0) || (unchanged.Flags^changed.Flags)&session.Draining != 0)
		if moves && len(tally.Concerned(e)) == 0 {
			t.Errorf("no change concerns a session from %v by %v to %v, which does not stay", e.Private, e.External, e.Remote)
		}
	}
}

// A change's count is that of the sessions it concerns and no others.
func TestTally(t *testing.T) {
	const text = `version: 1
dataplane: {sessions: 4096}
ports:
  - {name: in, device: net_null0, side: inside}
  - {name: out, device: net_null1, side: outside, addresses: [198.51.100.2/24], next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:00:fe"}]}
pools: [{name: p, ranges: [192.0.2.0/28]}, {name: q, ranges: [192.0.2.16/28]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}, {name: h, id: 00000000-0000-4000-8000-000000000002, pools: [q]}]
vpcs:
  - name: v
    attach: [{port: in, addresses: [10.0.0.1/24]}]
    subnets: [10.0.0.0/24]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: 203.0.113.0/24, gateway: h}]
    instances:
      - {name: a, addresses: [10.0.0.5], mac: "02:00:00:00:00:05", external: {floating: [192.0.2.1, 192.0.2.17]}}
      - {name: b, addresses: [10.0.0.6], mac: "02:00:00:00:00:06", external: {floating: [192.0.2.2, 192.0.2.18]}}
      - {name: c, addresses: [10.0.0.7], mac: "02:00:00:00:00:07", external: {snat: [{address: 192.0.2.3, ports: 1024-2047, forward: [{protocol: udp, port: 1024, to_port: 53}]}]}}
`
	r := newRig(t, text, config.MAC{})
	flows := func(from string, to string, n int) {
		for i := range n {
			r.send(0, fmt.Sprintf("udp %s:%d > %s:53", from, 1000+i, to))
		}
	}
	flows("10.0.0.5", "8.8.8.8", 3)
	flows("10.0.0.5", "203.0.113.9", 2)
	flows("10.0.0.6", "8.8.8.8", 4)
	flows("10.0.0.6", "203.0.113.9", 1)
	flows("10.0.0.7", "9.9.9.9", 2)
	r.send(1, "udp 9.9.9.9:1 > 192.0.2.3:1024") // by the forward
	for _, c := range []struct {
		name, old, new string
		want           map[string]generation.Fate
	}{
		{"an instance's address", "192.0.2.17]", "192.0.2.19]", map[string]generation.Fate{`instance "a" of vpc "v" changed`: {Keep: 3, End: 2}}},
		{"an instance", `      - {name: b, addresses: [10.0.0.6], mac: "02:00:00:00:00:06", external: {floating: [192.0.2.2, 192.0.2.18]}}` + "\n", "",
			map[string]generation.Fate{`instance "b" of vpc "v" removed`: {End: 5}}},
		{"a route", "203.0.113.0/24, gateway: h", "203.0.113.0/24, drop: true", map[string]generation.Fate{`route to 203.0.113.0/24 of vpc "v" changed`: {End: 3}}},
		{"a route that translates no longer", "203.0.113.0/24, gateway: h", "203.0.113.0/24, gateway: h, translate: false", map[string]generation.Fate{`route to 203.0.113.0/24 of vpc "v" changed`: {End: 3}}},
		{"a forward that leads elsewhere", "to_port: 53", "to_port: 54", map[string]generation.Fate{`instance "c" of vpc "v" changed`: {Keep: 2, End: 1}}},
		{"a forward that goes", "forward: [{protocol: udp, port: 1024, to_port: 53}]", "forward: []", map[string]generation.Fate{`instance "c" of vpc "v" changed`: {Keep: 2, End: 1}}},
		{"a forward beside it", "forward: [{", "forward: [{protocol: tcp, port: 1024, to_port: 53}, {", map[string]generation.Fate{`instance "c" of vpc "v" changed`: {Keep: 3}}},
		{"a new route", "{to: 203.0.113.0/24, gateway: h}", "{to: 203.0.113.0/24, gateway: h}, {to: 8.0.0.0/8, drop: true}",
			map[string]generation.Fate{`route to 8.0.0.0/8 of vpc "v" added`: {End: 7}}},
		{"a gateway and a route", "pools: [q]}]", "pools: []}]", map[string]generation.Fate{"gateway 00000000-0000-4000-8000-000000000002 changed": {Keep: 3}}},
		{"a pool that nobody uses", "192.0.2.16/28]", "192.0.2.16/28, 192.0.2.64/28]", map[string]generation.Fate{`pool "q" changed`: {Keep: 3}}},
		{"two at once", `192.0.2.17]}}
      - {name: b, addresses: [10.0.0.6], mac: "02:00:00:00:00:06", external: {floating: [192.0.2.2,`,
			`192.0.2.19]}}
      - {name: b, addresses: [10.0.0.6], mac: "02:00:00:00:00:06", external: {floating: [192.0.2.4,`,
			map[string]generation.Fate{`instance "a" of vpc "v" changed`: {Keep: 3, End: 2}, `instance "b" of vpc "v" changed`: {Keep: 1, End: 4}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Count(text, c.old) != 1 {
				t.Fatalf("the configuration has %q %d times", c.old, strings.Count(text, c.old))
			}
			old, next := parseConfig(t, text), parseConfig(t, strings.Replace(text, c.old, c.new, 1))
			before, err := r.compiler.Clone().Preview(old)
			if err != nil {
				t.Fatal(err)
			}
			defer before.Close()
			after, err := r.compiler.Clone().Preview(next)
			if err != nil {
				t.Fatal(err)
			}
			defer after.Close()
			changes := config.Changes(old, next)
			tally := generation.NewTally(old, next, before, after, changes)
			r.compiler.Fates(after, before.InstanceNames(old), tally)
			got := map[string]generation.Fate{}
			for i, ch := range changes {
				got[ch.Text] = tally.Fates[i]
			}
			if !maps.Equal(got, c.want) {
				t.Errorf("%v, expected %v", got, c.want)
			}
		})
	}
}
