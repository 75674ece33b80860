// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/respond"
	"weir/pipeline/state"

	"github.com/spf13/cobra"

	"weir/appliance/command"
	"weir/appliance/control"
	"weir/config"
	"weir/pipeline"
	"weir/pipeline/packettext"
)

func replayCommand() *cobra.Command {
	var r replay
	var in, reloads []string
	cmd := &cobra.Command{
		Use:   "replay --config PATH --in PORT=FILE... --out DIR",
		Short: "Send captured packets through the real pipeline and write what comes out",
		Long: "Replay replaces every port of the configuration with a capture file: pcap or pcapng, also compressed by gzip, of Ethernet,\n" +
			"Linux cooked or raw IP links. Frames enter in the order of their time stamps over all ports, the clock is that of the\n" +
			"captures and runs between them too, and what weir sends goes to DIR/PORT.pcap. Frames that a capture holds only in\n" +
			"part are skipped and counted. Replay needs no privileges.\n" +
			"Neighbors without a configured MAC count as resolved, with " + assumedMAC.String() + ", so that the same input gives the same output.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.parse(in, reloads); err != nil {
				return err
			}
			if err := r.run(cmd.OutOrStdout()); err != nil {
				return command.Failed(err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.config, "config", "", "configuration: a file, or a directory of files")
	f.StringArrayVar(&in, "in", nil, "`PORT=FILE`: capture that the port receives; ports without one receive nothing")
	f.StringArrayVar(&reloads, "reload", nil, "`SECONDS=PATH`: load another configuration this many seconds after the first frame")
	f.StringVar(&r.out, "out", "", "directory for what the ports send")
	f.BoolVar(&r.json, "json", false, "print the counters as one JSON object")
	f.BoolVar(&r.verbose, "verbose", false, "print each frame and what became of it, with the reason if it was dropped")
	cmd.MarkFlagsMutuallyExclusive("json", "verbose")
	cmd.MarkFlagRequired("config")
	cmd.MarkFlagRequired("out")
	return cmd
}

// assumedMAC is the address of every neighbor that the configuration gives none: "weir" in ASCII.
var assumedMAC = config.MAC{0x02, 0x77, 0x65, 0x69, 0x72, 0x00}

// replaySeed makes the choices of a replay, such as SNAT ports, always the same.
var replaySeed = [32]byte{'w', 'e', 'i', 'r'}

// maxFrame is the longest frame that a device can deliver.
const maxFrame = 65535

type replay struct {
	config, out string
	json        bool
	verbose     bool
	in          map[string]string // port -> file
	skipped     map[string]skipped
	reloads     []reloadAt
}

// skipped is how many frames of a file did not enter.
type skipped struct {
	Sliced  int `json:"sliced,omitempty"`
	Foreign int `json:"foreign,omitempty"`
}

type reloadAt struct {
	after time.Duration
	path  string
}

func (r *replay) parse(in, reloads []string) error {
	r.in = map[string]string{}
	for _, s := range in {
		port, file, ok := strings.Cut(s, "=")
		if !ok || port == "" || file == "" {
			return fmt.Errorf("--in %q: expected PORT=FILE", s)
		}
		if r.in[port] != "" {
			return fmt.Errorf("--in %q: the port already has a file", s)
		}
		r.in[port] = file
	}
	for _, s := range reloads {
		seconds, path, ok := strings.Cut(s, "=")
		n, err := strconv.ParseFloat(seconds, 64)
		if !ok || err != nil || n < 0 || path == "" {
			return fmt.Errorf("--reload %q: expected SECONDS=PATH", s)
		}
		r.reloads = append(r.reloads, reloadAt{time.Duration(n * float64(time.Second)), path})
	}
	slices.SortStableFunc(r.reloads, func(a, b reloadAt) int { return int(a.after - b.after) })
	return nil
}

// arrival is one frame on the schedule.
type arrival struct {
	at    time.Duration
	port  int
	frame []byte
}

// schedule reads what each port receives, and when: by time, and by port and place in its file
// where that is the same.
func (r *replay) schedule(cfg *config.Config) ([]arrival, error) {
	for name := range r.in {
		if !slices.ContainsFunc(cfg.Ports, func(p config.Port) bool { return p.Name == name }) {
			return nil, fmt.Errorf("--in %s: the configuration has no port with this name", name)
		}
	}
	var all []arrival
	for i, p := range cfg.Ports {
		file := r.in[p.Name]
		if file == "" {
			continue
		}
		c, err := packettext.ReadCaptureFile(file)
		if err != nil {
			return nil, err
		}
		if c.Sliced+c.Foreign > 0 {
			if r.skipped == nil {
				r.skipped = map[string]skipped{}
			}
			r.skipped[p.Name] = skipped{c.Sliced, c.Foreign}
		}
		for n, rec := range c.Records {
			if len(rec.Frame) > maxFrame {
				return nil, fmt.Errorf("%s: frame %d has %d bytes; expected at most %d, as no device delivers more: leave it out of the capture", file, n+1, len(rec.Frame), maxFrame)
			}
			all = append(all, arrival{rec.Time, i, rec.Frame})
		}
	}
	slices.SortStableFunc(all, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
	return all, nil
}

// run replays and prints the counters.
func (r *replay) run(out io.Writer) (err error) {
	cfg, _, err := config.Load(r.config)
	if err != nil {
		return err
	}
	arrivals, err := r.schedule(cfg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	state, err := state.New(state.Sizes{
		// A frame begins at most one session: a larger table would never be fuller.
		Workers: 1, Sessions: min(cfg.Dataplane.Sessions, len(arrivals)+1024), Seed: &replaySeed,
	})
	if err != nil {
		return err
	}
	defer state.Close()
	compiler := generation.NewCompiler(state, &replaySeed)
	gen, err := compiler.Compile(cfg)
	if err != nil {
		return err
	}
	defer func() { gen.Close() }()

	w := newReplayWorker(cfg, state, gen)
	respond := respond.New(state, w.macs)
	respond.Passive, respond.Assume = true, assumedMAC
	respond.Configure(cfg, gen)

	counters := state.Counters(0)
	var first time.Duration
	if len(arrivals) > 0 {
		first = arrivals[0].at
	}
	const start = time.Hour // the clock at the first frame
	told := teller{out: out, counters: counters, ports: cfg.Ports, w: w, silent: !r.verbose}
	for n, a := range arrivals {
		for len(r.reloads) > 0 && r.reloads[0].after <= a.at-first {
			at := r.reloads[0]
			next, err := r.reload(cfg, compiler, at.path)
			if err != nil {
				return err
			}
			r.reloads = r.reloads[1:]
			w.advance(int64(start + at.after))
			w.pipe.SetGeneration(next.gen)
			respond.Configure(next.cfg, next.gen)
			compiler.Retire()
			gen.Close()
			cfg, gen = next.cfg, next.gen
			told.reload(at)
		}
		now := int64(start + a.at - first)
		w.advance(now)
		told.frame(n+1, a.at-first, a)
		w.receive(a)
		respond.Poll(now)
		w.originate(a.at)
		told.outcome()
	}
	for i, p := range cfg.Ports {
		if err := writePcap(r.outFile(p.Name), w.sent[i]); err != nil {
			return err
		}
	}
	return r.print(out, cfg, counters)
}

func (r *replay) outFile(port string) string { return filepath.Join(r.out, port+".pcap") }

type reloaded struct {
	cfg *config.Config
	gen *generation.Generation
}

// reload compiles the configuration at path as the successor of cfg.
func (r *replay) reload(cfg *config.Config, c *generation.Compiler, path string) (reloaded, error) {
	next, _, err := config.Load(path)
	if err != nil {
		return reloaded{}, err
	}
	if keys := config.RestartOnly(cfg, next); len(keys) > 0 && !control.KeepRestartOnly(next, cfg) {
		return reloaded{}, fmt.Errorf("%s: %v changed, which needs a restart", path, keys)
	}
	g, err := c.Compile(next)
	return reloaded{next, g}, err
}

func writePcap(name string, records []packettext.Record) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(packettext.WritePcap(f, records), f.Close())
}

// replayWorker drives the pipeline as the data plane's worker does, with captures for devices.
// Packet buffers are ordinary memory: the pipeline's handles of them mean nothing, and nobody frees
// them.
type replayWorker struct {
	pipe   *pipeline.Worker
	clock  *pipeline.Clock
	inject state.Ring
	macs   []config.MAC
	room   int // of a packet buffer
	burst  pipeline.Burst
	sent   [][]packettext.Record // by port
}

func newReplayWorker(cfg *config.Config, state *state.State, gen *generation.Generation) *replayWorker {
	w := &replayWorker{inject: state.Inject(0), sent: make([][]packettext.Record, len(cfg.Ports))}
	mtu := 0
	for i, p := range cfg.Ports {
		mtu = max(mtu, p.MTU)
		if p.MAC == (config.MAC{}) { // that of a device
			p.MAC = config.MAC{0x02, 'p', 'c', 'a', 'p', byte(i)}
		}
		w.macs = append(w.macs, p.MAC)
	}
	w.room = bufferRoom(mtu)
	w.pipe = pipeline.NewWorker(state, 0, gen, pipeline.WorkerConfig{MACs: w.macs, AnyMAC: true, AssumeMAC: assumedMAC, Seed: &replaySeed})
	w.clock = pipeline.NewClock(w.pipe)
	return w
}

// headroom is what a packet buffer has before the frame.
const headroom = 128

// bufferRoom is how much of a frame a packet buffer of the data plane takes: Ethernet header, two
// VLAN tags, CRC, and at least 2 KiB, in whole KiB; and a buffer with its headroom has a length of
// 16 bits.
func bufferRoom(mtu int) int {
	const overhead = 14 + 2*4 + 4
	return min((max(mtu+overhead, 2048)+1023)/1024*1024, math.MaxUint16-headroom)
}

// advance lets the time pass until the next frame.
func (w *replayWorker) advance(now int64) {
	w.clock.Advance(now)
	w.pipe.Done = w.pipe.Done[:0]
}

// receive is a turn of the worker with one frame.
func (w *replayWorker) receive(a arrival) {
	for s := &w.pipe.Spare; s.N < pipeline.MaxSpare; s.N++ {
		s.Data[s.N], s.Front = make([]byte, headroom+w.room)[headroom:], headroom
	}
	n := min(len(a.frame), w.room)
	w.burst.Port, w.burst.N = a.port, 1
	k := &w.burst.Packets[0]
	buffer := append(make([]byte, headroom, headroom+n), a.frame[:n]...)
	k.Data, k.Front, k.Handle, k.Long = buffer[headroom:], headroom, anyHandle, len(a.frame) > w.room
	w.pipe.Process(&w.burst)
	for port := range w.sent {
		q := &w.pipe.Out[port]
		for _, frame := range q.Frames[:q.N] {
			w.send(port, a.at, frame)
		}
		w.pipe.Sent(port, q.N)
	}
	w.pipe.Done = w.pipe.Done[:0]
}

// anyHandle is the handle of every buffer.
const anyHandle = 1

// mostOriginated is how many frames of control's leave in a turn, as in the data plane.
const mostOriginated = 32

// originate sends what control has to say.
func (w *replayWorker) originate(at time.Duration) {
	for range mostOriginated {
		m := w.inject.Peek()
		if m == nil {
			return
		}
		if m.Kind == state.InjectFrame && m.At.Port() < len(w.sent) {
			w.send(m.At.Port(), at, m.Data())
			w.pipe.Originated(m.At.Port(), 1, uint64(len(m.Data())))
		}
		w.inject.Pop()
	}
}

// send notes a copy of a frame: the pipeline uses its memory again.
func (w *replayWorker) send(port int, at time.Duration, frame []byte) {
	w.sent[port] = append(w.sent[port], packettext.Record{Time: at, Frame: bytes.Clone(frame)})
}

// teller prints what becomes of each frame, in the words of the test cases, from what the pipeline
// has counted and sent since it last looked.
type teller struct {
	out      io.Writer
	counters *state.Counters
	ports    []config.Port
	w        *replayWorker
	silent   bool
	before   state.Counters
	sent     []int // frames, by port
}

// reload tells of a change of the configuration.
func (t *teller) reload(r reloadAt) {
	if !t.silent {
		t.outcome() // pieces that waited in vain
		fmt.Fprintf(t.out, "+%.6f reload %s\n", r.after.Seconds(), r.path)
	}
}

// frame tells of a frame that comes in.
func (t *teller) frame(n int, at time.Duration, a arrival) {
	if !t.silent {
		t.outcome()
		fmt.Fprintf(t.out, "%d +%.6f %s < %s\n", n, at.Seconds(), t.ports[a.port].Name, packettext.Format(a.frame))
	}
}

// outcome tells what has happened since.
func (t *teller) outcome() {
	if t.silent {
		return
	}
	if t.sent == nil {
		t.sent = make([]int, len(t.ports))
	}
	for i, sent := range t.w.sent {
		for _, rec := range sent[t.sent[i]:] {
			fmt.Fprintf(t.out, "    %s > %s\n", t.ports[i].Name, packettext.Format(rec.Frame))
		}
		t.sent[i] = len(sent)
	}
	now := *t.counters
	for reason := drop.Pass + 1; reason < drop.NumReasons; reason++ {
		for range now.Dropped[reason] - t.before.Dropped[reason] {
			fmt.Fprintf(t.out, "    dropped %s: %s\n", reason, reason.Help())
		}
	}
	for range now.Punted - t.before.Punted {
		fmt.Fprintln(t.out, "    punted")
	}
	if now.Held > t.before.Held {
		fmt.Fprintln(t.out, "    held")
	}
	t.before = now
}

func (r *replay) print(out io.Writer, cfg *config.Config, c *state.Counters) error {
	s := c.Summary(cfg.Ports)
	if r.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			state.Summary
			Skipped map[string]skipped `json:"skipped,omitempty"`
		}{s, r.skipped})
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, l := range []struct {
		name string
		n    uint64
	}{{"received", s.Received}, {"forwarded", s.Forwarded}, {"punted", s.Punted}, {"originated", s.Originated}, {"fragmented", s.Fragmented}, {"held", s.Held}} {
		fmt.Fprintf(w, "%s\t%d\n", l.name, l.n)
	}
	for reason := drop.Pass + 1; reason < drop.NumReasons; reason++ {
		if n := c.Dropped[reason]; n != 0 {
			fmt.Fprintf(w, "dropped %s\t%d\t%s\n", reason, n, reason.Help())
		}
	}
	for _, p := range cfg.Ports {
		fmt.Fprintf(w, "port %s\treceived %d\ttransmitted %d\t%s\n", p.Name, s.Ports[p.Name].Received, s.Ports[p.Name].Transmitted, r.outFile(p.Name))
	}
	for _, p := range cfg.Ports {
		if n := r.skipped[p.Name]; n.Sliced > 0 {
			fmt.Fprintf(w, "port %s\tskipped %d\tthe capture holds only a part of them (tcpdump -s 0 takes whole frames)\n", p.Name, n.Sliced)
		}
		if n := r.skipped[p.Name]; n.Foreign > 0 {
			fmt.Fprintf(w, "port %s\tskipped %d\tneither Ethernet nor IP\n", p.Name, n.Foreign)
		}
	}
	return w.Flush()
}
