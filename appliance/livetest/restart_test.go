// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shortFlows makes UDP sessions end after three seconds without packets, and SNAT ports rest for
// one.
func shortFlows(config string) string {
	return strings.Replace(config, "sessions: {}", "sessions: {rfc_unsafe: true, timeouts: {udp: 3s}, port_rest: 1s}", 1)
}

// restartLimit is within which time packets flow again after a death, and within which an orderly
// end is over. On a machine with nothing else to do the first takes 0.4 s; what weir promises is 2
// s; the rest is for a machine that is busy.
const restartLimit = 5 * time.Second

// A data plane that is killed, anywhere, is started again with its sessions still there.
func TestDataplaneKilled(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	for _, point := range []string{
		"", // the test kills it, wherever it is
		"session.filled:200",
		"session.published:200",
		"session.half-linked:200",
		"session.removed:20",
		"session.half-unlinked:20",
		"mapping.filled:100",
		"mapping.published:100",
		"mapping.half-linked:100",
		"mapping.half-unlinked:20",
		"mapping.unlinked:20",
	} {
		name := point
		if name == "" {
			name = "at any place"
		}
		t.Run(name, func(t *testing.T) {
			once := filepath.Join(t.TempDir(), "died")
			w := startWeir(t, n, shortFlows(baseConfig), "WEIR_FAULT="+point, "WEIR_FAULT_ONCE="+once)
			first := w.dataplane(t)
			steady := []*stream{
				startStream(t, n.guest, web4, remote4, 10*time.Millisecond),
				startStream(t, n.guest, web6, remote6, 10*time.Millisecond),
				startStream(t, n.guest, batch4, remote4, 10*time.Millisecond),
				startStream(t, n.guest, batch6, remote6, 10*time.Millisecond),
			}
			stopOne := churn(t, n.guest, web4, remote4, 2*time.Millisecond)
			stopTwo := churn(t, n.guest, batch4, remote4, 2*time.Millisecond)
			if point == "" {
				eventually(t, patience, "the streams flow", func() error {
					for _, s := range steady {
						if s.echoed() < 50 {
							return fmt.Errorf("%d echoes", s.echoed())
						}
					}
					return nil
				})
				if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			} else {
				eventually(t, patience, "it dies at "+point, func() error {
					_, err := os.Stat(once)
					return err
				})
			}
			died := time.Now()
			for _, s := range steady {
				eventually(t, patience, "every stream flows again", func() error {
					if last := s.lastEcho(); last.Before(died.Add(20 * time.Millisecond)) { // what was in flight may still arrive
						return fmt.Errorf("%v: last echo %v after the death", s.c.LocalAddr(), last.Sub(died))
					}
					return nil
				})
				took := time.Since(died)
				t.Logf("%v: forwarding again %v after the death", s.c.LocalAddr(), took.Round(time.Millisecond))
				if took > restartLimit {
					t.Errorf("%v: forwarding again %v after the death, expected %v at the most", s.c.LocalAddr(), took, restartLimit)
				}
			}
			if again := w.dataplane(t); again == first {
				t.Errorf("process %d goes on: it has not died", first)
			}
			stopOne()
			stopTwo()
			endAll(steady)
			for _, s := range steady {
				if list := s.sources(); len(list) != 1 {
					t.Errorf("%v: came from %v, expected one address and port before and after", s.c.LocalAddr(), list)
				}
			}
			s := w.expectBalance(t)
			if v := s.get(t, "weir_dataplane_restarts_total"); v != 1 {
				t.Errorf("weir_dataplane_restarts_total %v, expected 1", v)
			}
			if strings.HasPrefix(point, "session.filled") || strings.HasPrefix(point, "session.published") {
				if s.get(t, reason("restart")) == 0 {
					t.Error("no packet is counted as lost by the restart, and it had one in hand")
				}
			}
			w.expectTables(t)
			w.stop(t)
		})
	}
}

// Data planes that die one after the other may die of what they find: the fourth begins without
// sessions, and says so.
func TestDeathsInARow(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	s := startStream(t, n.guest, batch4, remote4, 10*time.Millisecond)
	const says = "the next one begins without sessions"
	for death := range 3 {
		died := s.echoed()
		eventually(t, patience, "the stream flows", func() error {
			if s.echoed() < died+20 {
				return fmt.Errorf("%d echoes after death %d", s.echoed()-died, death)
			}
			return nil
		})
		if strings.Contains(w.log(), says) {
			t.Fatalf("after %d deaths: the sessions are lost", death)
		}
		last := w.dataplane(t)
		if err := syscall.Kill(last, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, "another data plane", func() error {
			if all := w.dataplanes(t); len(all) != 1 || all[0] == last {
				return fmt.Errorf("there are %v", all)
			}
			return nil
		})
	}
	w.expectLog(t, says)
	eventually(t, patience, "sessions ended with it", func() error {
		if v := w.scrape(t).get(t, "weir_sessions_ended_total"); v == 0 {
			return errors.New("none has ended")
		}
		return nil
	})
	endAll([]*stream{s})
	w.expectBalance(t)
	w.expectTables(t)
	w.stop(t)
}

// Without control packets flow on. The next control takes the data plane over, and what changed on
// disk meanwhile.
func TestControlKilled(t *testing.T) {
	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveEcho(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	s := startFlowing(t, n.guest, batch4, remote4)
	plane := w.dataplane(t)

	w.signal(t, syscall.SIGKILL)
	w.wait(t, patience)
	before := s.echoed()
	eventually(t, patience, "the stream flows without control", func() error { return atLeast(s.echoed(), before+100) })

	w.write(t, baseConfig+`      - name: late
        addresses: [172.30.0.9]
        external: {floating: [192.0.2.9]}
`)
	w.run(t)
	w.ready(t)
	if again := w.dataplane(t); again != plane {
		t.Errorf("data plane %d was replaced by %d", plane, again)
	}
	w.expectLog(t, "took over")
	if seen, err := echoUDP(n.guest, netip.MustParseAddr("172.30.0.9"), remote4); err != nil || seen.Addr() != netip.MustParseAddr("192.0.2.9") {
		t.Errorf("the new instance: %v, %v; expected 192.0.2.9", seen, err)
	}
	s.endWhole(t)
	if list := s.sources(); len(list) != 1 {
		t.Errorf("the stream came from %v, expected one address and port", list)
	}
	if v := w.expectBalance(t).get(t, "weir_generation"); v != 2 {
		t.Errorf("generation %v, expected 2", v)
	}
	w.expectTables(t)
	w.stop(t) // and with it the data plane, though it is another one's child
}

// Neighbors that ask again every second go on sending while control is away, and weir answers
// pings: workers say what there is to say.
func TestNeighborsWithoutControl(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	for _, host := range []*namespace{n.guest, n.internet} {
		for _, family := range []string{"ipv4", "ipv6"} {
			host.set(t, "net/"+family+"/neigh/eth0/base_reachable_time_ms", "1000")
			host.set(t, "net/"+family+"/neigh/eth0/delay_first_probe_time", "1")
		}
	}
	w := startWeir(t, n, baseConfig)
	streams := []*stream{
		startFlowing(t, n.guest, web4, remote4), startFlowing(t, n.guest, web6, remote6),
		startFlowing(t, n.guest, batch4, remote4), startFlowing(t, n.guest, batch6, remote6),
	}
	punted := w.scrape(t).get(t, "weir_punted_packets_total")
	w.signal(t, syscall.SIGKILL)
	w.wait(t, patience)
	for _, s := range streams {
		before := s.echoed()
		eventually(t, 60*time.Second, "the stream flows without control", func() error { return atLeast(s.echoed(), before+1500) })
	}
	for _, own := range []struct{ from, to netip.Addr }{{web4, netip.MustParseAddr("172.30.0.1")}, {web6, netip.MustParseAddr("fd00:1::1")}} {
		if err := ping(n.guest, own.from, own.to); err != nil {
			t.Errorf("without control: %v", err)
		}
	}
	w.run(t)
	w.ready(t)
	for _, s := range streams {
		s.endWhole(t)
	}
	// Each side has asked at least some times for each family.
	if now := w.expectBalance(t).get(t, "weir_punted_packets_total"); now < punted+8 {
		t.Errorf("%v questions while control was away: the test shows nothing", now-punted)
	}
	w.stop(t)
}

func atLeast(got, want int) error {
	if got < want {
		return fmt.Errorf("%d, expected at least %d", got, want)
	}
	return nil
}

// A death of both at once hinders no later start, and leaves nothing that an orderly end does not
// remove.
func TestBothKilled(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := newWeir(t, n, baseConfig)
	for round := range 10 {
		w.run(t)
		w.ready(t)
		if _, err := echoUDP(n.guest, batch4, remote4); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		plane := w.dataplane(t)
		if round == 9 {
			break
		}
		// Frozen first, so that neither sees the other die.
		syscall.Kill(plane, syscall.SIGSTOP)
		w.signal(t, syscall.SIGKILL)
		syscall.Kill(plane, syscall.SIGKILL)
		w.wait(t, patience)
		w.expectNoDataplane(t, patience)
	}
	w.stop(t)
}

// SIGTERM ends both in order: exit 0 and nothing left, though clients go on sending.
func TestTerminate(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := startWeir(t, n, baseConfig)
	startFlowing(t, n.guest, web4, remote4)
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t, restartLimit); code != 0 {
		t.Errorf("weir run exits with %d, expected 0", code)
	}
	if pids := w.dataplanes(t); len(pids) > 0 {
		t.Errorf("data planes %v outlive weir run", pids)
	}
	w.expectClean(t)
}

// A data plane that a service manager started first is used, and goes on when control ends.
func TestDataplaneFirst(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4)
	w := newWeir(t, n, baseConfig)
	plane := spawnDataplane(t, n.gateway, w.env(), "--socket", w.socket)
	eventually(t, patience, "it listens", func() error {
		_, err := os.Stat(w.socket)
		return err
	})
	// Who only looks does no harm.
	for range 3 {
		second := spawnDataplane(t, n.gateway, w.env(), "--socket", w.socket)
		if code := second.wait(t, patience); code != 1 {
			t.Errorf("a second data plane exits with %d, expected 1", code)
		}
		second.expectLog(t, "another data plane listens there")
	}

	w.run(t)
	w.ready(t)
	if pid := w.dataplane(t); pid != plane.Cmd.Process.Pid {
		t.Fatalf("data plane %d runs, expected %d", pid, plane.Cmd.Process.Pid)
	}
	s := startFlowing(t, n.guest, batch4, remote4)

	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t, restartLimit); code != 0 {
		t.Errorf("weir run exits with %d, expected 0", code)
	}
	before := s.echoed()
	eventually(t, patience, "the stream flows without control", func() error { return atLeast(s.echoed(), before+100) })
	w.run(t)
	w.ready(t)
	s.endWhole(t)
	w.expectBalance(t)
	w.signal(t, syscall.SIGTERM)
	w.wait(t, restartLimit)

	plane.signal(t, syscall.SIGTERM)
	if code := plane.wait(t, restartLimit); code != 0 {
		t.Errorf("weir-dataplane exits with %d after SIGTERM, expected 0", code)
	}
	w.expectClean(t)
}
