// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/config"
	"weir/dpdk"
	"weir/pipeline"
)

func dataplaneCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "dataplane",
		Short: "Run the data plane alone; weir run commands it through a socket",
		Long: "Dataplane waits at a socket for weir run, which tells it what to do. weir run starts one by itself\n" +
			"unless one is there already; on a host it is a systemd unit of its own.",
		Args: cobra.NoArgs,
		RunE: work(func(*cobra.Command, []string) error { return dataplane(socket) }),
	}
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "where to listen")
	return cmd
}

// dataplane is a process with nothing to collect: it allocates at start, and nothing afterwards. It serves one control
// process, and ends in order when that is gone.
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
	if ok, err := waitReadable(l, terminated); !ok || err != nil {
		return err
	}
	fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("socket %s: accept: %w", socket, err)
	}
	unix.Close(l)
	c := newConn(fd)
	defer c.Close()

	kind, _, payload, err := c.receive()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil // somebody only looked whether we are here
		}
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	if kind != msgStart {
		return fmt.Errorf("control began with message %d, expected start: it is of another version", kind)
	}
	var d plane
	if err := d.start(payload, c.take(0), c.take(1)); err != nil {
		c.send(msgFailed, 0, []byte(err.Error()))
		d.close()
		return nil // control has been told, and says it
	}
	d.measure()
	err = c.send(msgOK, 0, nil)
	if err == nil {
		err = d.serve(c, terminated)
	}
	return errors.Join(err, d.close())
}

// waitReadable waits for input on fd; false when a signal came first.
func waitReadable(fd int, stop <-chan os.Signal) (bool, error) {
	var p [1]unix.PollFd
	for {
		p[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		n, err := unix.Poll(p[:], 200)
		if err != nil && err != unix.EINTR {
			return false, fmt.Errorf("poll: %w", err)
		}
		if n > 0 {
			return true, nil
		}
		select {
		case <-stop:
			return false, nil
		default:
		}
	}
}

// generations is how many are kept at once: the one in use, the one that replaces it, and room between them.
const generations = 4

// plane is a running data plane.
type plane struct {
	log     *slog.Logger
	state   *pipeline.State
	gens    [generations]pipeline.Generation
	current uint64
	ports   []*dpdk.Port
	pool    *dpdk.Mempool
	workers []*worker
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
	if stateFD < 0 || genFD < 0 {
		return errors.New("start: no segments came with it")
	}
	var err error
	if d.state, err = pipeline.AttachState(stateFD); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	var g pipeline.Generation
	if err := g.Attach(genFD); err != nil {
		return fmt.Errorf("generation: %w", err)
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
	ready := make(chan error, len(c.Workers))
	for i, core := range c.Workers {
		w := &worker{
			index: i, core: core, ports: d.ports, pool: d.pool, state: d.state, inject: d.state.Inject(i),
			pipe: pipeline.NewWorker(d.state, i, &d.gens[d.current%generations], pipeline.WorkerConfig{MACs: macs}),
			gens: &d.gens, seen: d.current, idle: c.Idle, stop: &d.stop,
		}
		d.workers = append(d.workers, w)
		d.running.Add(1)
		go w.run(ready, d.running.Done)
	}
	for range c.Workers {
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
	mtu := 0
	for _, p := range c.Ports {
		if pciAddress.MatchString(p.Device) {
			pci = append(pci, p.Device)
		}
		mtu = max(mtu, p.MTU)
	}
	if err := dpdk.Init(dpdk.EALConfig{Memory: c.Memory, PCI: pci, Args: c.EALArgs, Log: d.log}); err != nil {
		return err
	}
	d.started = true
	pool, err := dpdk.NewMempool("packets", poolSize(len(c.Ports), len(c.Workers)), dpdk.DataRoom(mtu), dpdk.SocketID(c.Workers[0]))
	if err != nil {
		return err
	}
	d.pool = pool
	for _, p := range c.Ports {
		port, err := openPort(p, len(c.Workers), pool)
		if err != nil {
			return err
		}
		d.ports = append(d.ports, port)
	}
	for _, p := range d.ports {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
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

// openPort opens a device, promiscuous only if it does not take the MAC that the configuration wants.
func openPort(p startPort, queues int, pool *dpdk.Mempool) (*dpdk.Port, error) {
	c := dpdk.PortConfig{
		Name: p.Name, Device: p.Device, MTU: p.MTU, MAC: p.MAC, RxQueues: queues, TxQueues: queues, AllMulticast: p.Groups,
		Mempool: func(int) (*dpdk.Mempool, error) { return pool, nil },
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

// serve obeys control until it is gone or says stop. From here on nothing is allocated.
func (d *plane) serve(c *conn, terminated <-chan os.Signal) error {
	var p [1]unix.PollFd
	var next int64
	for {
		if now := monotonic(); now >= next {
			d.measure()
			next = now + 1e9
		}
		p[0] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN}
		n, err := unix.Poll(p[:], 200)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		select {
		case <-terminated:
			d.log.Info("terminated")
			return nil
		default:
		}
		if n <= 0 {
			continue
		}
		kind, number, _, err := c.receive()
		if err == io.EOF {
			d.log.Warn("control is gone; stopping")
			return nil
		}
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		switch kind {
		case msgPublish:
			if err := d.publish(number, c.take(0)); err != nil {
				c.send(msgFailed, 0, []byte(err.Error()))
			} else if err := c.send(msgOK, number, nil); err != nil {
				return fmt.Errorf("socket: %w", err)
			}
		case msgStop:
			c.send(msgOK, 0, nil)
			return nil
		default:
			c.send(msgFailed, 0, []byte("unknown message: control is of another version"))
		}
	}
}

// publish maps a generation, tells the workers, and lets go of the old one when all of them are past it.
func (d *plane) publish(number uint64, fd int) error {
	if fd < 0 {
		return errors.New("publish: no segment came with it")
	}
	g := &d.gens[number%generations]
	if number <= d.current || number >= d.current+generations {
		unix.Close(fd)
		return fmt.Errorf("publish: generation %d after %d", number, d.current)
	}
	if err := g.Attach(fd); err != nil {
		unix.Close(fd)
		return err
	}
	d.state.Publish(number)
	for w := range d.workers {
		for d.state.Seen(w) != number {
			ts := unix.Timespec{Nsec: 50_000}
			unix.Nanosleep(&ts, nil)
		}
	}
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

// close ends what start began, in order: workers, ports, buffers, EAL.
func (d *plane) close() error {
	d.stop.Store(true)
	d.running.Wait()
	var errs []error
	for _, p := range d.ports {
		errs = append(errs, p.Close())
	}
	if d.pool != nil {
		errs = append(errs, d.pool.Free())
	}
	if d.started {
		errs = append(errs, dpdk.Cleanup())
	}
	return errors.Join(errs...)
}
