// SPDX-License-Identifier: Apache-2.0

package dpdk

// #include <stdlib.h>
// #include "dpdk.h"
// #include <rte_ethdev.h>
import "C"

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// PortConfig says what to open and how.
type PortConfig struct {
	Name   string // for errors: "inside"
	Device string // a PCI address, "0000:3b:00.1", or a vdev string, "net_af_packet0,iface=x"
	MTU    int    // bytes after the Ethernet header; 0: 1500

	RxQueues, TxQueues int // 0: 1. Of receive queues the port has fewer if the device has no more
	RxDescs, TxDescs   int // a queue's; 0: what the driver prefers, else 1024

	Promiscuous  bool    // receive what is for other MAC addresses
	AllMulticast bool    // receive all multicast: neighbour discovery for many addresses needs it
	MAC          [6]byte // zero: the device's own
	RequireMAC   bool    // it is an error if the device does not take MAC

	RSS *RSSConfig // nil: the device spreads over its queues as it likes

	RxInterrupts bool // that a Waiter can wait for packets

	// Mempool gives the pool that the port receives into, made for the NUMA node of its device (-1
	// if that is unknown). The port borrows it until Close.
	Mempool func(socket int) (*Mempool, error)
}

// RSSConfig asks a device to choose the queue Table[Toeplitz(Key, address) mod len(Table)] for
// every IP packet.
type RSSConfig struct {
	Key         []byte   // at least as long as the device's, of which the first bytes are used: 52 are enough for all known
	Destination bool     // hash the destination address only (L3_DST_ONLY); else the source only
	Table       []uint16 // queues; the device's table is a multiple of it
}

// Port is an open device. See the package on which thread may do what.
type Port struct {
	id                 C.uint16_t
	rxQueues, txQueues int
	object             string // for errors
	device             string // canonical name: the key in claims
	info               C.struct_weir_port_info
	cfg                PortConfig
	mac                [6]byte
	macErr, rssErr     error
	interruptErr       error
	switched           bool       // interrupts are off until they are switched on
	rssKey             *C.uint8_t // C's copy: drivers read it again at every start
	promiscuous        bool
	started, closed    bool

	xstats     []C.struct_weir_xstat // where C writes
	xstatNames []string
}

const (
	defaultMTU   = 1500
	minMTU       = 68 // RFC 791
	maxMTU       = 65535 - Headroom - 14 - 2*4 - 4
	defaultDescs = 1024
)

// OpenPort plugs the device in and sets it up, stopped. On failure the device is unplugged again.
// One device, or one kernel interface, may be open once.
func OpenPort(cfg PortConfig) (*Port, error) {
	p := &Port{
		cfg:    cfg,
		object: fmt.Sprintf("port %q: device %q", cfg.Name, cfg.Device),
		device: deviceName(cfg.Device),
	}
	if err := p.checkConfig(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.object, err)
	}
	if err := p.claim(p.device); err != nil {
		return nil, err
	}
	if err := p.probe(); err != nil {
		p.release()
		return nil, err
	}
	if err := p.setup(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Port) checkConfig() error {
	c := &p.cfg
	c.MTU = orElse(c.MTU, defaultMTU)
	p.rxQueues, p.txQueues = orElse(c.RxQueues, 1), orElse(c.TxQueues, 1)
	switch {
	case c.Mempool == nil:
		return errors.New("no mempool given")
	case c.MTU < minMTU || c.MTU > maxMTU:
		return fmt.Errorf("MTU %d, expected %d to %d", c.MTU, minMTU, maxMTU)
	case c.RxDescs < 0 || c.RxDescs > 65535 || c.TxDescs < 0 || c.TxDescs > 65535:
		return fmt.Errorf("%d receive and %d transmit descriptors, expected 0 to 65535", c.RxDescs, c.TxDescs)
	case c.RSS != nil && len(c.RSS.Table) == 0:
		return errors.New("RSS without a table of queues")
	}
	if strings.HasPrefix(p.device, "net_af_packet") {
		return checkFrameSize(c.Device, c.MTU)
	}
	return nil
}

// orElse is v, or d where v is left out.
func orElse(v, d int) int {
	if v == 0 {
		return d
	}
	return v
}

// checkFrameSize refuses a net_af_packet device whose ring slots are smaller than the MTU's frames:
// the kernel would cut them silently. A slot holds 66 bytes of the kernel's own (TPACKET2_HDRLEN
// and alignment) before the frame; the outer VLAN tag travels in them, an inner one in the frame.
func checkFrameSize(device string, mtu int) error {
	const overhead = 66 + 14 + 4
	framesz := 2048
	for arg := range strings.SplitSeq(device, ",") {
		if v, ok := strings.CutPrefix(arg, "framesz="); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				return fmt.Errorf("framesz=%s is not a number", v)
			}
			framesz = n
		}
	}
	if framesz >= mtu+overhead {
		return nil
	}
	need := 4096
	for need < mtu+overhead {
		need *= 2
	}
	return fmt.Errorf("framesz=%d keeps frames of an MTU up to %d whole, MTU is %d: add framesz=%d,blocksz=%d",
		framesz, framesz-overhead, mtu, need, 2*need)
}

var pciAddress = regexp.MustCompile(`^(?i)([0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// deviceName returns the name that DPDK gives the device: what is before the arguments, a PCI
// address with its domain.
func deviceName(device string) string {
	name, _, _ := strings.Cut(device, ",")
	if pciAddress.MatchString(name) {
		name = strings.ToLower(name)
		if strings.Count(name, ":") == 1 {
			name = "0000:" + name
		}
	}
	return name
}

// claims holds what is open, device names and kernel interfaces. DPDK reports success for a device
// that is open already.
var claims = struct {
	mu    sync.Mutex
	holds map[string]*Port
}{holds: map[string]*Port{}}

func (p *Port) claim(what string) error {
	claims.mu.Lock()
	defer claims.mu.Unlock()
	if by := claims.holds[what]; by != nil {
		return fmt.Errorf("%s: %s is open already, by port %q: use that port, or give the device another name", p.object, what, by.cfg.Name)
	}
	claims.holds[what] = p
	return nil
}

func (p *Port) release() {
	claims.mu.Lock()
	defer claims.mu.Unlock()
	for what, by := range claims.holds {
		if by == p {
			delete(claims.holds, what)
		}
	}
}

// call is one DPDK call for this port.
func (p *Port) call(name string, fn func() C.int) error { return call(p.object, name, fn) }

// probe plugs the device in and finds its port.
func (p *Port) probe() error {
	err := p.call("rte_dev_probe", func() C.int {
		device := C.CString(p.cfg.Device)
		defer C.free(unsafe.Pointer(device))
		return C.weir_port_probe(device)
	})
	if err != nil {
		return err
	}
	var n C.int
	err = p.call("weir_port_find", func() C.int {
		name := C.CString(p.device)
		defer C.free(unsafe.Pointer(name))
		n = C.weir_port_find(name, &p.id)
		return n
	})
	if err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("%s: it has %d Ethernet ports, expected 1: name a device that is one port", p.object, n)
	}
	return nil
}

func (p *Port) setup() error {
	if err := p.call("rte_eth_dev_info_get", func() C.int { return C.weir_port_info(p.id, &p.info) }); err != nil {
		return err
	}
	if p.info.if_index != 0 {
		if err := p.claim(fmt.Sprintf("kernel interface %d", p.info.if_index)); err != nil {
			return err
		}
	}
	return p.arrange()
}

// arrange brings a stopped port to where it can start.
func (p *Port) arrange() error {
	if err := p.configure(); err != nil {
		return err
	}
	if err := p.setMTU(); err != nil {
		return err
	}
	if err := p.setQueues(); err != nil {
		return err
	}
	return p.setMAC()
}

// descs are the descriptors to ask for a queue with; DPDK adjusts them to what the device can.
func descs(asked int, preferred C.uint16_t) C.uint16_t {
	return C.uint16_t(orElse(asked, orElse(int(preferred), defaultDescs)))
}

func (p *Port) configure() error {
	if p.rxQueues < 1 || p.txQueues < 1 || p.txQueues > int(p.info.max_tx_queues) {
		return fmt.Errorf("%s: %d receive and %d transmit queues asked, it has %d and %d: use fewer workers, or give a virtual "+
			"device more queues (net_af_packet: qpairs=N)", p.object, p.rxQueues, p.txQueues, p.info.max_rx_queues, p.info.max_tx_queues)
	}
	p.rxQueues = min(p.rxQueues, int(p.info.max_rx_queues))
	p.info.rx_ring, p.info.tx_ring = descs(p.cfg.RxDescs, p.info.rx_ring), descs(p.cfg.TxDescs, p.info.tx_ring)
	// Interrupts and RSS are optimisations: without them the port works, and RxInterruptsRefused
	// and RSSRefused say why.
	if p.RxInterrupts() {
		if p.interruptErr = p.configureWith(true); p.interruptErr == nil {
			return nil
		}
	}
	return p.configureWith(false)
}

func (p *Port) configureWith(interrupts bool) error {
	configure := func(rss *RSSConfig) error {
		return p.call("rte_eth_dev_configure", func() C.int {
			return C.weir_port_configure(p.id, C.uint16_t(p.rxQueues), C.uint16_t(p.txQueues), &p.info.rx_ring, &p.info.tx_ring,
				C.bool(interrupts), C.bool(rss != nil), C.bool(rss != nil && rss.Destination), p.rssKey, p.info.rss_key_size)
		})
	}
	if p.cfg.RSS == nil {
		return configure(nil)
	}
	if p.rssErr = p.checkRSS(); p.rssErr == nil {
		if p.rssKey == nil {
			p.rssKey = (*C.uint8_t)(C.CBytes(p.cfg.RSS.Key))
		}
		p.rssErr = configure(p.cfg.RSS)
	}
	if p.rssErr != nil {
		return configure(nil)
	}
	return nil
}

func (p *Port) checkRSS() error {
	rss, which, able := p.cfg.RSS, "L3_SRC_ONLY", bool(p.info.rss_src)
	if rss.Destination {
		which, able = "L3_DST_ONLY", bool(p.info.rss_dst)
	}
	table := int(p.info.rss_table_size)
	switch {
	case !able:
		return fmt.Errorf("%s: driver %s has no RSS on IP with %s", p.object, p.Driver(), which)
	case p.info.rss_key_size == 0 || len(rss.Key) < int(p.info.rss_key_size):
		return fmt.Errorf("%s: RSS key of %d bytes, the device takes %d", p.object, len(rss.Key), p.info.rss_key_size)
	case int(slices.Max(rss.Table)) >= p.rxQueues:
		return fmt.Errorf("%s: RSS over %d queues, the device has %d", p.object, slices.Max(rss.Table)+1, p.rxQueues)
	case table == 0 || table%len(rss.Table) != 0:
		return fmt.Errorf("%s: its RSS table has %d entries, no multiple of %d", p.object, table, len(rss.Table))
	}
	return nil
}

// setMTU sets the device's MTU. Where a kernel interface is below the device, the MTU is that
// interface's: it is left alone when it is right already, and drivers that cannot change it
// (net_af_packet beyond 1518) need it large enough.
func (p *Port) setMTU() error {
	var kernel *net.Interface
	if p.info.if_index != 0 {
		kernel, _ = net.InterfaceByIndex(int(p.info.if_index))
	}
	if kernel != nil && kernel.MTU == p.cfg.MTU {
		return nil
	}
	err := p.call("rte_eth_dev_set_mtu", func() C.int { return C.rte_eth_dev_set_mtu(p.id, C.uint16_t(p.cfg.MTU)) })
	switch {
	case err == nil:
		return nil
	case kernel != nil && kernel.MTU >= p.cfg.MTU:
		return nil
	case kernel != nil:
		return fmt.Errorf("%w: interface %s has MTU %d, wanted %d: ip link set dev %s mtu %d", err,
			kernel.Name, kernel.MTU, p.cfg.MTU, kernel.Name, p.cfg.MTU)
	case bool(p.info.virtual_device) && errors.Is(err, syscall.ENOTSUP):
		return nil // memory and files have no MTU
	}
	return err
}

func (p *Port) setQueues() error {
	socket := p.SocketID()
	pool, err := p.cfg.Mempool(socket)
	if err != nil {
		return fmt.Errorf("%s: %w", p.object, err)
	}
	if need := DataRoom(p.cfg.MTU); pool.dataRoom < need {
		return fmt.Errorf("%s: mempool %q has a data room of %d bytes, MTU %d needs %d", p.object, pool.name, pool.dataRoom, p.cfg.MTU, need)
	}
	for q := range p.rxQueues {
		err := p.call(fmt.Sprintf("rte_eth_rx_queue_setup (queue %d)", q), func() C.int {
			return C.rte_eth_rx_queue_setup(p.id, C.uint16_t(q), p.info.rx_ring, C.uint(socket), nil, pool.pool)
		})
		if err != nil {
			return err
		}
	}
	for q := range p.txQueues {
		err := p.call(fmt.Sprintf("rte_eth_tx_queue_setup (queue %d)", q), func() C.int {
			return C.rte_eth_tx_queue_setup(p.id, C.uint16_t(q), p.info.tx_ring, C.uint(socket), nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Port) setMAC() error {
	if p.cfg.MAC == [6]byte{} {
		return p.call("rte_eth_macaddr_get", func() C.int {
			return C.weir_port_mac(p.id, (*C.uint8_t)(unsafe.Pointer(&p.mac)))
		})
	}
	p.mac = p.cfg.MAC
	p.macErr = p.call("rte_eth_dev_default_mac_addr_set", func() C.int {
		return C.weir_port_set_mac(p.id, (*C.uint8_t)(unsafe.Pointer(&p.mac)))
	})
	if p.cfg.RequireMAC {
		return p.macErr
	}
	return nil
}

// Start lets packets in and out.
func (p *Port) Start() error {
	err := p.start()
	if err != nil && p.RxInterrupts() {
		p.interruptErr = err
		if err = p.arrange(); err == nil {
			err = p.start()
		}
	}
	if err != nil {
		return err
	}
	p.started = true
	if p.RxInterrupts() {
		p.interruptErr = p.call("rte_eth_dev_rx_intr_enable", func() C.int {
			rc := C.weir_port_rx_interrupts(p.id, C.uint16_t(p.rxQueues))
			p.switched = rc == 1
			return rc
		})
	}
	if p.cfg.RSS != nil && p.rssErr == nil {
		table := p.cfg.RSS.Table
		p.rssErr = p.call("rte_eth_dev_rss_reta_update", func() C.int {
			return C.weir_port_rss_table(p.id, (*C.uint16_t)(unsafe.Pointer(&table[0])), C.uint16_t(len(table)), p.info.rss_table_size)
		})
	}
	if p.cfg.Promiscuous {
		err := p.call("rte_eth_promiscuous_enable", func() C.int { return C.rte_eth_promiscuous_enable(p.id) })
		if p.promiscuous = err == nil; err != nil && !p.takesAll(err) {
			return err
		}
	}
	if p.cfg.AllMulticast {
		err := p.call("rte_eth_allmulticast_enable", func() C.int { return C.rte_eth_allmulticast_enable(p.id) })
		if err != nil && !p.takesAll(err) {
			return err
		}
	}
	return nil
}

func (p *Port) start() error {
	return p.call("rte_eth_dev_start", func() C.int { return C.rte_eth_dev_start(p.id) })
}

// takesAll: a virtual device that cannot switch its address filter has none.
func (p *Port) takesAll(err error) bool {
	return bool(p.info.virtual_device) && errors.Is(err, syscall.ENOTSUP)
}

// Stop ends traffic. Packets that wait in the device are lost. The port may be started again.
func (p *Port) Stop() error {
	if !p.started {
		return nil
	}
	if p.Driver() == "net_ring" {
		p.drain()
	}
	if p.promiscuous {
		// Else a kernel interface stays so. One that is gone refuses, and the port must still stop.
		_ = p.call("rte_eth_promiscuous_disable", func() C.int { return C.rte_eth_promiscuous_disable(p.id) })
	}
	if err := p.call("rte_eth_dev_stop", func() C.int { return C.rte_eth_dev_stop(p.id) }); err != nil {
		return err
	}
	p.started = false
	return nil
}

// drain frees what waits to be received. Other drivers do so themselves; net_ring forgets the mbufs
// in its rings.
func (p *Port) drain() {
	var b RxBurst
	for q := range p.rxQueues {
		for p.Receive(q, &b, MaxBurst) > 0 {
			Free(b.Mbufs[:b.N])
		}
	}
}

// Close stops the port, closes it and unplugs its device. Its mempool may be freed then, and the
// device opened again.
func (p *Port) Close() error {
	if p.closed {
		return nil
	}
	if err := p.Stop(); err != nil {
		return err
	}
	if err := p.call("rte_eth_dev_close, rte_dev_remove", func() C.int { return C.weir_port_close(p.id) }); err != nil {
		return err
	}
	p.closed = true
	C.free(unsafe.Pointer(p.rssKey))
	p.release()
	return nil
}

// MAC returns the port's address: the configured one, taken by the device or not, else the device's
// own.
func (p *Port) MAC() [6]byte { return p.mac }

// MACRefused tells why the device did not take the configured address, nil if it did or none was
// configured. Such a device sends what it is given, but may receive only with
// PortConfig.Promiscuous.
func (p *Port) MACRefused() error { return p.macErr }

// RxQueues returns how many receive queues the port has.
func (p *Port) RxQueues() int { return p.rxQueues }

// RSSRefused tells, after Start, why the device does not spread packets by PortConfig.RSS; nil if
// it does, or none was asked.
func (p *Port) RSSRefused() error { return p.rssErr }

// RxInterrupts tells, after Start, whether a Waiter can wait for the port's receive queues.
func (p *Port) RxInterrupts() bool { return p.cfg.RxInterrupts && p.interruptErr == nil }

// RxInterruptsRefused tells, after Start, why there are no interrupts; nil if there are, or none
// were asked.
func (p *Port) RxInterruptsRefused() error { return p.interruptErr }

// MTU returns the configured MTU.
func (p *Port) MTU() int { return p.cfg.MTU }

// SocketID returns the NUMA node of the device, -1 where that is unknown or none.
func (p *Port) SocketID() int { return int(p.info.socket) }

// Driver returns the name of DPDK's driver: "net_pcap".
func (p *Port) Driver() string { return C.GoString(&p.info.driver[0]) }

// IfIndex returns the index of the kernel interface below the device, 0 for none.
func (p *Port) IfIndex() int { return int(p.info.if_index) }
