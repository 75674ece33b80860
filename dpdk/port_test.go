// SPDX-License-Identifier: Apache-2.0

package dpdk_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"weir/dpdk"
	"weir/dpdk/dpdktest"
)

// frames returns n frames of random content and of every length from 14 to 1,514 that n allows.
func frames(n int) [][]byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	list := make([][]byte, n)
	for i := range list {
		list[i] = make([]byte, 14+r.IntN(1501))
		for j := range list[i] {
			list[i][j] = byte(r.Uint32())
		}
	}
	return list
}

// contents copies what a burst holds, and checks that Bytes and the arrays agree.
func contents(t *testing.T, b *dpdk.RxBurst) [][]byte {
	t.Helper()
	var list [][]byte
	for i, m := range b.Mbufs[:b.N] {
		f := bytes.Clone(unsafe.Slice((*byte)(b.Data[i]), b.Len[i]))
		if !bytes.Equal(f, m.Bytes()) || b.Segs[i] != 1 || b.PktLen[i] != uint32(len(f)) {
			t.Errorf("packet %d: %d bytes, Bytes %d, segments %d, PktLen %d", i, len(f), len(m.Bytes()), b.Segs[i], b.PktLen[i])
		}
		list = append(list, f)
	}
	return list
}

func TestPcap(t *testing.T) {
	pool := dpdktest.Mempool(t, 255)
	in := frames(100)
	port, out := dpdktest.Pcap(t, pool, in)

	var got [][]byte
	var b dpdk.RxBurst
	for _, max := range []int{1, 0, 7, 32, 64, 1000} {
		want := min(max, dpdk.MaxBurst, len(in)-len(got))
		if n := port.Receive(0, &b, max); n != want || b.N != n {
			t.Fatalf("Receive(%d) gave %d, N is %d, want %d", max, n, b.N, want)
		}
		got = append(got, contents(t, &b)...)
		if n := port.Transmit(0, b.Mbufs[:b.N]); n != b.N {
			t.Fatalf("Transmit took %d of %d", n, b.N)
		}
	}
	if n := port.Receive(0, &b, 32); n != 0 {
		t.Errorf("%d packets after the end", n)
	}
	if diff := cmp.Diff(in, got); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	s, err := port.Stats()
	if err != nil || s.RxPackets != 100 || s.TxPackets != 100 || s.RxBytes != s.TxBytes || s.RxBytes == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	xstats, err := port.XStats(nil)
	values := map[string]uint64{}
	for _, x := range xstats {
		values[x.Name] = x.Value
	}
	if err != nil || values["rx_good_packets"] != 100 || values["tx_good_bytes"] != s.TxBytes {
		t.Errorf("xstats %v, %v", values, err)
	}
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, dpdktest.ReadPcap(t, out)); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
}

// A frame longer than an mbuf is a chain, and freeing its first mbuf frees all.
func TestChain(t *testing.T) {
	pool := dpdktest.Mempool(t, 255)
	frame := bytes.Repeat([]byte("0123456789"), 900)
	port, _ := dpdktest.Pcap(t, pool, [][]byte{frame})
	var b dpdk.RxBurst
	if n := port.Receive(0, &b, 32); n != 1 || b.Segs[0] != 5 || b.PktLen[0] != 9000 || b.Len[0] != 2048 {
		t.Fatalf("%d packets, %d segments, %d bytes, first %d", n, b.Segs[0], b.PktLen[0], b.Len[0])
	}
	if !bytes.Equal(b.Mbufs[0].Bytes(), frame[:2048]) || pool.InUse() != 5 {
		t.Errorf("%d mbufs in use, first holds %q", pool.InUse(), b.Mbufs[0].Bytes()[:20])
	}
	dpdk.Free(b.Mbufs[:1])
	if pool.InUse() != 0 {
		t.Errorf("%d mbufs still in use", pool.InUse())
	}
}

func TestNull(t *testing.T) {
	pool := dpdktest.Mempool(t, 127)
	port := dpdktest.Null(t, pool, 98)
	var b dpdk.RxBurst
	if n := port.Receive(0, &b, 32); n != 32 || pool.InUse() != 32 {
		t.Fatalf("%d packets, %d mbufs in use", n, pool.InUse())
	}
	for _, f := range contents(t, &b) {
		if len(f) != 98 {
			t.Errorf("%d bytes", len(f))
		}
	}
	if n := port.Transmit(0, b.Mbufs[:b.N]); n != 32 || pool.InUse() != 0 {
		t.Errorf("took %d, %d mbufs in use", n, pool.InUse())
	}
}

func TestEmptyBurst(t *testing.T) {
	pool := dpdktest.Mempool(t, 127)
	port := dpdktest.Ring(t, pool)
	b := dpdk.RxBurst{N: 5}
	if n := port.Receive(0, &b, 32); n != 0 || b.N != 0 {
		t.Errorf("Receive from nothing gave %d, N is %d", n, b.N)
	}
	if n := port.Transmit(0, nil); n != 0 {
		t.Errorf("Transmit of nothing took %d", n)
	}
	dpdk.Free(nil)
	dpdk.Free([]dpdk.Mbuf{0, 0})
	if err := pool.Alloc(nil); err != nil {
		t.Error(err)
	}
}

// A full queue takes the front of a burst; the rest stays the caller's, intact.
func TestFullQueue(t *testing.T) {
	const room = 1023
	pool := dpdktest.Mempool(t, 2047)
	port := dpdktest.Ring(t, pool)
	all := frames(room + 50)
	sent := 0
	for sent < room {
		burst := dpdktest.Mbufs(t, pool, all[sent:min(sent+64, len(all))]...)
		n := port.Transmit(0, burst)
		if want := min(len(burst), room-sent); n != want {
			t.Fatalf("at %d: took %d, want %d", sent, n, want)
		}
		for i, m := range burst[n:] {
			if !bytes.Equal(m.Bytes(), all[sent+n+i]) {
				t.Errorf("packet %d, refused, has changed", sent+n+i)
			}
		}
		dpdk.Free(burst[n:])
		sent += n
	}
	one := dpdktest.Mbufs(t, pool, all[0])
	if n := port.Transmit(0, one); n != 0 {
		t.Errorf("a full queue took %d", n)
	}
	dpdk.Free(one)
	if pool.InUse() != room {
		t.Errorf("%d mbufs in use, want %d", pool.InUse(), room)
	}

	var got [][]byte
	var b dpdk.RxBurst
	for port.Receive(0, &b, 33) > 0 {
		got = append(got, contents(t, &b)...)
		dpdk.Free(b.Mbufs[:b.N])
	}
	if diff := cmp.Diff(all[:room], got); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
}

// An empty pool gives nothing, to us or to a device, and everything again when mbufs come back.
func TestAllocationFailure(t *testing.T) {
	const n = 64
	pool := dpdktest.Mempool(t, n)
	port := dpdktest.Null(t, pool, 64)
	if err := pool.Alloc(make([]dpdk.Mbuf, n+1)); !errors.Is(err, dpdk.ErrNoMbufs) || pool.InUse() != 0 {
		t.Errorf("%d of %d: %v, %d in use", n+1, n, err, pool.InUse())
	}
	mbufs := make([]dpdk.Mbuf, n)
	if err := pool.Alloc(mbufs); err != nil || pool.Available() != 0 || pool.InUse() != n {
		t.Fatalf("all: %v, %d left, %d in use", err, pool.Available(), pool.InUse())
	}
	var b dpdk.RxBurst
	if got := port.Receive(0, &b, 32); got != 0 {
		t.Errorf("received %d without mbufs", got)
	}
	if err := pool.Free(); err == nil || !strings.Contains(err.Error(), "64 mbufs are still in use") {
		t.Errorf("Free of a pool in use: %v", err)
	}
	dpdk.Free(mbufs)
	if got := port.Receive(0, &b, 32); got != 32 {
		t.Errorf("received %d after mbufs came back", got)
	}
	dpdk.Free(b.Mbufs[:b.N])
}

// A port stops with packets waiting, starts again, closes, and its device opens again. Nothing
// leaks.
func TestRestart(t *testing.T) {
	pool := dpdktest.Mempool(t, 255)
	cfg := dpdk.PortConfig{Name: "again", Device: "net_ring900", Mempool: dpdktest.From(pool)}
	var b dpdk.RxBurst
	for range 3 {
		port, err := dpdk.OpenPort(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := port.Start(); err != nil {
				t.Fatal(err)
			}
			if n := port.Transmit(0, dpdktest.Mbufs(t, pool, frames(40)...)); n != 40 {
				t.Fatalf("took %d of 40", n)
			}
			if n := port.Receive(0, &b, 8); n != 8 {
				t.Fatalf("received %d of 8", n)
			}
			dpdk.Free(b.Mbufs[:b.N])
			if err := port.Stop(); err != nil {
				t.Fatal(err)
			}
			if pool.InUse() != 0 {
				t.Fatalf("stopped with %d mbufs in use", pool.InUse())
			}
		}
		if err := errors.Join(port.Stop(), port.Close(), port.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueues(t *testing.T) {
	pool := dpdktest.Mempool(t, 255)
	port := dpdktest.Open(t, dpdk.PortConfig{Name: "q", Device: "net_null901", RxQueues: 3, TxQueues: 2, Mempool: dpdktest.From(pool)})
	var b dpdk.RxBurst
	for q := range 3 {
		if n := port.Receive(q, &b, 16); n != 16 {
			t.Errorf("queue %d: %d packets", q, n)
		}
		dpdk.Free(b.Mbufs[:b.N])
	}
	for name, f := range map[string]func(){
		"receive queue 3":   func() { port.Receive(3, &b, 1) },
		"receive queue -1":  func() { port.Receive(-1, &b, 1) },
		"transmit queue 2":  func() { port.Transmit(2, make([]dpdk.Mbuf, 1)) },
		"transmit queue -1": func() { port.Transmit(-1, make([]dpdk.Mbuf, 1)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestOpenPortRefused(t *testing.T) {
	pool := dpdktest.Mempool(t, 127)
	dpdktest.Open(t, dpdk.PortConfig{Name: "first", Device: "net_null902", Mempool: dpdktest.From(pool)})
	full := dpdk.PortConfig{Name: "in", Mempool: dpdktest.From(pool)}
	with := func(change func(*dpdk.PortConfig)) dpdk.PortConfig { c := full; change(&c); return c }
	missing := filepath.Join(t.TempDir(), "missing.pcap")
	for _, c := range []struct {
		name string
		cfg  dpdk.PortConfig
		want []string // each in the error
	}{
		{"unknown driver", with(func(c *dpdk.PortConfig) { c.Device = "net_nosuch0" }),
			[]string{`port "in": device "net_nosuch0": rte_dev_probe: `, "failed to parse device", "no driver has this name"}},
		{"missing interface", with(func(c *dpdk.PortConfig) { c.Device = "net_pcap903,rx_iface=nosuchif" }),
			[]string{"rte_dev_probe: ", "Couldn't open interface nosuchif"}},
		{"missing file", with(func(c *dpdk.PortConfig) { c.Device = "net_pcap903,rx_pcap=" + missing }),
			[]string{"missing.pcap: No such file", "create the file"}},
		{"missing PCI device", with(func(c *dpdk.PortConfig) { c.Device = "ffff:ff:1f.7" }),
			[]string{"Cannot find device (ffff:ff:1f.7)", "not named when EAL started"}},
		{"bad argument", with(func(c *dpdk.PortConfig) { c.Device = "net_null903,nosuch=1" }),
			[]string{"Driver cannot attach", "check the device's arguments"}},
		{"open already", with(func(c *dpdk.PortConfig) { c.Device = "net_null902,size=9" }),
			[]string{`net_null902 is open already, by port "first"`}},
		{"no mempool", with(func(c *dpdk.PortConfig) { c.Device = "net_null903"; c.Mempool = nil }),
			[]string{`device "net_null903": no mempool given`}},
		{"mempool refused", with(func(c *dpdk.PortConfig) {
			c.Device = "net_null903"
			c.Mempool = func(int) (*dpdk.Mempool, error) { return nil, dpdk.ErrNoMbufs }
		}), []string{`device "net_null903": mempool: too few mbufs left`}},
		{"MTU beyond the mbufs", with(func(c *dpdk.PortConfig) { c.Device = "net_null903"; c.MTU = 9000 }),
			[]string{"has a data room of 2176 bytes, MTU 9000 needs 9344"}},
		{"MTU too small", with(func(c *dpdk.PortConfig) { c.Device = "net_null903"; c.MTU = 67 }), []string{"MTU 67, expected 68 to"}},
		{"MTU too large", with(func(c *dpdk.PortConfig) { c.Device = "net_null903"; c.MTU = 65382 }), []string{"expected 68 to 65381"}},
		{"too many queues", with(func(c *dpdk.PortConfig) { c.Device = "net_ring904"; c.TxQueues = 17 }),
			[]string{"1 receive and 17 transmit queues asked, it has 16 and 16"}},
		{"too many descriptors", with(func(c *dpdk.PortConfig) { c.Device = "net_null903"; c.RxDescs = 65536 }), []string{"expected 0 to 65535"}},
		{"MAC required", with(func(c *dpdk.PortConfig) {
			c.Device, c.MAC, c.RequireMAC = "net_ring904", [6]byte{2, 0, 0, 0, 0, 1}, true
		}), []string{"rte_eth_dev_default_mac_addr_set: Operation not supported"}},
		{"RSS without a table", with(func(c *dpdk.PortConfig) { c.Device = "net_null903"; c.RSS = &dpdk.RSSConfig{} }),
			[]string{"RSS without a table"}},
	} {
		_, err := dpdk.OpenPort(c.cfg)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", c.name, err, want)
			}
		}
	}
	// What was refused is not held: these names are free.
	for _, device := range []string{"net_null903", "net_ring904"} {
		dpdktest.Open(t, dpdk.PortConfig{Name: "in", Device: device, Mempool: dpdktest.From(pool)})
	}
}

// A device that refuses an address, an MTU, RSS or promiscuous mode it has no use for still works,
// and says so.
func TestOptional(t *testing.T) {
	pool := dpdktest.MempoolFor(t, 127, 9000)
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	port := dpdktest.Open(t, dpdk.PortConfig{
		Name: "in", Device: "net_ring905", MTU: 9000, MAC: mac, Promiscuous: true, AllMulticast: true,
		RSS: &dpdk.RSSConfig{Key: make([]byte, 52), Table: []uint16{0}}, RxInterrupts: true, Mempool: dpdktest.From(pool),
	})
	if port.MAC() != mac || !errors.Is(port.MACRefused(), syscall.ENOTSUP) {
		t.Errorf("MAC %x, %v", port.MAC(), port.MACRefused())
	}
	if err := port.RSSRefused(); err == nil || !strings.Contains(err.Error(), "driver net_ring has no RSS on IP with L3_SRC_ONLY") {
		t.Errorf("RSS: %v", err)
	}
	if err := port.RxInterruptsRefused(); port.RxInterrupts() || !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("interrupts %t, %v", port.RxInterrupts(), err)
	}
	if port.MTU() != 9000 || !port.Link().Up || port.Driver() != "net_ring" || port.IfIndex() != 0 {
		t.Errorf("MTU %d, link %+v, driver %s, interface %d", port.MTU(), port.Link(), port.Driver(), port.IfIndex())
	}
}

// A device that does not even start with interrupts starts without.
func TestStartWithoutInterrupts(t *testing.T) {
	pool := dpdktest.Mempool(t, 255)
	port := dpdktest.Open(t, dpdk.PortConfig{
		Name: "in", Device: "net_failsafe906,dev(net_null906)", RxInterrupts: true, Mempool: dpdktest.From(pool),
	})
	if err := port.RxInterruptsRefused(); port.RxInterrupts() || err == nil || !strings.Contains(err.Error(), "rte_eth_dev_start") {
		t.Errorf("interrupts %t, %v", port.RxInterrupts(), err)
	}
	var b dpdk.RxBurst
	if n := port.Receive(0, &b, 32); n != 32 {
		t.Errorf("received %d", n)
	}
	dpdk.Free(b.Mbufs[:b.N])
}

func TestNewMempoolRefused(t *testing.T) {
	dpdktest.Start(t)
	taken, err := dpdk.NewMempool("taken", 64, 2176, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Free()
	for _, c := range []struct {
		name           string
		n, room        int
		want, wantHint string
	}{
		{"none", 0, 2176, "0 mbufs, expected 1 to", ""},
		{"small", 64, 128, "data room of 128 bytes, expected 129 to 65535", ""},
		{"large", 64, 65536, "expected 129 to 65535", ""},
		{"taken", 64, 2176, "rte_pktmbuf_pool_create: File exists", "choose another"},
		{"huge", 1 << 20, 2176, "rte_pktmbuf_pool_create: ", "EAL's memory is used up"},
	} {
		p, err := dpdk.NewMempool(c.name, c.n, c.room, 0)
		if err == nil {
			p.Free()
		}
		for _, want := range []string{fmt.Sprintf("mempool %q", c.name), c.want, c.wantHint} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", c.name, err, want)
			}
		}
	}
}

// What Go writes into an mbuf is what C transmits.
func TestMbuf(t *testing.T) {
	pool := dpdktest.Mempool(t, 127)
	port := dpdktest.Ring(t, pool)
	m := make([]dpdk.Mbuf, 1)
	if err := pool.Alloc(m); err != nil {
		t.Fatal(err)
	}
	if b := m[0].Bytes(); len(b) != 0 || cap(b) != 2048 || m[0].Headroom() != dpdk.Headroom {
		t.Fatalf("fresh: %d bytes of %d, headroom %d", len(b), cap(b), m[0].Headroom())
	}
	_ = append(m[0].Bytes(), "packet"...)
	m[0].SetLen(6)
	m[0].Prepend(4)
	copy(m[0].Bytes(), "tag-")
	m[0].Prepend(-1)

	if n := port.Transmit(0, m); n != 1 {
		t.Fatalf("took %d", n)
	}
	var b dpdk.RxBurst
	if n := port.Receive(0, &b, 32); n != 1 || b.Mbufs[0] != m[0] {
		t.Fatalf("received %d, mbuf %x, sent %x", n, b.Mbufs[0], m[0])
	}
	if got := contents(t, &b); string(got[0]) != "ag-packet" || m[0].Headroom() != dpdk.Headroom-3 {
		t.Errorf("received %q, headroom %d", got[0], m[0].Headroom())
	}
	dpdk.Free(b.Mbufs[:1])
}

func TestNoAllocations(t *testing.T) {
	pool := dpdktest.Mempool(t, 255)
	port := dpdktest.Ring(t, pool)
	burst := dpdktest.Mbufs(t, pool, frames(32)...)
	fresh := make([]dpdk.Mbuf, 32)
	var b dpdk.RxBurst
	xstats, err := port.XStats(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(){
		"Transmit, Receive": func() { port.Transmit(0, burst); port.Receive(0, &b, 32) },
		"Alloc, Free":       func() { _ = pool.Alloc(fresh); dpdk.Free(fresh) },
		"Bytes, SetLen":     func() { burst[0].SetLen(len(burst[0].Bytes())) },
		"Stats":             func() { _, _ = port.Stats() },
		"XStats":            func() { xstats, _ = port.XStats(xstats[:0]) },
		"Link":              func() { port.Link() },
		"InUse, Available":  func() { pool.InUse(); pool.Available() },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	dpdk.Free(burst)
}
