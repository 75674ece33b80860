// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/appliance/command"
	"weir/appliance/dataplane"
	"weir/dpdk"
	"weir/pipeline/tsc"
)

// The generator sends packets into one port and receives what comes back by another, on one thread.
// Over memif it is a separate process that weir bench starts and tells by lines of JSON what to do.

// generator is a sender and receiver of flows from inside.
type generator struct {
	in, out *dpdk.Port
	pool    *dpdk.Mempool
	hz      float64
	flows   *flows
	order   []uint32
	next    int
	tx      [dpdk.MaxBurst]dpdk.Mbuf
	rx      dpdk.RxBurst
	latency histogram
}

// phase is a time of sending at one rate.
type phase struct {
	Rate  float64 `json:"rate"` // packets a second; 0: as many as go
	Nanos int64   `json:"nanos"`
}

// phaseResult is what came of it.
type phaseResult struct {
	Seconds  float64   `json:"seconds"`
	Sent     uint64    `json:"sent"`
	Received uint64    `json:"received"`
	Latency  quantiles `json:"latency"` // nanoseconds
	Error    string    `json:"error"`
}

func newGenerator(in, out *dpdk.Port, pool *dpdk.Mempool, hz float64, f flows, sessions int) *generator {
	f.remotes = make([]uint32, benchRemotes)
	g := &generator{in: in, out: out, pool: pool, hz: hz, flows: &f, order: make([]uint32, sessions)}
	for i := range f.remotes {
		f.remotes[i] = uint32(i)
	}
	for i, n := range rand.Perm(sessions) {
		g.order[i] = uint32(n)
	}
	return g
}

// send sends n packets of the next flows and returns how many the device took.
func (g *generator) send(n int) (int, error) {
	if err := g.pool.Alloc(g.tx[:n]); err != nil {
		return 0, err
	}
	for _, m := range g.tx[:n] {
		if g.next++; g.next >= len(g.order) {
			g.next = 0
		}
		b := m.Bytes()
		size := g.flows.put(b[:cap(b)], flow{number: g.order[g.next]}, 0, 64, tcpACK)
		m.SetLen(size)
	}
	// Stamped last, so that what the generator itself takes is not in the latency. No one on the
	// way reads the payload.
	now := tsc.Read()
	for _, m := range g.tx[:n] {
		b := m.Bytes()
		binary.LittleEndian.PutUint64(b[len(b)-8:], now)
	}
	taken := g.in.Transmit(0, g.tx[:n])
	dpdk.Free(g.tx[taken:n])
	if taken < n { // those come again: each flow is sent equally often
		g.next = (g.next + len(g.order) - (n - taken)) % len(g.order)
	}
	return taken, nil
}

// receive takes what has come back.
func (g *generator) receive() int {
	n := g.out.Receive(0, &g.rx, dpdk.MaxBurst)
	if n == 0 {
		return 0
	}
	now := tsc.Read()
	for _, m := range g.rx.Mbufs[:n] {
		b := m.Bytes()
		if sent := binary.LittleEndian.Uint64(b[len(b)-8:]); sent < now {
			g.latency.add(now - sent)
		}
	}
	dpdk.Free(g.rx.Mbufs[:n])
	return n
}

// prime sends one packet of every flow, few at a time so that none is lost, and waits for each.
func (g *generator) prime() error {
	const (
		window   = 256
		patience = 3 * time.Second
	)
	// Both devices' other ends may come up a moment after ours: what is sent before is lost.
	for begin := time.Now(); g.receive() == 0; time.Sleep(time.Millisecond) {
		if _, err := g.send(1); err != nil {
			return err
		}
		if time.Since(begin) > patience {
			return errors.New("no packet came back")
		}
	}
	for quiet := time.Now(); time.Since(quiet) < 20*time.Millisecond; {
		if g.receive() > 0 {
			quiet = time.Now()
		}
	}
	sent, received := 0, 0
	last := time.Now()
	for received < len(g.order) {
		if n := min(dataplane.BurstSize, len(g.order)-sent); n > 0 && sent-received < window {
			taken, err := g.send(n)
			if err != nil {
				return err
			}
			sent += taken
		}
		if n := g.receive(); n > 0 {
			received += n
			last = time.Now()
		} else if time.Since(last) > patience {
			return fmt.Errorf("of the first packets of %d flows, %d were sent and %d came back", len(g.order), sent, received)
		}
	}
	return nil
}

// perform sends for a time and waits for what is still on its way.
func (g *generator) perform(p phase) (r phaseResult, err error) {
	clear(g.latency[:])
	begin := tsc.Read()
	counts := uint64(float64(p.Nanos) / 1e9 * g.hz)
	for {
		elapsed := tsc.Read() - begin
		if elapsed >= counts {
			r.Seconds = float64(elapsed) / g.hz
			break
		}
		n := uint64(dataplane.BurstSize)
		if p.Rate > 0 {
			// What is due. A gap in which this thread did not run is not made up for: it would be a
			// burst of packets.
			due := uint64(float64(elapsed) / g.hz * p.Rate)
			if due > r.Sent+1024 {
				begin += uint64(float64(due-r.Sent) / p.Rate * g.hz)
				due = r.Sent + 1
			}
			n = min(n, due-min(due, r.Sent))
		}
		if n > 0 {
			taken, err := g.send(int(n))
			if err != nil {
				return r, err
			}
			r.Sent += uint64(taken)
		}
		r.Received += uint64(g.receive())
	}
	for end := time.Now(); r.Received < r.Sent && time.Since(end) < 500*time.Millisecond; {
		if n := g.receive(); n > 0 {
			r.Received += uint64(n)
			end = time.Now()
		}
	}
	r.Latency = g.latency.quantiles(g.hz)
	return r, nil
}

// quantiles in nanoseconds of what was counted.
func (h *histogram) quantiles(hz float64) quantiles {
	q := func(share float64) float64 { return h.quantile(share) * 1e9 / hz }
	return quantiles{q(0.5), q(0.9), q(0.99), q(0.999), q(0.9999)}
}

// generatorSetup is the first line that the process reads.
type generatorSetup struct {
	Devices  [2]string `json:"devices"`
	Core     int       `json:"core"`
	Sessions int       `json:"sessions"`
}

// GeneratorCommand is the process beside a device under test. It is no word for users.
func GeneratorCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "bench-generator",
		Short:  "The generator process of weir bench --devices",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: command.Work(func(cmd *cobra.Command, _ []string) error {
			return serveGenerator(cmd.InOrStdin(), cmd.OutOrStdout())
		}),
	}
}

// serveGenerator reads a generatorSetup, answers once all flows are primed, and then runs one phase
// for every line, until there is no more.
func serveGenerator(in io.Reader, out io.Writer) (err error) {
	debug.SetGCPercent(-1)
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.New("expected a setup as JSON on standard input")
	}
	var c generatorSetup
	if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
		return fmt.Errorf("set-up: %w", err)
	}
	if err := dpdk.Init(dpdk.EALConfig{Memory: 64 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dpdk.Cleanup()) }()
	pool, err := dpdk.NewMempool("generator", 8191, dpdk.DataRoom(1500), -1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Free()) }()
	ports, err := openPair(c.Devices, pool)
	defer func() { err = errors.Join(err, closePair(ports)) }()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); !ports[0].Link().Up || !ports[1].Link().Up; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s and %s: nothing connects at the other end", c.Devices[0], c.Devices[1])
		}
	}
	result := make(chan error)
	go func() {
		if err := dpdk.RegisterThread(c.Core); err != nil {
			result <- err
			return
		}
		defer dpdk.UnregisterThread()
		unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		g := newGenerator(ports[0], ports[1], pool, tsc.Hz(50*time.Millisecond), snat4, c.Sessions)
		e := json.NewEncoder(out)
		if err := g.prime(); err != nil {
			result <- err
			return
		}
		e.Encode(phaseResult{})
		for lines.Scan() {
			var p phase
			if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
				result <- err
				return
			}
			r, err := g.perform(p)
			if err != nil {
				result <- err
				return
			}
			e.Encode(r)
		}
		result <- nil
	}()
	return <-result
}

// openPair opens and starts two devices that receive into pool.
func openPair(devices [2]string, pool *dpdk.Mempool) (ports []*dpdk.Port, err error) {
	for _, d := range devices {
		p, err := dpdk.OpenPort(dpdk.PortConfig{Name: "bench", Device: d, Mempool: func(int) (*dpdk.Mempool, error) { return pool, nil }})
		if err != nil {
			return ports, err
		}
		ports = append(ports, p)
	}
	for _, p := range ports {
		if err := p.Start(); err != nil {
			return ports, err
		}
	}
	return ports, nil
}

func closePair(ports []*dpdk.Port) (err error) {
	for _, p := range ports {
		err = errors.Join(err, p.Close())
	}
	return err
}
