// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// watch prints weir's counters every second, until the context or the duration (0: none) ends,
// while the scenario is played again and again. It returns an error if weir ended or a row went
// wrong meanwhile.
func watch(ctx context.Context, out io.Writer, stage *stage, g *gateway, duration time.Duration) error {
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
		fmt.Fprintf(out, "\nLive counters for %v", duration)
	} else {
		fmt.Fprint(out, "\nLive counters; Ctrl-C ends the playground and removes it")
	}
	if g.door != nil {
		fmt.Fprintf(out, " (all of them: curl http://%s/metrics)", g.door.Addr())
	}
	fmt.Fprintln(out)

	unexpected := make(chan []string, 1)
	go func() {
		var wrong []string
		for ctx.Err() == nil {
			for i, o := range stage.play(scenario) {
				if r := scenario[i]; !o.ok {
					wrong = append(wrong, fmt.Sprintf("%s %s %s: saw %s, expected %s", r.guest, r.protocol, r.remote, o.saw, r.want))
				}
			}
		}
		slices.Sort(wrong)
		unexpected <- slices.Compact(wrong)
	}()

	start := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last samples
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-g.process.Ended:
			return nil // stop says how
		case <-tick.C:
			page, err := g.web.Get("/metrics")
			if err != nil {
				return fmt.Errorf("read weir's counters: %w", err)
			}
			now := parseMetrics(page)
			fmt.Fprintf(out, "%4.0fs  %s\n", time.Since(start).Seconds(), now.line(last))
			last = now
		}
	}
	if wrong := <-unexpected; len(wrong) > 0 {
		return errors.New("played again, these went wrong:\n" + strings.Join(wrong, "\n"))
	}
	return nil
}

// samples are the series of one scrape, by name and labels as they are on the page.
type samples map[string]float64

// parseMetrics reads Prometheus' text format as far as weir writes it: no timestamps.
func parseMetrics(page string) samples {
	s := samples{}
	lines := bufio.NewScanner(strings.NewReader(page))
	for lines.Scan() {
		line := lines.Text()
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		if value, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			s[line[:i]] = value
		}
	}
	return s
}

// sum adds up all series of a name.
func (s samples) sum(name string) float64 {
	var total float64
	for series, value := range s {
		if base, _, _ := strings.Cut(series, "{"); base == name {
			total += value
		}
	}
	return total
}

// by renders the non-zero series of a name by their label's value, largest first: "no_route 3, acl
// 1".
func (s samples) by(name, label string) string {
	type part struct {
		value string
		count float64
	}
	var parts []part
	for series, count := range s {
		rest, ok := strings.CutPrefix(series, name+"{"+label+`="`)
		if ok && count != 0 {
			parts = append(parts, part{strings.TrimSuffix(rest, `"}`), count})
		}
	}
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.value, b.value))
	})
	var texts []string
	for _, p := range parts {
		texts = append(texts, fmt.Sprintf("%s %.0f", p.value, p.count))
	}
	return strings.Join(texts, ", ")
}

// line is the samples in one line; rates are against the line before, one second ago.
func (s samples) line(last samples) string {
	received := s.sum("weir_received_packets_total")
	text := fmt.Sprintf("received %.0f", received)
	if last != nil {
		text += fmt.Sprintf(" (+%.0f/s)", received-last.sum("weir_received_packets_total"))
	}
	text += fmt.Sprintf("  forwarded %.0f  punted %.0f  dropped %.0f",
		s.sum("weir_forwarded_packets_total"), s.sum("weir_punted_packets_total"), s.sum("weir_dropped_packets_total"))
	if reasons := s.by("weir_dropped_packets_total", "reason"); reasons != "" {
		text += " (" + reasons + ")"
	}
	return text + fmt.Sprintf("  sessions %.0f (%s)", s.sum("weir_sessions"), s.by("weir_sessions", "vpc"))
}
