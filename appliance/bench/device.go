// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/state"

	"golang.org/x/sys/unix"

	"weir/appliance/dataplane"
	"weir/config"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/tsc"
)

// With devices: a generator on one core, and on another what forwards: weir's worker as it is, or
// dpdk-testpmd between the same devices. net_ring is in-process, so testpmd cannot use
// it; there, a loop that only receives and transmits takes its place.

// loads are the shares of a forwarder's capacity at which latency is measured.
var loads = []int{10, 50, 90}

// naps are the settings of idle: sleep that are compared: by the longest sleep, and one that takes
// longer to get there.
var naps = []dataplane.Backoff{
	{Spin: 200, Step: 8, Least: 20_000, Most: 100_000},
	{Spin: 200, Step: 8, Least: 20_000, Most: 200_000},
	{Spin: 200, Step: 8, Least: 20_000, Most: 500_000},
	{Spin: 200, Step: 8, Least: 20_000, Most: 700_000},
	{Spin: 200, Step: 8, Least: 20_000, Most: 1_000_000},
	{Spin: 200, Step: 8, Least: 20_000, Most: 2_000_000},
	{Spin: 200, Step: 64, Least: 20_000, Most: 500_000},
	{Spin: 5000, Step: 8, Least: 20_000, Most: 700_000},
}

// forwarder is what is between two devices.
type forwarder interface {
	// mark begins to count packets and busy time from zero.
	mark() error
	// busy returns the packets since mark, and the nanoseconds that those turns took that had any.
	busy() (packets uint64, nanos float64, err error)
	// halt ends the polling: net_memif unmaps its memory while it is polled, when the other side
	// goes.
	halt() error
	stop() error
}

// devices measures all with devices, once.
func (b *bench) devices() error {
	if len(b.cores) < 2 {
		return errors.New("--devices: a generator and a forwarder need two cores, but this process may use only one; allow it a second (taskset, cpuset)")
	}
	dir, err := os.MkdirTemp("", "weir-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, sessions := range b.sessions {
		if sessions > 1<<20 {
			continue // what more of them cost is the pipeline's affair
		}
		for _, kind := range []string{"weir", "forward"} {
			if name := "ring/" + kind; b.only.MatchString(name) && (kind == "weir" || sessions == b.sessions[0]) {
				if err := b.overRing(name, kind == "weir", sessions); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		for _, kind := range []string{"weir", "testpmd-io", "testpmd-macswap"} {
			if kind != "weir" && sessions != b.sessions[0] {
				continue // testpmd has none
			}
			wanted := func(load int) bool { return b.only.MatchString(latencyName(kind, load)) }
			if !b.only.MatchString("memif/"+kind) && (sessions != b.sessions[0] || !slices.ContainsFunc(loads, wanted)) {
				continue
			}
			if err := b.overMemif(dir, kind, sessions); err != nil {
				return fmt.Errorf("memif/%s: %w", kind, err)
			}
		}
	}
	return b.idle(dir)
}

func latencyName(kind string, load int) string { return fmt.Sprintf("latency/%s/%d", kind, load) }

// phase is how long one rate is kept: what goes on in two threads takes longer to settle.
func (b *bench) phase() time.Duration { return 5 * b.time }

// pair names two memif devices of one socket in dir.
func pair(dir, role string) (d [2]string) {
	for i := range d {
		d[i] = fmt.Sprintf("net_memif%d,role=%s,id=%d,socket=%s,socket-abstract=no", i, role, i, filepath.Join(dir, "memif"))
	}
	return d
}

// drive lets a generator send through fw for as long as measure takes, and stops both.
func (b *bench) drive(dir string, sessions int, fw forwarder, measure func(*generatorProcess) error) (err error) {
	defer func() { err = errors.Join(err, fw.stop()) }()
	g, err := startGenerator(pair(dir, "client"), b.cores[1], sessions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fw.halt(), g.stop()) }()
	return measure(g)
}

// overMemif measures a forwarder's capacity, and what it adds in latency at shares of that.
func (b *bench) overMemif(dir, kind string, sessions int) error {
	fw, err := b.forwarder(dir, kind, sessions)
	if err != nil {
		return err
	}
	return b.drive(dir, sessions, fw, func(g *generatorProcess) error { return b.capacity(kind, sessions, fw, g) })
}

func (b *bench) capacity(kind string, sessions int, fw forwarder, g *generatorProcess) error {
	duration := b.phase()
	if _, err := g.perform(phase{Nanos: int64(duration / 4)}); err != nil { // warms up
		return err
	}
	if err := fw.mark(); err != nil {
		return err
	}
	r, err := g.perform(phase{Nanos: int64(duration)})
	if err != nil {
		return err
	}
	packets, nanos, err := fw.busy()
	if err != nil {
		return err
	}
	capacity := float64(r.Received) / r.Seconds
	if b.only.MatchString("memif/" + kind) {
		b.device("memif/"+kind, sessions).note(r, packets, nanos)
	}
	for _, load := range loads {
		name := latencyName(kind, load)
		if !b.only.MatchString(name) || sessions != b.sessions[0] {
			continue
		}
		r, err := g.perform(phase{Nanos: int64(2 * duration), Rate: capacity * float64(load) / 100})
		if err != nil {
			return err
		}
		res := b.device(name, sessions)
		res.Load = load
		res.note(r, 0, 0)
		res.noteLatency(r.Latency)
	}
	return nil
}

// idle measures what back-offs cost at rest and add at a wake-up.
func (b *bench) idle(dir string) (err error) {
	for _, nap := range append([]dataplane.Backoff{{}}, naps...) {
		mode := config.IdleSleep
		name := fmt.Sprintf("idle/sleep/%d-%d-%dus-%dus", nap.Spin, nap.Step, nap.Least/1000, nap.Most/1000)
		if nap == (dataplane.Backoff{}) {
			mode, name = config.IdleBusy, "idle/busy"
		}
		if !b.only.MatchString(name) {
			continue
		}
		if err := b.idleWith(dir, name, mode, nap); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (b *bench) idleWith(dir, name string, mode config.Idle, nap dataplane.Backoff) error {
	const sessions = 1024
	fw, err := b.startWeir(dir, sessions, mode, nap)
	if err != nil {
		return err
	}
	return b.drive(dir, sessions, fw, func(g *generatorProcess) error { return b.measureIdle(name, sessions, fw, g) })
}

func (b *bench) measureIdle(name string, sessions int, fw *weirForwarder, g *generatorProcess) error {
	duration := 2 * b.phase()
	time.Sleep(50 * time.Millisecond)
	before, err := fw.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	time.Sleep(duration)
	after, err := fw.cpu()
	if err != nil {
		return err
	}
	share := float64(after-before) / float64(time.Since(start))
	// Few enough packets that each finds the worker at rest.
	r, err := g.perform(phase{Nanos: int64(2 * duration), Rate: 97})
	if err != nil {
		return err
	}
	res := b.device(name, sessions)
	res.CoreShare = share
	res.note(r, 0, 0)
	res.noteLatency(r.Latency)
	return nil
}

// device finds the result of a measurement with devices, or begins it.
func (b *bench) device(name string, sessions int) *result {
	s := scenario{name: name}
	r := b.resultOf(&s, sessions, dataplane.BurstSize, 1, frameMix{mean: 64})
	r.onDevice = true
	return r
}

// note adds a phase, of packets busy for so many nanoseconds.
func (r *result) note(p phaseResult, packets uint64, nanos float64) {
	r.Packets += p.Sent
	r.Forwarded += p.Received
	r.rates = append(r.rates, float64(p.Received)/p.Seconds/1e6)
	if packets > 0 {
		r.runs = append(r.runs, nanos/float64(packets))
		r.BusyShare = nanos / 1e9 / p.Seconds
	}
}

func (r *result) noteLatency(q quantiles) { r.latencies = append(r.latencies, q) }

// medianOf sorts list and returns its middle.
func medianOf(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)/2]
}

// weirForwarder is the worker of weir run, in this process.
type weirForwarder struct {
	state   *state.State
	gens    dataplane.Generations
	ports   []*dpdk.Port
	stopped atomic.Bool
	done    chan struct{}
	tid     int
	before  state.Counters
}

func (b *bench) forwarder(dir, kind string, sessions int) (forwarder, error) {
	if kind == "weir" {
		return b.startWeir(dir, sessions, config.IdleBusy, dataplane.Backoff{})
	}
	return b.startTestpmd(dir, strings.TrimPrefix(kind, "testpmd-"))
}

func (b *bench) startWeir(dir string, sessions int, mode config.Idle, nap dataplane.Backoff) (f *weirForwarder, err error) {
	f = &weirForwarder{done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	var g *generation.Generation
	if f.state, g, err = newGateway(sessions, 1, ""); err != nil {
		return f, err
	}
	*f.gens.At(g.Number) = *g
	f.state.Publish(g.Number)
	if f.ports, err = openPair(pair(dir, "server"), b.pool); err != nil {
		return f, err
	}
	return f, f.start(f.worker(b.cores[0], b.pool, g.Number, mode, nap))
}

// worker makes the worker.
func (f *weirForwarder) worker(core int, pool *dpdk.Mempool, generation uint64, mode config.Idle, nap dataplane.Backoff) *dataplane.Worker {
	return &dataplane.Worker{
		Core: core, Ports: f.ports, Pool: pool, State: f.state, Inject: f.state.Inject(0),
		Pipe:        pipeline.NewWorker(f.state, 0, f.gens.At(generation), pipeline.WorkerConfig{MACs: benchMACs}),
		Generations: &f.gens, Seen: generation, Idle: mode, Backoff: nap, Stop: &f.stopped,
	}
}

// start starts the worker's thread.
func (f *weirForwarder) start(w *dataplane.Worker) error {
	ready := make(chan error, 1)
	thread := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		w.Run(ready, func() { close(f.done) })
	}()
	f.tid = <-thread
	return <-ready
}

func (f *weirForwarder) mark() error {
	f.before = *f.state.Counters(0)
	return nil
}

func (f *weirForwarder) busy() (uint64, float64, error) {
	c := f.state.Counters(0)
	return c.Totals().Received - f.before.Totals().Received, float64(c.BusyNanoseconds - f.before.BusyNanoseconds), nil
}

// cpu returns how long the worker's thread has run, in nanoseconds.
func (f *weirForwarder) cpu() (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/schedstat", f.tid))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseUint(first, 10, 64)
}

func (f *weirForwarder) halt() error {
	f.stopped.Store(true)
	<-f.done
	return nil
}

func (f *weirForwarder) stop() error {
	f.halt()
	c := f.state.Counters(0)
	var err error
	if d := drops(c); len(d) > 0 && !onlyFull(d) {
		err = fmt.Errorf("weir dropped: %v", d)
	}
	return errors.Join(err, f.close())
}

// onlyFull: a transmit queue that the generator does not empty fast enough is no fault.
func onlyFull(d map[string]uint64) bool { return len(d) == 1 && d[drop.TxFull.String()] > 0 }

func (f *weirForwarder) close() error {
	err := closePair(f.ports)
	for i := range f.gens {
		f.gens[i].Close()
	}
	if f.state != nil {
		f.state.Close()
	}
	return err
}

// testpmd is DPDK's own forwarder, as a process.
type testpmd struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	hz    float64
}

var errNoTestpmd = errors.New("dpdk-testpmd is not installed; install Debian's package dpdk-dev")

func (b *bench) startTestpmd(dir, mode string) (*testpmd, error) {
	path, err := exec.LookPath("dpdk-testpmd")
	if err != nil {
		return nil, errNoTestpmd
	}
	devices := pair(dir, "server")
	args := []string{"--no-huge", "--no-shconf", "-m", "128"}
	if dpdk.HugePages() {
		args = []string{"--in-memory", "-m", "128"}
	}
	args = append(args, "--no-pci", "--no-telemetry", "--file-prefix", fmt.Sprintf("weir-bench-%d", os.Getpid()),
		"--lcores", fmt.Sprintf("0@%d,1@%d", b.cores[1], b.cores[0]), "--vdev", devices[0], "--vdev", devices[1], "--",
		"-i", "--nb-cores=1", "--forward-mode="+mode, "--record-core-cycles", "--no-lsc-interrupt", "--disable-link-check", "--total-num-mbufs=16383", fmt.Sprintf("--burst=%d", dataplane.BurstSize))
	// Its answers are to come at once, though they come through a pipe.
	t := &testpmd{cmd: exec.Command("stdbuf", append([]string{"-oL", path}, args...)...), lines: make(chan string, 1000), hz: b.hz}
	t.cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+dir)
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.cmd.Stderr = t.cmd.Stdout
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(t.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			t.lines <- s.Text()
		}
	}()
	if _, err := t.ask("start", "packets/burst="); err != nil {
		return nil, errors.Join(err, t.stop())
	}
	return t, nil
}

// ask gives a command and waits for a line that contains what.
func (t *testpmd) ask(command, what string) (string, error) {
	fmt.Fprintln(t.in, command)
	timeout := time.After(10 * time.Second)
	var last []string
	for {
		select {
		case line, ok := <-t.lines:
			if !ok {
				return "", fmt.Errorf("dpdk-testpmd ended: %s", strings.Join(last, "\n"))
			}
			if strings.Contains(line, what) {
				return line, nil
			}
			if last = append(last, line); len(last) > 20 {
				last = last[1:]
			}
		case <-timeout:
			return "", fmt.Errorf("dpdk-testpmd did not answer %q with %q: %s", command, what, strings.Join(last, "\n"))
		}
	}
}

func (t *testpmd) halt() error {
	_, err := t.ask("stop", "Done.")
	return err
}

func (t *testpmd) mark() error {
	// An answer to the next question shows that this one was heard.
	fmt.Fprintln(t.in, "clear fwd stats all")
	_, err := t.ask("show config cores", "core")
	return err
}

var corePattern = regexp.MustCompile(`cycles=(\d+) / total \S+ packets=(\d+)`)

func (t *testpmd) busy() (packets uint64, nanos float64, err error) {
	line, err := t.ask("show fwd stats all", "CPU cycles/packet=")
	if err != nil {
		return 0, 0, err
	}
	m := corePattern.FindStringSubmatch(line)
	if m == nil {
		return 0, 0, fmt.Errorf("dpdk-testpmd: no cycles in %q", line)
	}
	cycles, _ := strconv.ParseFloat(m[1], 64)
	packets, _ = strconv.ParseUint(m[2], 10, 64)
	return packets, cycles / t.hz * 1e9, nil
}

func (t *testpmd) stop() error {
	fmt.Fprintln(t.in, "quit")
	t.in.Close()
	kill := time.AfterFunc(5*time.Second, func() { t.cmd.Process.Kill() })
	defer kill.Stop()
	for range t.lines {
	}
	return t.cmd.Wait()
}

// generatorProcess is a generator in a separate process.
type generatorProcess struct {
	cmd  *exec.Cmd
	in   *json.Encoder
	pipe io.Closer
	out  *json.Decoder
}

func startGenerator(devices [2]string, core, sessions int) (*generatorProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &generatorProcess{cmd: exec.Command(self, "bench-generator")}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, p.pipe, p.out = json.NewEncoder(in), in, json.NewDecoder(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := p.ask(generatorSetup{Devices: devices, Core: core, Sessions: sessions}); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *generatorProcess) perform(ph phase) (phaseResult, error) { return p.ask(ph) }

func (p *generatorProcess) ask(question any) (r phaseResult, err error) {
	if err := p.in.Encode(question); err != nil {
		return r, fmt.Errorf("generator: %w", err)
	}
	if err := p.out.Decode(&r); err != nil {
		return r, fmt.Errorf("generator: %w", err)
	}
	return r, nil
}

func (p *generatorProcess) stop() error {
	p.pipe.Close()
	kill := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("generator: %w", err)
	}
	return nil
}

// overRing measures over net_ring: the generator is another thread of this process.
func (b *bench) overRing(name string, weir bool, sessions int) (err error) {
	b.rings += 2 // the rings of a closed device keep their names
	ports, err := openPair([2]string{fmt.Sprint("net_ring", b.rings), fmt.Sprint("net_ring", b.rings+1)}, b.pool)
	defer func() { err = errors.Join(err, closePair(ports)) }()
	if err != nil {
		return err
	}
	st, gen, err := newGateway(sessions, 1, "")
	if err != nil {
		return err
	}
	defer func() { gen.Close(); st.Close() }()
	w := &dataplane.Worker{Ports: ports, Pool: b.pool, State: st,
		Pipe: pipeline.NewWorker(st, 0, gen, pipeline.WorkerConfig{MACs: benchMACs})}
	defer w.Finish()
	g := newGenerator(ports[0], ports[1], b.pool, b.hz, snat4, sessions)
	duration := b.phase()
	var stop, counting atomic.Bool
	var packets, counts uint64
	var r phaseResult
	err = b.each(2, func(thread int) error {
		if thread == 1 {
			defer stop.Store(true)
			if err := g.prime(); err != nil {
				return err
			}
			if _, err := g.perform(phase{Nanos: int64(duration / 4)}); err != nil {
				return err
			}
			counting.Store(true)
			var err error
			r, err = g.perform(phase{Nanos: int64(duration)})
			return err
		}
		for !stop.Load() {
			before := tsc.Read()
			w.Pipe.SetClock(1e9 + int64(float64(before)/b.hz*1e9))
			n := ports[0].Receive(0, &w.Rx, dataplane.BurstSize)
			if n == 0 {
				continue
			}
			if weir {
				w.Process(0)
			} else {
				sent := ports[1].Transmit(0, w.Rx.Mbufs[:n])
				dpdk.Free(w.Rx.Mbufs[sent:n])
			}
			if counting.Load() {
				packets += uint64(n)
				counts += tsc.Read() - before
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.device(name, sessions).note(r, packets, float64(counts)*1e9/b.hz)
	return nil
}

// newGateway makes the benchmark's gateway.
func newGateway(sessions, workers int, wire string) (*state.State, *generation.Generation, error) {
	cfg, _, err := config.Parse([]config.File{{Name: "bench.yaml", Data: []byte(benchConfig(max(sessions, 1024), wire))}})
	if err != nil {
		return nil, nil, err
	}
	// The last eighth of a table is not for 1:1 flows.
	st, err := state.New(state.Sizes{Workers: workers, Sessions: sessions + sessions/4 + 64, Huge: true})
	if err != nil {
		return nil, nil, err
	}
	g, err := generation.NewCompiler(st, nil).Compile(cfg)
	if err != nil {
		st.Close()
		return nil, nil, err
	}
	return st, g, nil
}
