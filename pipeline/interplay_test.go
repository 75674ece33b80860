// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// What features that are each tested alone do to each other.

// Strangers fill at most a quarter of a VPC's limit: its own flows still begin.
func TestStrangersLeaveTheVPCItsLimit(t *testing.T) {
	text := strings.Replace(unconfirmedConfig, "vpcs:", "sessions: {limits: {per_instance: 64, per_vpc: 16}}\nvpcs:", 1)
	r := newRig(t, text, config.MAC{2, 0, 0, 0, 9, 9})
	for i := range 200 {
		r.send(1, fmt.Sprintf("udp 8.8.%d.8:53 > 192.0.2.%d:777", i, 20+i%3))
	}
	if n := r.sessions.Len(); n == 0 || n > 4 {
		t.Fatalf("strangers have %d sessions; expected a quarter of 16 at the most, and some", n)
	}
	if got := r.send(0, "udp 10.0.0.6:5000 > 9.9.9.9:53"); strings.HasPrefix(got, "drop") {
		t.Errorf("a flow of the VPC's own: %s", got)
	}
}

// A remote host that uses up an instance's unconfirmed sessions at the worker that owns it denies
// none to those whom others own.
func TestUnconfirmedOfEachWorker(t *testing.T) {
	c := newCrew(t, 2, unconfirmedConfig)
	var hosts [2]string
	for i := 1; hosts[0] == "" || hosts[1] == ""; i++ {
		a := fmt.Sprintf("9.9.9.%d", i)
		hosts[c.workers[0].owner(&Packet{remote: inet.FromNetip(netip.MustParseAddr(a))})] = a
	}
	for i := range 200 {
		c.send(0, 1, fmt.Sprintf("udp %s:%d > 192.0.2.20:53", hosts[0], 1000+i))
	}
	for i := range 8 { // and the instance has its limit
		port := 2000 + i
		c.send(0, 1, fmt.Sprintf("udp %s:%d > 192.0.2.20:53", hosts[1], port))
		if got := c.send(0, 0, fmt.Sprintf("udp 10.0.0.7:53 > %s:%d", hosts[1], port)); !strings.Contains(got, "192.0.2.20:53 >") {
			t.Errorf("the answer to %s:%d leaves as %s, it was asked at 192.0.2.20", hosts[1], port, got)
		}
	}
	c.owned()
}

// Two workers that get a few packets by each port a turn, half of them the other one's, lose none:
// Adopt takes one run, and the driver calls it until there is none.
func TestHandoffRuns(t *testing.T) {
	c := newCrew(t, 2, rigConfig)
	for turn := range 300 {
		for w, k := range c.workers {
			k.SetClock(1e9 + int64(turn)*20_000)
			for port := range 2 {
				var b Burst
				b.Port, b.N = port, 4
				for i := range b.N {
					line := fmt.Sprintf("udp 10.0.0.5:1000 > 8.8.8.%d:53", 4*w+i)
					if port == 1 {
						line = fmt.Sprintf("udp 8.8.8.%d:53 > 192.0.2.5:1000", 4*w+i)
					}
					b.Packets[i].Data, b.Packets[i].Handle = parseLine(t, port, line), 1
				}
				k.Process(&b)
				k.empty(t)
			}
			for k.Adopt(1-w) > 0 {
				k.empty(t)
			}
		}
	}
	if s := c.sum(); s.Dropped[drop.HandoffFull] > 0 || s.Handed == 0 {
		t.Errorf("%d packets handed over, %d dropped for full rings", s.Handed, s.Dropped[drop.HandoffFull])
	}
}

// What is taken away late in a turn is not used again while another worker is in a turn that began
// before.
func TestLimboOutlastsTurns(t *testing.T) {
	c := newCrew(t, 2, rigConfig)
	w0, w1 := c.workers[0], c.workers[1]
	ref, _ := w0.mappings.Create(1, inet.Addr{Lo: 0xffff_0a00_0006}, 5, session.UDPPorts, 1, []session.PortRange{{First: 1000, Last: 1000}}, w0.rand, 0)
	w0.mappings.Release(ref, 0)
	w0.SetClock(500_000e6)
	w1.SetClock(500_001e6) // it may come to stand on the mapping, which is in its chain
	w0.Expire(100)         // still in its first turn, worker 0 takes the mapping away
	w0.SetClock(500_002e6)
	w0.Expire(100)
	if w0.mappings.Len() == 0 {
		t.Error("the mapping is free, and worker 1 is in the turn in which it may have found it")
	}
	w1.SetClock(500_003e6)
	w0.SetClock(500_004e6)
	w0.Expire(100)
	if w0.mappings.Len() != 0 {
		t.Error("the mapping is not free, and worker 1 has begun another turn")
	}
}

// A hairpinned packet that does not fit the link to its receiver is answered to its sender.
func TestHairpinTooBig(t *testing.T) {
	text := strings.Replace(rigConfig, "{name: in, device: net_null0, side: inside}", "{name: in, device: net_null0, side: inside, mtu: 9000}", 1)
	text = strings.Replace(text, "pools:\n", "  - {name: in2, device: net_null2, side: inside, mtu: 1400}\npools:\n", 1)
	text += `  - name: w
    attach: [{port: in2, addresses: [10.1.0.1/16]}]
    subnets: [10.1.0.0/16]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances:
      - {name: far, addresses: [10.1.0.5], mac: "02:00:00:00:01:15", external: {floating: [192.0.2.40]}}
`
	r := newRig(t, text, config.MAC{2, 0, 0, 0, 9, 9})
	if got := r.send(0, "udp 10.0.0.5:1000 > 192.0.2.40:53 len=1000"); strings.HasPrefix(got, "drop") {
		t.Fatalf("one that fits: %s", got)
	}
	r.punts.Reset()
	r.expect(0, "udp 10.0.0.5:1000 > 192.0.2.40:53 df len=1450", "drop too_big")
	if m := r.punts.Peek(); m == nil || m.Kind != state.PuntError || m.Reason != drop.TooBig || m.MTU != 1400 || inet.From4(m.Data()[header.EthernetSize+12:]).Netip().String() != "10.0.0.5" {
		t.Errorf("control is told %+v; expected an error about 10.0.0.5's packet, MTU 1400", m)
	}
}

// A data plane that died between a session's publication and its place among those that share its
// mapping and remote address: the next one finds it there.
func TestSweepPairs(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{2, 0, 0, 0, 9, 9})
	external := strings.Fields(r.send(0, "udp 10.0.0.6:5000 > 8.8.8.8:53"))[1]
	r.only().Flags &^= session.Paired
	Sweep(r.state, r.gen, r.nanos)
	r.Worker = NewWorker(r.state, 0, r.gens[0], WorkerConfig{MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, AssumeMAC: config.MAC{2, 0, 0, 0, 9, 9}, Seed: &testSeed})
	r.SetClock(2e9)
	r.expect(1, "udp 8.8.8.8:99 > "+external, "udp 8.8.8.8:99 > 10.0.0.6:5000")
	if err := r.state.Check(); err != nil {
		t.Error(err)
	}
}

// With ports that are overloaded, an instance that asks for one more towards many remote endpoints
// that are full has a few searches a millisecond.
func TestSearchesAreFew(t *testing.T) {
	text := strings.Replace(rigConfig, "{address: 192.0.2.6, ports: 1024-65535}", "{address: 192.0.2.6, ports: 1024-1031}", 1) + "sessions: {mapping: address-and-port-dependent}\n"
	r := newRig(t, text, config.MAC{2, 0, 0, 0, 9, 9})
	for end := range 20 {
		for i := range 8 {
			if got := r.send(0, fmt.Sprintf("udp 10.0.0.6:%d > 8.8.8.8:%d", 1000+i, 100+end)); strings.HasPrefix(got, "drop") {
				t.Fatalf("flow %d to end %d: %s", i, end, got)
			}
		}
	}
	r.end(0) // towards one of them a port is free
	for end := range 20 {
		r.send(0, fmt.Sprintf("udp 10.0.0.6:2000 > 8.8.8.8:%d", 119-end))
	}
	if n := r.counters.Dropped[drop.PortsExhausted]; n != 20 {
		t.Errorf("%d of 20 flows are refused within a millisecond; expected all, the last without a search", n)
	}
	r.after(2e6)
	if got := r.send(0, "udp 10.0.0.6:2000 > 8.8.8.8:100"); strings.HasPrefix(got, "drop") {
		t.Errorf("the port that is free, later: %s", got)
	}
}
