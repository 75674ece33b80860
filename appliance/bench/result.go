// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"weir/pipeline/drop"
	"weir/pipeline/state"

	"golang.org/x/sys/unix"

	"weir/dpdk"
	"weir/pipeline"
)

// resultOf finds the result that a measurement belongs to, or begins it.
func (b *bench) resultOf(s *scenario, sessions, burst, workers int, f frameMix) *result {
	for _, r := range b.results {
		if r.Name == s.name && r.Sessions == sessions && r.Burst == burst && r.Workers == workers && r.Frame == f.mean {
			return r
		}
	}
	r := &result{Name: s.name, Sessions: sessions, Burst: burst, Workers: workers, Frame: f.mean, FrameMix: f.name, Dropped: map[string]uint64{}}
	b.results = append(b.results, r)
	return r
}

// interruption is how many times the median a burst takes that something else than its packets is
// in.
const interruption = 10

// add notes one run.
func (r *result) add(b *bench, samples []sample, before, after state.Counters, allocations uint64) {
	var all sample
	var perSecond float64
	for i := range samples {
		s := &samples[i]
		// Every interval has one reading of the counter in it.
		s.counts -= min(s.counts, s.bursts.count()*b.overhead)
		all.packets += s.packets
		all.counts += s.counts
		all.outside += s.outside
		all.bursts.merge(&s.bursts)
		all.ended += s.ended
		all.ending += s.ending
		all.created += s.created
		all.aside.Add(&s.aside)
		perSecond += float64(s.created) / (float64(s.counts) / b.hz)
	}
	nanos := 1e9 / b.hz
	packets := float64(all.packets)
	r.runs = append(r.runs, float64(all.counts)*nanos/packets)
	r.Packets += all.packets
	r.Forwarded += after.Forwarded - before.Forwarded - all.aside.Forwarded
	for i, n := range after.Dropped {
		if n -= before.Dropped[i] + all.aside.Dropped[i]; n != 0 {
			r.Dropped[drop.Reason(i).String()] += n
		}
	}
	// These are the last run's.
	r.GeneratorNanos = float64(all.outside) * nanos / packets
	r.Allocations = float64(allocations) / packets
	q := func(share float64) float64 { return max(0, all.bursts.quantile(share)-float64(b.overhead)) * nanos }
	r.BurstNanos = &quantiles{q(0.5), q(0.9), q(0.99), q(0.999), q(0.9999)}
	r.typical = append(r.typical, q(0.5)/float64(r.Burst))
	r.Interrupted = all.bursts.above(interruption * all.bursts.quantile(0.5))
	if all.created > 0 && all.ended > 0 {
		r.SessionsPerSecond = perSecond
		r.NanosPerEnd = float64(all.ending) * nanos / float64(all.ended)
		r.Refused = 1 - float64(all.created)/packets
	}
}

// addStages notes what each stage took.
func (r *result) addStages(b *bench, samples []sample) {
	r.Stages = map[string]float64{}
	var packets uint64
	for i := range samples {
		packets += samples[i].packets
	}
	for stage, name := range pipeline.Stages {
		var counts uint64
		for i := range samples {
			s := &samples[i]
			counts += s.stages.Counts[stage] - min(s.stages.Counts[stage], s.bursts.count()*b.overhead)
		}
		r.Stages[name] = float64(counts) / b.hz * 1e9 / float64(packets)
	}
}

// above returns the share of all that was counted that lies in values greater than x.
func (h *histogram) above(x float64) float64 {
	var sum, all float64
	for i, n := range h {
		v := bucketValue(i) * float64(n)
		if all += v; bucketValue(i) > x {
			sum += v
		}
	}
	return sum / max(all, 1)
}

func (h *histogram) count() (n uint64) {
	for _, c := range h {
		n += uint64(c)
	}
	return n
}

// summarize computes what follows from all runs.
func (b *bench) summarize() {
	reference := map[string]float64{}
	disturbed := 0
	for _, r := range b.results {
		r.summarize(b.hz)
		if r.Interrupted > 0.1 {
			disturbed++
		}
		device, forwarder, _ := strings.Cut(r.Name, "/")
		if forwarder == "testpmd-io" || forwarder == "forward" {
			reference[device] = r.NanosPerPacket
		}
	}
	if disturbed > 0 {
		fmt.Fprintf(b.progress, "weir bench: in %d of %d measurements, more than a tenth of the time went to bursts that took at least %d times the median: "+
			"something else runs on these cores; see interrupted_share, and compare ns_per_packet_p50 with ns_per_packet\n", disturbed, len(b.results), interruption)
	}
	for _, r := range b.results {
		device, _, _ := strings.Cut(r.Name, "/")
		if base := reference[device]; base > 0 {
			r.Ratio = r.NanosPerPacket / base
		}
	}
}

func (r *result) summarize(hz float64) {
	r.Runs = max(len(r.runs), len(r.rates))
	if len(r.runs) > 0 {
		r.NanosPerPacket, r.NanosTypical = medianOf(r.runs), medianOf(r.typical)
		r.NanosMin, r.NanosMax = r.runs[0], r.runs[len(r.runs)-1]
		r.CyclesPerPacket = r.NanosPerPacket * hz / 1e9
		r.Mpps = 1e3 / r.NanosPerPacket * float64(r.Workers)
	}
	if !r.onDevice {
		return
	}
	r.Mpps = medianOf(r.rates)
	r.Lost = 1 - float64(r.Forwarded)/float64(r.Packets)
	if len(r.latencies) > 0 {
		median := func(of func(q *quantiles) float64) float64 {
			var list []float64
			for i := range r.latencies {
				list = append(list, of(&r.latencies[i]))
			}
			return medianOf(list)
		}
		r.LatencyNanos = &quantiles{
			median(func(q *quantiles) float64 { return q.P50 }), median(func(q *quantiles) float64 { return q.P90 }),
			median(func(q *quantiles) float64 { return q.P99 }), median(func(q *quantiles) float64 { return q.P999 }),
			median(func(q *quantiles) float64 { return q.P9999 }),
		}
	}
}

// bytesPerSession is what the state grows by with a session.
func (b *bench) bytesPerSession(st *state.State) (float64, error) {
	workers := st.Workers()
	least := 64 * workers
	if b.fixed == nil {
		b.fixed = map[int]uint64{}
	}
	if b.fixed[workers] == 0 {
		s, err := state.New(state.Sizes{Workers: workers, Sessions: least})
		if err != nil {
			return 0, err
		}
		b.fixed[workers] = s.Segment.Size()
		s.Close()
	}
	return float64(st.Segment.Size()-b.fixed[workers]) / float64(st.SessionCapacity()-least), nil
}

// availableMemory is what programs may still take, in bytes.
func availableMemory() uint64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 1 << 62
	}
	for line := range strings.Lines(string(text)) {
		var kb uint64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 1 << 62
}

// machine describes what was measured on.
func (b *bench) machine() string {
	model := runtime.GOARCH
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			model = strings.TrimSpace(v)
			break
		}
	}
	pages := "plain pages"
	if dpdk.HugePages() {
		pages = "huge pages"
	}
	kernel := ""
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%s, time stamp counter at %.3f GHz, %d cores allowed, packet buffers in %s, %s, %s", model, b.hz/1e9, len(b.cores), pages, kernel, runtime.Version())
}

// print writes a table for people.
func (b *bench) print(out io.Writer) error {
	fmt.Fprintln(out, b.machine())
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "sessions\tframe\tburst\tworkers\tns/packet\tlowest\thighest\tp50\tcycles\tMpps\tburst p50\tp99\tp99.9 ns\tsessions/s\t ")
	for _, r := range b.results {
		if r.onDevice {
			continue
		}
		frame := fmt.Sprint(r.Frame)
		if r.FrameMix != "" {
			frame = r.FrameMix
		}
		rate := ""
		if r.SessionsPerSecond > 0 {
			rate = fmt.Sprintf("%.2fM", r.SessionsPerSecond/1e6)
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.2f\t%.0f\t%.0f\t%.0f\t%s\t  %s\n", r.Sessions, frame, r.Burst, r.Workers,
			r.NanosPerPacket, r.NanosMin, r.NanosMax, r.NanosTypical, r.CyclesPerPacket, r.Mpps, r.BurstNanos.P50, r.BurstNanos.P99, r.BurstNanos.P999, rate, r.Name)
	}
	if !b.withDevices {
		return w.Flush()
	}
	fmt.Fprintln(w, "\t\t\t\t\t\t\t\t\t\t\t\t\t\t ")
	fmt.Fprintln(w, "sessions\tMpps\tns/packet\tlowest\thighest\tratio\tbusy\tlost\tat rest\tlatency p50\tp99\tp99.9\tp99.99 us\t ")
	for _, r := range b.results {
		if !r.onDevice {
			continue
		}
		part := func(x float64, format string) string {
			if x == 0 {
				return ""
			}
			return fmt.Sprintf(format, x)
		}
		l := r.LatencyNanos
		if l == nil {
			l = new(quantiles)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%.4f%%\t%s\t%s\t%s\t%s\t%s\t  %s\n", r.Sessions, part(r.Mpps, "%.4g"), part(r.NanosPerPacket, "%.1f"),
			part(r.NanosMin, "%.1f"), part(r.NanosMax, "%.1f"), part(r.Ratio, "%.2f"), part(r.BusyShare*100, "%.0f%%"), r.Lost*100, part(r.CoreShare*100, "%.1f%%"),
			part(l.P50/1e3, "%.1f"), part(l.P99/1e3, "%.1f"), part(l.P999/1e3, "%.1f"), part(l.P9999/1e3, "%.1f"), r.Name)
	}
	return w.Flush()
}
