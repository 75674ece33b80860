// SPDX-License-Identifier: Apache-2.0

// Package dpdktest lets tests use DPDK: EAL without privileges or huge pages, ports on memory and
// on captures, and a check that every mbuf came back. Each function fails the test when it cannot
// do its work.
package dpdktest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"weir/dpdk"
)

// Memory is what EAL gets: room for some 40,000 mbufs of the usual size.
const Memory = 128 << 20

var start = sync.OnceValue(func() error {
	return dpdk.Init(dpdk.EALConfig{Memory: Memory, NoHuge: true, Log: slog.New(slog.DiscardHandler)})
})

// Start starts EAL if this process has not yet. The other functions call it.
func Start(tb testing.TB) {
	tb.Helper()
	if err := start(); err != nil {
		tb.Fatal(err)
	}
}

var serial atomic.Uint32

// unique returns a name that no other pool or device of this process has.
func unique(prefix string) string { return fmt.Sprintf("%s%d", prefix, serial.Add(1)) }

// Mempool makes a pool of n mbufs for an MTU of 1500. When the test ends, after what was made later
// has ended, every mbuf must be back.
func Mempool(tb testing.TB, n int) *dpdk.Mempool {
	tb.Helper()
	return MempoolFor(tb, n, 1500)
}

// MempoolFor is Mempool for another MTU.
func MempoolFor(tb testing.TB, n, mtu int) *dpdk.Mempool {
	tb.Helper()
	Start(tb)
	p, err := dpdk.NewMempool(unique("test"), n, dpdk.DataRoom(mtu), 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Free(); err != nil {
			tb.Errorf("leaked mbufs: %v", err)
		}
	})
	return p
}

// From is the PortConfig.Mempool that always gives the same pool.
func From(p *dpdk.Mempool) func(int) (*dpdk.Mempool, error) {
	return func(int) (*dpdk.Mempool, error) { return p, nil }
}

// Open opens and starts a port, and closes it when the test ends.
func Open(tb testing.TB, cfg dpdk.PortConfig) *dpdk.Port {
	tb.Helper()
	Start(tb)
	p, err := dpdk.OpenPort(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	if err := p.Start(); err != nil {
		tb.Fatal(err)
	}
	return p
}

// Ring opens a port that receives what it transmits, up to 1,023 packets at a time.
func Ring(tb testing.TB, pool *dpdk.Mempool) *dpdk.Port {
	tb.Helper()
	return Open(tb, dpdk.PortConfig{Name: "ring", Device: unique("net_ring"), Mempool: From(pool)})
}

// Null opens a port that always has packets, of size zero bytes each, and swallows what it is
// given.
func Null(tb testing.TB, pool *dpdk.Mempool, size int) *dpdk.Port {
	tb.Helper()
	device := fmt.Sprintf("%s,size=%d", unique("net_null"), size)
	return Open(tb, dpdk.PortConfig{Name: "null", Device: device, Mempool: From(pool)})
}

// Pcap opens a port that receives the frames and writes what it transmits to the file out, complete
// once it is closed.
func Pcap(tb testing.TB, pool *dpdk.Mempool, frames [][]byte) (port *dpdk.Port, out string) {
	tb.Helper()
	dir := tb.TempDir()
	in, out := filepath.Join(dir, "in.pcap"), filepath.Join(dir, "out.pcap")
	WritePcap(tb, in, frames)
	device := fmt.Sprintf("%s,rx_pcap=%s,tx_pcap=%s", unique("net_pcap"), in, out)
	return Open(tb, dpdk.PortConfig{Name: "pcap", Device: device, Mempool: From(pool)}), out
}

// A capture file, as tcpdump writes it: a header, then each frame after its own header.
type pcapHeader struct {
	Magic        uint32
	Major, Minor uint16
	Zone, Sigfig uint32
	Snaplen      uint32
	LinkType     uint32 // 1: Ethernet
}

type pcapRecord struct {
	Sec, Usec     uint32
	Captured, Len uint32
}

const (
	pcapMicro = 0xa1b2c3d4 // Usec is microseconds
	pcapNano  = 0xa1b23c4d // nanoseconds: what net_pcap writes
)

// WritePcap writes frames to a capture file, a microsecond apart.
func WritePcap(tb testing.TB, path string, frames [][]byte) {
	tb.Helper()
	b, _ := binary.Append(nil, binary.LittleEndian, pcapHeader{Magic: pcapMicro, Major: 2, Minor: 4, Snaplen: 1 << 18, LinkType: 1})
	for i, f := range frames {
		n := uint32(len(f))
		b, _ = binary.Append(b, binary.LittleEndian, pcapRecord{Sec: uint32(i / 1e6), Usec: uint32(i % 1e6), Captured: n, Len: n})
		b = append(b, f...)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		tb.Fatal(err)
	}
}

// ReadPcap returns the frames of a capture file written on this kind of machine.
func ReadPcap(tb testing.TB, path string) [][]byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	r := bytes.NewReader(b)
	var h pcapHeader
	if err := binary.Read(r, binary.LittleEndian, &h); err != nil || h.Magic != pcapMicro && h.Magic != pcapNano {
		tb.Fatalf("%s: no capture: magic %#x, %v", path, h.Magic, err)
	}
	var frames [][]byte
	for r.Len() > 0 {
		var rec pcapRecord
		err := binary.Read(r, binary.LittleEndian, &rec)
		if err == nil && int(rec.Captured) > r.Len() {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			tb.Fatalf("%s: frame %d: %v", path, len(frames), err)
		}
		f := make([]byte, rec.Captured)
		r.Read(f)
		frames = append(frames, f)
	}
	return frames
}

// Mbufs returns mbufs that hold copies of the frames. The caller owns them.
func Mbufs(tb testing.TB, pool *dpdk.Mempool, frames ...[]byte) []dpdk.Mbuf {
	tb.Helper()
	mbufs := make([]dpdk.Mbuf, len(frames))
	if err := pool.Alloc(mbufs); err != nil {
		tb.Fatal(err)
	}
	for i, f := range frames {
		b := mbufs[i].Bytes()
		if len(f) > cap(b) {
			dpdk.Free(mbufs)
			tb.Fatalf("frame %d has %d bytes, an mbuf of this pool takes %d", i, len(f), cap(b))
		}
		copy(b[:cap(b)], f)
		mbufs[i].SetLen(len(f))
	}
	return mbufs
}
