// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var lateAddress = netip.MustParseAddr("172.30.0.9")

// lateAt is one instance more, with its external address.
func lateAt(address string) string {
	return strings.Replace(late, "192.0.2.9", address, 1)
}

// expectLateAt fails the test if the late instance is not seen under its address.
func expectLateAt(t *testing.T, n *network, address string) {
	t.Helper()
	if seen, err := echoUDP(n.guest, lateAddress, remote4); err != nil || seen.Addr() != netip.MustParseAddr(address) {
		t.Errorf("the late instance is seen as %v, %v; expected %s", seen, err, address)
	}
}

// A thousand writes a second for five seconds, with signals among them: few generations, and the
// last write is in force.
func TestHotStorm(t *testing.T) {
	const writes, interval, signals = 5000, time.Millisecond, 10
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveEcho(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	s := startFlowing(t, n.guest, batch4, remote4)
	start := time.Now()
	for i := range writes {
		w.write(t, baseConfig+lateAt(fmt.Sprint("192.0.2.", 100+i%100)))
		if i%(writes/signals) == 0 {
			w.signal(t, syscall.SIGHUP)
		}
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * interval)))
	}
	took := time.Since(start)
	w.write(t, baseConfig+lateAt("192.0.2.250"))
	eventually(t, patience, "the last write is in force", func() error {
		seen, err := echoUDP(n.guest, lateAddress, remote4)
		if err == nil && seen.Addr() != netip.MustParseAddr("192.0.2.250") {
			err = fmt.Errorf("it is seen as %v", seen)
		}
		return err
	})
	// One for a signal, one for a change that a reading has missed, and what a pause of this
	// machine lets the watch see.
	reloads := 0
	eventually(t, patience, "each reload is logged", func() error {
		v, err := w.tryScrape()
		if err != nil {
			return err
		}
		if reloads = strings.Count(w.log(), "msg=reloaded "); v["weir_generation"] != float64(1+reloads) || v["weir_config_last_reload_successful"] != 1 {
			return fmt.Errorf("%d of them, generation %v, last one successful %v", reloads, v["weir_generation"], v["weir_config_last_reload_successful"])
		}
		return nil
	})
	if limit := 2*signals + int(took/settleTime) + 2; reloads > limit {
		t.Errorf("%d writes in %v made %d generations, expected at most %d", writes, took, reloads, limit)
	}
	s.endWhole(t)
	t.Logf("%d writes in %v, %d reloads", writes, took.Round(time.Millisecond), reloads)
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}

// What comes during a reload, a change and signals, waits for its end and is one more.
func TestHotReloadDuringReload(t *testing.T) {
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveEcho(t, n.internet, remote4)
	l := newLatches(t)
	w := startWeir(t, n, baseConfig, l.env())
	l.close(t, "reload.before-publish")
	w.write(t, baseConfig+lateAt("192.0.2.100"))
	l.reached(t, "reload.before-publish")
	w.write(t, baseConfig+lateAt("192.0.2.101"))
	for range 5 {
		w.signal(t, syscall.SIGHUP)
	}
	time.Sleep(500 * time.Millisecond) // the watch has seen it
	l.open(t, "reload.before-publish")
	w.expectGeneration(t, 3, true)
	expectLateAt(t, n, "192.0.2.101")
	time.Sleep(time.Second) // for a reload that must not happen
	w.expectGeneration(t, 3, true)
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}

// SIGTERM in the middle of a reload ends both processes in order once that one is through; what
// waits behind it is not begun.
func TestHotTerminateInReload(t *testing.T) {
	for _, point := range reloadPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			serveEcho(t, n.internet, remote4)
			l := newLatches(t)
			w := startWeir(t, n, baseConfig, l.env())
			l.close(t, point)
			w.write(t, baseConfig+lateAt("192.0.2.100"))
			l.reached(t, point)
			w.write(t, baseConfig+lateAt("192.0.2.101"))
			w.signal(t, syscall.SIGHUP)
			time.Sleep(500 * time.Millisecond) // the watch has seen it
			w.signal(t, syscall.SIGTERM)
			time.Sleep(100 * time.Millisecond)
			l.open(t, point)
			if code := w.wait(t, restartLimit); code != 0 {
				t.Errorf("weir run exits with %d, expected 0", code)
			}
			if reloads := strings.Count(w.log(), "msg=reloaded "); reloads != 1 {
				t.Errorf("%d reloads, expected the one that had begun", reloads)
			}
			w.expectNoDataplane(t, patience)
			w.expectClean(t)
		})
	}
}

// Two files that have to change together, one after the other: between them nothing changes, and
// then both do at once.
func TestHotTwoFiles(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := newWeir(t, n, baseConfig)
	w.config = filepath.Join(w.dir, "etc")
	head, vpcs, _ := strings.Cut(baseConfig, "vpcs:\n")
	parts := []string{head, "version: 1\nvpcs:\n" + vpcs}
	if err := writeParts(w.config, parts); err != nil {
		t.Fatal(err)
	}
	w.run(t)
	w.ready(t)
	s := startFlowing(t, n.guest, batch4, remote4)

	parts[0] = replace(t, parts[0], "name: default", "name: other")
	if err := writeParts(w.config, parts[:1]); err != nil {
		t.Fatal(err)
	}
	w.expectGeneration(t, 1, false)
	w.expectLog(t, "no gateway is named")
	parts[1] = strings.ReplaceAll(parts[1], "gateway: default", "gateway: other")
	if err := os.WriteFile(filepath.Join(w.config, partNames[1]), []byte(parts[1]), 0o644); err != nil {
		t.Fatal(err)
	}
	w.expectGeneration(t, 2, true)
	s.endWhole(t)
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}
