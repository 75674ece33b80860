// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/config"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/fault"
	"weir/pipeline/generation"
	"weir/pipeline/memory"
	"weir/pipeline/state"
)

func dataplaneCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "dataplane",
		Short: "Run the data plane alone; weir run commands it through a socket",
		Long: "Dataplane waits at a socket for weir run, which tells it what to do, and goes on forwarding when weir run goes\n" +
			"away, until the next one comes. weir run starts one by itself unless one is there; on a host it is a systemd unit of its own.",
		Args: cobra.NoArgs,
		RunE: work(func(*cobra.Command, []string) error { return dataplane(socket) }),
	}
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "where to listen")
	return cmd
}

// dataplane is a process with nothing to collect: it allocates at start, and nothing afterwards. It obeys one control
// process at a time, and forwards whether there is one or not.
func dataplane(socket string) error {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(math.MaxInt64) // an inherited GOMEMLIMIT would collect all the same
	signal.Ignore(unix.SIGINT, unix.SIGPIPE)
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, unix.SIGTERM)

	l, err := listen(socket)
	if err != nil {
		return err
	}
	defer os.Remove(socket)
	defer unix.Close(l)
	d := &plane{log: slog.Default(), control: conn{fd: noConn}, refused: conn{fd: noConn}}
	return errors.Join(d.serve(l, terminated), d.close())
}

// generations is how many are kept at once: the one in use, the one that replaces it, and room between them.
const generations = 4

// quietAfterStart is how long no reset answers TCP of unknown connections. A data plane that starts has taken the traffic over from somebody,
// or has just swept what a dead one left.
const quietAfterStart = time.Minute

// plane is a running data plane.
type plane struct {
	log     *slog.Logger
	control conn   // the one that commands
	refused conn   // room for telling another one so
	config  []byte // what start was told; nil: nothing runs yet
	state   *state.State
	gens    [generations]generation.Generation
	current uint64
	ports   []*dpdk.Port
	nodes   []int                 // by worker: the NUMA node of its memory, -1: any
	pools   map[int]*dpdk.Mempool // by NUMA node; nil: that has no room for one
	workers []*worker
	waiters []*dpdk.Waiter
	stop    atomic.Bool
	running sync.WaitGroup
	started bool // EAL
	samples [2]metrics.Sample
}

var pciAddress = regexp.MustCompile(`^([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]`)

// start does all that allocates.
func (d *plane) start(payload []byte, stateFD, genFD int) error {
	var c startConfig
	if err := json.Unmarshal(payload, &c); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	d.log = newLogger(c.Log).With("process", "dataplane")
	d.config = append([]byte{}, payload...)
	if stateFD < 0 || genFD < 0 {
		return errors.New("start: no segments came with it")
	}
	var err error
	if d.state, err = state.Attach(stateFD); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	var g generation.Generation
	if err := g.Attach(genFD); err != nil {
		return fmt.Errorf("generation: %w", err)
	}
	if len(c.Dataplane.Workers) != d.state.Workers() || len(c.Ports) != g.NumPorts() {
		return fmt.Errorf("start: %d workers and %d ports, but segments for %d and %d",
			len(c.Dataplane.Workers), len(c.Ports), d.state.Workers(), g.NumPorts())
	}
	d.current = g.Number
	d.gens[g.Number%generations] = g
	d.state.Sweep()
	d.state.Publish(d.current)

	if err := d.open(&c); err != nil {
		return err
	}
	macs := portMACs(d.ports)
	for i := range d.ports {
		d.state.Device(i).MAC = macs[i]
	}
	// A worker keeps a processor of Go's for good; the affinity that this process begins with may count none for it.
	runtime.GOMAXPROCS(len(c.Dataplane.Workers) + 2)
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
		var w *worker
		refused := memory.On(d.nodes[i:i+1], func() {
			w = &worker{
				index: i, core: core, ports: d.ports, pool: own, state: d.state, inject: d.state.Inject(i),
				pipe: pipeline.NewWorker(d.state, i, &d.gens[d.current%generations], pipeline.WorkerConfig{MACs: macs, Handoff: handoff, Quiet: quietAfterStart}),
				gens: &d.gens, seen: d.current, idle: c.Dataplane.Idle, nap: defaultBackoff, stop: &d.stop,
			}
		})
		if refused != nil {
			d.log.Warn("a worker's own memory may lie on another NUMA node than its core", "core", core, "reason", refused)
		}
		if w.waiter = d.waiter(i); w.waiter != nil && handoff == nil {
			w.nap = wokenBackoff
		}
		d.workers = append(d.workers, w)
		d.running.Add(1)
		go w.run(ready, d.running.Done)
	}
	for range c.Dataplane.Workers {
		if err := <-ready; err != nil {
			return err
		}
	}
	d.samples[0].Name = "/gc/cycles/total:gc-cycles"
	d.samples[1].Name = "/memory/classes/heap/objects:bytes"
	return nil
}

// open starts EAL and the ports.
func (d *plane) open(c *startConfig) error {
	var pci []string
	for _, p := range c.Ports {
		if pciAddress.MatchString(p.Device) {
			pci = append(pci, p.Device)
		}
	}
	if err := dpdk.Init(dpdk.EALConfig{Memory: c.Dataplane.Memory, PCI: pci, Args: c.Dataplane.EALArgs, Log: d.log}); err != nil {
		return err
	}
	d.started = true
	d.nodes, d.pools = memory.Nodes("/sys", c.Dataplane.Workers), map[int]*dpdk.Mempool{}
	for _, p := range c.Ports {
		if err := claim(p.Device); err != nil {
			return fmt.Errorf("port %q: %w", p.Name, err)
		}
		port, err := openPort(p, d.spread(&p), len(c.Dataplane.Workers), c.Dataplane.Idle == config.IdleSleep, func(node int) (*dpdk.Mempool, error) {
			if node < 0 { // a virtual device is where its first worker is
				node = d.nodes[0]
			}
			return d.buffers(c, node)
		})
		if err != nil {
			return err
		}
		d.ports = append(d.ports, port)
	}
	for _, p := range d.ports {
		if err := p.Start(); err != nil {
			return err
		}
		if why := p.RSSRefused(); why != nil {
			d.log.Info("packets go from the worker that receives them to the one that owns them by a ring", "reason", why)
		}
	}
	if c.Dataplane.Idle == config.IdleSleep {
		d.logWaking(c.Ports)
	}
	return nil
}

// logWaking tells once which ports can wake a worker.
func (d *plane) logWaking(names []startPort) {
	with, without := []string{}, []string{}
	for i, p := range d.ports {
		if p.RxInterrupts() {
			with = append(with, names[i].Name)
			continue
		}
		without = append(without, names[i].Name)
		d.log.Debug("the port has no interrupts", "port", names[i].Name, "reason", p.RxInterruptsRefused())
	}
	d.log.Info("a worker at rest is woken by interrupts if all ports that it receives from have them, else after a sleep",
		"with_interrupts", with, "without", without)
}

// spread says how a device with several queues should spread packets over the workers: as these own the remote addresses, which are the
// destinations on the inside. nil: there is one worker. A device that cannot is no fault: each packet's owner is asked for anyway.
func (d *plane) spread(p *startPort) *dpdk.RSSConfig {
	if d.state.Workers() == 1 {
		return nil
	}
	key, queues := d.state.RSS()
	return &dpdk.RSSConfig{Key: key, Destination: p.Inside, Table: queues}
}

// waiter makes what worker i waits with; nil if a queue of its has no interrupts.
func (d *plane) waiter(i int) *dpdk.Waiter {
	var polled []*dpdk.Port
	for _, p := range d.ports {
		if i < p.RxQueues() {
			polled = append(polled, p)
		}
	}
	if len(polled) == 0 || slices.ContainsFunc(polled, func(p *dpdk.Port) bool { return !p.RxInterrupts() }) {
		return nil
	}
	w, err := dpdk.NewWaiter()
	if err == nil {
		d.waiters = append(d.waiters, w)
	}
	for _, p := range polled {
		if err == nil {
			err = w.Add(p, i)
		}
	}
	if err != nil {
		d.log.Warn("the worker sleeps instead of waiting for interrupts", "worker", i, "reason", err)
		return nil
	}
	return w
}

// buffers returns the packet buffers on a NUMA node, -1 for any: a port receives into those of its device's node, a worker sends what control
// says from those of its own. A node without room for them gets what others have.
func (d *plane) buffers(c *startConfig, node int) (*dpdk.Mempool, error) {
	if slices.Max(d.nodes) < 0 { // there is one node
		node = -1
	}
	p, tried := d.pools[node]
	if p != nil {
		return p, nil
	}
	if !tried {
		mtu := 0
		for _, port := range c.Ports {
			mtu = max(mtu, port.MTU)
		}
		var err error
		p, err = dpdk.NewMempool(fmt.Sprint("packets", node), poolSize(len(c.Ports), len(c.Dataplane.Workers)), dpdk.DataRoom(mtu), node)
		d.pools[node] = p
		if err == nil || node < 0 {
			return p, err
		}
		d.log.Warn("packet buffers lie on another NUMA node than their users; reserve huge pages on each", "node", node, "reason", err)
	}
	return d.buffers(c, -1)
}

// poolSize is enough for full receive and transmit queues of all ports, the workers' caches, and what is held.
func poolSize(ports, workers int) int {
	need := ports*workers*2*1024 + workers*1024 + 2048
	n := 1
	for n < need {
		n *= 2
	}
	return n - 1
}

// claim keeps other data planes away from a network interface, which any number of processes could read. The lock is an
// abstract Unix socket: it belongs to a network namespace, as interfaces do, and ends with the process. Any other device
// has one owner anyway.
func claim(device string) error {
	_, args, _ := strings.Cut(device, ",")
	for arg := range strings.SplitSeq(args, ",") {
		name, ok := strings.CutPrefix(arg, "iface=")
		if !ok {
			continue
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@weir/interface/" + name}); err != nil {
			unix.Close(fd)
			if err == unix.EADDRINUSE {
				return fmt.Errorf("interface %s: another data plane uses it, or another port; stop that one, or name another interface", name)
			}
			return fmt.Errorf("interface %s: lock: %w", name, err)
		}
	}
	return nil
}

// openPort opens a device, promiscuous only if it does not take the MAC that the configuration wants.
func openPort(p startPort, rss *dpdk.RSSConfig, queues int, interrupts bool, pool func(socket int) (*dpdk.Mempool, error)) (*dpdk.Port, error) {
	c := dpdk.PortConfig{
		Name: p.Name, Device: p.Device, MTU: p.MTU, MAC: p.MAC, RxQueues: queues, TxQueues: queues, AllMulticast: true, // neighbor solicitations: any reload may bring IPv6
		Mempool: pool, RSS: rss, RxInterrupts: interrupts,
	}
	port, err := dpdk.OpenPort(c)
	if err != nil || port.MACRefused() == nil {
		return port, err
	}
	if err := port.Close(); err != nil {
		return nil, err
	}
	c.Promiscuous = true
	return dpdk.OpenPort(c)
}

func portMACs(ports []*dpdk.Port) []config.MAC {
	macs := make([]config.MAC, len(ports))
	for i, p := range ports {
		macs[i] = p.MAC()
	}
	return macs
}

// serve obeys control until it says stop, or a signal does. Once started nothing is allocated.
func (d *plane) serve(l int, terminated <-chan os.Signal) error {
	var p [2]unix.PollFd
	var next int64
	for {
		if now := monotonic(); d.config != nil && now >= next {
			d.measure()
			next = now + 1e9
		}
		p[0] = unix.PollFd{Fd: int32(l), Events: unix.POLLIN}
		p[1] = unix.PollFd{Fd: int32(d.control.fd), Events: unix.POLLIN} // -1 is passed over
		if _, err := unix.Poll(p[:], 200); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		select {
		case <-terminated:
			d.log.Info("terminated")
			return nil
		default:
		}
		if p[1].Revents != 0 {
			if stop, err := d.obey(); stop || err != nil {
				return err
			}
		}
		if p[0].Revents != 0 {
			d.accept(l)
		}
	}
}

// accept takes on a control process, or tells it that there is one.
func (d *plane) accept(l int) {
	// Not unix.Accept4, which allocates the peer's address.
	fd, _, e := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(l), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	switch {
	case e != 0:
	case d.control.fd == noConn:
		d.control.fd = int(fd)
	default:
		if d.refused.fd != noConn {
			d.refused.Close()
		}
		// Closed at the next time, not now: a question that nobody reads would turn the answer into a reset.
		d.refused.fd = int(fd)
		d.refused.send(msgFailed, 0, alreadyCommanded)
	}
}

var alreadyCommanded = []byte("another weir run commands this data plane; stop that first, or give this one a socket of its own with --socket")

// obey handles one message of control. A stop, or a start that failed, ends the process; anything that is wrong with the
// connection only ends the connection.
func (d *plane) obey() (stop bool, err error) {
	c := &d.control
	kind, number, payload, err := c.receive()
	if err != nil {
		if d.config != nil {
			d.log.Warn("control is gone; forwarding goes on", "reason", err)
		}
		c.Close()
		return false, nil
	}
	switch {
	case kind == msgHello && d.config == nil:
		err = c.send(msgIdle, 0, nil)
	case kind == msgHello:
		err = c.send(msgRunning, d.current, d.config, d.state.Segment.FD(), d.gens[d.current%generations].FD())
	case kind == msgStart && d.config == nil:
		if failed := d.start(payload, c.take(0), c.take(1)); failed != nil {
			c.send(msgFailed, 0, []byte(failed.Error())) // who says it
			return true, nil
		}
		d.measure()
		err = c.send(msgOK, 0, nil)
	case kind == msgPublish && d.config != nil:
		if failed := d.publish(number, c.take(0)); failed != nil {
			err = c.send(msgFailed, 0, []byte(failed.Error()))
		} else {
			err = c.send(msgOK, number, nil)
		}
	case kind == msgStop:
		c.send(msgOK, 0, nil)
		return true, nil
	default:
		err = c.send(msgFailed, 0, fmt.Appendf(nil, "message %d is not understood now: control is of another version", kind))
	}
	if err != nil {
		d.log.Warn("control does not take its answer", "error", err)
		c.Close()
	}
	return false, nil
}

// publish maps a generation, tells the workers, and lets go of the old one when all of them are past it.
func (d *plane) publish(number uint64, fd int) error {
	if fd < 0 {
		return errors.New("publish: no segment came with it")
	}
	g := &d.gens[number%generations]
	if number <= d.current || number%generations == d.current%generations {
		unix.Close(fd)
		return fmt.Errorf("publish: generation %d after %d", number, d.current)
	}
	if err := g.Attach(fd); err != nil {
		return err
	}
	fault.Point("reload.before-publish")
	d.state.Publish(number)
	fault.Point("reload.published")
	for w := range d.workers {
		for d.state.Seen(w) != number {
			ts := unix.Timespec{Nsec: 50_000}
			unix.Nanosleep(&ts, nil)
		}
	}
	fault.Point("reload.before-release")
	old := d.current
	d.current = number
	return d.gens[old%generations].Close()
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
	r.Collections, r.HeapBytes, r.Alive = d.samples[0].Value.Uint64(), d.samples[1].Value.Uint64(), monotonic()
}

// close ends what start began, in order: workers, what they wait with, ports, buffers, EAL.
func (d *plane) close() error {
	d.stop.Store(true)
	d.running.Wait()
	var errs []error
	for _, w := range d.waiters {
		errs = append(errs, w.Close())
	}
	for _, p := range d.ports {
		errs = append(errs, p.Close())
	}
	for _, p := range d.pools {
		if p == nil {
			continue
		}
		errs = append(errs, p.Free())
	}
	if d.started {
		errs = append(errs, dpdk.Cleanup())
	}
	return errors.Join(errs...)
}
