// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weir/appliance/link"
	"weir/config"
	"weir/dpdk"
	"weir/pipeline/memory"
)

var pciAddress = regexp.MustCompile(`^([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]`)

// open starts EAL and the ports.
func (d *plane) open(c *link.StartConfig) error {
	args, err := d.bounds.eal(&c.Dataplane)
	if err != nil {
		return err
	}
	var pci []string
	for _, p := range c.Ports {
		if err := d.bounds.allow(p.Device); err != nil {
			return fmt.Errorf("port %q: %w", p.Name, err)
		}
		if pciAddress.MatchString(p.Device) {
			pci = append(pci, p.Device)
		}
	}
	if err := dpdk.Init(dpdk.EALConfig{Memory: c.Dataplane.Memory, PCI: pci, Args: args, Log: d.log}); err != nil {
		return err
	}
	d.eal = true
	d.nodes, d.pools = memory.Nodes("/sys", c.Dataplane.Workers), map[int]*dpdk.Mempool{}
	for i, p := range c.Ports {
		if first := slices.IndexFunc(c.Ports[:i], func(o link.StartPort) bool { return o.Device == p.Device }); first >= 0 {
			d.ports = append(d.ports, d.ports[first])
			continue
		}
		for _, o := range c.Ports[i+1:] { // those that share it
			if o.Device == p.Device {
				p.MTU = max(p.MTU, o.MTU)
				p.Shared = p.Shared || o.Inside != p.Inside
			}
		}
		claimed, err := claim(link.RunDirectory, p.Device)
		if err != nil {
			return fmt.Errorf("port %q: %w", p.Name, err)
		}
		if claimed != nil {
			d.locks = append(d.locks, claimed)
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
	for _, p := range unshared(d.ports) {
		if err := p.Start(); err != nil {
			return err
		}
		if why := p.RSSRefused(); why != nil {
			d.log.Info("packets cross a ring from the worker that receives them to the worker that owns them", "reason", why)
		}
	}
	if c.Dataplane.Idle == config.IdleSleep {
		d.logWaking(c.Ports)
	}
	return nil
}

// unshared returns ports, each device once: several ports may share one.
func unshared(ports []*dpdk.Port) (list []*dpdk.Port) {
	for _, p := range ports {
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// logWaking tells once which ports can wake a worker.
func (d *plane) logWaking(names []link.StartPort) {
	with, without := []string{}, []string{}
	for i, p := range d.ports {
		if p.RxInterrupts() {
			with = append(with, names[i].Name)
			continue
		}
		without = append(without, names[i].Name)
		d.log.Debug("the port has no interrupts", "port", names[i].Name, "reason", p.RxInterruptsRefused())
	}
	d.log.Info("interrupts wake an idle worker if all its ports have them; otherwise it polls again after a sleep",
		"with_interrupts", with, "without", without)
}

// spread says how a device with several queues should spread packets over the workers: as these own
// the remote addresses, which are the destinations on the inside. nil: there is one worker, or the
// device has ports of both sides. A device that cannot is no fault: each packet's owner is asked
// for anyway.
func (d *plane) spread(p *link.StartPort) *dpdk.RSSConfig {
	if d.state.Workers() == 1 || p.Shared { // both sides' packets come there
		return nil
	}
	key, queues := d.state.RSS()
	return &dpdk.RSSConfig{Key: key, Destination: p.Inside, Table: queues}
}

// waiter makes what worker i waits with; nil if a queue of its has no interrupts.
func (d *plane) waiter(i int) *dpdk.Waiter {
	w, err := NewWaiter(d.ports, i)
	if err != nil {
		d.log.Warn("the worker sleeps instead of waiting for interrupts", "worker", i, "reason", err)
	}
	if w != nil {
		d.waiters = append(d.waiters, w)
	}
	return w
}

// NewWaiter makes what a worker waits with that polls a queue of each port that has it; nil if one
// of them has no interrupts, or if there is none.
func NewWaiter(ports []*dpdk.Port, queue int) (*dpdk.Waiter, error) {
	var polled []*dpdk.Port
	for _, p := range unshared(ports) {
		if queue < p.RxQueues() {
			polled = append(polled, p)
		}
	}
	if len(polled) == 0 || slices.ContainsFunc(polled, func(p *dpdk.Port) bool { return !p.RxInterrupts() }) {
		return nil, nil
	}
	w, err := dpdk.NewWaiter()
	if err != nil {
		return nil, err
	}
	for _, p := range polled {
		if err := w.Add(p, queue); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// buffers returns the packet buffers on a NUMA node, -1 for any: a port receives into those of its
// device's node, a worker sends what control says from those of its own. A node without room for
// them gets what others have.
func (d *plane) buffers(c *link.StartConfig, node int) (*dpdk.Mempool, error) {
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
		d.log.Warn("packet buffers are on another NUMA node than their users; reserve huge pages on each node", "node", node, "reason", err)
	}
	return d.buffers(c, -1)
}

// poolSize is enough for full receive and transmit queues of all ports, the workers' caches, and
// what is held.
func poolSize(ports, workers int) int {
	need := ports*workers*2*1024 + workers*1024 + 2048
	n := 1
	for n < need {
		n *= 2
	}
	return n - 1
}

// claim keeps other data planes away from a network interface, which any number of processes could
// read: it locks a file named by network namespace and interface, in a directory that only this
// user and root write to. The lock ends with the process. Any other device has one owner anyway.
func claim(directory, device string) (*os.File, error) {
	_, args, _ := strings.Cut(device, ",")
	for arg := range strings.SplitSeq(args, ",") {
		name, ok := strings.CutPrefix(arg, "iface=")
		if !ok {
			continue
		}
		if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
			return nil, fmt.Errorf("interface %q: no interface has this name", name)
		}
		l, err := lock(directory, name)
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("interface %s: another data plane uses it, or another port; stop that data plane, or choose another interface", name)
		}
		if err != nil {
			return nil, fmt.Errorf("interface %s: lock in %s: %w", name, directory, err)
		}
		return l, nil
	}
	return nil, nil
}

// lock takes an interface's lock, or returns EWOULDBLOCK.
func lock(directory, name string) (*os.File, error) {
	if err := os.MkdirAll(directory, 0o750); err != nil {
		return nil, err
	}
	if err := link.CheckDirectory(directory); err != nil {
		return nil, err
	}
	var space, now, named unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &space); err != nil {
		return nil, err
	}
	path := filepath.Join(directory, fmt.Sprintf("interface-%d-%s.lock", space.Ino, name))
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		// Whoever let go of it has removed the file, perhaps this one.
		if err := unix.Fstat(int(f.Fd()), &now); err == nil && unix.Stat(path, &named) == nil && now.Ino == named.Ino && now.Dev == named.Dev {
			return f, nil
		}
		f.Close()
	}
}

// openPort opens a device, promiscuous only if it does not take the MAC that the configuration
// wants.
func openPort(p link.StartPort, rss *dpdk.RSSConfig, queues int, interrupts bool, pool func(socket int) (*dpdk.Mempool, error)) (*dpdk.Port, error) {
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
