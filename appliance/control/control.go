// SPDX-License-Identifier: Apache-2.0

// Package control is the control process: everything that is not moving packets. It reads and
// compiles configurations, keeps a data plane, answers for the gateway and serves its API.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"weir/pipeline/generation"
	"weir/pipeline/respond"
	"weir/pipeline/state"

	"golang.org/x/sys/unix"

	"weir/appliance/cores"
	"weir/appliance/link"
	"weir/config"
	"weir/metrics"
	"weir/pipeline/fault"
)

// censusInterval is how often the session tables are walked for the gauges by VPC.
const censusInterval = 2 * time.Second

// control is what the process has. All of it belongs to the goroutine of loop; others reach it
// through do, but for log, state, status and checks, which anybody may use.
type control struct {
	log       *slog.Logger
	path      string
	parser    config.Parser                              // of load, one at a time
	load      func(ctx context.Context) (*loaded, error) // loadFiles, or a test's
	lastRead  atomic.Pointer[config.Sum]                 // of what a load has read last
	loading   bool                                       // a load is under way
	waiting   [2][]chan<- error                          // for the end of the load under way, and of the one after it
	loadAgain bool                                       // and another one after it is wanted
	read      chan reading
	cfg       *config.Config
	state     *state.State
	compiler  *generation.Compiler
	gen       *generation.Generation
	names     *names                 // of its VPCs and instances, when somebody has asked
	old       *generation.Generation // the one before it, until every worker is known to be past it
	respond   *respond.Responder     // nil until the data plane has said its MACs
	plane     supervisor
	began     time.Time // when the data plane began to forward
	barked    int64     // when the service manager was last told that this process is alive
	deaths    int       // of data planes in a row that died soon after they began, or before
	status    metrics.Status
	health    healthWatch
	notifier  link.Notifier
	checks    checks
	showing   chan struct{}       // has room for the pages that are made at a time
	ctx       context.Context     // of the loop
	door      chan func(*control) // what others want done on the loop's goroutine
	ended     chan struct{}       // closed when the loop has ended
}

// Options are what the command line says.
type Options struct {
	Config string // a file, or a directory of files
	Socket string // where the data plane listens
	Attach bool   // start no data plane
}

func newControl(path string) *control {
	c := &control{
		path: path, door: make(chan func(*control)), ended: make(chan struct{}), read: make(chan reading, 1), checks: newChecks(), showing: make(chan struct{}, mostShowing),
		log: link.NewLogger(config.DefaultConfig.Log).With("process", "control"),
	}
	c.lastRead.Store(new(config.Sum)) // that of nothing
	c.load = c.loadFiles
	return c
}

// gcPercent is how much garbage control keeps, in percent of what is in use. Most of it are the
// trees of files that were read, which may be hostile: memory is worth more here than time.
const gcPercent = 25

// Run is the control process's life, until ctx ends.
func Run(ctx context.Context, o Options) error {
	debug.SetGCPercent(gcPercent)
	if err := link.Harden(); err != nil {
		return fmt.Errorf("keep others out of this process's memory: %w", err)
	}
	c := newControl(o.Config)
	c.notifier = link.NewNotifier()
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	c.watch(ctx, poke)
	next, loadErr := c.firstLoad(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if loadErr == nil {
		c.log = link.NewLogger(next.cfg.Log).With("process", "control")
	}
	fault.Point("start.loaded")
	c.plane = supervisor{log: c.log, socket: o.Socket, attachOnly: o.Attach}
	if loadErr != nil {
		// Only where somebody forwards already can there be a beginning without a good
		// configuration on disk.
		probe, err := link.Dial(o.Socket)
		if err != nil {
			return loadErr
		}
		probe.Close()
	} else if err := cores.Leave(next.cfg.Dataplane.Workers); err != nil {
		c.log.Warn("control runs on the same cores as the workers", "reason", err)
	}
	found, err := c.plane.connect(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer c.plane.release()
	if err := c.begin(ctx, found, next, loadErr); err != nil {
		return err
	}
	// The state stays mapped to the end: a scrape that its client has given up may still read it.
	api, err := c.serve()
	if err != nil {
		return err
	}
	defer api()
	c.log.Info("forwarding", "generation", c.gen.Number, "config", o.Config)
	c.health.turned.Store(link.Monotonic())
	go c.lookAfter(ctx)
	c.notifier.Say(link.Ready)
	defer c.notifier.Say(link.Stopping)
	return c.loop(ctx, changed)
}

// loop does all of control's work on shared memory, on one goroutine, until ctx ends.
func (c *control) loop(ctx context.Context, changed <-chan struct{}) error {
	defer close(c.ended)
	c.ctx = ctx
	// These tell it when, and changed.
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
		case f := <-c.door:
			f(c)
		case <-ctx.Done():
		case <-tick.C:
			c.respond.Poll(link.Monotonic())
			c.alive()
		case <-census.C:
			c.count(&counting)
		case <-hup:
			c.log.Info("SIGHUP")
			c.beginLoad(ctx)
		case <-changed:
			c.beginLoad(ctx)
		case r := <-c.read:
			c.endLoad(ctx, r)
		}
	}
	c.log.Info("stopping")
	return nil
}

// alive says that the loop turns, and ends a data plane of this process's own that does not.
func (c *control) alive() {
	now := link.Monotonic()
	c.health.turned.Store(now)
	if now-c.barked > time.Second.Nanoseconds() {
		c.barked = now
		c.notifier.Say(link.Watchdog)
	}
	if c.health.stuck.Load() && c.plane.child != nil {
		c.log.Error("no worker turns: killing the data plane", "for", killAfter)
		c.plane.child.Process.Kill()
		c.health.stuck.Store(false)
	}
}

// count walks the session tables beside the loop, unless that is under way still.
func (c *control) count(counting *atomic.Bool) {
	if !counting.CompareAndSwap(false, true) {
		return
	}
	names := c.gen.VPCNames(c.cfg)
	switch c.cfg.Metrics.Tenants {
	case config.TenantIDs:
		for slot := range names {
			names[slot] = strconv.Itoa(int(slot))
		}
	case config.TenantsOff:
		c.status.Census.Store(nil)
		counting.Store(false)
		return
	}
	go func() {
		begin := time.Now()
		c.status.Census.Store(c.state.TakeCensus(names))
		time.Sleep(20 * time.Since(begin)) // a large table is walked less often
		counting.Store(false)
	}()
}

// errEnding is what do answers while control ends.
var errEnding = errors.New("weir is ending")

// do is the one way for other goroutines to what the loop owns: it runs f on the loop's goroutine,
// between two other things, and returns once f has. f must not block: neighbors are not answered
// for meanwhile. An error says that f will never run.
func (c *control) do(ctx context.Context, f func(*control)) error {
	done := make(chan struct{})
	select {
	case c.door <- func(c *control) { defer close(done); f(c) }:
		<-done
		return nil
	case <-c.ended:
		return errEnding
	case <-ctx.Done():
		return ctx.Err()
	}
}
