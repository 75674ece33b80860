// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// expectMonotonic fails the test if a counter went back.
func expectMonotonic(t *testing.T, before, after samples) {
	t.Helper()
	for series, was := range before {
		name, _, _ := strings.Cut(series, "{")
		if !strings.HasSuffix(name, "_total") || !strings.HasPrefix(name, "weir_") || name == "weir_dataplane_restarts_total" {
			continue
		}
		if now, ok := after[series]; !ok || now < was {
			t.Errorf("%s went from %v to %v (there: %t)", series, was, now, ok)
		}
	}
}

// late is one instance more.
const late = "      - {name: late, addresses: [172.30.0.9], external: {floating: [192.0.2.9]}}\n"

// Control is killed and started again under traffic, with each kind of file. Packets, sessions and
// counters go on in one data plane.
func TestHotControl(t *testing.T) {
	const rounds = 3 // through all cases
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveIdent(t, n.internet, true, remote4)
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	for _, f := range [][2]netip.Addr{{web4, remote4}, {web6, remote6}, {batch4, remote4}, {batch6, remote6}} {
		if _, err := echoUDP(n.guest, f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	streams := []*stream{
		startStream(t, n.guest, web4, remote4, 2*time.Millisecond), startStream(t, n.guest, web6, remote6, 2*time.Millisecond),
		startStream(t, n.guest, batch4, remote4, 2*time.Millisecond), startStream(t, n.guest, batch6, remote6, 2*time.Millisecond),
	}
	eventually(t, patience, "the streams flow", func() error {
		for _, s := range streams {
			if err := atLeast(s.echoed(), 20); err != nil {
				return err
			}
		}
		return nil
	})
	plane := w.dataplane(t)
	generation := 1.0
	running := baseConfig // what is in force
	other := map[string]string{baseConfig: baseConfig + late, baseConfig + late: baseConfig}

	cases := []struct {
		name    string
		file    func() string // what is on disk when the next control comes
		applied bool          // it makes a generation
		good    bool
		log     []string
	}{
		{"unchanged", func() string { return running }, false, true, nil},
		{"another comment", func() string { return running + "# nothing\n" }, false, true, nil},
		{"changed", func() string { return other[running] }, true, true, []string{`instance \"late\" of vpc \"blue\"`, "msg=reloaded"}},
		{"faulty", func() string { return strings.Replace(running, "side: outside", "side: upside", 1) }, false, false, []string{"reload refused", "upside"}},
		{"restart-only", func() string { return strings.Replace(running, "sessions: 8192", "sessions: 16384", 1) }, false, false,
			[]string{"dataplane.sessions", "needs a restart of weir"}},
		{"restart-only and more", func() string { return strings.Replace(other[running], "sessions: 8192", "sessions: 16384", 1) }, true, false,
			[]string{"dataplane.sessions", "the rest was applied"}},
		{"none", nil, false, false, []string{"reload refused", "cannot be read"}},
	}
	var controls []*process
	for round := range rounds {
		for _, c := range cases {
			before := w.scrape(t)
			w.signal(t, syscall.SIGKILL)
			w.wait(t, patience)
			if c.file == nil {
				os.Remove(w.config)
			} else {
				w.write(t, c.file())
			}
			w.run(t)
			controls = append(controls, w.process)
			w.ready(t)
			if c.applied {
				generation++
				running = other[running]
			}
			t.Run(fmt.Sprintf("%d %s", round, c.name), func(t *testing.T) {
				w.expectGeneration(t, generation, c.good)
				if now := w.dataplane(t); now != plane {
					t.Fatalf("data plane %d was replaced by %d", plane, now)
				}
				w.expectLog(t, append([]string{"took over a data plane that forwards"}, c.log...)...)
				if !c.applied && strings.Contains(w.log(), "msg=reloaded") {
					t.Error("the log tells of a reload")
				}
				now := w.scrape(t)
				expectMonotonic(t, before, now)
				if now.get(t, "weir_config_last_reload_success_timestamp_seconds") == 0 {
					t.Error("the running configuration was never loaded, says the timestamp")
				}
				expectLate(t, n, running != baseConfig)
			})
		}
	}
	endAll(streams)
	for _, s := range streams {
		s.endWhole(t)
		if list := s.sources(); len(list) != 1 {
			t.Errorf("%v: came from %v, expected one address and port", s.c.LocalAddr(), list)
		}
	}
	t.Logf("%d controls, one data plane", 1+len(controls))
	w.write(t, running)
	w.expectGeneration(t, generation, true)
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t) // the last control ends the data plane that the first one started
}

// expectLate fails the test if the late instance gets no answer, or gets one that it should not.
func expectLate(t *testing.T, n *network, answered bool) {
	t.Helper()
	limit := lossTime
	if answered {
		limit = 3 * time.Second
	}
	seen, err := whoAmI(n.guest, "udp", netip.MustParseAddr("172.30.0.9"), remote4, limit)
	if err != nil || seen.IsValid() != answered {
		t.Errorf("the late instance is seen as %v, %v; expected an answer: %t", seen, err, answered)
	}
}

// A program whose segments have another layout cannot take the data plane over: it says so, and
// restarts it.
func TestHotOtherLayout(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	other := filepath.Join(t.TempDir(), "weir")
	if err := build(other, "-ldflags", "-X weir/pipeline/memory.meaning=other"); err != nil {
		t.Fatal(err)
	}
	w := startWeir(t, n, baseConfig)
	if _, err := echoUDP(n.guest, batch4, remote4); err != nil {
		t.Fatal(err)
	}
	w.signal(t, syscall.SIGKILL)
	w.wait(t, patience)
	// Upgraded in place, as a package manager does.
	for was, is := range map[string]string{program: other, dataplaneOf(program): dataplaneOf(other)} {
		if err := os.Rename(was, was+".old"); err != nil {
			t.Fatal(err)
		}
		defer os.Rename(was+".old", was)
		if out, err := exec.Command("cp", is, was).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	old := w.dataplanes(t)
	w.run(t)
	w.ready(t)
	w.expectLog(t, "cannot take over the running data plane: restarting it, its sessions are lost", "segment layout")
	if now := w.dataplane(t); len(old) != 1 || now == old[0] {
		t.Errorf("data plane %d runs, before %v", now, old)
	}
	if _, err := echoUDP(n.guest, batch4, remote4); err != nil {
		t.Error(err)
	}
	w.expectGeneration(t, 1, true)
	w.expectBalance(t)
	w.stop(t)
}

// With --attach control starts no data plane: it waits for the service's, and leaves it running. A
// second control is refused.
func TestHotAttach(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := newWeir(t, n, baseConfig)
	attach := func() {
		w.process = spawn(t, n.gateway, w.env(), "run", "--attach", "--config", w.config, "--socket", w.socket)
	}
	attach()
	time.Sleep(500 * time.Millisecond)
	if pids := w.dataplanes(t); len(pids) > 0 {
		t.Fatalf("--attach started data planes %v", pids)
	}
	plane := spawnDataplane(t, n.gateway, w.env(), "--socket", w.socket)
	w.ready(t)
	s := startFlowing(t, n.guest, batch4, remote4)

	second := spawn(t, n.gateway, w.env(), "run", "--attach", "--config", w.config, "--socket", w.socket)
	expectRefused(t, second, "another weir run controls this data plane")

	for range 3 {
		w.signal(t, syscall.SIGTERM)
		if code := w.wait(t, patience); code != 0 {
			t.Errorf("weir run exits with %d, expected 0", code)
		}
		w.expectLog(t, "the data plane keeps forwarding")
		before := s.echoed()
		eventually(t, patience, "the stream flows without control", func() error { return atLeast(s.echoed(), before+50) })
		attach()
		w.ready(t)
		w.expectLog(t, "took over a data plane that forwards")
		if pid := w.dataplane(t); pid != plane.Cmd.Process.Pid {
			t.Fatalf("data plane %d runs, expected %d", pid, plane.Cmd.Process.Pid)
		}
	}
	w.expectGeneration(t, 1, true)
	s.endWhole(t)
	w.signal(t, syscall.SIGTERM)
	w.wait(t, patience)
	plane.signal(t, syscall.SIGTERM)
	if code := plane.wait(t, restartLimit); code != 0 {
		t.Errorf("weir-dataplane exits with %d after SIGTERM, expected 0", code)
	}
}

// A control that is killed at any point of a reload leaves a whole configuration in force: the old
// one, or the new one.
func TestHotControlKilledInReload(t *testing.T) {
	for _, point := range reloadPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			n.guest.address(t, "eth0", "172.30.0.9/24")
			serveEcho(t, n.internet, remote4)
			l := newLatches(t)
			w := startWeir(t, n, baseConfig, l.env())
			plane := w.dataplane(t)
			s := startFlowing(t, n.guest, batch4, remote4)
			l.close(t, point)
			w.write(t, baseConfig+late)
			l.reached(t, point)
			w.signal(t, syscall.SIGKILL)
			w.wait(t, patience)
			w.run(t, l.env()) // waits until the data plane has time for it
			time.Sleep(100 * time.Millisecond)
			l.open(t, point)
			w.ready(t)
			w.expectGeneration(t, 2, true)
			if now := w.dataplane(t); now != plane {
				t.Errorf("data plane %d was replaced by %d", plane, now)
			}
			if seen, err := echoUDP(n.guest, netip.MustParseAddr("172.30.0.9"), remote4); err != nil || seen.Addr() != netip.MustParseAddr("192.0.2.9") {
				t.Errorf("the new instance: %v, %v; expected 192.0.2.9", seen, err)
			}
			s.endWhole(t)
			w.expectBalance(t)
			w.expectTables(t)
			w.stop(t)
		})
	}
}

// A lack of memory, on either side, refuses a reload with its reason. What runs stays, and when
// there is memory the same file applies.
func TestHotNoMemory(t *testing.T) {
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveIdent(t, n.internet, true, remote4)
	serveEcho(t, n.internet, remote4)
	l := newLatches(t)
	w := startWeir(t, n, baseConfig, l.env())
	s := startFlowing(t, n.guest, batch4, remote4)
	generation := 1.0
	text := map[bool]string{true: baseConfig + late, false: baseConfig}
	for i, c := range []struct {
		name       string
		fail, heal func(t *testing.T)
		log        string
	}{
		{"control", func(t *testing.T) { l.put(t, "segment.generation.fail") }, func(t *testing.T) { l.take(t, "segment.generation.fail") }, "segment generation: "},
		{"data plane", func(t *testing.T) { l.put(t, "segment.map.fail") }, func(t *testing.T) { l.take(t, "segment.map.fail") }, "mmap of "},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.fail(t)
			// More often than there is room for generations: a failure must not leave one taken.
			for range 6 {
				w.write(t, text[i%2 == 0])
				failures := strings.Count(w.log(), c.log)
				w.signal(t, syscall.SIGHUP)
				eventually(t, patience, "the reload fails", func() error {
					if strings.Count(w.log(), c.log) == failures {
						return fmt.Errorf("the log does not say %q once more", c.log)
					}
					return nil
				})
				w.expectGeneration(t, generation, false)
			}
			expectLate(t, n, i%2 == 1)
			c.heal(t)
			w.signal(t, syscall.SIGHUP)
			generation++
			w.expectGeneration(t, generation, true)
			expectLate(t, n, i%2 == 0)
		})
	}
	s.endWhole(t)
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}

// A file that changes while weir starts is not missed.
func TestHotChangedWhileStarting(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	l := newLatches(t)
	w := newWeir(t, n, baseConfig)
	l.close(t, "start.loaded")
	w.run(t, l.env())
	l.reached(t, "start.loaded")
	w.write(t, baseConfig+late)
	l.open(t, "start.loaded")
	w.ready(t)
	w.expectGeneration(t, 2, true)
	w.stop(t)
}
