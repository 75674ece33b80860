// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// replace changes a configuration in one place, which must be there.
func replace(t *testing.T, config, old, new string) string {
	t.Helper()
	if strings.Count(config, old) != 1 {
		t.Fatalf("the configuration has %q %d times, expected once", old, strings.Count(config, old))
	}
	return strings.Replace(config, old, new, 1)
}

// expectGeneration waits for a generation in force, and for how the last load ended.
func (w *weir) expectGeneration(t *testing.T, number float64, ok bool) {
	t.Helper()
	eventually(t, patience, "the reload", func() error {
		s, err := w.tryScrape()
		if err != nil {
			return err
		}
		if got, good := s["weir_generation"], s["weir_config_last_reload_successful"]; got != number || (good == 1) != ok {
			return fmt.Errorf("generation %v, last load successful %v; expected %v, %v", got, good == 1, number, ok)
		}
		return nil
	})
}

// Each kind of change, by watching the file alone and by SIGHUP.
func TestReload(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	seenFrom := func(from netip.Addr, want string) {
		t.Helper()
		if seen, err := echoUDP(n.guest, from, remote4); err != nil || seen.Addr() != netip.MustParseAddr(want) {
			t.Errorf("%v is seen as %v, %v; expected %s", from, seen, err, want)
		}
	}
	seenFrom(web4, "192.0.2.5")

	moved := replace(t, baseConfig, "floating: [192.0.2.5, ", "floating: [192.0.2.6, ")
	w.write(t, moved)
	w.expectGeneration(t, 2, true)
	seenFrom(web4, "192.0.2.6")

	// A faulty file: the old one stays, and the log says where the fault is.
	faulty := replace(t, moved, "routes:\n      - {to: 0.0.0.0/0, gateway: default}", "routes:\n      - {to: 0.0.0.0/0, gateway: nowhere}")
	line := 1 + strings.Count(faulty[:strings.Index(faulty, "nowhere")], "\n")
	w.write(t, faulty)
	w.expectGeneration(t, 2, false)
	seenFrom(web4, "192.0.2.6")
	w.expectLog(t, fmt.Sprintf("%s:%d", w.config, line), "nowhere")

	// Back to what runs: good again, and no new generation. A comment means nothing either.
	w.write(t, moved)
	w.expectGeneration(t, 2, true)
	w.write(t, moved+"# nothing\n")
	w.signal(t, syscall.SIGHUP)
	time.Sleep(time.Second) // long enough for a reload that must not happen
	w.expectGeneration(t, 2, true)

	// What only a restart changes is refused, the rest applies.
	both := replace(t, moved, "sessions: 8192", "sessions: 16384")
	both = replace(t, both, "floating: [192.0.2.6, ", "floating: [192.0.2.7, ")
	w.write(t, both)
	w.expectGeneration(t, 3, false)
	seenFrom(web4, "192.0.2.7")
	w.expectLog(t, "dataplane.sessions")
	if v := w.scrape(t).get(t, "weir_sessions_capacity"); v != 8192 {
		t.Errorf("%v sessions fit, expected 8192 until a restart", v)
	}

	// Half of all, gone at once, is more likely an accident.
	head, _, _ := strings.Cut(both, "      - name: batch")
	head = replace(t, head, "sessions: 16384", "sessions: 8192")
	w.write(t, replace(t, head, `floating: [192.0.2.7, "2001:db8:1::5"]`, "floating: [192.0.2.7]"))
	eventually(t, patience, "the shrunk configuration is refused", func() error {
		if !strings.Contains(w.log(), "max_shrink") {
			return fmt.Errorf("the log says nothing of max_shrink")
		}
		return nil
	})
	w.expectGeneration(t, 3, false)
	if _, err := echoUDP(n.guest, batch4, remote4); err != nil {
		t.Error(err)
	}

	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}

// measured is how long it takes until the data plane has measured itself anew: it does so once a
// second.
const measured = 1500 * time.Millisecond

// dataplaneThreads returns how many threads the data plane has.
func (w *weir) dataplaneThreads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.dataplane(t)))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Reloads, scrapes and traffic side by side: nothing is lost, and the data plane neither collects
// nor grows.
func TestReloadUnderTraffic(t *testing.T) {
	const reloads, scrapes = 50, 200
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	for _, f := range [][2]netip.Addr{{web4, remote4}, {web6, remote6}, {batch4, remote4}, {batch6, remote6}} {
		// While a neighbor is not resolved few packets are held for it, and more would be lost.
		if _, err := echoUDP(n.guest, f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	var streams []*stream // about 1,000 packets a second
	for range 3 {
		streams = append(streams,
			startStream(t, n.guest, web4, remote4, 12*time.Millisecond), startStream(t, n.guest, web6, remote6, 12*time.Millisecond),
			startStream(t, n.guest, batch4, remote4, 12*time.Millisecond), startStream(t, n.guest, batch6, remote6, 12*time.Millisecond))
	}
	stop := churn(t, n.guest, web4, remote4, 5*time.Millisecond)
	eventually(t, patience, "the streams flow", func() error {
		for _, s := range streams {
			if err := atLeast(s.echoed(), 10); err != nil {
				return err
			}
		}
		return nil
	})

	// An instance comes and goes.
	late := baseConfig + "      - {name: late, addresses: [172.30.0.9], external: {floating: [192.0.2.9]}}\n"
	generation := w.scrape(t).get(t, "weir_generation")
	threads := w.dataplaneThreads(t)
	time.Sleep(measured)
	warm := w.scrape(t).get(t, "weir_dataplane_heap_bytes")
	scraped := 0
	for i := range reloads {
		w.write(t, []string{late, baseConfig}[i%2])
		w.signal(t, syscall.SIGHUP)
		generation++
		eventually(t, patience, "the reload", func() error {
			s, err := w.tryScrape()
			if err != nil {
				return err
			}
			scraped++
			if s["weir_generation"] != generation {
				return fmt.Errorf("generation %v, expected %v", s["weir_generation"], generation)
			}
			return nil
		})
		time.Sleep(100 * time.Millisecond)
	}
	for ; scraped < scrapes; scraped++ {
		w.scrape(t)
	}
	stop()
	endAll(streams)
	for _, s := range streams {
		s.endWhole(t)
		if list := s.sources(); len(list) != 1 {
			t.Errorf("%v: came from %v, expected one address and port", s.c.LocalAddr(), list)
		}
	}
	time.Sleep(measured)
	s := w.expectBalance(t)
	if v := s.get(t, "weir_dataplane_collections"); v != 0 {
		t.Errorf("the data plane's collector ran %v times, expected never", v)
	}
	// All that was ever seen to grow is Go's scheduler, when it makes another thread on a busy
	// machine.
	const perThread = 16 << 10
	last := s.get(t, "weir_dataplane_heap_bytes")
	more := w.dataplaneThreads(t) - threads
	if last > warm+float64(max(more, 0)*perThread) {
		t.Errorf("the data plane's heap grew from %v to %v bytes over %d reloads, with %d threads more", warm, last, reloads, more)
	}
	t.Logf("%d scrapes; the data plane's heap: %v bytes, before the reloads %v", scraped, last, warm)
	w.expectTables(t)
	w.stop(t)
}
