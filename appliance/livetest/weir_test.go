// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/deploy/lab"
	"weir/pipeline/state"
)

// program is the weir binary under test, with its named points to die at; weir-dataplane is beside
// it.
var program string

// build builds both programs, the second beside the first.
func build(program string, flags ...string) error {
	for path, name := range map[string]string{program: "weir/appliance", dataplaneOf(program): "weir/appliance/weir-dataplane"} {
		args := append([]string{"build", "-tags", "faultpoints", "-o", path}, flags...)
		if out, err := exec.Command("go", append(args, name)...).CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// dataplaneOf returns the path of the weir-dataplane beside a program.
func dataplaneOf(program string) string {
	return filepath.Join(filepath.Dir(program), "weir-dataplane")
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
			return 1
		}
		lab.Contain()
		dir, remove, err := lab.TempDir("weir-live-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer remove()
		program = filepath.Join(dir, "weir")
		if err := build(program); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		// What runs side by side waits most of the time, so the number of cores is no measure.
		if err := flag.Set("test.parallel", "4"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// patience is how long a test waits for what it expects before it fails.
const patience = 10 * time.Second

// eventually waits until f returns nil, and fails the test with its error when it does not within
// limit.
func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

// process is a run of the program.
type process struct {
	*lab.Process
	name string
	mu   sync.Mutex
	out  bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// log is what the process and its children have written so far.
func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// spawn starts the program in the namespace. It ends with the test, whatever happens.
func spawn(t *testing.T, n *namespace, env []string, args ...string) *process {
	t.Helper()
	return start(t, n, env, "weir "+args[0], exec.Command(program, args...))
}

// spawnDataplane starts weir-dataplane as spawn does the program.
func spawnDataplane(t *testing.T, n *namespace, env []string, args ...string) *process {
	t.Helper()
	return start(t, n, env, "weir-dataplane", exec.Command(dataplaneOf(program), args...))
}

func start(t *testing.T, n *namespace, env []string, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name}
	cmd.Stdout, cmd.Stderr = p, p
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second // a data plane that outlives its control holds the pipes
	var err error
	if p.Process, err = n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Cmd.Process.Kill()
		<-p.Ended
		if t.Failed() {
			t.Logf("the log of %s:\n%s", p.name, p.log())
		}
	})
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil {
		t.Fatalf("%s: %v: %v", p.name, s, err)
	}
}

// wait waits for the process's end and returns its exit code, -1 for a signal.
func (p *process) wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.Ended:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%s has not ended after %v", p.name, limit)
		return 0
	}
}

// expectLog fails the test if the log does not come to have each of the texts.
func (p *process) expectLog(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		eventually(t, patience, "the log of "+p.name, func() error { // a line may come after the metric that tells the same
			if !strings.Contains(p.log(), s) {
				return fmt.Errorf("it does not say %q", s)
			}
			return nil
		})
	}
}

// weir is a running gateway: weir run, and its data plane.
type weir struct {
	*process
	net    *network
	dir    string // everything it may write to
	config string
	socket string
	web    *lab.Web
}

// newWeir prepares a gateway in a directory of its own.
func newWeir(t *testing.T, n *network, config string) *weir {
	t.Helper()
	dir := t.TempDir()
	w := &weir{net: n, dir: dir, config: filepath.Join(dir, "weir.yaml"), socket: filepath.Join(dir, "run", "dataplane.sock")}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write(t, config)
	w.web = n.gateway.Web("127.0.0.1:9474", 5*time.Second)
	n.gateway.losses.weir = append(n.gateway.losses.weir, func() []int { return w.dataplanes(t) })
	t.Cleanup(func() {
		w.web.Close()
		for _, pid := range w.dataplanes(t) { // of a control that the test killed: it ends by itself, but not at once
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return w
}

// startWeir starts a gateway and waits until it forwards.
func startWeir(t *testing.T, n *network, config string, env ...string) *weir {
	t.Helper()
	w := newWeir(t, n, config)
	w.run(t, env...)
	w.ready(t)
	return w
}

func (w *weir) run(t *testing.T, env ...string) {
	t.Helper()
	w.process = spawn(t, w.net.gateway, w.env(env...), "run", "--config", w.config, "--socket", w.socket)
	t.Cleanup(func() { w.explain(t) })
}

// explain logs the counters, should the test have failed.
func (w *weir) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	page, err := w.web.Get("/metrics")
	if err != nil {
		t.Logf("its metrics: %v", err)
	}
	var counted strings.Builder
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "weir_") && !strings.HasSuffix(line, " 0\n") {
			counted.WriteString(line)
		}
	}
	t.Logf("its metrics:\n%s", &counted)
}

// env keeps the program's temporary files in its own directory.
func (w *weir) env(more ...string) []string {
	return append([]string{"TMPDIR=" + filepath.Join(w.dir, "tmp")}, more...)
}

// started waits until the data plane forwards, if there are no neighbors to forward to either.
func (w *weir) started(t *testing.T) {
	t.Helper()
	eventually(t, patience, "started", func() error {
		s, err := w.tryScrape()
		if err == nil && s["weir_dataplane_up"] != 1 {
			err = errors.New("the data plane does not forward")
		}
		return err
	})
}

func (w *weir) ready(t *testing.T) {
	t.Helper()
	eventually(t, patience, "ready", func() error {
		select {
		case <-w.Ended:
			t.Fatalf("weir ended before it was ready: %v", w.Cmd.ProcessState)
		default:
		}
		_, err := w.web.Get("/readyz")
		return err
	})
}

// write puts a configuration into force as an editor would: a new file renamed over the old one.
func (w *weir) write(t *testing.T, config string) {
	t.Helper()
	next := filepath.Join(w.dir, "next.yaml")
	if err := os.WriteFile(next, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, w.config); err != nil {
		t.Fatal(err)
	}
}

// samples are the series of one scrape.
type samples map[string]float64

func (w *weir) tryScrape() (samples, error) {
	page, err := w.web.Get("/metrics")
	if err != nil {
		return nil, err
	}
	s := samples{}
	for line := range strings.Lines(page) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(series, "#") {
			continue
		}
		if s[series], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, fmt.Errorf("/metrics: %q: %w", line, err)
		}
	}
	return s, nil
}

func (w *weir) scrape(t *testing.T) samples {
	t.Helper()
	s, err := w.tryScrape()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// get returns one series, which must be there.
func (s samples) get(t *testing.T, series string) float64 {
	t.Helper()
	v, ok := s[series]
	if !ok {
		t.Fatalf("/metrics has no series %s", series)
	}
	return v
}

// sum adds up all series of a name.
func (s samples) sum(name string) (total float64) {
	for series, v := range s {
		if base, _, _ := strings.Cut(series, "{"); base == name {
			total += v
		}
	}
	return total
}

// balanced is nil if no packet is unaccounted for.
func (s samples) balanced() error {
	received, forwarded := s.sum("weir_received_packets_total"), s.sum("weir_forwarded_packets_total")
	punted, dropped, held := s.sum("weir_punted_packets_total"), s.sum("weir_dropped_packets_total"), s.sum("weir_held_packets")
	if received != forwarded+punted+dropped+held {
		return fmt.Errorf("received %v, but forwarded %v + punted %v + dropped %v + held %v = %v",
			received, forwarded, punted, dropped, held, forwarded+punted+dropped+held)
	}
	transmitted, fragmented, originated := s.sum("weir_transmitted_packets_total"), s.sum("weir_fragmented_packets_total"), s.sum("weir_originated_packets_total")
	if transmitted != forwarded+fragmented+originated {
		return fmt.Errorf("transmitted %v, but forwarded %v + fragmented %v + originated %v = %v",
			transmitted, forwarded, fragmented, originated, forwarded+fragmented+originated)
	}
	return nil
}

// expectBalance waits until the counters are at rest and every packet is accounted for. A scrape
// reads counters while a worker writes them, so a single one may be torn.
func (w *weir) expectBalance(t *testing.T) samples {
	t.Helper()
	var s samples
	eventually(t, patience, "the counters balance", func() (err error) {
		if s, err = w.tryScrape(); err == nil {
			err = s.balanced()
		}
		if err == nil && s.sum("weir_held_packets") != 0 {
			err = fmt.Errorf("%v packets are held", s.sum("weir_held_packets"))
		}
		return err
	})
	return s
}

// expectTables holds the shared session tables against themselves. Nobody may send meanwhile.
func (w *weir) expectTables(t *testing.T) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", w.Cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]int{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		target, _ := os.Readlink(path)
		name, _, _ := strings.Cut(strings.TrimPrefix(target, "/memfd:weir-"), " ")
		if _, twice := fds[name]; twice || name != "state" && name != "growing" {
			continue
		}
		if fds[name], err = syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
			t.Fatalf("open the segment %s: %v", name, err)
		}
	}
	if len(fds) != 2 {
		t.Fatalf("weir has the segments %v of its state, expected two", fds)
	}
	state, err := state.Attach(fds["state"], fds["growing"])
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	eventually(t, patience, "the session tables are valid", state.Check)
}

// dataplanes returns the process numbers of the data planes at w's socket.
func (w *weir) dataplanes(t *testing.T) (pids []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		line, _ := os.ReadFile(path) // of a process that has ended: empty
		args := strings.Split(string(line), "\x00")
		if len(args) > 2 && args[0] == dataplaneOf(program) && args[1] == "--socket" && args[2] == w.socket {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// dataplane returns the process number of the one data plane.
func (w *weir) dataplane(t *testing.T) int {
	t.Helper()
	pids := w.dataplanes(t)
	if len(pids) != 1 {
		t.Fatalf("data planes: %v, expected one", pids)
	}
	return pids[0]
}

// expectNoDataplane waits until all data planes have ended.
func (w *weir) expectNoDataplane(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "the data plane ends", func() error {
		if pids := w.dataplanes(t); len(pids) > 0 {
			return fmt.Errorf("processes %v live", pids)
		}
		return nil
	})
}

// expectClean fails the test if something is left in the directories that weir writes to.
func (w *weir) expectClean(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"tmp", "run"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, dir))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left behind: %s/%s", dir, e.Name())
		}
	}
}

// stop ends weir in order.
func (w *weir) stop(t *testing.T) {
	t.Helper()
	w.signal(t, syscall.SIGTERM)
	if code := w.wait(t, patience); code != 0 {
		t.Errorf("weir run exits with %d after SIGTERM, expected 0", code)
	}
	if pids := w.dataplanes(t); len(pids) > 0 {
		t.Errorf("data planes %v outlive weir run", pids)
	}
	w.expectClean(t)
}
