// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"testing"
	"time"
)

// BenchmarkNewSessions is what a session costs from its first packet to its end, without I/O: in
// each round every packet begins one, until the table is half full, and then the expiry walk ends
// them all. Making the frames is measured apart and taken off.
func BenchmarkNewSessions(b *testing.B) {
	for _, c := range []struct {
		name string
		host byte
		v6   bool
	}{{"floating/v4", 5, false}, {"snat/v4", 6, false}, {"floating/v6", 5, true}, {"snat/v6", 6, true}} {
		b.Run(c.name, func(b *testing.B) {
			w := newTestWorker(b, benchConfig)
			f := newFlows(c.v6, c.host)
			const bursts, size = 1 << 14, 32
			var burst Burst
			burst.N = size
			var data [size][128]byte
			flow := 0
			fill := func() {
				for j := range size {
					burst.Packets[j].Data = f.put(data[j][:], flow)
					flow++
				}
			}
			start := time.Now()
			for range bursts {
				fill()
			}
			generator := float64(time.Since(start).Nanoseconds()) / (bursts * size)
			now := int64(1e9)
			for b.Loop() {
				for range bursts {
					fill()
					w.Process(&burst)
					w.drain()
				}
				if n := w.sessions.Len(); n != bursts*size {
					b.Fatalf("%d sessions of %d packets: %v", n, bursts*size, w.counters.Dropped)
				}
				now += int64(time.Hour)
				w.SetClock(now)
				if n := w.Expire(w.Capacity()); n != bursts*size {
					b.Fatalf("%d of %d sessions ended", n, bursts*size)
				}
			}
			each := float64(b.Elapsed().Nanoseconds())/float64(b.N)/(bursts*size) - generator
			b.ReportMetric(each, "ns/session")
			b.ReportMetric(1e9/each, "sessions/s")
		})
	}
}
