// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// crew is several workers on one state.
type crew struct {
	t       *testing.T
	state   *state.State
	gen     *generation.Generation
	workers []*Worker
	cfg     *config.Config
}

func newCrew(t *testing.T, n int, text string) *crew {
	t.Helper()
	c := &crew{t: t, cfg: parseConfig(t, text)}
	var err error
	if c.state, err = state.New(state.Sizes{Workers: n, Sessions: c.cfg.Dataplane.Sessions, Seed: &testSeed}); err != nil {
		t.Fatal(err)
	}
	if c.gen, err = generation.NewCompiler(c.state, &testSeed).Compile(c.cfg); err != nil {
		t.Fatal(err)
	}
	anySource(c.gen)
	t.Cleanup(func() {
		c.gen.Close()
		c.state.Close()
	})
	var macs []config.MAC
	for i := range c.cfg.Ports {
		macs = append(macs, config.MAC{2, 0, 0, 0, 0, byte(1 + i)})
	}
	handoff := NewHandoff(n)
	for w := range n {
		seed := [32]byte{byte(w)}
		k := NewWorker(c.state, w, c.gen, WorkerConfig{MACs: macs, AssumeMAC: config.MAC{2, 0, 0, 0, 9, 9}, Seed: &seed, Handoff: handoff})
		k.SetClock(1e9)
		c.workers = append(c.workers, k)
	}
	return c
}

// empty takes what a worker wants to send and free, and returns the former as lines.
func (w *Worker) empty(t testing.TB) (lines []string) {
	for port := range w.Out {
		q := &w.Out[port]
		for i := range q.N {
			if err := packettext.Verify(q.Frames[i]); err != nil {
				t.Errorf("%v in %s", err, packettext.Format(q.Frames[i]))
			}
			lines = append(lines, fmt.Sprintf("%d > %s", port, bare(q.Frames[i])))
		}
		w.Sent(port, q.N)
	}
	w.Done = w.Done[:0]
	return lines
}

// send gives a line to worker w as received by port, lets all take their turns until nothing is on
// its way, and returns what left, or why not.
func (c *crew) send(w, port int, line string) string {
	c.t.Helper()
	before := c.sum()
	var b Burst
	b.Port, b.N = port, 1
	b.Packets[0].Data, b.Packets[0].Handle = parseLine(c.t, port, line), 1
	c.workers[w].Process(&b)
	lines := c.workers[w].empty(c.t)
	for busy := true; busy; {
		busy = false
		for to := range c.workers {
			for from := range c.workers {
				if from != to && c.workers[to].Adopt(from) > 0 {
					busy = true
					lines = append(lines, c.workers[to].empty(c.t)...)
				}
			}
		}
	}
	after := c.sum()
	if t := after.Totals(); t.Received != t.Forwarded+t.Punted+t.Dropped+t.Held || t.Transmitted != t.Forwarded+t.Fragmented+t.Originated {
		c.t.Fatalf("counters do not add up: %+v", t)
	}
	for reason := range after.Dropped {
		if after.Dropped[reason] > before.Dropped[reason] {
			lines = append(lines, "drop "+drop.Reason(reason).String())
		}
	}
	return strings.Join(lines, "; ")
}

func (c *crew) sum() (sum state.Counters) {
	for w := range c.workers {
		k := c.state.Counts(w)
		sum.Add(&k)
	}
	return sum
}

// owned checks that every session lies at the worker that owns its remote address.
func (c *crew) owned() {
	c.t.Helper()
	for w := range c.workers {
		table := c.state.Table(w)
		for ref := range uint32(table.Capacity()) {
			if s := table.At(ref); s.State() != session.Free && int(c.workers[0].owner(&Packet{remote: s.Remote})) != w {
				c.t.Errorf("a session with %v lies at worker %d, which does not own it", s.Remote.Netip(), w)
			}
		}
	}
	if err := c.state.Check(); err != nil {
		c.t.Error(err)
	}
}

// Whichever worker receives what, several do what one does, but for the SNAT ports they choose.
func TestWorkersAgreeWithOne(t *testing.T) {
	for _, n := range []int{3, 8, config.MaxWorkers} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { workersAgreeWithOne(t, n) })
	}
}

func workersAgreeWithOne(t *testing.T, n int) {
	text := strings.Replace(rigConfig, "sessions: 4096", "sessions: 65536", 1) // each has room for what all flows to one remote address need
	one, many := newCrew(t, 1, text), newCrew(t, n, text)
	r := rand.New(rand.NewPCG(3, 1))
	ports := map[string][2]string{} // private endpoint and protocol -> external port at each
	private := map[[2]string]string{}
	seen := map[string]int{}
	for i := range 6000 {
		host, port := 5+r.IntN(5), 1000+r.IntN(6)
		remote := []string{fmt.Sprintf("8.8.%d.%d", r.IntN(3), r.IntN(6)), "192.0.2.5", "192.0.2.30", "192.0.2.20"}[min(3, r.IntN(12)/3)]
		if r.IntN(4) > 0 {
			remote = fmt.Sprintf("8.8.%d.%d", r.IntN(3), r.IntN(6))
		}
		proto, flags := "udp", ""
		if r.IntN(2) == 0 {
			proto, flags = "tcp", " SYN"
		}
		w := r.IntN(n)
		var got, want string
		if r.IntN(3) > 0 || len(ports) == 0 {
			line := fmt.Sprintf("%s 10.0.0.%d:%d > %s:%d%s", proto, host, port, remote, 50+r.IntN(3), flags)
			got, want = many.send(w, 0, line), one.send(0, 0, line)
			if host == 6 && !strings.HasPrefix(want, "drop") {
				both := [2]string{sourcePort(want), sourcePort(got)}
				key := fmt.Sprint(proto, port)
				if old, ok := ports[key]; ok && old != both {
					t.Fatalf("step %d: %s has external ports %v, and had %v", i, line, both, old)
				}
				ports[key], private[[2]string{proto, both[0]}] = both, both[1]
				got = strings.Replace(got, ":"+both[1]+" ", ":"+both[0]+" ", 1)
			}
		} else {
			var key string
			skip := r.IntN(len(ports))
			for key = range ports {
				if skip--; skip < 0 {
					break
				}
			}
			from := fmt.Sprintf("8.8.%d.%d:%d", r.IntN(3), r.IntN(6), 50+r.IntN(3))
			line := func(p string) string {
				return fmt.Sprintf("%s %s > 192.0.2.6:%s%s", key[:3], from, p, map[string]string{"tcp": " SYN", "udp": ""}[key[:3]])
			}
			got, want = many.send(w, 1, line(ports[key][1])), one.send(0, 1, line(ports[key][0]))
		}
		if got != want {
			t.Fatalf("step %d: %d workers: %s\none: %s", i, n, got, want)
		}
		switch {
		case strings.HasPrefix(want, "drop"):
			seen[want]++
		default:
			seen[want[:1]]++
		}
		if i%500 == 0 {
			many.owned()
		}
	}
	many.owned()
	sum := many.sum()
	if sum.Handed < 2000 || sum.Adopted != sum.Handed || seen["0"] == 0 || seen["1"] == 0 || seen["drop filtered"] == 0 {
		t.Errorf("too little happened: %d handed, %d adopted, %v", sum.Handed, sum.Adopted, seen)
	}
}

// sourcePort takes the source port out of a line of crew.send.
func sourcePort(line string) string {
	_, line, _ = strings.Cut(line, ":")
	port, _, _ := strings.Cut(line, " ")
	return port
}

// Workers that run at the same time, and all get packets of the same flows, lose none and agree on
// mappings.
func TestWorkersTogether(t *testing.T) {
	const workers, rounds = 3, 1500
	c := newCrew(t, workers, rigConfig)
	var done atomic.Int32
	var mu sync.Mutex
	external := map[string]string{} // internal endpoint -> external port
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			k := c.workers[w]
			r := rand.New(rand.NewPCG(8, uint64(w)))
			b := new(Burst)
			turn := func() bool {
				work := false
				for from := range workers {
					if from != w && k.Adopt(from) > 0 {
						work = true
					}
					for p := range k.Out {
						q := &k.Out[p]
						for i := range q.N {
							if err := packettext.Verify(q.Frames[i]); err != nil {
								t.Errorf("%v in %s", err, packettext.Format(q.Frames[i]))
							}
							line := bare(q.Frames[i])
							if inside, _ := strings.CutPrefix(line[strings.Index(line, "\""):], "\""); strings.HasPrefix(inside, "10.0.0.6:") {
								mu.Lock()
								if was, ok := external[inside]; ok && was != sourcePort(line) {
									t.Errorf("%s has ports %s and %s", inside, was, sourcePort(line))
								}
								external[inside] = sourcePort(line)
								mu.Unlock()
							}
						}
						k.Sent(p, q.N)
					}
					k.Done = k.Done[:0]
				}
				return work
			}
			for round := range rounds {
				k.SetClock(1e9 + int64(round)*1000)
				b.Port, b.N = 0, 1+r.IntN(4)
				for i := range b.N {
					from := fmt.Sprintf("10.0.0.%d:%d", 5+r.IntN(2), 1000+r.IntN(8))
					b.Packets[i].Data = parseLine(t, 0, fmt.Sprintf("udp %s > 8.8.%d.%d:53 \"%s\"", from, r.IntN(2), r.IntN(50), from))
					b.Packets[i].Handle = 1
				}
				k.Process(b)
				turn()
				k.Expire(8)
			}
			done.Add(1)
			for done.Load() < workers || turn() {
				turn()
			}
		}()
	}
	wg.Wait()
	for to := range c.workers { // what came after the last turn of one
		for from := range c.workers {
			for from != to && c.workers[to].Adopt(from) > 0 {
				c.workers[to].empty(t)
			}
		}
	}
	c.owned()
	sum := c.sum()
	if tot := sum.Totals(); tot.Received != tot.Forwarded+tot.Dropped || sum.Dropped[drop.HandoffFull] != tot.Dropped || tot.Held != 0 {
		t.Errorf("counters: %+v, %d for full rings", tot, sum.Dropped[drop.HandoffFull])
	}
	if sum.Handed == 0 || len(external) != 8 {
		t.Errorf("%d packets were handed over, %d endpoints mapped; expected some, and 8", sum.Handed, len(external))
	}
}

// remote returns an address of which worker w owns the flows.
func (c *crew) remote(w int) string {
	for i := range 1 << 16 {
		a := netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)})
		if int(c.workers[0].owner(&Packet{remote: inet.FromNetip(a)})) == w {
			return a.String()
		}
	}
	c.t.Fatalf("worker %d owns nothing", w)
	return ""
}

// pass takes a copy of a frame in at worker at, gives its owner a turn and nobody else, and returns
// what leaves: one frame.
func (c *crew) pass(at, owner, port int, frame []byte) []byte {
	c.t.Helper()
	var b Burst
	b.Port, b.N = port, 1
	b.Packets[0].Data, b.Packets[0].Handle = bytes.Clone(frame), 1
	c.workers[at].Process(&b)
	if at != owner {
		c.workers[owner].Adopt(at)
	}
	var left [][]byte
	for out := range c.workers[owner].Out {
		q := &c.workers[owner].Out[out]
		left = append(left, q.Frames[:q.N]...)
	}
	if len(left) != 1 {
		c.t.Fatalf("%d frames leave at worker %d for %s; drops there: %v, at worker %d: %v", len(left), owner, packettext.Format(frame),
			c.state.Counters(owner).Dropped, at, c.state.Counters(at).Dropped)
	}
	left[0] = bytes.Clone(left[0])
	c.workers[owner].empty(c.t)
	return left[0]
}

// What one worker cannot take is dropped and counted where it happens. The flows of another one go
// on byte for byte, also those that come to it by the very worker that the flood comes in at, and
// new ones begin.
func TestOverloadIsOneWorkers(t *testing.T) {
	const entry, busy, calm = 0, 1, 2
	c := newCrew(t, 3, strings.Replace(rigConfig, "sessions: 4096", "sessions: 1024", 1))
	there, here := c.remote(busy), c.remote(calm)
	var golden []goldenFlow
	for _, line := range []string{
		"udp 10.0.0.5:1000 > %s:53 df \"golden\"", "udp 10.0.0.6:1000 > %s:53 df \"golden\"", "icmp echo-request 10.0.0.6 > %s df id=7 \"golden\"",
		"tcp 10.0.0.6:1000 > %s:443 SYN df seq=1",
	} {
		g := goldenFlow{request: parseLine(t, 0, fmt.Sprintf(line, here))}
		g.left = c.pass(calm, calm, 0, g.request)
		g.reply = mirror(t, g.left)
		g.arrived = c.pass(entry, calm, 1, g.reply)
		golden = append(golden, g)
	}
	clock, fresh := int64(1e9), 0
	goesOn := func() {
		t.Helper()
		for at := range c.workers {
			if at == busy { // it is not asked for anything
				continue
			}
			for _, g := range golden {
				if got := c.pass(at, calm, 0, g.request); !bytes.Equal(got, g.left) {
					t.Fatalf("received by worker %d, a packet leaves as\n%s, before the flood as\n%s", at, packettext.Format(got), packettext.Format(g.left))
				}
				if got := c.pass(at, calm, 1, g.reply); !bytes.Equal(got, g.arrived) {
					t.Fatalf("received by worker %d, a reply arrives as\n%s, before the flood as\n%s", at, packettext.Format(got), packettext.Format(g.arrived))
				}
			}
		}
		fresh++
		for _, instance := range []string{"10.0.0.5", "10.0.0.6"} {
			request := parseLine(t, 0, fmt.Sprintf("udp %s:%d > %s:53 \"new\"", instance, 50000+fresh, here))
			reply := c.pass(entry, calm, 1, mirror(t, c.pass(entry, calm, 0, request)))
			if got, want := bare(reply), fmt.Sprintf("udp %s:53 > %s:%d", here, instance, 50000+fresh); !strings.HasPrefix(got, want) {
				t.Fatalf("the reply of a new flow arrives as %s, want %s", got, want)
			}
		}
	}
	// flood sends packets of n different lines in at a worker. Who it is for takes a turn after
	// each if it can.
	flood := func(at, n, port int, line string, turns bool) {
		t.Helper()
		for i := range n {
			var b Burst
			b.Port, b.N = port, 1
			b.Packets[0].Data, b.Packets[0].Handle = parseLine(t, port, fmt.Sprintf(line, 1024+i)), 1
			c.workers[at].Process(&b)
			c.workers[at].empty(t)
			for turns && at != busy && c.workers[busy].Adopt(at) > 0 {
				c.workers[busy].empty(t)
			}
			if i%100 == 0 {
				goesOn()
			}
		}
		goesOn()
	}
	// booked checks that the flood was dropped at one worker under one reason, more than a few and
	// nothing else anywhere, and that all adds up.
	var before [3]state.Counters
	booked := func(what string, at int, reason drop.Reason, held uint64) {
		t.Helper()
		for w := range c.workers {
			now := *c.state.Counters(w)
			for r := range now.Dropped {
				n := now.Dropped[r] - before[w].Dropped[r]
				if wanted := w == at && drop.Reason(r) == reason; wanted && n < 100 || !wanted && n > 0 {
					t.Errorf("%s: worker %d dropped %d as %v", what, w, n, drop.Reason(r))
				}
			}
			before[w] = now
		}
		sum := c.sum()
		if tot := sum.Totals(); tot.Received != tot.Forwarded+tot.Punted+tot.Dropped+tot.Held || tot.Transmitted != tot.Forwarded+tot.Originated || tot.Held != held {
			t.Errorf("%s: %+v, want %d held", what, tot, held)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	goesOn()

	// Its ring is full: it takes no turn.
	flood(entry, 2*handoffSlots, 0, "udp 10.0.0.6:%d > "+there+":53", false)
	booked("a full ring", entry, drop.HandoffFull, handoffSlots)
	for c.workers[busy].Adopt(entry) > 0 {
		c.workers[busy].empty(t)
	}
	booked("a ring that is read again", -1, drop.HandoffFull, 0)

	// Its VPC has its share of the table: no SNAT session of it begins any more. 1:1 needs none.
	flood(entry, 600, 0, "udp 10.0.0.6:%d > "+there+":53", true)
	if table := c.state.Table(busy); table.Len() < table.Capacity()/8*7 || table.Len() > table.Capacity()/16*15 {
		t.Errorf("%d of %d sessions in the table that was flooded", table.Len(), table.Capacity())
	}
	booked("a table whose share is taken", busy, drop.FairShare, 0)
	flood(entry, 10, 0, "udp 10.0.0.5:%d > "+there+":54", true)
	booked("1:1 with a full table", -1, drop.TableFull, 0)

	// Control does not read what it says.
	for range 6 {
		clock += 1e9
		for _, w := range c.workers {
			w.SetClock(clock)
		}
		flood(busy, 200, 1, "nd solicit 2001:db8::%x > 2001:db8::2 target=2001:db8::2 slla="+neighborMAC, true)
	}
	if used := c.state.Punt(busy).Used(); used != state.RingSlots {
		t.Errorf("%d of %d messages wait for control", used, state.RingSlots)
	}
	booked("a full ring to control", busy, drop.PuntLimited, 0)
	arp := parseLine(t, 1, "arp who-has 198.51.100.2 tell 198.51.100.9")
	var b Burst
	b.Port, b.N = 1, 1
	b.Packets[0].Data, b.Packets[0].Handle = bytes.Clone(arp), 1
	c.workers[calm].Process(&b)
	c.workers[calm].empty(t)
	if m := c.state.Punt(calm).Peek(); m == nil || !bytes.Equal(m.Data(), arp) {
		t.Errorf("what another worker says to control is %+v", m)
	}
	booked("another ring to control", -1, drop.PuntLimited, 0)
	c.owned()
}

// A full ring drops and counts; the rest goes its way.
func TestHandoffFull(t *testing.T) {
	c := newCrew(t, 2, rigConfig)
	for i := range 4 * handoffSlots {
		var b Burst
		b.Port, b.N = 0, 1
		b.Packets[0].Data = parseLine(t, 0, fmt.Sprintf("udp 10.0.0.5:%d > 8.8.%d.%d:53", 1000+i, i%256, i/256))
		c.workers[0].Process(&b)
		c.workers[0].empty(t)
	}
	sum := c.sum()
	full := sum.Dropped[drop.HandoffFull]
	if tot := sum.Totals(); full == 0 || tot.Held != handoffSlots || tot.Received != tot.Forwarded+tot.Dropped+tot.Held {
		t.Errorf("%+v, %d for a full ring", tot, full)
	}
	// The process dies: what was on its way is booked.
	Sweep(c.state, c.gen, 1e9)
	sum = c.sum()
	if tot := sum.Totals(); sum.Dropped[drop.Restart] != handoffSlots || tot.Held != 0 || tot.Received != tot.Forwarded+tot.Dropped {
		t.Errorf("after a sweep: %+v, %d for the restart", tot, sum.Dropped[drop.Restart])
	}
}
