// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestForward(t *testing.T) { testForward(t, baseConfig, func(*weir) {}) }

// With two workers and two queues, packets that the kernel gives to the wrong one go to the one
// that owns them.
func TestForwardByTwoWorkers(t *testing.T) {
	config := strings.ReplaceAll(replace(t, baseConfig, "workers: [1], memory: 64MiB", "workers: [0, 1], memory: 128MiB"), ",framecnt=4096", ",qpairs=2,framecnt=4096")
	testForward(t, config, func(w *weir) {
		s := w.scrape(t)
		if s.sum("weir_worker_adopted_packets_total") == 0 {
			t.Error("no packet went from one worker to the other")
		}
		for _, worker := range []string{"0", "1"} {
			if s.get(t, `weir_worker_busy_seconds_total{worker="`+worker+`"}`) == 0 {
				t.Errorf("worker %s had nothing to do", worker)
			}
		}
	})
}

// testForward sends in both directions, both families, through 1:1 and SNAT, with every kind of
// client. No MAC is configured anywhere: ARP and neighbor discovery find them. At the end it calls
// also.
func testForward(t *testing.T, config string, also func(*weir)) {
	t.Helper()
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	serveEcho(t, n.guest, web4, web6, batch4)
	w := startWeir(t, n, config)

	// First, with no neighbor known: one datagram each way, and it must not be lost while weir asks
	// for the MAC.
	for _, f := range []struct {
		name       string
		in         *namespace
		from, to   netip.Addr
		source     netip.Addr
		snat       bool
		unresolved string
	}{
		{"in, 1:1, IPv4", n.internet, remote4, webPublic4, remote4, false, "instance"},
		{"in, 1:1, IPv6", n.internet, remote6, webPublic6, remote6, false, "instance"},
		{"out, 1:1, IPv4", n.guest, web4, remote4, webPublic4, false, ""},
		{"out, 1:1, IPv6", n.guest, web6, remote6, webPublic6, false, ""},
		{"out, SNAT, IPv4", n.guest, batch4, remote4, batchPublic4, true, ""},
		{"out, SNAT, IPv6", n.guest, batch6, remote6, batchPublic6, true, ""},
	} {
		t.Run(f.name, func(t *testing.T) {
			before := w.scrape(t)
			seen, err := echoUDP(f.in, f.from, f.to)
			if err != nil {
				t.Fatal(err)
			}
			if seen.Addr() != f.source {
				t.Errorf("UDP: the other side saw %v, expected %v", seen, f.source)
			}
			if f.snat && (seen.Port() < snatFirst || seen.Port() > snatLast) {
				t.Errorf("UDP: the other side saw port %d, expected %d to %d", seen.Port(), snatFirst, snatLast)
			}
			if err := transferTCP(f.in, f.from, f.to, 2<<20); err != nil {
				t.Error(err)
			}
			if err := ping(f.in, f.from, f.to); err != nil {
				t.Error(err)
			}
			after := w.expectBalance(t)
			if d := after.sum("weir_forwarded_packets_total") - before.sum("weir_forwarded_packets_total"); d < 1000 {
				t.Errorf("%v packets were forwarded; a transfer of 2 MiB alone takes more", d)
			}
			for _, r := range []string{"neighbor_unresolved", "bad_ip_checksum", "no_session", "tx_full"} {
				if d := after.get(t, reason(r)) - before.get(t, reason(r)); d != 0 {
					t.Errorf("%v packets were dropped as %s", d, r)
				}
			}
		})
	}

	t.Run("unsolicited to SNAT", func(t *testing.T) {
		before := w.scrape(t).get(t, reason("unsolicited"))
		c, err := dialUDP(n.internet, netip.AddrPortFrom(remote4, 0), batchPublic4)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("nobody asked"))
		eventually(t, patience, "it is dropped", func() error {
			s, err := w.tryScrape()
			if err == nil && s[reason("unsolicited")] != before+1 {
				err = fmt.Errorf("%v dropped as unsolicited, expected %v", s[reason("unsolicited")], before+1)
			}
			return err
		})
	})

	t.Run("weir itself", func(t *testing.T) {
		for _, f := range []struct {
			in       *namespace
			from, to string
		}{
			{n.guest, "172.30.0.5", "172.30.0.1"},
			{n.guest, "fd00:1::5", "fd00:1::1"},
			{n.internet, "198.51.100.1", "198.51.100.2"},
			{n.internet, "2001:db8::1", "2001:db8::2"},
		} {
			if err := ping(f.in, netip.MustParseAddr(f.from), netip.MustParseAddr(f.to)); err != nil {
				t.Error(err)
			}
		}
	})
	also(w)
	w.expectBalance(t)
	w.expectTables(t)
	page, err := w.web.Get("/metrics")
	if err != nil {
		t.Error(err)
	}
	w.stop(t)
	// Who talked to whom is nobody's to read (RFC 6888 REQ-12).
	for name, text := range map[string]string{"log": w.log(), "page of metrics": page} {
		for _, remote := range []netip.Addr{remote4, remote6} {
			if strings.Contains(text, remote.String()) {
				t.Errorf("the %s holds the remote address %v", name, remote)
			}
		}
		if text == "" {
			t.Errorf("the %s is empty: the test says nothing", name)
		}
	}
}

// reason is the series of drops for a reason.
func reason(name string) string { return fmt.Sprintf("weir_dropped_packets_total{reason=%q}", name) }
