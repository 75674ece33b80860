// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

const fairVPCs = 5

// fairConfig has VPCs of these weights, with a share of ports each that serves many remote
// endpoints.
func fairConfig(weights []int) string {
	var ports, vpcs strings.Builder
	for v, weight := range weights {
		fmt.Fprintf(&ports, "  - {name: in%d, side: inside, device: net_null%d}\n", v, v)
		fmt.Fprintf(&vpcs, `  - name: v%d
    weight: %d
    attach: [{port: in%d, addresses: [10.0.0.1/16]}]
    subnets: [10.0.0.0/16]
    routes: [{to: 0.0.0.0/0, gateway: g}]
    instances: [{name: i, addresses: [10.0.0.5], external: {snat: [{address: 192.0.2.%d, ports: 1024-65535}]}}]
`, v, weight, v, 10+v)
	}
	return "version: 1\nsessions: {mapping: address-and-port-dependent, limits: {per_instance: 0}}\nports:\n" + ports.String() + `
  - {name: out, side: outside, device: net_null9, addresses: [198.51.100.2/24], next_hops: [198.51.100.1]}
pools: [{name: p, ranges: [192.0.2.0/24]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
vpcs:
` + vpcs.String()
}

// fairFlow is a flow that began, at the worker that owns its remote address.
type fairFlow struct {
	vpc, worker int
	line, left  string
	key         session.Key
	last        uint32
}

// town is several workers with their flows beside them.
type town struct {
	*rig
	workers []*rig
	weights []int
	slots   [fairVPCs]uint32
	flows   []*fairFlow
}

// use counts the sessions of each VPC in a worker's table, by the table itself.
func (w *town) use(worker int) (use [fairVPCs]int, all int) {
	t := w.workers[worker].sessions
	for ref := range uint32(t.Capacity()) {
		if s := t.At(ref); s.State() != session.Free {
			for v, slot := range w.slots {
				if slot == s.VPC {
					use[v]++
					all++
				}
			}
		}
	}
	return use, all
}

// above reports which VPCs have more than the level: up to what each has by its weight, all
// together would have more than seven eighths.
func (w *town) above(worker int) (above [fairVPCs]bool, all int) {
	use, all := w.use(worker)
	room := w.workers[worker].Capacity() / 8 * 7
	for v := range use {
		sum := 0 // times the VPC's weight
		for o := range use {
			sum += min(use[o]*w.weights[v], use[v]*w.weights[o])
		}
		above[v] = use[v] > 0 && sum > room*w.weights[v]
	}
	return above, all
}

// Random tenants, weights that change, and floods to many remote addresses or to one, over four
// workers: who is below the level is refused only by a full table, who is above it, beyond the
// rounding, is refused; and nobody's session ends before its time, but those of VPCs above the
// level at the floors of the RFCs.
func TestFairShares(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	const workers, capacity = 4, 256
	counts := map[string]int{}
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 21))
		weights := make([]int, fairVPCs)
		for v := range weights {
			weights[v] = 1 + rnd.IntN(3)
		}
		w := &town{rig: newRigFor(t, fairConfig(weights), refNeighbor, workers*capacity, workers), weights: weights}
		w.workers = append(w.workers, w.rig)
		var macs []config.MAC
		for i := range w.cfg.Ports {
			macs = append(macs, config.MAC{2, 0, 0, 0, 0, byte(1 + i)})
		}
		for i := 1; i < workers; i++ {
			k := NewWorker(w.state, i, w.gen, WorkerConfig{MACs: macs, AssumeMAC: refNeighbor, Seed: &testSeed})
			k.SetClock(w.nanos)
			w.workers = append(w.workers, &rig{Worker: k, t: t, state: w.state, compiler: w.compiler, cfg: w.cfg})
		}
		for v := range w.slots {
			w.slots[v] = w.compiler.VPCs.Current[fmt.Sprintf("v%d", v)]
		}
		next := 0
		begin := func(vpc, remote int) {
			next++
			worker := remote % workers
			above, all := w.above(worker)
			line := fmt.Sprintf("udp 10.0.0.5:%d > 9.%d.%d.%d:4000", 1024+next%60000, 1+next/60000, remote>>8, remote&255)
			got := w.workers[worker].send(vpc, line)
			switch {
			case got == "drop fair_share" && !above[vpc]:
				t.Fatalf("seed %d: VPC %d of %v by %v is refused its share", seed, vpc, first(w.use(worker)), weights)
			case got == "drop table_full" && all < capacity, strings.HasPrefix(got, "drop") && got != "drop fair_share" && got != "drop table_full":
				t.Fatalf("seed %d: with %d of %d sessions: %s", seed, all, capacity, got)
			case !strings.HasPrefix(got, "drop"):
				f := &fairFlow{vpc: vpc, worker: worker, line: line, left: got, last: w.workers[worker].tick}
				f.key = session.InsideKey(w.slots[vpc], inet.Addr{Lo: 0xffff_0a00_0005}, inet.Addr{Lo: 0xffff_0900_0000 + uint64(1+next/60000)<<16 + uint64(remote)},
					uint16(1024+next%60000), 4000, header.ProtocolUDP)
				w.flows = append(w.flows, f)
			}
			if above[vpc] {
				got = "above: " + got
			}
			name, _, _ := strings.Cut(got, " udp")
			if !strings.Contains(got, "drop") {
				name = "begins"
			}
			counts[name]++
		}
		greedy, single := 0, 0
		for step := range 60 {
			if step%6 == 0 {
				greedy, single = rnd.IntN(fairVPCs), rnd.IntN(2)*rnd.IntN(1000)
			}
			for range rnd.IntN(400) {
				remote := single
				if single == 0 {
					remote = rnd.IntN(1000)
				}
				begin(greedy, remote)
			}
			for range rnd.IntN(60) {
				begin(rnd.IntN(fairVPCs), rnd.IntN(1000))
			}
			// Some flows go on. Their sessions are there, and lead to where they led.
			for range 20 {
				if len(w.flows) > 0 {
					f := w.flows[rnd.IntN(len(w.flows))]
					if got := w.workers[f.worker].send(f.vpc, f.line); got != f.left {
						t.Fatalf("seed %d: a flow that was idle for %d ms leaves as %s, left as %s", seed, w.tick-f.last, got, f.left)
					}
					f.last = w.tick
				}
			}
			if rnd.IntN(8) == 0 {
				weights[rnd.IntN(fairVPCs)] = 1 + rnd.IntN(3)
				w.reload(fairConfig(weights))
				for _, k := range w.workers[1:] {
					k.SetGeneration(w.gen)
				}
			}
			for i, k := range w.workers {
				k.SetClock(w.nanos)
				if i == 0 {
					k.after(time.Duration(rnd.IntN(40_000)) * time.Millisecond)
				}
			}
			var above [workers][fairVPCs]bool
			for i, k := range w.workers {
				k.SetClock(w.nanos)
				k.reweigh(fairVPCs)
				above[i], _ = w.above(i)
				k.Expire(capacity)
			}
			kept := w.flows[:0]
			for _, f := range w.flows {
				idle := w.tick - f.last
				switch {
				case w.workers[f.worker].sessions.Find(&f.key) != session.None:
					kept = append(kept, f)
				case idle > 300_000:
					counts["ends in time"]++
				case idle > 120_000 && above[f.worker][f.vpc]:
					counts["gives way"]++
				default:
					t.Fatalf("seed %d: a session of VPC %d ended after %d ms; above the level are %v", seed, f.vpc, idle, above[f.worker])
				}
			}
			w.flows = kept
		}
		if err := w.state.Check(); err != nil {
			t.Fatal(err)
		}
		for i := range w.workers {
			use, _ := w.use(i)
			for v, slot := range w.slots {
				if got := w.workers[i].level.Sessions(slot); got != use[v] {
					t.Errorf("worker %d counts %d sessions of VPC %d, has %d", i, got, v, use[v])
				}
			}
		}
	}
	t.Logf("%v", counts)
	for _, what := range []string{"begins", "above: drop fair_share", "ends in time", "gives way"} {
		if counts[what] < 20 {
			t.Errorf("%q happened %d times: the floods are too small", what, counts[what])
		}
	}
}

func first[A, B any](a A, _ B) A { return a }
