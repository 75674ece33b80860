// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// bulk is a TCP connection through which bytes go as fast as they come back from the echo, with a window that no queue on the
// way overflows from.
type bulk struct {
	c     *net.TCPConn
	back  atomic.Int64
	done  sync.WaitGroup
	ended atomic.Bool
	err   error
}

func startBulk(t *testing.T, n *namespace, from, remote netip.Addr) *bulk {
	t.Helper()
	b := new(bulk)
	err := n.do(func() error {
		d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
			Control: func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) {
					syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10)
					syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 64<<10)
				})
			}}
		c, err := d.Dial("tcp", netip.AddrPortFrom(remote, echoPort).String())
		if err == nil {
			b.c = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.done.Go(func() {
		for buf := make([]byte, 16<<10); !b.ended.Load(); {
			if _, err := b.c.Write(buf); err != nil {
				return // the reader says why
			}
		}
		b.c.CloseWrite()
	})
	b.done.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			k, err := b.c.Read(buf)
			b.back.Add(int64(k))
			if err == io.EOF && b.ended.Load() {
				return
			}
			if err != nil {
				b.err = err
				return
			}
		}
	})
	t.Cleanup(func() {
		b.c.Close()
		b.done.Wait()
	})
	return b
}

// end closes the connection in order and fails the test if it was broken.
func (b *bulk) end(t *testing.T) {
	t.Helper()
	b.ended.Store(true)
	b.c.SetDeadline(time.Now().Add(patience))
	b.done.Wait()
	if b.err != nil {
		t.Errorf("TCP from %v: after %d bytes: %v", b.c.LocalAddr(), b.back.Load(), b.err)
	}
}

// expectDrops fails the test if packets were dropped for other reasons than those.
func (s samples) expectDrops(t *testing.T, reasons ...string) {
	t.Helper()
	for series, v := range s {
		name, ok := strings.CutPrefix(series, `weir_dropped_packets_total{reason="`)
		if !ok || v == 0 {
			continue
		}
		expected := false
		for _, r := range reasons {
			expected = expected || name == r+`"}`
		}
		if !expected {
			t.Errorf("%v packets dropped: %s, expected none", v, strings.TrimSuffix(name, `"}`))
		}
	}
}

// A hundred reloads in about twenty seconds, under TCP that fills its window and a datagram each millisecond, through 1:1 and
// SNAT, both families: nothing is lost, and no session changes.
func TestHotHundredReloads(t *testing.T) {
	const reloads, interval = 100, 200 * time.Millisecond
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	flows := [][2]netip.Addr{{web4, remote4}, {web6, remote6}, {batch4, remote4}, {batch6, remote6}}
	for _, f := range flows {
		if _, err := echoUDP(n.guest, f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	var streams []*stream
	var bulks []*bulk
	for i, f := range flows {
		s := startStream(t, n.guest, f[0], f[1], time.Millisecond)
		s.c.SetReadBuffer(1 << 20)
		streams = append(streams, s)
		if i%2 == 0 {
			bulks = append(bulks, startBulk(t, n.guest, f[0], f[1]))
		}
	}
	eventually(t, patience, "the streams flow", func() error {
		for _, s := range streams {
			if err := atLeast(s.echoed(), 100); err != nil {
				return err
			}
		}
		return nil
	})
	sessions := w.scrape(t).get(t, "weir_sessions_created_total")

	// Of what changes, no session of the flows is concerned: an instance comes and goes, its addresses and its routes.
	pings := 0
	start := time.Now()
	for i := range reloads {
		text := baseConfig
		if i%2 == 0 {
			text += fmt.Sprintf("      - {name: late, addresses: [172.30.0.9], external: {floating: [192.0.2.%d]}}\n", 100+i)
			text = replace(t, text, "routes:\n", fmt.Sprintf("routes:\n      - {to: 100.64.%d.0/24, drop: true}\n", i))
		}
		w.write(t, text)
		w.signal(t, syscall.SIGHUP)
		for _, f := range flows {
			if err := ping(n.guest, f[0], f[1]); err != nil {
				t.Error(err)
			}
			pings++
		}
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * interval)))
	}
	w.expectGeneration(t, 1+reloads, true)
	took := time.Since(start)
	endAll(streams)
	for _, b := range bulks {
		b.end(t)
		t.Logf("TCP from %v: %d MB there and back", b.c.LocalAddr(), b.back.Load()/1e6)
	}
	total := 0
	for _, s := range streams {
		lost, sent := s.lost()
		total += sent
		if lost > 0 {
			t.Errorf("%v: %d of %d datagrams are lost", s.c.LocalAddr(), lost, sent)
		}
		if list := s.sources(); len(list) != 1 {
			t.Errorf("%v: came from %v, expected one address and port", s.c.LocalAddr(), list)
		}
	}
	s := w.expectBalance(t)
	s.expectDrops(t, "not_our_mac", "martian") // the kernels' own multicast, and what they send from link-local addresses
	if made := s.get(t, "weir_sessions_created_total") - sessions; made > float64(pings) {
		t.Errorf("%v sessions began during the reloads, expected one for each of %d pings: sessions were lost", made, pings)
	}
	t.Logf("%d reloads in %v, %d datagrams, %d pings", reloads, took.Round(time.Millisecond), total, pings)
	w.expectTables(t)
	w.stop(t)
}
