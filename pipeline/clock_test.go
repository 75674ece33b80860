// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline"
	"weir/pipeline/generation"
	"weir/pipeline/packettext"
	"weir/pipeline/state"
)

const clockConfig = `version: 1
ports:
  - {name: inside, side: inside, device: net_null0}
  - {name: outside, side: outside, device: net_null1, addresses: [198.51.100.2/24], next_hops: [198.51.100.1]}
pools: [{name: p, ranges: [192.0.2.0/24]}]
sessions: {rfc_unsafe: true, port_rest: 3s, timeouts: {tcp_partially_open: 4s, tcp_closing: 4s, tcp_established: 9s, udp: 5s, icmp: 6s}}
vpcs:
  - name: v
    attach: [{port: inside, addresses: [172.30.0.1/24]}]
    subnets: [172.30.0.0/24]
    routes: [{to: 0.0.0.0/0, gateway: unnamed}]
    instances: [{name: web, addresses: [172.30.0.5], external: {snat: [{address: 192.0.2.9, ports: 5000-5015}]}}]
`

type clockSide struct {
	worker *pipeline.Worker
	state  *state.State
	burst  pipeline.Burst
}

// inUse returns how many ports are in use or rest, of all addresses.
func (s *clockSide) inUse() (n int) {
	m := s.state.Mappings()
	for a := range m.Addresses() {
		n += m.InUse(uint32(a))
	}
	return n
}

// TestClock sends random packets with random gaps through two workers: one whose time passes by a
// Clock, and one that has a turn every millisecond and looks through all of its tables in each. The
// same comes of every packet, as many sessions end, and as many ports rest.
func TestClock(t *testing.T) {
	cfg, _, err := config.Parse([]config.File{{Name: "clock.yaml", Data: []byte(clockConfig)}})
	if err != nil {
		t.Fatal(err)
	}
	seed := [32]byte{7}
	open := func() *clockSide {
		s, err := state.New(state.Sizes{Workers: 1, Sessions: 1024, Seed: &seed})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Segment.Close() })
		g, err := generation.NewCompiler(s, &seed).Compile(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.Close() })
		macs := []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
		return &clockSide{worker: pipeline.NewWorker(s, 0, g, pipeline.WorkerConfig{MACs: macs, AnyMAC: true, AssumeMAC: config.MAC{2, 1}, Seed: &seed}), state: s}
	}
	// send takes a frame in, and says what came of it.
	send := func(s *clockSide, frame []byte) string {
		before := *s.state.Counters(0)
		s.worker.Done = s.worker.Done[:0]
		for sp := &s.worker.Spare; sp.N < pipeline.MaxSpare; sp.N++ {
			sp.Data[sp.N] = make([]byte, 2048)
		}
		s.burst.Port, s.burst.N = 0, 1
		p := &s.burst.Packets[0]
		p.Data, p.Handle, p.Long = append(make([]byte, 0, 2048), frame...), 1, false
		s.worker.Process(&s.burst)
		text := ""
		for port := range cfg.Ports {
			q := &s.worker.Out[port]
			for i := range q.N {
				text += packettext.Format(q.Frames[i]) + "\n"
			}
			s.worker.Sent(port, q.N)
		}
		after := s.state.Counters(0)
		for i := range after.Dropped {
			if after.Dropped[i] != before.Dropped[i] {
				text += fmt.Sprintf("dropped %d\n", i)
			}
		}
		return text
	}
	r := rand.New(rand.NewChaCha8(seed))
	fast, slow := open(), open()
	clock := pipeline.NewClock(fast.worker)
	now := int64(time.Hour / time.Millisecond)
	slow.worker.SetClock(now * 1e6)
	clock.Advance(now * 1e6)
	ended := uint64(0)
	for n := range 1500 {
		gap := r.Int64N(40)
		if r.IntN(20) == 0 {
			gap = r.Int64N(12_000)
		}
		for range gap {
			now++
			slow.worker.SetClock(now * 1e6)
			slow.worker.Release()
			slow.worker.Expire(slow.worker.Capacity())
		}
		clock.Advance(now * 1e6)
		a, b := fast.state.Counters(0), slow.state.Counters(0)
		x, y := fast.inUse(), slow.inUse()
		if a.SessionsEnded != b.SessionsEnded || x != y {
			t.Fatalf("before packet %d, at %d ms: %d sessions had ended and %d ports were in use or rested; expected %d and %d", n, now, a.SessionsEnded, x, b.SessionsEnded, y)
		}
		ended = a.SessionsEnded
		line := fmt.Sprintf("udp 172.30.0.5:%d > 8.8.8.8:%d", 1000+r.IntN(30), 7+46*r.IntN(2))
		if r.IntN(3) == 0 {
			line = fmt.Sprintf("tcp 172.30.0.5:%d > 8.8.8.8:80 %s", 1000+r.IntN(30), []string{"SYN", "ACK", "RST"}[r.IntN(3)])
		}
		frame, err := packettext.Parse("02:00:00:00:00:aa > 02:00:00:00:00:01 " + line)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := send(fast, frame), send(slow, frame); got != want {
			t.Fatalf("packet %d, %s, at %d ms:\n%sexpected\n%s", n, line, now, got, want)
		}
	}
	if ended < 300 {
		t.Errorf("only %d sessions ended", ended)
	}
}
