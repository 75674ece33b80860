// SPDX-License-Identifier: Apache-2.0

package casetest

import (
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
	"weir/pipeline/respond"
	"weir/pipeline/state"
)

// These are what weir replay has: the two must give the same output.
var (
	seed     = [32]byte{'w', 'e', 'i', 'r'}
	neighbor = config.MAC{0x02, 0x77, 0x65, 0x69, 0x72, 0x00} // of every neighbor without a configured one
)

const start = time.Hour // the clock at the first frame

// headroom is what a packet buffer has before the frame, as DPDK's have.
const headroom = 128

// peer is the source of frames whose line names none.
const peer = "02:00:00:00:00:aa"

// Result is what a run gave, per port.
type Result struct {
	In, Out  [][]packettext.Record
	Counters *state.Counters
	Listing  []byte
}

// runner is a case on its way through a worker and a responder of its own.
type runner struct {
	testing.TB
	*Case
	at       *step
	state    *state.State
	compiler *generation.Compiler
	gen      *generation.Generation
	worker   *pipeline.Worker
	clock    *pipeline.Clock
	respond  *respond.Responder
	burst    pipeline.Burst
	room     int               // of a packet buffer
	names    map[string]string // {NAME} -> number
	faults   map[string]bool   // that the verifier found in frames that came
	sent     []sentFrame       // in this step
	result   Result
	listing  bytes.Buffer
}

type sentFrame struct {
	port int
	data []byte
}

// Run runs the case in memory and holds every step against what has to follow from it.
func (c *Case) Run(tb testing.TB) *Result {
	tb.Helper()
	r := &runner{TB: tb, Case: c, names: map[string]string{}, faults: map[string]bool{"": true}}
	r.result.In = make([][]packettext.Record, len(c.Config.Ports))
	r.result.Out = make([][]packettext.Record, len(c.Config.Ports))
	defer r.open()()
	for i := range c.steps {
		r.at = &c.steps[i]
		if r.at.reload != "" {
			r.reload()
		} else {
			r.step()
		}
	}
	counters := *r.state.Counters(0)
	r.result.Counters, r.result.Listing = &counters, r.listing.Bytes()
	return &r.result
}

// fail ends the test with a message about the step.
func (r *runner) fail(format string, args ...any) {
	r.Helper()
	r.Fatalf("%s/case.txt:%d: %s", r.Dir, r.at.line, fmt.Sprintf(format, args...))
}

// open makes everything as weir replay does, and returns what closes it.
func (r *runner) open() func() {
	cfg := r.Config
	frames := len(r.steps) - len(r.Reloads)
	var err error
	r.state, err = state.New(state.Sizes{Workers: 1, Sessions: min(cfg.Dataplane.Sessions, frames+1024), Seed: &seed})
	if err != nil {
		r.Fatal(err)
	}
	r.compiler = generation.NewCompiler(r.state, &seed)
	if r.gen, err = r.compiler.Compile(cfg); err != nil {
		r.Fatal(err)
	}
	mtu := 0
	var macs []config.MAC
	for _, p := range cfg.Ports {
		mtu = max(mtu, p.MTU)
		macs = append(macs, p.MAC)
	}
	r.room = (max(mtu+26, 2048) + 1023) / 1024 * 1024
	r.worker = pipeline.NewWorker(r.state, 0, r.gen, pipeline.WorkerConfig{MACs: macs, AnyMAC: true, AssumeMAC: neighbor, Seed: &seed})
	r.clock = pipeline.NewClock(r.worker)
	r.respond = respond.New(r.state, macs)
	r.respond.Passive, r.respond.Assume = true, neighbor
	r.respond.Configure(cfg, r.gen)
	return func() {
		r.gen.Close()
		r.state.Close()
	}
}

func (r *runner) reload() {
	cfg, _, err := config.Load(filepath.Join(r.Dir, r.at.reload))
	if err != nil {
		r.fail("%v", err)
	}
	if r.twin != nil {
		r.twin.configure(cfg)
	}
	if keys := config.RestartOnly(r.Config, cfg); len(keys) > 0 {
		r.fail("%v changed, which takes a restart", keys)
	}
	next, err := r.compiler.Compile(cfg)
	if err != nil {
		r.fail("%v", err)
	}
	r.clock.Advance(int64(start + r.at.at))
	r.worker.SetGeneration(next)
	r.respond.Configure(cfg, next)
	r.compiler.Retire()
	r.gen.Close()
	r.gen = next
	r.list("reload %s", r.at.reload)
}

// step sends one frame in and compares what happens.
func (r *runner) step() {
	data := r.frame(r.at.packet, r.at.port)
	if !hasMACs.MatchString(r.at.packet) && !strings.HasPrefix(r.at.packet, "raw ") {
		r.sendFromOwner(data)
	}
	in := &r.result.In[r.at.port]
	*in = append(*in, packettext.Record{Time: r.at.at, Frame: data})
	r.faults[packettext.Fault(data)] = true
	r.list("%s < %s", r.Config.Ports[r.at.port].Name, packettext.Format(data))

	before := *r.state.Counters(0)
	if r.wrapped(r.at.port) {
		data = r.twin.in(r.at.port, r.Config.Ports[r.at.port].MAC, data)
	}
	r.process(data)
	for i, f := range r.sent {
		if r.wrapped(f.port) {
			plain, err := r.twin.out(f.port, r.Config.Ports[f.port].MAC, f.data)
			if err != nil {
				r.fail("%v: % x", err, f.data)
			}
			r.sent[i].data = plain
		}
	}
	after := *r.state.Counters(0)
	r.balance(&after)
	r.compareSent()
	var dropped []string
	for reason := drop.Pass + 1; reason < drop.NumReasons; reason++ {
		for range after.Dropped[reason] - before.Dropped[reason] {
			dropped = append(dropped, reason.String())
			r.list("dropped %s", reason)
		}
	}
	punted := int(after.Punted - before.Punted)
	if punted > 0 {
		r.list("punted")
	}
	held := after.Held > before.Held
	if held {
		r.list("held")
	}
	if !slices.Equal(dropped, r.at.dropped) || punted != r.at.punted || held != r.at.held {
		r.fail("dropped %q, punted %d, held %v; expected %q, %d, %v", dropped, punted, held, r.at.dropped, r.at.punted, r.at.held)
	}
	for _, f := range r.sent {
		out := &r.result.Out[f.port]
		*out = append(*out, packettext.Record{Time: r.at.at, Frame: f.data})
		r.list("%s > %s", r.Config.Ports[f.port].Name, packettext.Format(f.data))
	}
	if s := r.at.sessions; s >= 0 && after.Sessions != uint64(s) {
		r.fail("%d sessions live; expected %d", after.Sessions, s)
	}
}

// list adds a line to the listing.
func (r *runner) list(format string, args ...any) {
	fmt.Fprintf(&r.listing, "%.3f %s\n", r.at.at.Seconds(), fmt.Sprintf(format, args...))
}

// process is one turn of weir replay's loop.
func (r *runner) process(data []byte) {
	now := int64(start + r.at.at)
	buffers := 1 + int(r.state.Counters(0).Held)
	r.clock.Advance(now)
	r.stock()
	buffers += r.worker.Spare.N
	r.sent = r.sent[:0]
	const handle = 1
	buffer := append(make([]byte, headroom), data[:min(len(data), r.room)]...)
	r.burst.Port, r.burst.N = r.at.port, 1
	p := &r.burst.Packets[0]
	p.Data, p.Front, p.Handle, p.Long = buffer[headroom:], headroom, handle, len(data) > r.room
	r.worker.Process(&r.burst)
	for port := range r.Config.Ports {
		q := &r.worker.Out[port]
		for i := range q.N {
			r.sent = append(r.sent, sentFrame{port, bytes.Clone(q.Frames[i])})
		}
		r.worker.Sent(port, q.N)
	}
	if n := len(r.worker.Done) + len(r.sent) + int(r.state.Counters(0).Held) + r.worker.Spare.N; n != buffers {
		r.fail("%d buffers came back of %d", n, buffers)
	}
	r.worker.Done = r.worker.Done[:0]
	r.respond.Poll(now)
	inject := r.state.Inject(0)
	for m := inject.Peek(); m != nil; m = inject.Peek() {
		r.sent = append(r.sent, sentFrame{m.At.Port(), bytes.Clone(m.Data())})
		r.worker.Originated(m.At.Port(), 1, uint64(len(m.Data())))
		inject.Pop()
	}
}

// stock gives the worker spare buffers.
func (r *runner) stock() {
	for s := &r.worker.Spare; s.N < pipeline.MaxSpare; s.N++ {
		s.Data[s.N], s.Front = make([]byte, headroom+r.room)[headroom:], headroom
	}
}

// balance checks the sums that always hold.
func (r *runner) balance(c *state.Counters) {
	t := c.Totals()
	if t.Received != t.Forwarded+t.Punted+t.Dropped+t.Held {
		r.fail("received is not forwarded + punted + dropped + held: %+v", t)
	}
	if t.Transmitted != t.Forwarded+t.Fragmented+t.Originated {
		r.fail("transmitted is not forwarded + fragmented + originated: %+v", t)
	}
}

// compareSent holds the frames that left against those that had to, and learns new names.
func (r *runner) compareSent() {
	var got []string
	for _, f := range r.sent {
		if !r.faults[packettext.Fault(f.data)] {
			r.fail("%v in %s", packettext.Verify(f.data), packettext.Format(f.data))
		}
		got = append(got, r.Config.Ports[f.port].Name+" > "+packettext.Format(f.data))
	}
	if len(r.sent) != len(r.at.out) {
		r.fail("%d frames left, expected %d:\n%s", len(got), len(r.at.out), strings.Join(got, "\n"))
	}
	for i, f := range r.sent {
		if want := r.at.out[i]; f.port != want.port || !r.matches(f.data, want) {
			r.fail("frame %d is not as expected:\n%s", i+1, got[i])
		}
	}
}

var (
	hasMACs  = regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2} > ([0-9a-f]{2}:){5}[0-9a-f]{2} `)
	variable = regexp.MustCompile(`\{\w+\}`)

	identification = regexp.MustCompile(` ipid=\d+`)
)

// frame builds the frame of a packet line for, or from, a port.
func (r *runner) frame(line string, port int) []byte {
	line = variable.ReplaceAllStringFunc(line, func(name string) string {
		if r.names[name] == "" {
			r.fail("%s stands for nothing yet", name)
		}
		return r.names[name]
	})
	if !hasMACs.MatchString(line) && !strings.HasPrefix(line, "raw ") {
		line = peer + " > " + r.Config.Ports[port].MAC.String() + " " + line
	}
	frame, err := packettext.Parse(line)
	if err != nil {
		r.fail("%s: %v", line, err)
	}
	return frame
}

// sendFromOwner gives a frame from inside the MAC of the instance whose source address it has, if
// one is configured: so its sender would.
func (r *runner) sendFromOwner(data []byte) {
	e := header.Ethernet(data)
	var src netip.Addr
	if ip, ok := header.ParseIPv4(e.Payload()); ok && e.Type() == header.EtherTypeIPv4 {
		src = ip.Src()
	} else if ip, ok := header.ParseIPv6(e.Payload()); ok && e.Type() == header.EtherTypeIPv6 {
		src = ip.Src()
	}
	for i := range r.Config.VPCs {
		v := &r.Config.VPCs[i]
		if !slices.ContainsFunc(v.Attach, func(a config.Attachment) bool { return a.Port == r.at.port }) {
			continue
		}
		for _, in := range v.Instances {
			prefixes := slices.ContainsFunc(in.Attached, func(p netip.Prefix) bool { return p.Contains(src) })
			if in.MAC != (config.MAC{}) && src.IsValid() && (src == in.Address4 || src == in.Address6 || prefixes) {
				copy(data[6:], in.MAC[:])
			}
		}
	}
}

// matches compares a frame with a line as texts, in which a name that is new stands for any number.
func (r *runner) matches(got []byte, want frame) bool {
	const unknown = 61000 // and up: in the place of new names while the line is brought to its usual form
	var fresh []string
	line := variable.ReplaceAllStringFunc(want.packet, func(name string) string {
		if v := r.names[name]; v != "" {
			return v
		}
		if !slices.Contains(fresh, name) {
			fresh = append(fresh, name)
		}
		return strconv.Itoa(unknown + slices.Index(fresh, name))
	})
	expected, text := packettext.Format(r.frame(line, want.port)), packettext.Format(got)
	if !hasMACs.MatchString(want.packet) {
		expected, text = hasMACs.ReplaceAllString(expected, ""), hasMACs.ReplaceAllString(text, "")
	}
	if !strings.Contains(want.packet, "ipid=") {
		text = identification.ReplaceAllString(text, "")
	}
	pattern := regexp.QuoteMeta(expected)
	for i := range fresh {
		pattern = strings.Replace(pattern, strconv.Itoa(unknown+i), `(\d+)`, 1)
	}
	m := regexp.MustCompile("^" + pattern + "$").FindStringSubmatch(text)
	if m == nil {
		return false
	}
	for i, name := range fresh {
		for other, number := range r.names {
			if number == m[i+1] {
				r.fail("%s is %s, and so is %s", name, number, other)
			}
		}
		r.names[name] = m[i+1]
	}
	return true
}
