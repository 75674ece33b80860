// SPDX-License-Identifier: Apache-2.0

package state

import (
	"math/rand/v2"
	"testing"
)

// Ranks are without gaps, in order, and none is wider than a sixteenth of where it begins.
func TestRanks(t *testing.T) {
	for rank := 1; rank < numRanks; rank++ {
		from, to := top(rank-1)+1, top(rank)
		if rankOf(uint32(from)) != uint16(rank) || rankOf(uint32(to)) != uint16(rank) {
			t.Fatalf("rank %d, %d to %d: %d to %d", rank, from, to, rankOf(uint32(from)), rankOf(uint32(to)))
		}
		if to-from > from/16 {
			t.Errorf("rank %d is from %d to %d", rank, from, to)
		}
	}
	if top(numRanks-1) < 1<<28 {
		t.Errorf("ranks end at %d", top(numRanks-1))
	}
}

// Over random tenants, weights, floods and endings the level is that of a slow reference: exactly
// the ranks whose every member has more than the level are above.
func TestLevelAgreesWithReference(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 11))
		vpcs, capacity := 1+r.IntN(12), 64<<r.IntN(8)
		l := NewLevel(make([]Share, vpcs), capacity)
		use, weight := make([]uint64, vpcs), make([]uint64, vpcs)
		change := func(v int) { weight[v] = uint64(1 + r.IntN(4)*r.IntN(4)) }
		for v := range vpcs {
			change(v)
		}
		// fills returns what a level of t fills, the level as a fraction.
		fills := func(n, d uint64) (sum uint64) {
			for v := range vpcs {
				sum += min(use[v]*d, n*weight[v])
			}
			return sum
		}
		total, greedy, refused := 0, 0, 0
		for step := range 40_000 {
			v := r.IntN(vpcs)
			if r.IntN(3) > 0 {
				v = greedy
			}
			if r.IntN(500) == 0 {
				greedy = r.IntN(vpcs)
				change(v)
			}
			if r.IntN(5) < 3 && total < capacity {
				use[v]++
				total++
				l.Add(uint32(v), uint16(weight[v]))
			} else if use[v] > 0 {
				use[v]--
				total--
				l.Remove(uint32(v))
			}
			if step%16 != 0 {
				continue
			}
			room := uint64(capacity) / 8 * 7
			for v := range vpcs {
				w := uint64(l.shares[v].weight)
				weight[v] = max(w, 1) // as it counts
			}
			for v := range vpcs {
				if l.Sessions(uint32(v)) != int(use[v]) {
					t.Fatalf("seed %d, step %d: VPC %d has %d sessions, want %d", seed, step, v, l.Sessions(uint32(v)), use[v])
				}
				// Above the level is who has more than it gives: a level at what he has by weight
				// would fill too much.
				above := use[v] > 0 && fills(use[v], weight[v]) > room*weight[v]
				said := l.Above(uint32(v))
				if said && !above {
					t.Fatalf("seed %d, step %d: VPC %d of %v by %v is called above, of %d", seed, step, v, use, weight, room)
				}
				// In the level's own rank he may be a sixteenth above it, and is not called so.
				if high := use[v] * 15 / 16; !said && above && use[v] > 33*weight[v] && fills(high, weight[v]) > room*weight[v] {
					t.Fatalf("seed %d, step %d: VPC %d of %v by %v is not called above, of %d", seed, step, v, use, weight, room)
				}
				if said {
					refused++
				}
			}
		}
		if vpcs > 1 && refused == 0 {
			t.Logf("seed %d: nobody was ever above", seed)
		}
	}
}

func BenchmarkLevel(b *testing.B) {
	l := NewLevel(make([]Share, 1024), 1<<20)
	b.Run("add and remove", func(b *testing.B) {
		for i := range uint32(b.N) {
			l.Add(i&1023, 1)
			if i > 100_000 {
				l.Remove((i - 77) & 1023)
			}
		}
	})
	b.Run("find", func(b *testing.B) {
		for b.Loop() {
			l.find()
		}
	})
}
