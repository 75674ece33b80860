// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"weir/appliance/cores"
	"weir/dpdk"
	"weir/pipeline"
	"weir/pipeline/tsc"
)

// bench is one call of weir bench.
type bench struct {
	json, withDevices        bool
	match, out, profile      string
	sessions, burst, workers []int
	frames                   []frameMix
	time                     time.Duration
	runs                     int

	only     *regexp.Regexp
	hz       float64 // of the time stamp counter
	overhead uint64  // of reading it
	pool     *dpdk.Mempool
	cores    []int
	threads  []chan func()
	progress io.Writer
	results  []*result
	fixed    map[int]uint64 // bytes of a state without sessions, by workers
	rings    int            // how many net_ring devices there were

	stopThreads func()
}

// frameMix is what lengths are sent in turn.
type frameMix struct {
	name    string // "imix"; else empty
	mean    int
	lengths []int
}

var imix = frameMix{"imix", 362, []int{64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64}}

// result is one measurement in the words of --json.
type result struct {
	Name     string `json:"name"`
	Sessions int    `json:"sessions"`
	Frame    int    `json:"frame"` // mean length in bytes, with the CRC
	FrameMix string `json:"frame_mix,omitempty"`
	Burst    int    `json:"burst"`
	Workers  int    `json:"workers"`

	NanosPerPacket  float64 `json:"ns_per_packet"` // of a worker's time
	CyclesPerPacket float64 `json:"cycles_per_packet"`
	Mpps            float64 `json:"mpps"` // all workers together
	NanosMin        float64 `json:"ns_per_packet_min"`
	NanosMax        float64 `json:"ns_per_packet_max"`
	NanosTypical    float64 `json:"ns_per_packet_p50,omitempty"` // of the median burst
	Interrupted     float64 `json:"interrupted_share,omitempty"` // of the time: bursts of ten times the median and more
	Runs            int     `json:"runs"`

	GeneratorNanos float64            `json:"generator_ns_per_packet"` // not in ns_per_packet
	Packets        uint64             `json:"packets"`
	Forwarded      uint64             `json:"forwarded"`
	Dropped        map[string]uint64  `json:"dropped"`
	Allocations    float64            `json:"allocations_per_packet"`
	BurstNanos     *quantiles         `json:"burst_ns,omitempty"`
	Stages         map[string]float64 `json:"stage_ns_per_packet,omitempty"`

	BytesPerSession   float64 `json:"bytes_per_session,omitempty"` // of the state, everything counted
	SessionsPerSecond float64 `json:"sessions_per_second,omitempty"`
	NanosPerEnd       float64 `json:"ns_per_ended_session,omitempty"`
	Refused           float64 `json:"refused_share,omitempty"` // of packets that would have begun a session

	// With devices. Mpps is what came out then, ns_per_packet the time of turns with packets.
	BusyShare    float64    `json:"busy_share,omitempty"`    // of its core, with packets in hand; below 1 the generator is the limit
	Load         int        `json:"load_percent,omitempty"`  // of capacity
	Lost         float64    `json:"lost_share,omitempty"`    // of the packets that the first device took
	LatencyNanos *quantiles `json:"latency_ns,omitempty"`    // from transmit to receive at the generator
	CoreShare    float64    `json:"core_share,omitempty"`    // of a worker that has nothing to do
	Ratio        float64    `json:"testpmd_ratio,omitempty"` // ns_per_packet in those of testpmd-io, for a ring of forward

	runs      []float64 // ns a packet
	typical   []float64
	onDevice  bool
	rates     []float64 // Mpps
	latencies []quantiles
}

type quantiles struct {
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	P9999 float64 `json:"p9999"`
}

func (b *bench) parse(frames []string) (err error) {
	if b.only, err = regexp.Compile(b.match); err != nil {
		return fmt.Errorf("--scenario: %w", err)
	}
	for _, f := range frames {
		if f == imix.name {
			b.frames = append(b.frames, imix)
			continue
		}
		n, err := strconv.Atoi(f)
		if err != nil || n < 64 || n > 1518 {
			return fmt.Errorf("--frame %s: expected 64 to 1518, or imix", f)
		}
		b.frames = append(b.frames, frameMix{mean: n, lengths: []int{n}})
	}
	in := func(flag string, list []int, least, most int) {
		for _, n := range list {
			if n < least || n > most {
				err = errors.Join(err, fmt.Errorf("--%s %d: expected %d to %d", flag, n, least, most))
			}
		}
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for c := range 1024 {
		if cpus.IsSet(c) {
			b.cores = append(b.cores, c)
		}
	}
	slices.Reverse(b.cores) // the first one is where systems do their own work
	in("sessions", b.sessions, 64, 100_000_000)
	in("burst", b.burst, 1, pipeline.MaxBurst)
	in("workers", b.workers, 1, len(b.cores))
	in("runs", []int{b.runs}, 1, 1000)
	if b.time <= 0 {
		err = errors.Join(err, fmt.Errorf("--time %v: expected more than 0", b.time))
	}
	return err
}

// measureAll measures and prints.
func (b *bench) measureAll(out, progress io.Writer) (err error) {
	b.progress = progress
	// As in the data plane, nothing is collected while packets are counted.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	log := slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelError}))
	if err := dpdk.Init(dpdk.EALConfig{Memory: 128 << 20, Log: log}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dpdk.Cleanup()) }()
	if b.pool, err = dpdk.NewMempool("packets", 16383, dpdk.DataRoom(1500), -1); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.pool.Free()) }()
	threads := slices.Max(b.workers)
	if b.withDevices {
		threads = min(2, len(b.cores))
	}
	if err := cores.Leave(b.cores[:threads]); err != nil {
		return err
	}
	if err := b.startThreads(threads); err != nil {
		return err
	}
	defer b.stopThreads()
	b.hz, b.overhead = tsc.Hz(50*time.Millisecond), tsc.Overhead()
	if b.profile != "" {
		f, err := os.Create(b.profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}

	for n := range b.runs {
		for _, sessions := range b.sessions {
			for _, workers := range b.workers {
				if err := b.runAll(n, sessions, workers); err != nil {
					return err
				}
			}
		}
		if b.withDevices {
			fmt.Fprintf(b.progress, "weir bench: run %d of %d: with devices\n", n+1, b.runs)
			if err := b.devices(); err != nil {
				return err
			}
		}
	}
	b.summarize()
	text, err := json.MarshalIndent(b.results, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if b.out != "" {
		if err := os.WriteFile(b.out, text, 0o644); err != nil {
			return err
		}
	}
	if b.json {
		_, err := out.Write(text)
		return err
	}
	return b.print(out)
}

// startThreads starts the threads that lanes run on, one for each worker, known to DPDK.
func (b *bench) startThreads(n int) error {
	ready := make(chan error)
	for i := range n {
		work := make(chan func())
		b.threads = append(b.threads, work)
		go func() {
			err := dpdk.RegisterThread(b.cores[i])
			ready <- err
			if err != nil {
				return
			}
			for f := range work {
				f()
			}
			dpdk.UnregisterThread()
			ready <- nil
		}()
		if err := <-ready; err != nil {
			return err
		}
	}
	b.stopThreads = func() {
		for _, t := range b.threads {
			close(t)
			<-ready
		}
	}
	return nil
}

// each calls f for the first n threads, on them, all at once.
func (b *bench) each(n int, f func(w int) error) error {
	errs := make([]error, n)
	done := make(chan struct{})
	for w := range n {
		b.threads[w] <- func() {
			errs[w] = f(w)
			done <- struct{}{}
		}
	}
	for range n {
		<-done
	}
	return errors.Join(errs...)
}

// mostNew bounds how many sessions begin in one round: more take seconds.
const mostNew = 1 << 20

// runAll measures every scenario once with so many sessions and workers. Those of one population
// share a rig.
func (b *bench) runAll(run, sessions, workers int) error {
	need := uint64(sessions)*260 + 256<<20
	if free := availableMemory(); free < need {
		fmt.Fprintf(b.progress, "weir bench: skipped %d sessions: they need %d MiB, %d MiB are free\n", sessions, need>>20, free>>20)
		return nil
	}
	groups := map[string][]scenario{}
	var names []string
	for _, s := range scenarios() {
		if !b.only.MatchString(s.name) {
			continue
		}
		key := s.of.name
		if s.mixed {
			if key = s.name; workers == 1 {
				continue
			}
		}
		if s.begin {
			key = s.name
			if sessions > mostNew || s.fill > 0 && sessions < workers*narrowPorts { // else not one range to fill
				continue
			}
		}
		if groups[key] == nil {
			names = append(names, key)
		}
		groups[key] = append(groups[key], s)
	}
	fmt.Fprintf(b.progress, "weir bench: run %d of %d: %d sessions, workers: %d\n", run+1, b.runs, sessions, workers)
	for _, key := range names {
		if err := b.runGroup(run, groups[key], sessions, workers); err != nil {
			return err
		}
		runtime.GC()
	}
	return nil
}

func (b *bench) runGroup(run int, group []scenario, sessions, workers int) (err error) {
	s := &group[0]
	r, err := b.newRig(s, sessions, workers)
	if err != nil {
		return err
	}
	defer func() { err = r.close(err) }()
	if !s.begin || s.fill > 0 {
		if err := b.populate(r, s, sessions); err != nil {
			return fmt.Errorf("%s: creating %d sessions: %w", s.name, sessions, err)
		}
	}
	if s.mixed {
		r.mix()
	}
	for i := range group {
		frames := b.frames
		if s.begin {
			frames = frames[:1] // whatever their length
		}
		for _, burst := range b.burst {
			for _, f := range frames {
				if err := b.measure(run, &group[i], r, sessions, burst, f); err != nil {
					return fmt.Errorf("%s, %d sessions, bursts of %d, frames of %d: %w", group[i].name, sessions, burst, f.mean, err)
				}
			}
		}
	}
	return nil
}

// measure measures one scenario once, and notes it.
func (b *bench) measure(run int, s *scenario, r *rig, sessions, burst int, f frameMix) error {
	workers := len(r.lanes)
	counts := uint64(b.time.Seconds() * b.hz)
	samples := make([]sample, workers)
	once := func(counts uint64, stages bool) error {
		var start, end lineup
		start.missing.Store(int64(workers))
		end.missing.Store(int64(workers))
		return b.each(workers, func(w int) error {
			l := r.lanes[w]
			l.frames = f.lengths
			if l.pipe.Timed = nil; stages {
				l.pipe.Timed = new(pipeline.StageCounts)
				samples[w].stages = l.pipe.Timed
			}
			start.arrive(func() {})
			var err error
			if s.begin {
				err = l.measureNew(s, burst, sessions/workers, counts, &samples[w])
			} else {
				err = l.measure(s, burst, counts, &samples[w])
			}
			end.arrive(func() { l.adopt(); l.trim(0) })
			for l.adopt() > 0 {
				l.trim(0)
			}
			return err
		})
	}
	if !s.begin { // warm up
		if err := once(counts/8, false); err != nil {
			return err
		}
		clear(samples)
	}
	before := r.total()
	var m1, m2 runtime.MemStats
	runtime.ReadMemStats(&m1)
	if err := once(counts, false); err != nil {
		return err
	}
	runtime.ReadMemStats(&m2)
	after := r.total()
	if err := s.check(r, before, after); err != nil {
		return err
	}
	res := b.resultOf(s, sessions, burst, workers, f)
	res.add(b, samples, before, after, m2.Mallocs-m1.Mallocs)
	if run == 0 {
		clear(samples)
		if err := once(counts/4, true); err != nil {
			return err
		}
		res.addStages(b, samples)
		var err error
		if res.BytesPerSession, err = b.bytesPerSession(r.state); err != nil {
			return err
		}
	}
	return nil
}
