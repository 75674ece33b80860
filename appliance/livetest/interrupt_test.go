// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapped puts taps in the place of a configuration's devices. They have interrupts.
var tapped = strings.NewReplacer(
	"net_af_packet0,iface=inside,framecnt=4096", "net_tap0,iface=tapinside",
	"net_af_packet1,iface=outside,framecnt=4096", "net_tap1,iface=tapoutside")

// Workers that rest in a wait for interrupts, which net_tap has, are there for the first packet, a
// reload and the end.
func TestForwardByInterrupt(t *testing.T) {
	for workers, config := range map[int]string{
		1: baseConfig,
		2: replace(t, baseConfig, "workers: [1], memory: 64MiB", "workers: [0, 1], memory: 128MiB"),
	} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			config := tapped.Replace(config)
			n := newNetwork(t)
			serveEcho(t, n.internet, remote4, remote6)
			serveEcho(t, n.guest, web4, web6)
			w := newWeir(t, n, config)
			w.run(t)
			w.started(t)
			n.bridge(t, "inside", "tapinside")
			n.bridge(t, "outside", "tapoutside")
			w.ready(t)
			w.expectLog(t, "with_interrupts", "inside outside", "without=[]")

			for _, f := range []struct {
				in       *namespace
				from, to netip.Addr
			}{
				{n.guest, web4, remote4}, {n.guest, web6, remote6}, {n.guest, batch4, remote4}, {n.guest, batch6, remote6},
				{n.internet, remote4, webPublic4}, {n.internet, remote6, webPublic6},
			} {
				w.asleep(t, workers)
				if _, err := echoUDP(f.in, f.from, f.to); err != nil {
					t.Errorf("UDP: %v", err)
				}
				w.asleep(t, workers)
				if err := ping(f.in, f.from, f.to); err != nil {
					t.Error(err)
				}
				if err := transferTCP(f.in, f.from, f.to, 1<<20); err != nil {
					t.Error(err)
				}
			}
			s := w.expectBalance(t)
			for _, r := range []string{"neighbor_unresolved", "bad_ip_checksum", "no_session", "tx_full"} {
				if d := s.get(t, reason(r)); d != 0 {
					t.Errorf("%v packets were dropped as %s", d, r)
				}
			}
			if workers > 1 && s.sum("weir_worker_adopted_packets_total") == 0 {
				t.Error("no packet went from one worker to the other")
			}

			w.asleep(t, workers)
			w.write(t, replace(t, config, "floating: [192.0.2.5, ", "floating: [192.0.2.6, "))
			w.expectGeneration(t, 2, true)
			w.asleep(t, workers)
			if seen, err := echoUDP(n.guest, web4, remote4); err != nil || seen.Addr() != netip.MustParseAddr("192.0.2.6") {
				t.Errorf("after the reload %v is seen as %v, %v", web4, seen, err)
			}
			w.expectBalance(t)
			w.expectTables(t)
			w.asleep(t, workers)
			w.stop(t)
		})
	}
}

// A busy worker never asks for interrupts.
func TestBusyWithoutInterrupts(t *testing.T) {
	n := newNetwork(t)
	w := newWeir(t, n, replace(t, tapped.Replace(baseConfig), "idle: sleep", "idle: busy"))
	w.run(t)
	w.started(t)
	if strings.Contains(w.log(), "interrupts") {
		t.Error("the log speaks of interrupts")
	}
	w.stop(t)
}

// bridge connects a tap of the data plane's with a wire. The tap gets an address of its own: it
// begins with the device's, for which the bridge would keep all frames.
func (n *network) bridge(t *testing.T, wire, tap string) {
	t.Helper()
	links := n.gateway.Links
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br" + wire}}
	if err := links.LinkAdd(bridge); err != nil {
		t.Fatalf("bridge %s: %v", bridge.Name, err)
	}
	if err := links.LinkSetHardwareAddr(n.gateway.link(t, tap), net.HardwareAddr{2, 0, 0, 0, 1, byte(bridge.Index)}); err != nil {
		t.Fatalf("interface %s: address: %v", tap, err)
	}
	for _, name := range []string{wire, tap} {
		if err := links.LinkSetMaster(n.gateway.link(t, name), bridge); err != nil {
			t.Fatalf("interface %s: into a bridge: %v", name, err)
		}
	}
	n.gateway.up(t, bridge.Name)
}

// asleep returns when every worker has been seen in a wait for interrupts.
func (w *weir) asleep(t *testing.T, workers int) {
	t.Helper()
	pids := w.dataplanes(t)
	if len(pids) != 1 {
		t.Fatalf("data planes %v, expected one", pids)
	}
	call := fmt.Sprint(unix.SYS_PPOLL)
	seen := map[string]bool{}
	eventually(t, patience, "the workers wait for interrupts", func() error {
		for range 100 {
			paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pids[0]))
			if err != nil {
				return err
			}
			for _, path := range paths {
				text, _ := os.ReadFile(path)
				if f := strings.Fields(string(text)); len(f) > 2 && f[0] == call && f[2] == "0x1" { // on one descriptor: control's are two
					seen[path] = true
				}
			}
			if len(seen) >= workers {
				return nil
			}
		}
		return fmt.Errorf("%d of %d do", len(seen), workers)
	})
}
