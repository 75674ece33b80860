// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weir/config"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/packettext"
	"weir/pipeline/respond"
	"weir/pipeline/state"
)

func replayCommand() *cobra.Command {
	var r replay
	var in, reloads []string
	cmd := &cobra.Command{
		Use:   "replay --config PATH --in PORT=FILE.pcap... --out DIR",
		Short: "Send captures through the real pipeline and write what comes out",
		Long: "Replay replaces every port of the configuration by a capture file: frames enter in the order of their times over all\n" +
			"ports, the clock is the captures' own, and what weir sends is written to DIR/PORT.pcap. It needs no privileges. Neighbors\n" +
			"without a configured MAC count as resolved, with " + assumedMAC.String() + ", so that the same input gives the same output.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.parse(in, reloads); err != nil {
				return err
			}
			if err := r.run(cmd.OutOrStdout()); err != nil {
				return failure{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.config, "config", "", "configuration: a file, or a directory of files")
	f.StringArrayVar(&in, "in", nil, "`PORT=FILE`: what the port receives; ports without one receive nothing")
	f.StringArrayVar(&reloads, "reload", nil, "`SECONDS=PATH`: another configuration from so many seconds after the first frame on")
	f.StringVar(&r.out, "out", "", "directory for what the ports send")
	f.BoolVar(&r.json, "json", false, "print the counters as one JSON object")
	cmd.MarkFlagRequired("config")
	cmd.MarkFlagRequired("out")
	return cmd
}

// assumedMAC is the address of every neighbor that the configuration gives none: "weir" in ASCII.
var assumedMAC = config.MAC{0x02, 0x77, 0x65, 0x69, 0x72, 0x00}

// replaySeed makes the choices of a replay, such as SNAT ports, always the same.
var replaySeed = [32]byte{'w', 'e', 'i', 'r'}

// maxPcapFrame is the longest frame that net_pcap can take: from a longer one it makes an mbuf that crashes.
const maxPcapFrame = 65535

type replay struct {
	config, out string
	json        bool
	in          map[string]string // port -> file
	reloads     []reloadAt
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
			return fmt.Errorf("--in %q: the port has a file already", s)
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
	at   time.Duration
	port int
}

// schedule reads when which port has a frame. Within a port the order is the file's, whatever its times say.
func (r *replay) schedule(cfg *config.Config) ([]arrival, error) {
	for name := range r.in {
		if !slices.ContainsFunc(cfg.Ports, func(p config.Port) bool { return p.Name == name }) {
			return nil, fmt.Errorf("--in %s: the configuration has no port of this name", name)
		}
	}
	var all []arrival
	for i, p := range cfg.Ports {
		file := r.in[p.Name]
		if file == "" {
			continue
		}
		records, err := packettext.ReadPcapFile(file)
		if err != nil {
			return nil, err
		}
		var at time.Duration
		for n, rec := range records {
			if len(rec.Frame) > maxPcapFrame {
				return nil, fmt.Errorf("%s: frame %d has %d bytes; net_pcap takes %d at the most: leave it out of the capture", file, n+1, len(rec.Frame), maxPcapFrame)
			}
			at = max(at, rec.Time)
			all = append(all, arrival{at, i})
		}
	}
	slices.SortStableFunc(all, func(a, b arrival) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
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
		// A frame begins one session at the most: a larger table would never be fuller.
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

	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if err := dpdk.Init(dpdk.EALConfig{Memory: 64 << 20, NoHuge: true, Log: log}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dpdk.Cleanup()) }()
	mtu := 0
	for _, p := range cfg.Ports {
		mtu = max(mtu, p.MTU)
	}
	pool, err := dpdk.NewMempool("packets", 4095, dpdk.DataRoom(mtu), -1)
	if err != nil {
		return err
	}
	ports, err := r.open(cfg, pool)
	defer func() {
		for _, p := range ports {
			err = errors.Join(err, p.Close())
		}
		err = errors.Join(err, pool.Free())
	}()
	if err != nil {
		return err
	}
	macs := portMACs(ports)
	for i, p := range cfg.Ports {
		if p.MAC != (config.MAC{}) {
			macs[i] = p.MAC
		}
	}
	w := &worker{
		ports: ports, pool: pool, state: state, inject: state.Inject(0),
		pipe: pipeline.NewWorker(state, 0, gen, pipeline.WorkerConfig{MACs: macs, AnyMAC: true, AssumeMAC: assumedMAC, Seed: &replaySeed}),
	}
	defer w.finish()
	respond := respond.New(state, macs)
	respond.Passive = true
	respond.Configure(cfg, gen)

	counters := state.Counters(0)
	stamps := make([][]time.Duration, len(ports)) // of what each port has sent
	var first time.Duration
	if len(arrivals) > 0 {
		first = arrivals[0].at
	}
	const start = time.Hour // the clock at the first frame
	for _, a := range arrivals {
		for len(r.reloads) > 0 && r.reloads[0].after <= a.at-first {
			next, err := r.reload(cfg, compiler, r.reloads[0].path)
			if err != nil {
				return err
			}
			r.reloads = r.reloads[1:]
			w.pipe.SetGeneration(next.gen)
			respond.Configure(next.cfg, next.gen)
			compiler.Retire()
			gen.Close()
			cfg, gen = next.cfg, next.gen
		}
		now := int64(start + a.at - first)
		w.pipe.SetClock(now)
		w.pipe.Expire(w.pipe.Capacity())
		w.pipe.Release()
		w.free()
		if n := ports[a.port].Receive(0, &w.rx, 1); n != 1 {
			return fmt.Errorf("port %q: net_pcap gave %d frames where the capture has one more", cfg.Ports[a.port].Name, n)
		}
		w.process(a.port)
		respond.Poll(now)
		w.originate()
		for p := range ports {
			for uint64(len(stamps[p])) < counters.Transmitted[p] {
				stamps[p] = append(stamps[p], a.at)
			}
		}
	}
	for _, p := range ports { // writes the files
		if err := p.Close(); err != nil {
			return err
		}
	}
	for i, p := range cfg.Ports {
		if err := restamp(r.outFile(p.Name), stamps[i]); err != nil {
			return err
		}
	}
	return r.print(out, cfg, counters)
}

func (r *replay) outFile(port string) string { return filepath.Join(r.out, port+".pcap") }

// open replaces every device by a net_pcap one.
func (r *replay) open(cfg *config.Config, pool *dpdk.Mempool) ([]*dpdk.Port, error) {
	var ports []*dpdk.Port
	for i, p := range cfg.Ports {
		device := fmt.Sprintf("net_pcap%d,tx_pcap=%s", i, r.outFile(p.Name))
		if file := r.in[p.Name]; file != "" {
			device += ",rx_pcap=" + file
		}
		if strings.ContainsAny(r.outFile(p.Name)+r.in[p.Name], ",=[]") {
			return ports, fmt.Errorf("port %q: DPDK's device arguments cannot hold a path with , = [ or ]", p.Name)
		}
		port, err := dpdk.OpenPort(dpdk.PortConfig{Name: p.Name, Device: device, MTU: p.MTU, Mempool: func(int) (*dpdk.Mempool, error) { return pool, nil }})
		if err != nil {
			return ports, err
		}
		ports = append(ports, port)
		if err := port.Start(); err != nil {
			return ports, err
		}
	}
	return ports, nil
}

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
	if keys := config.RestartOnly(cfg, next); len(keys) > 0 && !keepRestartOnly(next, cfg) {
		return reloaded{}, fmt.Errorf("%s: %v changed, which takes a restart", path, keys)
	}
	g, err := c.Compile(next)
	return reloaded{next, g}, err
}

// restamp gives the frames that net_pcap wrote, with the wall clock's time, those of the captures' clock.
func restamp(name string, stamps []time.Duration) error {
	records, err := packettext.ReadPcapFile(name)
	if err != nil {
		return err
	}
	if len(records) != len(stamps) {
		return fmt.Errorf("%s: %d frames were written, %d sent", name, len(records), len(stamps))
	}
	for i := range records {
		records[i].Time = stamps[i]
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(packettext.WritePcap(f, records), f.Close())
}

func (r *replay) print(out io.Writer, cfg *config.Config, c *state.Counters) error {
	s := c.Summary(cfg.Ports)
	if r.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(s)
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
	return w.Flush()
}
