// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bufio"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// unit is a systemd unit: the values of each key, in their order.
type unit map[string][]string

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	f, err := os.Open(filepath.Join("../../deploy/host", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u := unit{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if key, value, ok := strings.Cut(s.Text(), "="); ok && !strings.HasPrefix(key, "#") {
			u[key] = append(u[key], value)
		}
	}
	return u
}

// command is a command line of the unit, with a test's places for those of a host.
func (u unit) command(t *testing.T, key string, places map[string]string) []string {
	t.Helper()
	if len(u[key]) != 1 {
		t.Fatalf("%s stands %d times, expected once", key, len(u[key]))
	}
	words := strings.Fields(u[key][0])
	for i, w := range words {
		if place, ok := places[w]; ok {
			words[i] = place
		}
	}
	return words
}

// What systemd does with the two units, done by hand for want of a systemd: start, reload, restart,
// upgrade, a crash. It is their own command lines, and a stop is what the units make of it: SIGTERM
// to what is left of control's control group. Packets never stop, and the sessions are those of the
// first start.
func TestHotUnits(t *testing.T) {
	control, plane := readUnit(t, "weir.service"), readUnit(t, "weir-dataplane.service")
	for name, u := range map[string]unit{"weir.service": control, "weir-dataplane.service": plane} {
		// With one of these the end of one unit would be the end of the other, or something else
		// than SIGTERM its way.
		for _, key := range []string{"Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "Conflicts", "KillMode", "KillSignal", "ExecStop", "ExecStopPost"} {
			if u[key] != nil {
				t.Errorf("%s has %s=%v, which this test does not know", name, key, u[key])
			}
		}
		if !slices.Equal(u["Restart"], []string{"always"}) || !slices.Equal(u["Type"], []string{"notify"}) {
			t.Errorf("%s: Restart=%v Type=%v, expected always and notify", name, u["Restart"], u["Type"])
		}
	}

	n := newNetwork(t)
	n.guest.address(t, "eth0", "172.30.0.9/24")
	serveEcho(t, n.internet, remote4, remote6)
	w := newWeir(t, n, "")
	socket := filepath.Join(w.dir, "run", "api.sock")
	base := replace(t, baseConfig, `socket: ""`, "socket: "+socket)
	w.write(t, base)
	bin := filepath.Join(w.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	installed := filepath.Join(bin, "weir")
	dataplane := dataplaneOf(installed)
	install := func(version string) {
		t.Helper()
		next := filepath.Join(t.TempDir(), "weir")
		if err := build(next, "-ldflags", "-X main.version="+version); err != nil {
			t.Fatal(err)
		}
		for from, to := range map[string]string{next: installed, dataplaneOf(next): dataplane} {
			if err := os.Rename(from, to); err != nil { // as a package manager does
				t.Fatal(err)
			}
			if out, err := exec.Command(to, "version").Output(); err != nil || !strings.Contains(string(out), version) {
				t.Fatalf("%s version: %q, %v; expected %s", to, out, err, version)
			}
		}
	}
	install("1.0.0-test")
	defer func(was string) { program = was }(program)
	program = installed

	places := map[string]string{"/usr/local/bin/weir": installed, "/usr/local/bin/weir-dataplane": dataplane,
		"/etc/weir/weir.yaml": w.config, "/run/weir-dataplane/dataplane.sock": w.socket, "weir": "root", "$DATAPLANE": "--device=net_af_packet"}
	managers := map[string]*manager{installed: newManager(t), dataplane: newManager(t)}
	start := func(u unit) *process {
		t.Helper()
		words := u.command(t, "ExecStart", places)
		switch words[0] {
		case installed:
			return spawn(t, n.gateway, w.env(managers[installed].env()), words[1:]...)
		case dataplane:
			return spawnDataplane(t, n.gateway, w.env(managers[dataplane].env()), words[1:]...)
		}
		t.Fatalf("ExecStart begins with %s, expected an installed program", words[0])
		return nil
	}
	forwarding := start(plane)
	w.process = start(control)
	w.ready(t)
	for program, m := range managers {
		m.hears(t, program, "READY=1", 1)
		m.hears(t, program, "WATCHDOG=1", 2)
	}
	pid := w.dataplane(t)
	if pid != forwarding.Cmd.Process.Pid {
		t.Fatalf("data plane %d runs, expected that of the unit, %d", pid, forwarding.Cmd.Process.Pid)
	}
	for _, f := range [][2]netip.Addr{{web4, remote4}, {web6, remote6}, {batch4, remote4}, {batch6, remote6}} {
		// While a neighbor is not resolved few packets are held for it, and more would be lost.
		if _, err := echoUDP(n.guest, f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	before := n.wires(t, w)
	n.expectNothingLost(t, w, before) // no frame is under way
	streams := []*stream{
		startStream(t, n.guest, web4, remote4, 2*time.Millisecond), startStream(t, n.guest, web6, remote6, 2*time.Millisecond),
		startStream(t, n.guest, batch4, remote4, 2*time.Millisecond), startStream(t, n.guest, batch6, remote6, 2*time.Millisecond),
	}
	eventually(t, patience, "the streams flow", func() error {
		for _, s := range streams {
			if err := atLeast(s.echoed(), 50); err != nil {
				return err
			}
		}
		return nil
	})
	sessions := w.scrape(t).get(t, "weir_sessions_created_total")

	// systemctl reload weir
	w.write(t, base+late)
	places["/run/weir/api.sock"] = socket
	reload := control.command(t, "ExecReload", places)
	if out, err := exec.Command(reload[0], reload[1:]...).CombinedOutput(); err != nil || !strings.Contains(string(out), "generation 2 is in force") {
		t.Fatalf("%v: %v\n%s", reload, err, out)
	}
	w.expectGeneration(t, 2, true)
	w.write(t, base+"nonsense: 1\n")
	if out, err := exec.Command(reload[0], reload[1:]...).CombinedOutput(); err == nil || !strings.Contains(string(out), "nonsense") {
		t.Fatalf("a configuration with a fault is reloaded: %v\n%s", err, out)
	}
	w.write(t, base+late)

	// again is a start of control after its end, and what holds then.
	generation := 2.0
	again := func(what string) {
		t.Helper()
		w.process = start(control)
		w.ready(t)
		w.expectLog(t, "took over a data plane that forwards")
		w.expectGeneration(t, generation, true)
		if now := w.dataplane(t); now != pid {
			t.Fatalf("%s: data plane %d was replaced by %d", what, pid, now)
		}
	}
	stop := func() {
		t.Helper()
		if children := childrenOf(t, w.Cmd.Process.Pid); len(children) > 0 {
			t.Errorf("control has children %v: a stop of its unit ends them too", children)
		}
		w.signal(t, syscall.SIGTERM)
		if code := w.wait(t, patience); code != 0 {
			t.Errorf("weir run exits with %d after SIGTERM, expected 0", code)
		}
	}

	// systemctl restart weir
	stop()
	again("restart")
	// An upgrade, with a change of the configuration beside it: the new program, and systemctl
	// restart weir.
	install("2.0.0-test")
	w.write(t, base)
	generation++
	stop()
	again("upgrade")
	if exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err != nil || !strings.HasSuffix(exe, " (deleted)") {
		t.Errorf("the data plane runs %s, %v; expected the program of before", exe, err)
	}
	if exe, err := os.Readlink("/proc/" + strconv.Itoa(w.Cmd.Process.Pid) + "/exe"); err != nil || exe != installed {
		t.Errorf("control runs %s, %v; expected the new program, %s", exe, err, installed)
	}
	// A crash, and Restart=always.
	w.signal(t, syscall.SIGKILL)
	w.wait(t, patience)
	again("crash")

	endAll(streams)
	n.expectNothingLost(t, w, before)
	for _, s := range streams {
		s.endWhole(t)
		if list := s.sources(); len(list) != 1 {
			t.Errorf("%v: came from %v, expected one address and port", s.c.LocalAddr(), list)
		}
	}
	w.explain(t)
	if now := w.expectBalance(t).get(t, "weir_sessions_created_total"); now != sessions {
		t.Errorf("%v sessions have begun, expected %v as at first", now, sessions)
	}
	w.expectTables(t)
	stop()
	forwarding.signal(t, syscall.SIGTERM)
	if code := forwarding.wait(t, restartLimit); code != 0 {
		t.Errorf("weir-dataplane exits with %d after SIGTERM, expected 0", code)
	}
	w.expectClean(t)
}

// manager is a service manager's end of sd_notify.
type manager struct {
	path string
	mu   sync.Mutex
	said map[string]int
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(t.TempDir(), "notify"), said: map[string]int{}}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.said[string(b[:n])]++
			m.mu.Unlock()
		}
	}()
	return m
}

func (m *manager) env() string { return "NOTIFY_SOCKET=" + m.path }

func (m *manager) hears(t *testing.T, from, what string, times int) {
	t.Helper()
	eventually(t, patience, what+" of "+from, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		return atLeast(m.said[what], times)
	})
}

// childrenOf returns the processes that a process has started and that still run.
func childrenOf(t *testing.T, pid int) (list []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil || len(paths) == 0 {
		t.Fatalf("the threads of process %d: %v, %v", pid, paths, err)
	}
	for _, path := range paths {
		b, _ := os.ReadFile(path) // of a thread that has ended: none
		list = append(list, strings.Fields(string(b))...)
	}
	return list
}
