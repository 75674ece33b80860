// SPDX-License-Identifier: Apache-2.0

// Bench writes the tables of docs/performance.md again from what weir bench --json has measured:
//
//	go run ./deploy/project/bench docs/performance.md RESULTS.json...
//
// A table is between the lines "<!-- bench: NAME -->" and "<!-- end -->". A later file's result
// takes the place of an earlier one's of the same name and size.
package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
)

type result struct {
	Name     string  `json:"name"`
	Sessions int     `json:"sessions"`
	Frame    float64 `json:"frame"`
	FrameMix string  `json:"frame_mix"`
	Burst    int     `json:"burst"`
	Workers  int     `json:"workers"`
	Nanos    float64 `json:"ns_per_packet"`
	Cycles   float64 `json:"cycles_per_packet"`
	Mpps     float64 `json:"mpps"`
	Min      float64 `json:"ns_per_packet_min"`
	Max      float64 `json:"ns_per_packet_max"`

	Generator         float64            `json:"generator_ns_per_packet"`
	Allocations       float64            `json:"allocations_per_packet"`
	Bursts            *quantiles         `json:"burst_ns"`
	Stages            map[string]float64 `json:"stage_ns_per_packet"`
	BytesPerSession   float64            `json:"bytes_per_session"`
	SessionsPerSecond float64            `json:"sessions_per_second"`
	NanosPerEnd       float64            `json:"ns_per_ended_session"`
	Refused           float64            `json:"refused_share"`
	BusyShare         float64            `json:"busy_share"`
	Lost              float64            `json:"lost_share"`
	Latency           *quantiles         `json:"latency_ns"`
	CoreShare         float64            `json:"core_share"`
	Ratio             float64            `json:"testpmd_ratio"`
}

type quantiles struct{ P50, P90, P99, P999, P9999 float64 }

// results are all that were measured.
type results []result

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: bench docs/performance.md RESULTS.json...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(document string, files []string) error {
	var all results
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var list results
		if err := json.Unmarshal(text, &list); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		for _, r := range list {
			same := func(o result) bool {
				return o.Name == r.Name && o.Sessions == r.Sessions && o.Frame == r.Frame && o.Burst == r.Burst && o.Workers == r.Workers
			}
			if i := slices.IndexFunc(all, same); i >= 0 {
				all[i] = r
			} else {
				all = append(all, r)
			}
		}
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	var unknown []string
	place := regexp.MustCompile(`(?s)(<!-- bench: (\S+) -->\n).*?(<!-- end -->)`)
	written := place.ReplaceAllStringFunc(string(text), func(old string) string {
		m := place.FindStringSubmatch(old)
		table, ok := tables[m[2]]
		if !ok {
			unknown = append(unknown, m[2])
			return old
		}
		rows := table(all)
		if len(rows) <= 1 {
			return old // nothing of it was measured
		}
		return m[1] + markdown(rows) + m[3]
	})
	if len(unknown) > 0 {
		return fmt.Errorf("%s: there is no table %v", document, unknown)
	}
	return os.WriteFile(document, []byte(written), 0o644)
}

// markdown writes rows, the first of which is the head.
func markdown(rows [][]string) string {
	var b strings.Builder
	for i, r := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(r)) + "\n")
		}
	}
	return b.String()
}

// tables makes each table's rows.
var tables = map[string]func(results) [][]string{
	"established": func(all results) [][]string {
		return all.bySessions("established/", func(r *result) string { return fmt.Sprintf("%.0f (%.0f-%.0f)", r.Nanos, r.Min, r.Max) })
	},
	"established-cycles": func(all results) [][]string {
		return all.bySessions("established/", func(r *result) string { return fmt.Sprintf("%.0f", r.Cycles) })
	},
	"other": func(all results) [][]string {
		rows := all.bySessions("unknown/", func(r *result) string { return fmt.Sprintf("%.0f (%.0f-%.0f)", r.Nanos, r.Min, r.Max) })
		return append(rows, all.bySessions("fragments/", func(r *result) string { return fmt.Sprintf("%.0f (%.0f-%.0f)", r.Nanos, r.Min, r.Max) })[1:]...)
	},
	"memory": func(all results) [][]string {
		return all.bySessions("memory", func(r *result) string { return fmt.Sprintf("%.1f (%.1f-%.1f)", r.Nanos, r.Min, r.Max) })
	},
	"stages":   stagesTable,
	"bursts":   burstsTable,
	"shapes":   shapesTable,
	"new":      begunTable,
	"workers":  workersTable,
	"devices":  devicesTable,
	"latency":  latencyTable,
	"idle":     idleTable,
	"scaling":  scalingTable,
	"ethernet": ethernetTable,
}

// find returns the result of a name and size, of bursts of 32 frames of 64 bytes.
func (all results) find(name string, sessions, workers int) *result {
	for i := range all {
		if r := &all[i]; r.Name == name && r.Sessions == sessions && r.Workers == workers && r.Frame == 64 && r.Burst == 32 {
			return r
		}
	}
	return nil
}

// sizes lists the numbers of sessions of the results that begin with prefix, and their names in
// order.
func (all results) sizes(prefix string) (sizes []int, names []string) {
	for i := range all {
		r := &all[i]
		if !strings.HasPrefix(r.Name, prefix) {
			continue
		}
		if !slices.Contains(sizes, r.Sessions) {
			sizes = append(sizes, r.Sessions)
		}
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	slices.Sort(sizes)
	slices.Sort(names)
	return sizes, names
}

func (all results) bySessions(prefix string, cell func(*result) string) [][]string {
	sizes, names := all.sizes(prefix)
	rows := [][]string{{"sessions"}}
	for _, n := range sizes {
		rows[0] = append(rows[0], number(n))
	}
	for _, name := range names {
		row := []string{name}
		for _, n := range sizes {
			if r := all.find(name, n, 1); r != nil {
				row = append(row, cell(r))
			} else {
				row = append(row, "")
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// number writes n with commas.
func number(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// What is shown in parts: packets of sessions, and packets that begin one.
const (
	picture    = "established/snat/v4/out"
	newPicture = "new/snat/v4"
)

func stagesTable(all results) [][]string {
	rows := [][]string{{"stage"}}
	for _, stage := range []string{"classify", "short", "apply", "route", "egress", "rewrite", "transmit", "flush"} {
		rows = append(rows, []string{stage})
	}
	rows = append(rows, []string{"sum"})
	for _, name := range []string{picture, newPicture} {
		sizes, _ := all.sizes(name)
		for _, n := range sizes {
			r := all.find(name, n, 1)
			if r == nil {
				continue
			}
			rows[0] = append(rows[0], name+", "+number(n))
			sum := 0.0
			for _, x := range r.Stages {
				sum += x
			}
			for i := range rows[1:] {
				x := sum
				if i < len(rows)-2 {
					x = r.Stages[rows[i+1][0]]
				}
				rows[i+1] = append(rows[i+1], fmt.Sprintf("%.1f", x))
			}
		}
	}
	return rows
}

func burstsTable(all results) [][]string {
	rows := [][]string{{"us a burst of 32", "p50", "p90", "p99", "p99.9", "p99.99"}}
	for _, prefix := range []string{picture, "established/mixed", newPicture} {
		sizes, _ := all.sizes(prefix)
		for _, n := range sizes {
			if r := all.find(prefix, n, 1); r != nil && r.Bursts != nil {
				q := r.Bursts
				rows = append(rows, []string{prefix + ", " + number(n), micros(q.P50), micros(q.P90), micros(q.P99), micros(q.P999), micros(q.P9999)})
			}
		}
	}
	return rows
}

func micros(ns float64) string { return fmt.Sprintf("%.1f", ns/1e3) }

// shapes are other bursts and frames.
func shapesTable(all results) [][]string {
	rows := [][]string{{"", "frames of 64", "IMIX", "frames of 1,500"}}
	for _, name := range []string{picture, "established/mixed"} {
		for _, burst := range []int{8, 32, 64} {
			row := []string{fmt.Sprintf("%s, bursts of %d", name, burst)}
			for _, frame := range []float64{64, 362, 1500} {
				i := slices.IndexFunc(all, func(r result) bool {
					return r.Name == name && r.Sessions == 65536 && r.Burst == burst && r.Frame == frame && r.Workers == 1
				})
				if i >= 0 {
					row = append(row, fmt.Sprintf("%.0f (%.0f-%.0f)", all[i].Nanos, all[i].Min, all[i].Max))
				}
			}
			if len(row) == 4 {
				rows = append(rows, row)
			}
		}
	}
	return rows
}

func begunTable(all results) [][]string {
	rows := [][]string{{"", "sessions", "ns a packet", "million sessions a second", "ns to end one", "found no port"}}
	sizes, names := all.sizes("new/")
	for _, name := range names {
		for _, n := range sizes {
			if r := all.find(name, n, 1); r != nil && n >= 65536 {
				rows = append(rows, []string{name, number(n), fmt.Sprintf("%.0f (%.0f-%.0f)", r.Nanos, r.Min, r.Max),
					fmt.Sprintf("%.2f", r.SessionsPerSecond/1e6), fmt.Sprintf("%.0f", r.NanosPerEnd), fmt.Sprintf("%.1f %%", r.Refused*100)})
			}
		}
	}
	return rows
}

func workersTable(all results) [][]string {
	rows := [][]string{{"", "sessions", "Mpps with 1 worker", "2 workers", "times"}}
	for _, name := range []string{picture, "established/mixed", "handoff/snat/v4/out"} {
		sizes, _ := all.sizes(name)
		for _, n := range sizes {
			if two, one := all.find(name, n, 2), all.find(picture, n, 1); two != nil && one != nil && name == "handoff/snat/v4/out" {
				rows = append(rows, []string{name, number(n), "", fmt.Sprintf("%.1f", two.Mpps), fmt.Sprintf("%.2f", two.Mpps/one.Mpps)})
			} else if one, two := all.find(name, n, 1), all.find(name, n, 2); one != nil && two != nil {
				rows = append(rows, []string{name, number(n), fmt.Sprintf("%.1f", one.Mpps), fmt.Sprintf("%.1f", two.Mpps), fmt.Sprintf("%.2f", two.Mpps/one.Mpps)})
			}
		}
	}
	return rows
}

func devicesTable(all results) [][]string {
	rows := [][]string{{"", "sessions", "ns a packet", "times the reference", "Mpps that came out", "core busy", "lost"}}
	for _, r := range all {
		if r.BusyShare == 0 {
			continue
		}
		rows = append(rows, []string{r.Name, number(r.Sessions), fmt.Sprintf("%.0f (%.0f-%.0f)", r.Nanos, r.Min, r.Max), fmt.Sprintf("%.2f", r.Ratio),
			fmt.Sprintf("%.2f", r.Mpps), fmt.Sprintf("%.0f %%", r.BusyShare*100), fmt.Sprintf("%.4f %%", r.Lost*100)})
	}
	return rows
}

func latencyTable(all results) [][]string {
	rows := [][]string{{"us", "Mpps", "p50", "p90", "p99", "p99.9", "p99.99", "lost"}}
	for _, r := range all {
		if q := r.Latency; q != nil && strings.HasPrefix(r.Name, "latency/") {
			rows = append(rows, []string{strings.TrimPrefix(r.Name, "latency/") + " %", fmt.Sprintf("%.2f", r.Mpps), micros(q.P50), micros(q.P90), micros(q.P99), micros(q.P999), micros(q.P9999),
				fmt.Sprintf("%.4f %%", r.Lost*100)})
		}
	}
	return rows
}

func idleTable(all results) [][]string {
	rows := [][]string{{"turns before sleep - turns a step - shortest - longest sleep", "core share at rest", "latency p50, us", "p90", "p99", "p99.9"}}
	for _, r := range all {
		if q := r.Latency; q != nil && strings.HasPrefix(r.Name, "idle/") {
			rows = append(rows, []string{strings.TrimPrefix(r.Name, "idle/"), fmt.Sprintf("%.1f %%", r.CoreShare*100), micros(q.P50), micros(q.P90), micros(q.P99), micros(q.P999)})
		}
	}
	return rows
}

// The model of docs/performance.md: a worker's packet costs what the pipeline costs it, plus a
// device's two bursts, plus, for the share that arrives at another worker, a ring; and every
// doubling of workers keeps a share of their speed.
const deviceNanos = 20.0 // receive and transmit of a physical device's driver, a packet

// handoffNanos is what it costs that another worker receives a packet: half of them are in the
// measurement.
func (all results) handoffNanos(sessions int) float64 {
	direct, handed := all.find(picture, sessions, 2), all.find("handoff/snat/v4/out", sessions, 2)
	if direct == nil || handed == nil {
		return 0
	}
	return max(0, 2*(handed.Nanos-direct.Nanos))
}

// model returns Mpps with n workers, with and without a device that spreads by the remote address
// itself.
func (all results) model(n, sessions int) (spread, handoff float64, ok bool) {
	one, two := all.find("established/mixed", sessions, 1), all.find("established/mixed", sessions, 2)
	if one == nil || two == nil {
		return 0, 0, false
	}
	keep := math.Pow(min(1, two.Mpps/one.Mpps/2), math.Log2(float64(n)))
	cost := one.Nanos + deviceNanos
	other := float64(n-1) / float64(n)
	return float64(n) * keep * 1e3 / cost, float64(n) * keep * 1e3 / (cost + other*all.handoffNanos(sessions)), true
}

func scalingTable(all results) [][]string {
	rows := [][]string{{"workers", "65,536 sessions: spread by the device", "by rings", "1,048,576 sessions: by the device", "by rings"}}
	for _, n := range []int{1, 2, 4, 8, 16} {
		a, b, ok1 := all.model(n, 65536)
		c, d, ok2 := all.model(n, 1<<20)
		if ok1 && ok2 {
			rows = append(rows, []string{fmt.Sprint(n), fmt.Sprintf("%.0f Mpps", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.0f", c), fmt.Sprintf("%.0f", d)})
		}
	}
	return rows
}

func ethernetTable(all results) [][]string {
	rows := [][]string{{"full in one direction", "packets a second", "workers, 65,536 sessions", "workers, 1,048,576 sessions"}}
	for _, gbit := range []float64{100, 200} {
		for _, f := range []struct {
			name  string
			bytes float64
		}{{"64 bytes", 64}, {"IMIX", 362}, {"1,500 bytes", 1500}} {
			mpps := gbit * 1e3 / 8 / (f.bytes + 20) // preamble and gap
			row := []string{fmt.Sprintf("%.0f GbE, %s", gbit, f.name), fmt.Sprintf("%.1f Mpps", mpps)}
			for _, sessions := range []int{65536, 1 << 20} {
				need := "more than 64"
				for n := 64; n >= 1; n-- {
					v, _, ok := all.model(n, sessions)
					if !ok {
						return rows
					}
					if v < mpps {
						break
					}
					need = fmt.Sprint(n)
				}
				row = append(row, need)
			}
			rows = append(rows, row)
		}
	}
	return rows
}
