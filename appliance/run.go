// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/config"
	"weir/metrics"
	"weir/pipeline/fault"
	"weir/pipeline/generation"
	"weir/pipeline/memory"
	"weir/pipeline/respond"
	"weir/pipeline/state"
)

func runCommand() *cobra.Command {
	var path, socket string
	var attach bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway: control in the foreground, and the data plane that it starts",
		Long: "Run reads the configuration, starts the data plane, or takes over the one that listens at the socket, and serves\n" +
			"metrics. It follows changes of the configuration on disk; SIGHUP makes it look at once. SIGTERM or SIGINT ends it, and\n" +
			"the data plane too unless that is a service of its own. Should it crash, the data plane goes on forwarding.",
		Args: cobra.NoArgs,
		RunE: work(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return run(ctx, path, socket, attach)
		}),
	}
	cmd.Flags().StringVar(&path, "config", "/etc/weir/weir.yaml", "configuration: a file, or a directory of files")
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "where the data plane listens")
	cmd.Flags().BoolVar(&attach, "attach", false, "start no data plane: wait for the one that is a service of its own")
	return cmd
}

// censusInterval is how often the session tables are walked for the gauges by VPC.
const censusInterval = 2 * time.Second

// control is the control process: everything that is not moving packets.
type control struct {
	log        *slog.Logger
	path       string
	parser     config.Parser
	cfg        *config.Config
	state      *state.State
	compiler   *generation.Compiler
	gen        *generation.Generation
	old        *generation.Generation // the one before, until every worker is known to be past it
	respond    *respond.Responder     // nil until the data plane has said its MACs
	plane      supervisor
	status     metrics.Status
	previewing atomic.Bool          // one check at a time
	compare    chan chan comparison // who asks, answered between two other things
}

// run is the control process's life.
func run(ctx context.Context, path, socket string, attach bool) error {
	c := &control{path: path, compare: make(chan chan comparison), log: newLogger(config.DefaultConfig.Log).With("process", "control")}
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	c.watch(ctx, poke)
	next, loadErr := c.load()
	if loadErr == nil {
		c.log = newLogger(next.cfg.Log).With("process", "control")
	}
	fault.Point("start.loaded")
	c.plane = supervisor{log: c.log, socket: socket, attachOnly: attach}
	if loadErr != nil {
		// Only where somebody forwards already can there be a beginning without a good configuration on disk.
		probe, err := dial(socket)
		if err != nil {
			return loadErr
		}
		probe.Close()
	}
	if loadErr == nil {
		if err := keepOff(next.cfg.Dataplane.Workers); err != nil {
			c.log.Warn("control shares the workers' cores", "reason", err)
		}
	}
	live, err := c.plane.connect(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer c.plane.release()
	if err := c.begin(ctx, live, next, loadErr); err != nil {
		return err
	}
	// The state stays mapped to the end: a scrape that its client has given up may still read it.
	api, err := c.serve()
	if err != nil {
		return err
	}
	defer api()
	c.log.Info("forwarding", "generation", c.gen.Number, "config", path)

	// One goroutine does all of control's work on shared memory; these tell it when, and changed.
	var again <-chan time.Time
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	census := time.NewTicker(censusInterval)
	defer census.Stop()
	var counting atomic.Bool
	for ctx.Err() == nil { // whatever else there is to do: the end comes first
		if c.plane.dead() {
			if err := c.restart(ctx); err != nil {
				return err
			}
		}
		select {
		case ask := <-c.compare:
			ask <- comparison{c.cfg, c.compiler.Clone()}
		case <-ctx.Done():
		case <-tick.C:
			c.respond.Poll(monotonic())
		case <-census.C:
			if counting.CompareAndSwap(false, true) {
				names := c.gen.VPCNames(c.cfg)
				go func() {
					begin := time.Now()
					c.status.Census.Store(c.state.TakeCensus(names))
					time.Sleep(20 * time.Since(begin)) // a large table is walked less often
					counting.Store(false)
				}()
			}
		case <-hup:
			c.log.Info("SIGHUP")
			c.reload()
			again = time.After(time.Second) // what is changed back before the watch looks is no change to it
		case <-again:
			c.reload()
		case <-changed:
			c.reload()
		}
	}
	c.log.Info("stopping")
	return nil
}

// watch calls changed for every change of the configuration on disk from its own return on.
func (c *control) watch(ctx context.Context, changed func()) {
	watching := make(chan struct{})
	ready := sync.OnceFunc(func() { close(watching) })
	go func() {
		defer ready()
		if err := config.Watch(ctx, c.path, ready, changed); err != nil {
			c.log.Error("the configuration is not watched; SIGHUP still reloads", "error", err)
		}
	}()
	<-watching
}

// loaded is a configuration and the files it was read from.
type loaded struct {
	cfg                *config.Config
	files              []config.File
	warnings           []config.Warning
	read, parse, check time.Duration
}

// load reads what is on disk, twice, until two readings agree: a file that is being written is none.
func (c *control) load() (*loaded, error) {
	begin := time.Now()
	var files []config.File
	var err error
	for try := 0; ; try++ {
		if files, err = config.ReadFiles(c.path); config.DigestOf(files, err) == config.Digest(c.path) {
			break
		}
		if try == 20 {
			return nil, fmt.Errorf("%s: it changes all the time; expected two equal readings in a row", c.path)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	read := time.Since(begin)
	cfg, warnings, err := c.parser.Parse(files)
	if err != nil {
		return nil, err
	}
	return &loaded{own(cfg), files, warnings, read, c.parser.Read, c.parser.Check}, nil
}

// own returns a copy that what only a restart changes may be put back into.
func own(cfg *config.Config) *config.Config {
	c := *cfg
	c.Ports = slices.Clone(cfg.Ports)
	return &c
}

// source packs files as a generation keeps them: of each its name and its text, behind their lengths.
func source(files []config.File) []byte {
	size := 0
	for _, f := range files {
		size += len(f.Name) + len(f.Data) + 2*binary.MaxVarintLen64
	}
	b := make([]byte, 0, size)
	for _, f := range files {
		b = append(binary.AppendUvarint(b, uint64(len(f.Name))), f.Name...)
		b = append(binary.AppendUvarint(b, uint64(len(f.Data))), f.Data...)
	}
	return b
}

// unpack returns the files that source has packed. Their text aliases b.
func unpack(b []byte) ([]config.File, error) {
	next := func() ([]byte, bool) {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return nil, false
		}
		part := b[k : k+int(n)]
		b = b[k+int(n):]
		return part, true
	}
	var files []config.File
	for len(b) > 0 {
		name, ok := next()
		data, whole := next()
		if !ok || !whole {
			return nil, errors.New("its text is cut off")
		}
		files = append(files, config.File{Name: string(name), Data: data})
	}
	return files, nil
}

// begin starts the data plane with what was loaded, or takes over one that forwards.
func (c *control) begin(ctx context.Context, live *running, next *loaded, loadErr error) error {
	if live != nil {
		err := c.adopt(live, next, loadErr)
		if err == nil {
			return nil
		}
		if loadErr != nil {
			return errors.Join(err, loadErr)
		}
		c.log.Warn("the running data plane cannot be taken over; it is restarted, and its sessions are lost", "reason", err)
		c.plane.halt()
		if _, err := c.plane.connect(ctx); err != nil {
			return err
		}
	} else if loadErr != nil {
		return loadErr
	}
	if err := c.prepare(next); err != nil {
		return err
	}
	return c.start()
}

// adopt takes over a data plane that forwards: its state, its generation, and the configuration that was compiled from. What
// is on disk is brought into force as by a reload.
func (c *control) adopt(live *running, next *loaded, loadErr error) error {
	state, gen, err := live.segments()
	if err != nil {
		return err
	}
	fail := func(err error) error {
		gen.Close()
		state.Close()
		return err
	}
	files, err := unpack(gen.Source())
	if err != nil {
		return fail(fmt.Errorf("the running configuration cannot be read: %w", err))
	}
	cfg, _, err := c.parser.Parse(files)
	if err != nil {
		return fail(fmt.Errorf("the running configuration is not one for this version: %w", err))
	}
	cfg = own(cfg)
	if !live.start.putInto(cfg) {
		return fail(errors.New("the running ports are not those of the running configuration"))
	}
	if next != nil {
		cfg.API, cfg.Log = next.cfg.API, next.cfg.Log // a new control has its own
	}
	state.Place(memory.Nodes("/sys", cfg.Dataplane.Workers))
	compiler := generation.Resume(state, gen)
	if err := compiler.Settle(cfg); err != nil {
		return fail(err)
	}
	c.cfg, c.state, c.gen, c.compiler = cfg, state, gen, compiler
	c.status.Generation.Store(gen.Number)
	c.forwarding()
	c.log.Info("took over a data plane that forwards", "generation", gen.Number)
	if loadErr != nil {
		c.refused(loadErr)
		return nil
	}
	c.status.Reloaded(true, time.Now())
	if err := c.apply(next); err != nil {
		c.refused(err)
	}
	return nil
}

// putInto writes what the data plane was started with over what a configuration says of it.
func (s *startConfig) putInto(cfg *config.Config) bool {
	if len(s.Ports) != len(cfg.Ports) {
		return false
	}
	for i, p := range s.Ports {
		if cfg.Ports[i].Name != p.Name {
			return false
		}
		cfg.Ports[i].Device, cfg.Ports[i].MTU, cfg.Ports[i].MAC = p.Device, p.MTU, p.MAC
	}
	cfg.Dataplane = s.Dataplane
	return true
}

// prepare makes the shared state and compiles the first generation.
func (c *control) prepare(next *loaded) error {
	c.cfg = next.cfg
	c.warn(next.warnings)
	var err error
	c.state, err = state.New(state.Sizes{
		Workers: len(c.cfg.Dataplane.Workers), Sessions: c.cfg.Dataplane.Sessions, Nodes: memory.Nodes("/sys", c.cfg.Dataplane.Workers), Huge: true,
	})
	if err != nil {
		return err
	}
	if why := c.state.PlacementRefused(); why != nil {
		c.log.Warn("workers' tables may lie on other NUMA nodes than their cores: packets cost more there", "reason", why)
	}
	if !c.state.Segment.Huge() {
		c.log.Warn("no huge pages for the session table: look-ups in a large table cost more; reserve some in /proc/sys/vm/nr_hugepages",
			"mebibytes", c.state.Segment.Size()>>20)
	}
	c.compiler = generation.NewCompiler(c.state, nil)
	c.compiler.Source = source(next.files)
	if c.gen, err = c.compiler.Compile(c.cfg); err != nil {
		return err
	}
	c.status.Generation.Store(c.gen.Number)
	c.status.Reloaded(true, time.Now())
	return nil
}

// maxLines bounds what one reload logs of a kind: weir check prints all of it.
const maxLines = 20

func (c *control) warn(warnings []config.Warning) {
	for _, w := range warnings[:min(len(warnings), maxLines)] {
		c.log.Warn("configuration", "warning", w.String())
	}
	if more := len(warnings) - maxLines; more > 0 {
		c.log.Warn("configuration: weir check prints the other warnings", "more", more)
	}
}

// start hands the segments to a fresh data plane.
func (c *control) start() error {
	s := startConfig{Log: c.cfg.Log, Dataplane: c.cfg.Dataplane, Supervised: c.plane.supervised}
	for i := range c.cfg.Ports {
		p := &c.cfg.Ports[i]
		s.Ports = append(s.Ports, startPort{p.Name, p.Device, p.MTU, p.MAC, p.Side == config.Inside})
	}
	if err := c.plane.conn.ask(msgStart, 0, s, c.state.Segment.FD(), c.gen.FD(), c.state.GrowingFD()); err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	c.forwarding()
	return nil
}

// forwarding begins control's part beside a data plane that forwards.
func (c *control) forwarding() {
	macs := make([]config.MAC, len(c.cfg.Ports))
	for i := range macs {
		macs[i] = c.state.Device(i).MAC
	}
	c.respond = respond.New(c.state, macs)
	c.respond.Configure(c.cfg, c.gen)
	c.status.Up.Store(true)
}

// restart brings up a data plane after the last one died. The sessions are in the state, and stay.
func (c *control) restart(ctx context.Context) error {
	c.status.Up.Store(false)
	c.status.Restarts.Add(1)
	for try := 0; ; try++ {
		err := c.reconnect(ctx)
		if err == nil {
			c.log.Info("forwarding again", "generation", c.gen.Number)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		wait := min(100*time.Millisecond<<min(try, 6), 5*time.Second)
		c.log.Error("the data plane does not start", "error", err, "again_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// reconnect begins with a fresh data plane, or goes on with one that has our state and only lost the connection.
func (c *control) reconnect(ctx context.Context) error {
	live, err := c.plane.connect(ctx)
	if err != nil {
		return err
	}
	if live == nil {
		if err := c.start(); err != nil {
			return err
		}
	} else {
		if !live.isOurs(c.state) {
			return errors.New("the data plane that came back forwards for somebody else")
		}
		if live.number != c.gen.Number {
			if err := c.plane.conn.ask(msgPublish, c.gen.Number, nil, c.gen.FD()); err != nil {
				return err
			}
		}
		c.status.Up.Store(true)
	}
	c.inForce()
	return nil
}

// inForce lets go of what came before the current generation: every worker is past it.
func (c *control) inForce() {
	c.compiler.Retire()
	if c.old != nil {
		c.compiler.Release(c.old)
		c.old = nil
	}
}

// reload brings what is on disk into force, all of it or nothing.
func (c *control) reload() {
	next, err := c.load()
	if err == nil {
		err = c.apply(next)
	}
	if err != nil {
		c.refused(err)
		return
	}
	c.status.Reloaded(true, time.Now())
}

// refused says why what is on disk is not, or not wholly, in force.
func (c *control) refused(err error) {
	c.status.Reloaded(false, time.Now())
	var faults config.Faults
	if errors.As(err, &faults) {
		for _, f := range faults[:min(len(faults), maxLines)] {
			c.log.Error("reload refused", "fault", f.String())
		}
		if more := len(faults) - maxLines; more > 0 {
			c.log.Error("reload refused: weir check prints the other faults", "more", more)
		}
	} else {
		c.log.Error("reload refused", "error", err)
	}
	if !errors.As(err, new(partly)) {
		c.log.Warn("the running configuration stays", "generation", c.gen.Number)
	}
}

// partly is an error about what is not in force of a configuration that otherwise is.
type partly struct{ error }

// apply brings a loaded configuration into force. Without a change of meaning nothing happens.
func (c *control) apply(next *loaded) error {
	cfg := next.cfg
	begin := time.Now()
	changes := config.Changes(c.cfg, cfg)
	if len(changes) == 0 {
		return nil
	}
	var refused error
	if keys := config.RestartOnly(c.cfg, cfg); len(keys) > 0 {
		if !keepRestartOnly(cfg, c.cfg) {
			return fmt.Errorf("%v changed, which takes a restart of weir; nothing of this change is applied", keys)
		}
		refused = partly{fmt.Errorf("%v changed, which takes a restart of weir; all else of the configuration is in force", keys)}
		if changes = config.Changes(c.cfg, cfg); len(changes) == 0 {
			return refused
		}
	}
	if percent := shrunk(c.cfg, cfg); percent > c.cfg.Reload.MaxShrink {
		return fmt.Errorf("the change takes away %d %% of the instances or of the external addresses, more than reload.max_shrink allows (%d %%); "+
			"raise that first if it is meant", percent, c.cfg.Reload.MaxShrink)
	}
	c.warn(next.warnings)
	c.compiler.Source = source(next.files)
	gen, err := c.compiler.Follow(c.gen, c.cfg, cfg)
	if err != nil {
		return err
	}
	err = c.plane.conn.ask(msgPublish, gen.Number, nil, gen.FD())
	var gone lost
	if err != nil && !errors.As(err, &gone) {
		c.compiler.Discard()
		gen.Close()
		return fmt.Errorf("data plane: %w", err)
	}
	c.old, c.cfg, c.gen = c.gen, cfg, gen
	c.respond.Configure(cfg, gen)
	c.status.Generation.Store(gen.Number)
	if err != nil {
		c.plane.died() // the next one starts with the new generation; until it is known which one runs, both stay
	} else {
		c.inForce()
	}
	for _, change := range changes[:min(len(changes), maxLines)] {
		c.log.Info("changed", "what", change.Text)
	}
	if more := len(changes) - maxLines; more > 0 {
		c.log.Info("changed", "more", more)
	}
	micro := func(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
	c.log.Info("reloaded", "generation", gen.Number, "read", micro(next.read), "parse", micro(next.parse), "check", micro(next.check), "apply", micro(time.Since(begin)))
	return refused
}

// keepRestartOnly puts what only a restart changes back to what runs, and reports whether that was possible: a port that
// comes or goes moves all others.
func keepRestartOnly(cfg, running *config.Config) bool {
	if len(cfg.Ports) != len(running.Ports) {
		return false
	}
	for i := range cfg.Ports {
		p, r := &cfg.Ports[i], &running.Ports[i]
		if p.Name != r.Name || p.Side != r.Side {
			return false
		}
		p.Device, p.MTU, p.MAC = r.Device, r.MTU, r.MAC
	}
	cfg.API, cfg.Log, cfg.Dataplane = running.API, running.Log, running.Dataplane
	return true
}

// shrunk returns by how much b has fewer instances, or fewer external addresses, than a: the larger of the two, in percent.
func shrunk(a, b *config.Config) int {
	count := func(c *config.Config) (instances, external int) {
		for _, v := range c.VPCs {
			instances += len(v.Instances)
			for i := range v.Instances {
				in := &v.Instances[i]
				external += len(in.Floating) + len(in.Ephemeral) + len(in.SNAT) + len(in.Attached)
			}
		}
		return
	}
	percent := func(before, after int) int {
		if before == 0 {
			return 0
		}
		return (before - after) * 100 / before
	}
	i, e := count(a)
	j, f := count(b)
	return max(percent(i, j), percent(e, f))
}

// serve starts the HTTP server, if the configuration names an address, and returns what ends it.
func (c *control) serve() (func(), error) {
	if c.cfg.API.Listen == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", c.cfg.API.Listen)
	if err != nil {
		return nil, fmt.Errorf("api.listen: %w; choose another address", err)
	}
	s := metrics.NewServer(c.state, c.ports(), &c.status, c.log)
	mux := http.NewServeMux()
	mux.Handle("/", s.Handler)
	mux.HandleFunc("POST /api/v1/check", c.previewHandler)
	s.Handler = mux
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("api", "error", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
	}, nil
}

func (c *control) ports() []string {
	names := make([]string, len(c.cfg.Ports))
	for i, p := range c.cfg.Ports {
		names[i] = p.Name
	}
	return names
}
