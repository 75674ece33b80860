// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// rig is a worker with what stands around it. Packets go in and come out as lines of packettext.
type rig struct {
	*Worker
	t        testing.TB
	state    *state.State
	compiler *generation.Compiler
	cfg      *config.Config
	gens     []*generation.Generation
	answers  bool     // it has buffers for what weir itself says:
	said     []string // PORT: FRAME, of the last burst
}

// newRig starts a worker on the configuration in text. The zero AssumeMAC leaves neighbors to be
// resolved.
func newRig(t testing.TB, text string, assume config.MAC) *rig {
	t.Helper()
	return newRigFor(t, text, assume, parseConfig(t, text).Dataplane.Sessions, 1)
}

// newRigFor is newRig with a session table of any size, for several workers, of which it has the
// first.
func newRigFor(t testing.TB, text string, assume config.MAC, sessions, workers int) *rig {
	t.Helper()
	r := &rig{t: t, cfg: parseConfig(t, text)}
	var err error
	r.state, err = state.New(state.Sizes{Workers: workers, Sessions: sessions, Seed: &testSeed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, g := range r.gens {
			g.Close()
		}
		r.state.Close()
	})
	r.compiler = generation.NewCompiler(r.state, &testSeed)
	g, err := r.compiler.Compile(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	anySource(g)
	r.gens = append(r.gens, g)
	r.Worker = NewWorker(r.state, 0, g, WorkerConfig{MACs: r.macsOf(), AssumeMAC: assume, Seed: &testSeed})
	r.SetClock(1e9)
	return r
}

// macsOf are the addresses of the ports.
func (r *rig) macsOf() (macs []config.MAC) {
	for i := range r.cfg.Ports {
		macs = append(macs, config.MAC{2, 0, 0, 0, 0, byte(1 + i)})
	}
	return macs
}

func parseConfig(t testing.TB, text string) *config.Config {
	t.Helper()
	cfg, _, err := config.Parse([]config.File{{Name: "test.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return cfg
}

// reload makes the worker use the configuration in text from now on.
func (r *rig) reload(text string) {
	r.t.Helper()
	r.cfg = parseConfig(r.t, text)
	g, err := r.compiler.Compile(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	anySource(g)
	r.gens = append(r.gens, g)
	r.SetGeneration(g)
	r.compiler.Retire()
}

// rewind sets the clock, back too: no session is left.
func (r *rig) rewind(nanos int64) {
	r.nanos = 0
	r.SetClock(nanos)
}

// after moves the clock.
func (r *rig) after(d time.Duration) { r.SetClock(r.nanos + d.Nanoseconds()) }

// neighborMAC is the Ethernet source of every frame that tests send.
const neighborMAC = "02:00:00:00:01:09"

// parseLine turns a line without Ethernet addresses into a frame for port.
func parseLine(t testing.TB, port int, line string) []byte {
	t.Helper()
	if !strings.HasPrefix(line, "raw ") {
		line = fmt.Sprintf("%s > 02:00:00:00:00:%02x %s", neighborMAC, 1+port, line)
	}
	b, err := packettext.Parse(line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return b
}

// fate is what became of one packet of a burst.
type fate struct {
	port  int // by which it left; -1: it did not
	frame []byte
	held  bool
}

// process takes frames through the worker in one burst and returns the fate of each. It checks what
// holds for any burst: every packet is in one place, the counters add up, and what leaves has no
// fault that it did not come with.
func (r *rig) process(port int, frames ...[]byte) []fate {
	r.t.Helper()
	var b Burst
	b.Port, b.N = port, len(frames)
	was := make([][]byte, len(frames))
	for i, f := range frames {
		b.Packets[i].Data, b.Packets[i].Handle = f, uintptr(i+1)
		was[i] = slices.Clone(f)
	}
	before := r.holding
	if r.answers {
		r.stock(len(frames))
	}
	r.said = nil
	r.Process(&b)
	fates := make([]fate, len(frames))
	seen := make([]int, len(frames))
	for p := range r.Out {
		q := &r.Out[p]
		for i := range q.N {
			h := int(q.Handles[i]) - 1
			if h >= len(frames) { // what weir itself says
				if err := packettext.Verify(q.Frames[i]); err != nil {
					r.t.Fatalf("%s: %v", packettext.Format(q.Frames[i]), err)
				}
				r.said = append(r.said, fmt.Sprintf("%d: %s", p, packettext.Format(q.Frames[i])))
				continue
			}
			seen[h]++
			fates[h] = fate{port: p, frame: q.Frames[i]}
			if got := packettext.Fault(q.Frames[i]); got != "" && got != packettext.Fault(was[h]) {
				r.t.Fatalf("in:  %s (%s)\nout: %s (%s)", packettext.Format(was[h]), packettext.Fault(was[h]), packettext.Format(q.Frames[i]), got)
			}
		}
	}
	for _, h := range r.Done {
		seen[h-1]++
		fates[h-1] = fate{port: -1}
	}
	for i := before; i < r.holding; i++ {
		h := r.held[i].handle - 1
		seen[h]++
		fates[h] = fate{port: -1, held: true}
	}
	for h, n := range seen {
		if n != 1 {
			r.t.Fatalf("%s is in %d places after Process", packettext.Format(was[h]), n)
		}
	}
	r.drain()
	r.balanced()
	return fates
}

// balanced checks the sums of the counters.
func (r *rig) balanced() {
	r.t.Helper()
	t := r.counters.Totals()
	if t.Received != t.Forwarded+t.Punted+t.Dropped+t.Held || t.Transmitted != t.Forwarded+t.Fragmented+t.Originated {
		r.t.Fatalf("counters do not add up: %+v", t)
	}
	if t.Held != uint64(r.holding+r.pieces.waiting()) || r.counters.Sessions != uint64(r.sessions.Len()) {
		r.t.Fatalf("counters say %d held, %d sessions; there are %d, %d", t.Held, r.counters.Sessions, r.holding+r.pieces.waiting(), r.sessions.Len())
	}
}

// stock gives the worker n buffers for what weir itself says.
func (r *rig) stock(n int) {
	const first = 1 << 20 // handle
	for s := &r.Spare; s.N < n; s.N++ {
		s.Handles[s.N], s.Data[s.N], s.Front = uintptr(first+s.N), make([]byte, 256+2048)[256:], 256
	}
}

// frameFate takes one frame through the worker and says what became of it: the packet that left
// without Ethernet addresses and TTL, "drop REASON", "punt" or "held".
func (r *rig) frameFate(port int, frame []byte) string {
	r.t.Helper()
	dropped, punted := r.counters.Dropped, r.counters.Punted
	f := r.process(port, frame)[0]
	switch {
	case f.held:
		return "held"
	case f.port >= 0:
		return bare(f.frame)
	case r.counters.Punted > punted:
		return "punt"
	}
	for reason, n := range r.counters.Dropped {
		if n > dropped[reason] {
			return "drop " + drop.Reason(reason).String()
		}
	}
	return "lost"
}

// bare is a frame as text without Ethernet addresses, TTL and identification.
func bare(frame []byte) string {
	words := strings.Fields(packettext.Format(frame))[3:]
	keep := words[:0]
	for _, w := range words {
		if !strings.HasPrefix(w, "ttl=") && !strings.HasPrefix(w, "ipid=") {
			keep = append(keep, w)
		}
	}
	return strings.Join(keep, " ")
}

// send sends a line into port.
func (r *rig) send(port int, line string) string {
	r.t.Helper()
	return r.frameFate(port, parseLine(r.t, port, line))
}

// expect sends a line into port and compares what becomes of it.
func (r *rig) expect(port int, line, want string) {
	r.t.Helper()
	if got := r.send(port, line); got != want {
		r.t.Fatalf("%s into port %d:\n  got  %s\n  want %s", line, port, got, want)
	}
}

// forget ends all sessions and mappings.
func (r *rig) forget() {
	if r.sessions.Len() == 0 {
		return
	}
	for ref := range uint32(r.sessions.Capacity()) {
		if r.sessions.At(ref).State() != session.Free {
			r.end(ref)
		}
	}
	r.counters.Sessions = 0
	n := r.mappings.Capacity()
	r.mappings.Reap(n, r.tick, 0, r.tick)
	r.mappings.Reap(0, r.tick, 0, r.tick+1)
}

// only returns the one session there is.
func (r *rig) only() *session.Session {
	r.t.Helper()
	return r.onlyOf(func(*session.Session) bool { return true })
}

// onlyOf returns the one session there is of those that count.
func (r *rig) onlyOf(counts func(*session.Session) bool) (found *session.Session) {
	r.t.Helper()
	for ref := range uint32(r.sessions.Capacity()) {
		if s := r.sessions.At(ref); s.State() != session.Free && counts(s) {
			if found != nil {
				r.t.Fatal("more than one session")
			}
			found = s
		}
	}
	if found == nil {
		r.t.Fatal("no session")
	}
	return found
}

// rigConfig has an instance of each kind, in both families: one with a floating address and an
// attached prefix, one with three floating addresses, one with an ephemeral one, one with a range
// of ports. Port 0 is inside, 1 outside.
const rigConfig = `
version: 1
dataplane: {sessions: 4096}
ports:
  - {name: in, device: net_null0, side: inside}
  - {name: out, device: net_null1, side: outside, addresses: [198.51.100.2/24, "2001:db8::2/64"],
     next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}, {address: "2001:db8::1", mac: "02:00:00:00:02:01"}]}
pools:
  - {name: p, ranges: [192.0.2.0/24, "2001:db8:1::/64"]}
  - {name: attached, ranges: [203.0.113.0/24, "2001:db8:2::/48"]}
gateways:
  - {name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p, attached]}
vpcs:
  - name: v
    attach: [{port: in, addresses: [10.0.0.1/16, "fd00::1/64"]}]
    subnets: [10.0.0.0/16, "fd00::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}, {to: 100.64.0.0/10, drop: true}]
    instances:
      - {name: one, addresses: [10.0.0.5, "fd00::5"], mac: "02:00:00:00:01:05", transit: [10.9.0.0/24],
         external: {floating: [192.0.2.5, "2001:db8:1::5"], attached: [203.0.113.16/28, "2001:db8:2::/64"]}}
      - {name: shared, addresses: [10.0.0.6, "fd00::6"], mac: "02:00:00:00:01:06",
         external: {snat: [{address: 192.0.2.6, ports: 1024-65535}, {address: "2001:db8:1::6", ports: 1024-65535}]}}
      - {name: several, addresses: [10.0.0.7, "fd00::7"], mac: "02:00:00:00:01:07",
         external: {floating: [192.0.2.20, 192.0.2.21, 192.0.2.22, "2001:db8:1::20", "2001:db8:1::21"]}}
      - {name: brief, addresses: [10.0.0.8], mac: "02:00:00:00:01:08", external: {ephemeral: [192.0.2.30]}}
      - {name: none, addresses: [10.0.0.9, "fd00::9"], mac: "02:00:00:00:01:09"}
`

// anySource lets instances with a configured MAC send from any: most tests send every frame from
// neighborMAC, and it is the cases that hold them against each other.
func anySource(g *generation.Generation) *generation.Generation {
	for i := range g.Instances {
		g.Instances[i].MAC = [2]uint64{}
	}
	g.Segment.SealWhole(g.Header.Layout)
	return g
}
