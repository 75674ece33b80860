// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/memory"
	"weir/pipeline/respond"
)

// racesConfig resolves its neighbors, so that workers and control use the table of neighbors at
// once.
var racesConfig = strings.NewReplacer("{address: 198.51.100.1, mac: \"02:00:00:00:02:01\"}", "198.51.100.1",
	"mac: \"02:00:00:00:01:05\", ", "", "sessions: 4096", "sessions: 2048").Replace(leakConfig)

// Two workers and control use one state at once: packets of all kinds, changes of configuration,
// the census, previews, neighbors. Under the race detector the segments lie on the Go heap, where
// it sees every word that two of them use without an order.
func TestRaces(t *testing.T) {
	memory.Private(true)
	defer memory.Private(false)
	const workers, rounds, changes = 2, 400, 8
	c := newCrew(t, workers, racesConfig)
	var current atomic.Pointer[generation.Generation]
	current.Store(c.gen)
	var done atomic.Int32
	var enough atomic.Bool // changes
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			k := c.workers[w]
			k.assumed = 0
			r := rand.New(rand.NewPCG(9, uint64(w)))
			b := new(Burst)
			turn := func(round int) {
				k.SetClock(1e9 + int64(round)*3e6)
				if g := current.Load(); g != k.gen {
					k.SetGeneration(g)
				}
				k.Adopt(1 - w)
				for p := range k.Out {
					k.Sent(p, k.Out[p].N)
				}
				k.Release()
				for ring := c.state.Inject(w); ring.Peek() != nil; {
					ring.Pop()
				}
				for p := range k.Out {
					k.Sent(p, k.Out[p].N)
				}
				k.Done = k.Done[:0]
				k.Expire(64)
			}
			round := 0
			for ; round < rounds || !enough.Load(); round++ {
				b.Port, b.N = r.IntN(2), 1+r.IntN(8)
				for i := range b.N {
					list := leakSeeds[b.Port]
					line := list[r.IntN(len(list))]
					if r.IntN(2) == 0 { // many flows of one mapping and of one 1:1 address
						line = fmt.Sprintf("udp 10.0.0.%d:%d > 8.8.%d.%d:53", 5+r.IntN(2), 1000+r.IntN(4), r.IntN(2), r.IntN(20))
						if b.Port == 1 {
							line = fmt.Sprintf("udp 8.8.%d.%d:53 > 192.0.2.%d:%d", r.IntN(2), r.IntN(20), 5+r.IntN(2), 1000+r.IntN(4))
						}
					}
					b.Packets[i].Data, b.Packets[i].Handle = parseLine(t, b.Port, line), 1
				}
				k.Process(b)
				turn(round)
			}
			for done.Add(1); done.Load() < workers; {
				turn(round)
			}
		})
	}

	defer wg.Wait()
	defer enough.Store(true)
	compiler := generation.Resume(c.state, c.gen)
	responder := respond.New(c.state, testMACs)
	responder.Configure(c.cfg, c.gen)
	gens := []*generation.Generation{c.gen}
	for n := range changes {
		cfg := parseConfig(t, strings.Replace(racesConfig, "to: 100.64.0.0/10, drop: true", fmt.Sprintf("to: 100.%d.0.0/16, drop: true", 64+n%2), 1))
		g, err := compiler.Compile(cfg)
		if err != nil {
			t.Fatal(err)
		}
		gens = append(gens, anySource(g))
		current.Store(g)
		for w := range workers {
			for c.state.Seen(w) != g.Number {
				time.Sleep(time.Millisecond)
			}
		}
		compiler.Retire()
		responder.Configure(cfg, g)
		for i := range 3 {
			responder.Poll(int64(n*3+i) * 1e9)
			for j := range g.Hops {
				responder.Learn(g.Hops[j].At, g.Hops[j].Addr.Netip(), [6]byte{2, 0, 0, 0, 2, 1}, int64(n)*1e9)
			}
		}
		c.state.TakeCensus(g.VPCNames(cfg))
		compiler.Fates(g, g.InstanceNames(cfg), nil)
		c.sum()
	}
	enough.Store(true)
	wg.Wait()
	for to := range c.workers {
		c.workers[to].Adopt(1 - to)
		for p := range c.workers[to].Out {
			c.workers[to].Sent(p, c.workers[to].Out[p].N)
		}
	}
	c.owned()
	sum := c.sum()
	if tot := sum.Totals(); tot.Received != tot.Forwarded+tot.Dropped+tot.Punted+tot.Held || tot.Forwarded == 0 || sum.Handed == 0 || sum.Dropped[drop.Restart] != 0 {
		t.Errorf("%+v, %d handed over", tot, sum.Handed)
	}
	for _, g := range gens[1:] {
		g.Close()
	}
}
