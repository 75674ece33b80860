// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"weir/pipeline/generation"
	"weir/pipeline/state"

	"golang.org/x/sys/unix"

	"weir/appliance/link"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/fault"
	"weir/pipeline/memory"
)

// keptGenerations is how many are kept at once: the one in use, the one that replaces it, and room
// between them.
const keptGenerations = 4

// quietAfterStart is how long no reset answers TCP of unknown connections. A data plane that starts
// has taken the traffic over from another one, or has just swept what a dead one left.
const quietAfterStart = time.Minute

// Generations are those that the process has mapped, each at its number modulo their count.
type Generations [keptGenerations]generation.Generation

// At returns the place of a generation.
func (g *Generations) At(number uint64) *generation.Generation { return &g[number%keptGenerations] }

// plane is a running data plane.
type plane struct {
	log        *slog.Logger
	bounds     Bounds
	commanders []uint32   // users who may command
	peer       unix.Ucred // room for who has connected
	locks      []*os.File // of network interfaces
	control    link.Conn  // the one that commands
	refused    link.Conn  // room for telling another one so
	orders     []byte     // the payload of link.Start; nil: nothing runs yet
	state      *state.State
	gens       Generations
	current    uint64
	ports      []*dpdk.Port
	nodes      []int                 // by worker: the NUMA node of its memory, -1: any
	pools      map[int]*dpdk.Mempool // by NUMA node; nil: that has no room for one
	workers    []*Worker
	waiters    []*dpdk.Waiter
	stop       atomic.Bool
	starting   atomic.Int64 // since when, nanoseconds; 0: it is not
	turning    atomic.Bool  // workers run
	running    sync.WaitGroup
	eal        bool // it is initialized
	samples    [2]metrics.Sample
}

// start does all that allocates.
func (d *plane) start(payload []byte, stateFD, genFD, growingFD int) error {
	var c link.StartConfig
	if err := json.Unmarshal(payload, &c); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	d.log = link.NewLogger(c.Log).With("process", "dataplane")
	d.orders = append([]byte{}, payload...)
	if stateFD < 0 || genFD < 0 || growingFD < 0 {
		return errors.New("start: the message carries no memory segments")
	}
	var err error
	if d.state, err = state.Attach(stateFD, growingFD); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	var g generation.Generation
	if err := g.Attach(genFD); err != nil {
		return fmt.Errorf("generation: %w", err)
	}
	if len(c.Dataplane.Workers) != d.state.Workers() || len(c.Ports) != g.NumPorts() {
		return fmt.Errorf("start: the message has %d workers and %d ports, but its segments are for %d and %d",
			len(c.Dataplane.Workers), len(c.Ports), d.state.Workers(), g.NumPorts())
	}
	d.current = g.Number
	*d.gens.At(g.Number) = g
	if c.Empty {
		pipeline.Empty(d.state, link.Monotonic())
	} else {
		pipeline.Sweep(d.state, &g, link.Monotonic())
	}
	d.state.Publish(d.current)

	if err := d.open(&c); err != nil {
		return err
	}
	macs := portMACs(d.ports)
	for i := range d.ports {
		d.state.Device(i).MAC = macs[i]
	}
	// A worker keeps a processor of Go's for good; the affinity that this process begins with may
	// count none for it.
	runtime.GOMAXPROCS(len(c.Dataplane.Workers) + 3)
	ready := make(chan error, len(c.Dataplane.Workers))
	var handoff *pipeline.Handoff
	if n := len(c.Dataplane.Workers); n > 1 {
		handoff = pipeline.NewHandoff(n)
	}
	for i, core := range c.Dataplane.Workers {
		own, err := d.buffers(&c, d.nodes[i])
		if err != nil {
			return err
		}
		var w *Worker
		refused := memory.On(d.nodes[i:i+1], func() {
			w = &Worker{
				Index: i, Core: core, Ports: d.ports, Devices: Devices(d.ports, c.Ports), Pool: own, State: d.state, Inject: d.state.Inject(i),
				Pipe:        pipeline.NewWorker(d.state, i, d.gens.At(d.current), pipeline.WorkerConfig{MACs: macs, Handoff: handoff, Quiet: quietAfterStart}),
				Generations: &d.gens, Seen: d.current, Idle: c.Dataplane.Idle, Backoff: DefaultBackoff, Stop: &d.stop,
			}
		})
		if refused != nil {
			d.log.Warn("a worker's memory may be on another NUMA node than its core", "core", core, "reason", refused)
		}
		if w.Waiter = d.waiter(i); w.Waiter != nil && handoff == nil {
			w.Backoff = WokenBackoff
		}
		d.workers = append(d.workers, w)
		d.running.Add(1)
		go w.Run(ready, d.running.Done)
	}
	for range c.Dataplane.Workers {
		if err := <-ready; err != nil {
			return err
		}
	}
	d.turning.Store(true)
	d.samples[0].Name = "/gc/cycles/total:gc-cycles"
	d.samples[1].Name = "/memory/classes/heap/objects:bytes"
	return nil
}

// seenWithin is how long a worker may take, in nanoseconds, until it uses a new generation.
const seenWithin = int64(5e9)

// publish maps a generation, tells the workers, and lets go of the old one when all of them are
// past it.
func (d *plane) publish(number uint64, fd int) error {
	if fd < 0 {
		return errors.New("publish: the message carries no memory segment")
	}
	g := d.gens.At(number)
	if number <= d.current || number%keptGenerations == d.current%keptGenerations {
		unix.Close(fd)
		return fmt.Errorf("publish: generation %d after %d", number, d.current)
	}
	if err := g.Attach(fd); err != nil {
		return err
	}
	if err := d.state.Populate(); err != nil {
		g.Close()
		return err
	}
	fault.Point("reload.before-publish")
	d.state.Publish(number)
	fault.Point("reload.published")
	begin := link.Monotonic()
	for w := range d.workers {
		for d.state.Seen(w) != number {
			if link.Monotonic()-begin > seenWithin {
				panic(fmt.Sprintf("publish: worker %d has not come to generation %d within %d s: this process cannot go on, and the next one begins with it", w, number, seenWithin/1e9))
			}
			ts := unix.Timespec{Nsec: 50_000}
			unix.Nanosleep(&ts, nil)
		}
	}
	fault.Point("reload.before-release")
	old := d.current
	d.current = number
	return d.gens.At(old).Close()
}

// measure writes what control publishes of devices and of this process's own memory.
func (d *plane) measure() {
	for i, p := range d.ports {
		v := d.state.Device(i)
		if s, err := p.Stats(); err == nil {
			v.RxMissed, v.RxErrors, v.RxNoMbuf, v.TxErrors = s.RxMissed, s.RxErrors, s.RxNoMbuf, s.TxErrors
		}
		link := p.Link()
		v.LinkUp, v.Speed = link.Up, link.Speed
	}
	metrics.Read(d.samples[:])
	r := d.state.Runtime()
	r.Collections, r.HeapBytes, r.Alive = d.samples[0].Value.Uint64(), d.samples[1].Value.Uint64(), link.Monotonic()
}

// close ends what start began, in order: workers, what they wait with, ports, buffers, EAL.
func (d *plane) close() error {
	d.turning.Store(false)
	d.stop.Store(true)
	d.running.Wait()
	var errs []error
	for _, w := range d.waiters {
		errs = append(errs, w.Close())
	}
	for _, p := range unshared(d.ports) {
		errs = append(errs, p.Close())
	}
	for _, p := range d.pools {
		if p == nil {
			continue
		}
		errs = append(errs, p.Free())
	}
	if d.eal {
		errs = append(errs, dpdk.Cleanup())
	}
	for _, l := range d.locks {
		errs = append(errs, os.Remove(l.Name()), l.Close())
	}
	return errors.Join(errs...)
}
