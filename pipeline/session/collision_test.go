// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
	"math/rand/v2"
	"testing"

	"weir/pipeline/inet"
)

// A million flows that were chosen against the hash, without the table's secret, make neither more
// than twice as many chains of buckets nor chains more than twice as long as random flows.
func TestCollisionAttacks(t *testing.T) {
	n := 1 << 20
	if testing.Short() {
		n = 1 << 14
	}
	const share = 16 // of the buckets of a table whose secret is known, the flows fall into one of so many
	known := randomSecret(rand.New(rand.NewPCG(7, 8)))
	for _, c := range []struct {
		name string
		// flow returns the i-th flow to try, and whether it is among the chosen ones
		flow func(i int) (flow, bool)
	}{
		{"one hash without a secret", func(i int) (flow, bool) {
			a := inet.Addr{Lo: 0xffff_0a00_0000 + uint64(i)}
			f := flow{1, a, inet.Addr{Lo: 0xffff_0808_0808}, inet.Addr{Lo: 0xffff_c000_0000 + uint64(i)}, 1024, 53, 1024, 17}
			k, first := f.inside(), flow{1, inet.Addr{Lo: 0xffff_0a00_0000}, f.remote, f.external, 1024, 53, 1024, 17}.inside()
			if unseeded := (&Secret{}); unseeded.hash(&k) != unseeded.hash(&first) {
				t.Fatalf("flow %d is no collision for the function without a secret: the attack is none", i)
			}
			return f, true
		}},
		{"one bucket in 16 under another secret", func(i int) (flow, bool) {
			f := bigFlow(i)
			k := f.inside()
			h, _ := bits.Mul64(known.hash(&k), share)
			return f, h == 0
		}},
		{"one bit apart", func(i int) (flow, bool) {
			// Few bits set, at places that move through all words of the key.
			x := uint64(i)
			return flow{1, inet.Addr{Hi: 0x2001_0db8 << 32, Lo: bits.RotateLeft64(x, 44)}, inet.Addr{Hi: 0x2a00 << 48, Lo: bits.Reverse64(x)},
				inet.Addr{Hi: 0x2001_0db8<<32 | 1, Lo: bits.RotateLeft64(x, 20)}, uint16(i), 443, uint16(i), 6}, true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(9, 10))
			secret := randomSecret(r)
			probe := func(flow func(i int) (flow, bool)) (longest, long int) {
				table := newTable(t, n, secret)
				for i := 0; table.Len() < n; i++ {
					f, chosen := flow(i)
					if !chosen {
						continue
					}
					if _, ok := add(table, f); !ok {
						t.Fatalf("refused with %d of %d sessions", table.Len(), n)
					}
				}
				for i := range table.buckets {
					if table.buckets[i].next != 0 {
						long++
					}
				}
				return table.MaxProbe(), long
			}
			random, randomLong := probe(func(int) (flow, bool) {
				a := func() inet.Addr { return inet.Addr{Hi: r.Uint64(), Lo: r.Uint64()} }
				return flow{r.Uint32(), a(), a(), a(), uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32()), 17}, true
			})
			attack, attackLong := probe(c.flow)
			t.Logf("%d chains of more than one bucket, the longest of %d; with random flows %d, %d", attackLong, attack, randomLong, random)
			if attack > 2*random || attackLong > 2*randomLong {
				t.Errorf("%d chains of more than one bucket, the longest of %d; expected twice what random flows make, %d and %d, at the most",
					attackLong, attack, randomLong, random)
			}
		})
	}
}
