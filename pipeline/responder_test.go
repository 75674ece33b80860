// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
	"weir/pipeline/respond"
	"weir/pipeline/state"
)

// control is a rig with a responder behind the worker.
type control struct {
	*rig
	*respond.Responder
}

// responderConfig resolves everything, and knows one next hop and one instance by address alone.
var responderConfig = strings.NewReplacer(
	"{address: 198.51.100.1, mac: \"02:00:00:00:02:01\"}", "198.51.100.1", "{address: \"2001:db8::1\", mac: \"02:00:00:00:02:01\"}", "\"2001:db8::1\"",
	"mac: \"02:00:00:00:01:05\", ", "").Replace(rigConfig)

// testMACs are our own on the ports.
var testMACs = []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 3}}

func newControl(t testing.TB, text string) *control {
	r := newRig(t, text, config.MAC{})
	r.answers = true
	c := &control{r, respond.New(r.state, testMACs)}
	c.Configure(r.cfg, r.gen)
	return c
}

// poll lets control work and returns what it says, PORT: FRAME, checked for right sums.
func (c *control) poll() (said []string) {
	c.t.Helper()
	c.Poll(c.nanos)
	ring := c.state().Inject(0)
	for m := ring.Peek(); m != nil; m = ring.Peek() {
		if err := packettext.Verify(m.Data()); err != nil {
			c.t.Fatalf("%s: %v", packettext.Format(m.Data()), err)
		}
		said = append(said, fmt.Sprintf("%d: %s", m.At.Port(), packettext.Format(m.Data())))
		ring.Pop()
	}
	slices.Sort(said)
	return said
}

func (c *control) state() *state.State { return c.rig.state }

// ask sends a line into port and returns what the worker and control say to it.
func (c *control) ask(port int, line string) []string {
	c.t.Helper()
	c.rig.send(port, line)
	return append(slices.Clone(c.said), c.poll()...)
}

// quiet takes away what control has to ask for at its start.
func (c *control) quiet() {
	c.poll()
	for i := range c.rig.gen.Hops {
		h := &c.rig.gen.Hops[i]
		c.Learn(h.At, h.Addr.Netip(), [6]byte{2, 0, 0, 0, 2, 1}, c.nanos)
	}
	c.poll()
}

func TestResponderAnswers(t *testing.T) {
	const ours, neighbor = "02:00:00:00:00:02", neighborMAC
	for _, c := range []struct {
		name, answer string
		port         int
		line         string
		want         string // empty: says nothing
	}{
		{"ARP for our own address", "", 1, "arp who-has 198.51.100.2 tell 198.51.100.1", "1: " + ours + " > " + neighbor + " arp reply 198.51.100.2 is-at 02:00:00:00:00:02 to 198.51.100.1"},
		{"ARP for our own inside", "", 0, "arp who-has 10.0.0.1 tell 10.0.0.5", "0: 02:00:00:00:00:01 > " + neighbor + " arp reply 10.0.0.1 is-at 02:00:00:00:00:01 to 10.0.0.5"},
		{"ARP for a neighbor", "", 1, "arp who-has 198.51.100.9 tell 198.51.100.1", ""},
		{"ARP for another instance inside", "", 0, "arp who-has 10.0.0.6 tell 10.0.0.5", ""},
		{"an outside address asked for inside", "", 0, "arp who-has 192.0.2.5 tell 10.0.0.5", ""},
		{"ARP probe", "", 1, "arp who-has 198.51.100.2 tell 0.0.0.0", "1: " + ours + " > " + neighbor + " arp reply 198.51.100.2 is-at 02:00:00:00:00:02 to 0.0.0.0"},
		{"on-link: an EIP off the link", "", 1, "arp who-has 192.0.2.5 tell 198.51.100.1", ""},
		{"all: floating", "all", 1, "arp who-has 192.0.2.5 tell 198.51.100.1", "1: " + ours + " > " + neighbor + " arp reply 192.0.2.5 is-at 02:00:00:00:00:02 to 198.51.100.1"},
		{"all: SNAT", "all", 1, "arp who-has 192.0.2.6 tell 198.51.100.1", "1: " + ours + " > " + neighbor + " arp reply 192.0.2.6 is-at 02:00:00:00:00:02 to 198.51.100.1"},
		{"all: attached prefix", "all", 1, "arp who-has 203.0.113.20 tell 198.51.100.1", "1: " + ours + " > " + neighbor + " arp reply 203.0.113.20 is-at 02:00:00:00:00:02 to 198.51.100.1"},
		{"all: nobody's", "all", 1, "arp who-has 192.0.2.200 tell 198.51.100.1", ""},
		{"none: our own all the same", "none", 1, "arp who-has 198.51.100.2 tell 198.51.100.1", "1: " + ours + " > " + neighbor + " arp reply 198.51.100.2 is-at 02:00:00:00:00:02 to 198.51.100.1"},
		{"somebody claims our address", "all", 1, "arp who-has 192.0.2.5 tell 198.51.100.2", ""},
		{"sender and Ethernet source differ", "", 1, "arp who-has 198.51.100.2 tell 198.51.100.1 sha=02:00:00:00:01:77",
			"1: 02:00:00:00:00:02 > 02:00:00:00:01:77 arp reply 198.51.100.2 is-at 02:00:00:00:00:02 to 198.51.100.1"},
		{"a reply that nobody asked for", "", 1, "arp reply 198.51.100.9 is-at " + neighbor + " to 198.51.100.2", ""},
		{"NS for our own", "", 1, "nd solicit 2001:db8::1 > 2001:db8::2 target=2001:db8::2 slla=" + neighbor,
			"1: " + ours + " > " + neighbor + " nd advert 2001:db8::2 > 2001:db8::1 target=2001:db8::2 router solicited override tlla=" + ours},
		{"NS for a neighbor", "", 1, "nd solicit 2001:db8::1 > 2001:db8::2 target=2001:db8::9 slla=" + neighbor, ""},
		{"NS with a hop limit of 254", "", 1, "nd solicit 2001:db8::1 > 2001:db8::2 target=2001:db8::2 ttl=254", ""},
		{"duplicate detection", "", 1, "nd solicit :: > ff02::1:ff00:2 target=2001:db8::2",
			"1: " + ours + " > 33:33:00:00:00:01 nd advert 2001:db8::2 > ff02::1 target=2001:db8::2 router override tlla=" + ours},
		{"all: NS for a floating address", "all", 1, "nd solicit 2001:db8::1 > ff02::1:ff00:5 target=2001:db8:1::5 slla=" + neighbor,
			"1: " + ours + " > " + neighbor + " nd advert 2001:db8:1::5 > 2001:db8::1 target=2001:db8:1::5 router solicited override tlla=" + ours},
		{"echo", "", 1, "icmp echo-request 198.51.100.1 > 198.51.100.2 id=7 seq=9 \"hello\"", "1: " + ours + " > " + neighbor + " icmp echo-reply 198.51.100.2 > 198.51.100.1 id=7 seq=9 df \"hello\""},
		{"echo inside", "", 0, "icmp echo-request 10.0.0.5 > 10.0.0.1 id=7", "0: 02:00:00:00:00:01 > " + neighbor + " icmp echo-reply 10.0.0.1 > 10.0.0.5 id=7 df"},
		{"echo with a TTL of 1", "", 1, "icmp echo-request 198.51.100.1 > 198.51.100.2 id=7 ttl=1", "1: " + ours + " > " + neighbor + " icmp echo-reply 198.51.100.2 > 198.51.100.1 id=7 df"},
		{"echo with a wrong sum", "", 1, "icmp echo-request 198.51.100.1 > 198.51.100.2 id=7 sum=bad", ""},
		{"echo, IPv6", "", 1, "icmp6 echo-request 2001:db8::1 > 2001:db8::2 id=7 len=3", "1: " + ours + " > " + neighbor + " icmp6 echo-reply 2001:db8::2 > 2001:db8::1 id=7 len=3"},
		{"UDP to ourselves", "", 1, "udp 198.51.100.1:5 > 198.51.100.2:53", ""},
		{"TTL", "", 0, "udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1", "0: 02:00:00:00:00:01 > " + neighbor + " icmp time-exceeded 0 10.0.0.1 > 10.0.0.5 tos=192 df quote(udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1)"},
		{"no eligible address", "", 0, "udp [fd00::9]:5 > [2001:4860::8]:53", "0: 02:00:00:00:00:01 > " + neighbor + " icmp6 unreachable 1 fd00::1 > fd00::9 quote(udp [fd00::9]:5 > [2001:4860::8]:53)"},
		{"no eligible address, about an error", "", 0, "icmp unreachable 1 10.0.0.9 > 8.8.8.8 quote(udp 8.8.8.8:5 > 10.0.0.9:53)", ""},
		{"a route says drop", "", 0, "udp 10.0.0.5:5 > 100.64.0.1:53", ""},
		{"unsolicited", "", 1, "udp 8.8.8.8:5 > 192.0.2.6:53", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := responderConfig
			if c.answer != "" {
				text = strings.Replace(text, "side: outside,", "side: outside, answer: "+c.answer+",", 1)
			}
			r := newControl(t, text)
			r.quiet()
			got := strings.Join(r.ask(c.port, c.line), "\n")
			if got != c.want {
				t.Errorf("%s\n  got  %s\n  want %s", c.line, got, c.want)
			}
		})
	}
}

// Errors are limited per VPC, and one VPC's do not take another's.
func TestErrorRates(t *testing.T) {
	text := strings.Replace(responderConfig, "ports:\n", "ports:\n  - {name: yin, device: net_null7, side: inside}\n", 1)
	text += "  - {name: w, attach: [{port: yin, addresses: [10.0.0.1/16]}], subnets: [10.0.0.0/16], instances: [{name: one, addresses: [10.0.0.5]}]}\n"
	r := newRig(t, text, config.MAC{})
	line := "udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1"
	errors := func(port, n int) (got int) {
		for range n {
			r.expect(port, line, "drop ttl_exceeded")
			for ; r.punts.Peek() != nil; r.punts.Pop() {
				got++
			}
		}
		return got
	}
	if got := errors(0, 1000); got < errorVPCBurst*2/3 || got > errorVPCBurst*4/3 {
		t.Errorf("%d errors at once for one VPC, want about %d", got, errorVPCBurst)
	}
	if got := errors(2, 10); got != 10 {
		t.Errorf("%d errors for the other VPC, want 10", got)
	}
	// The rate holds, but no two turns need be alike: what others had cannot be counted.
	total, counts := 0, map[int]bool{}
	for range 100 {
		r.after(100 * time.Millisecond)
		n := errors(0, 100)
		total += n
		counts[n] = true
	}
	if want := 10 * errorsPerVPC; total < want*9/10 || total > want*11/10 {
		t.Errorf("%d errors in 10 s, want about %d", total, want)
	}
	if len(counts) < 5 {
		t.Errorf("only %d different counts in 100 turns of 100 ms: %v", len(counts), counts)
	}
}

// Errors are limited for all VPCs together too, which one VPC does not reach.
func TestErrorRateOfAll(t *testing.T) {
	const tenants = 30
	var ports, vpcs strings.Builder
	for i := range tenants {
		fmt.Fprintf(&ports, "  - {name: t%02d, device: net_null%d, side: inside}\n", i, 10+i)
		fmt.Fprintf(&vpcs, "  - {name: v%d, attach: [{port: t%02d, addresses: [10.0.0.1/24]}], subnets: [10.0.0.0/24], instances: [{name: i, addresses: [10.0.0.5]}]}\n", i, i)
	}
	r := newRig(t, "version: 1\nports:\n"+ports.String()+"vpcs:\n"+vpcs.String(), config.MAC{})
	line := "udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1"
	errors := func(each int) (got int) {
		for i := range tenants {
			for range each {
				r.expect(i, line, "drop ttl_exceeded")
				for ; r.punts.Peek() != nil; r.punts.Pop() {
					got++
				}
			}
		}
		return got
	}
	if got := errors(50); got < errorBurst*2/3 || got > errorBurst*4/3 {
		t.Errorf("%d errors at once for %d VPCs, want about %d", got, tenants, errorBurst)
	}
	total := 0
	for range 100 {
		r.after(100 * time.Millisecond)
		total += errors(10) // 100 a second each, 3000 in all
	}
	if want := 10 * errorsPerSecond; total < want*9/10 || total > want*11/10 {
		t.Errorf("%d errors in 10 s, want about %d", total, want)
	}
}

// An error about a packet from outside has a public source: weir's own, or, where that is private,
// the one that the packet was for.
func TestErrorsOutsideHaveAPublicSource(t *testing.T) {
	for _, c := range []struct{ own, line, want string }{
		{"198.51.100.2/24", "udp 8.8.8.8:5 > 192.0.2.5:53 ttl=1", "icmp time-exceeded 0 198.51.100.2 > 8.8.8.8 tos=192 df quote(udp 8.8.8.8:5 > 192.0.2.5:53 ttl=1)"},
		{"10.255.0.2/24", "udp 8.8.8.8:5 > 192.0.2.5:53 ttl=1", "icmp time-exceeded 0 192.0.2.5 > 8.8.8.8 tos=192 df quote(udp 8.8.8.8:5 > 192.0.2.5:53 ttl=1)"},
		{"10.255.0.2/24", "udp 8.8.8.8:5 > 203.0.113.17:53 ttl=1", "icmp time-exceeded 0 203.0.113.17 > 8.8.8.8 tos=192 df quote(udp 8.8.8.8:5 > 203.0.113.17:53 ttl=1)"},
	} {
		text := strings.NewReplacer("198.51.100.2/24", c.own, "198.51.100.1", "10.255.0.1").Replace(responderConfig)
		if strings.HasPrefix(c.own, "198") {
			text = responderConfig
		}
		r := newControl(t, text)
		r.quiet()
		if got, want := r.ask(1, c.line), "1: 02:00:00:00:00:02 > "+neighborMAC+" "+c.want; !slices.Equal(got, []string{want}) {
			t.Errorf("own address %s, %s:\n  got  %q\n  want %q", c.own, c.line, got, want)
		}
	}
}

// second lets a second pass and returns what control says then.
func (c *control) second() []string {
	c.t.Helper()
	c.after(time.Second)
	return c.poll()
}

// A next hop is asked for from the start, again and again; answered, every ten seconds; silent, it
// is not live.
func TestNextHopProbing(t *testing.T) {
	c := newControl(t, responderConfig)
	arp := "1: 02:00:00:00:00:02 > ff:ff:ff:ff:ff:ff arp who-has 198.51.100.1 tell 198.51.100.2"
	ns := "1: 02:00:00:00:00:02 > 33:33:ff:00:00:01 nd solicit 2001:db8::2 > ff02::1:ff00:1 target=2001:db8::1 slla=02:00:00:00:00:02"
	hop := c.rig.gen.Hops[0]
	stateOf := func() state.NeighborState { s, _ := c.state().Neighbors.Get(hop.Neighbor); return s }
	for i := range 6 {
		if said := c.second(); !slices.Equal(said, []string{ns, arp}) {
			t.Fatalf("second %d: %q", i, said)
		}
	}
	c.expect(0, "udp 10.0.0.5:1 > 8.8.8.8:53", "held")
	c.ask(1, "arp reply 198.51.100.1 is-at "+neighborMAC+" to 198.51.100.2")
	if stateOf() != state.NeighborReachable {
		t.Fatalf("answered, and %v", stateOf())
	}
	c.Release()
	if c.Out[1].N != 1 {
		t.Error("what was held did not leave")
	}
	c.drain()
	c.expect(0, "udp 10.0.0.5:1 > 8.8.8.8:53", "udp 192.0.2.5:1 > 8.8.8.8:53")
	asked := 0
	for range 30 { // silence: asked again after a second, three times, then not live
		for _, s := range c.second() {
			if s == arp {
				asked++
			}
		}
		if asked < respond.ProbeTries && stateOf() != state.NeighborReachable {
			t.Fatalf("given up after %d questions", asked)
		}
	}
	if stateOf() != state.NeighborIncomplete || asked < 10 || asked > 30 {
		t.Errorf("state %v, asked %d times in 30 s of silence", stateOf(), asked)
	}
}

// An instance that a packet waits for is asked for three times, and given up.
func TestResolving(t *testing.T) {
	c := newControl(t, responderConfig)
	c.quiet()
	slot := c.state().Neighbors.Find(0, inside4(5))
	question := "0: 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff arp who-has 10.0.0.5 tell 10.0.0.1"
	c.expect(1, "udp 8.8.8.8:53 > 192.0.2.5:1", "held")
	asked := 0
	said := c.poll()
	for range 8 {
		for _, s := range said {
			if s == question {
				asked++
			}
		}
		said = c.second()
	}
	if asked != respond.ProbeTries {
		t.Errorf("asked %d times, want %d", asked, respond.ProbeTries)
	}
	if s, _ := c.state().Neighbors.Get(slot); s != state.NeighborIncomplete {
		t.Errorf("state %v", s)
	}
	// It is learned from its own question too, and a configured MAC from nothing.
	c.ask(0, "arp who-has 10.0.0.1 tell 10.0.0.5")
	if s, mac := c.state().Neighbors.Get(slot); s != state.NeighborReachable || mac.String() != neighborMAC {
		t.Errorf("%v %v after its own ARP", s, mac)
	}
	static := c.state().Neighbors.Find(0, inside4(6))
	c.ask(0, "arp who-has 10.0.0.1 tell 10.0.0.6")
	if s, mac := c.state().Neighbors.Get(static); s != state.NeighborStatic || mac.String() != "02:00:00:00:01:06" {
		t.Errorf("a configured neighbor is %v %v", s, mac)
	}
}

// Neighbors that no configuration names are bounded, and go when they do not answer; one that is
// named later stays.
func TestDynamicNeighbors(t *testing.T) {
	c := newControl(t, responderConfig)
	c.quiet()
	used := c.state().Neighbors.Used
	for i := range respond.MaxDynamic + 500 {
		c.Handle(&state.Message{Kind: state.PuntResolve, At: attach.Port(0), Addr: inside4(1000 + i)}, c.nanos)
	}
	made := c.state().Neighbors.Used - used
	if made == 0 || made > respond.MaxDynamic {
		t.Errorf("%d neighbors from a scan, want at most %d", made, respond.MaxDynamic)
	}
	named := inside4(1000)
	c.rig.reload(strings.Replace(responderConfig, "[10.0.0.9, ", "[10.0.3.232, ", 1))
	c.Configure(c.rig.cfg, c.rig.gen)
	slot := c.state().Neighbors.Find(0, named)
	if slot == state.NoNeighbor {
		t.Fatal("10.0.3.232 is not the first of the scan")
	}
	for range 10 {
		c.second()
		c.state().Inject(0).Reset()
	}
	if got := c.state().Neighbors.Used; got != used {
		t.Errorf("%d neighbors are left, want %d", got, used)
	}
	if c.state().Neighbors.Find(0, named) != slot {
		t.Error("the entry that the configuration names is gone")
	}
	if c.Probing() > len(c.rig.gen.Hops) {
		t.Errorf("%d probes are left", c.Probing())
	}
}

// A router behind an attachment is kept resolved like an outside port's, whether an instance is
// reached through it or not; and no flow to the Internet is ever spread over it.
func TestAttachmentsRouterIsKeptResolved(t *testing.T) {
	text := strings.Replace(responderConfig, `addresses: [10.0.0.1/16, "fd00::1/64"]}]`, `addresses: [10.0.0.1/16, "fd00::1/64"], next_hops: [10.0.0.2]}]`, 1)
	c := newControl(t, text)
	asked := func() bool {
		return slices.ContainsFunc(c.poll(), func(s string) bool { return strings.HasPrefix(s, "0: ") && strings.Contains(s, "who-has 10.0.0.2 ") })
	}
	if !asked() {
		t.Fatal("the router is not asked for at the start")
	}
	c.ask(0, "arp reply 10.0.0.2 is-at 02:00:00:00:01:09 to 10.0.0.1")
	slot := c.state().Neighbors.Find(0, inet.FromNetip(netip.MustParseAddr("10.0.0.2")))
	if now, _ := c.state().Neighbors.Get(slot); now != state.NeighborReachable {
		t.Fatalf("state %d after its answer", now)
	}
	c.rig.after(11 * time.Second)
	if !asked() {
		t.Error("the router is not asked for again")
	}
	c.state().Neighbors.Set(attach.Port(1), inet.FromNetip(netip.MustParseAddr("198.51.100.1")), state.NeighborReachable, config.MAC{2, 0, 0, 0, 2, 1})
	for port := range 32 {
		c.rig.expect(0, fmt.Sprintf("udp 10.0.0.5:%d > 8.8.8.8:53", 1000+port), fmt.Sprintf("udp 192.0.2.5:%d > 8.8.8.8:53", 1000+port))
	}
}

// Addresses that come to weir are announced, its own first, a hundred a second; after a reload
// those that are new.
func TestAnnouncements(t *testing.T) {
	c := newControl(t, strings.Replace(responderConfig, "side: outside,", "side: outside, answer: all,", 1))
	c.quiet()
	announced := func(seconds int) (said []string) {
		for range 10 * seconds {
			c.rig.after(100 * time.Millisecond)
			now := c.poll()
			said = append(said, slices.DeleteFunc(now, func(s string) bool {
				w := strings.Fields(s)
				return !(strings.Contains(s, " nd advert ") || strings.Contains(s, " arp who-has ") && w[len(w)-1] == w[len(w)-3])
			})...)
		}
		slices.Sort(said)
		return said
	}
	if said := announced(2); len(said) > 0 {
		t.Errorf("at a take-over: %q", said)
	}
	c.AnnounceAll()
	const in, out, everybody = "0: 02:00:00:00:00:01 > ", "1: 02:00:00:00:00:02 > ", "33:33:00:00:00:01 nd advert "
	var want []string
	arp := func(from, addr string) { want = append(want, from+"ff:ff:ff:ff:ff:ff arp who-has "+addr+" tell "+addr) }
	nd := func(from, addr, router string) {
		want = append(want, from+everybody+addr+" > ff02::1 target="+addr+router+" override tlla="+strings.Fields(from)[1])
	}
	arp(in, "10.0.0.1")
	nd(in, "fd00::1", " router")
	arp(out, "198.51.100.2")
	nd(out, "2001:db8::2", " router")
	for _, a := range []string{"192.0.2.5", "192.0.2.6", "192.0.2.20", "192.0.2.21", "192.0.2.22", "192.0.2.30"} {
		arp(out, a)
	}
	for _, a := range []string{"2001:db8:1::5", "2001:db8:1::6", "2001:db8:1::20", "2001:db8:1::21"} {
		nd(out, a, "")
	}
	slices.Sort(want)
	c.rig.after(100 * time.Millisecond)
	first := c.poll()
	if n := len(slices.DeleteFunc(slices.Clone(first), func(s string) bool { return !slices.Contains(want, s) })); n != 10 {
		t.Errorf("%d of %q are announcements, expected 10 in a tenth of a second", n, first)
	}
	said := append(announced(3), first...)
	said = slices.DeleteFunc(said, func(s string) bool { return !slices.Contains(want, s) })
	slices.Sort(said)
	if !slices.Equal(said, want) {
		t.Errorf("announced\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
	before := c.cfg
	c.reload(strings.NewReplacer("side: outside,", "side: outside, answer: all,", "ephemeral: [192.0.2.30]", "ephemeral: [192.0.2.31]").Replace(responderConfig))
	c.Configure(c.cfg, c.rig.gens[len(c.rig.gens)-1])
	c.AnnounceNew(before)
	if said := announced(2); len(said) != 1 || said[0] != out+"ff:ff:ff:ff:ff:ff arp who-has 192.0.2.31 tell 192.0.2.31" {
		t.Errorf("after a reload: %q", said)
	}
}

// What control has to say and cannot is counted where an operator sees it.
func TestLostAnswersAreCounted(t *testing.T) {
	c := newControl(t, rigConfig)
	c.quiet()
	ring := c.state().Inject(0)
	for ring.Put(state.InjectFrame, 0, drop.Pass, 0, inet.Addr{}, nil) {
	}
	for range 3 {
		c.rig.send(0, "udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1")
		c.Poll(c.nanos)
	}
	if n := c.state().Lost(); n != 3 {
		t.Errorf("%d answers found no room, expected 3", n)
	}
	ring.Reset()
	if got := c.ask(0, "udp 10.0.0.5:5 > 8.8.8.8:53 ttl=1"); len(got) != 1 || c.state().Lost() != 3 {
		t.Errorf("with room again: %q, %d lost", got, c.state().Lost())
	}
	c.Unsent(2)
	if n := c.rig.counters.Unsent; n != 2 {
		t.Errorf("%d frames unsent, expected 2", n)
	}
}
