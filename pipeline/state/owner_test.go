// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"testing"

	"weir/pipeline/inet"
)

// The first bytes of the key with which Microsoft publishes examples ("Verifying the RSS Hash
// Calculation").
const publishedKey = "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"

func TestToeplitzPublished(t *testing.T) {
	var key [RSSKeySize]byte
	b, err := hex.DecodeString(publishedKey)
	if err != nil {
		t.Fatal(err)
	}
	copy(key[:], b)
	h := NewToeplitz(&key)
	for _, v := range []struct {
		src, dst string
		hash     uint32
	}{
		{"66.9.149.187", "161.142.100.80", 0x323e8fc2},
		{"199.92.111.2", "65.69.140.83", 0xd718262a},
		{"24.19.198.95", "12.22.207.184", 0xd2d0a5de},
	} {
		src, dst := netip.MustParseAddr(v.src).As4(), netip.MustParseAddr(v.dst).As4()
		got := uint32(0)
		for i, b := range append(src[:], dst[:]...) {
			got ^= h[i][b]
		}
		if got != v.hash {
			t.Errorf("%s > %s: %08x, published is %08x", v.src, v.dst, got, v.hash)
		}
	}
}

// slowToeplitz shifts the key bit by bit.
func slowToeplitz(key []byte, input []byte) (h uint32) {
	for i := range 8 * len(input) {
		if input[i/8]>>(7-i%8)&1 == 0 {
			continue
		}
		var window uint64
		for j := range 5 {
			window = window<<8 | uint64(key[i/8+j])
		}
		h ^= uint32(window >> (8 - i%8))
	}
	return h
}

func TestToeplitzAgreesWithSlow(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 200 {
		var key [RSSKeySize]byte
		for i := range key {
			key[i] = byte(r.Uint32())
		}
		h := NewToeplitz(&key)
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], r.Uint64())
		binary.BigEndian.PutUint64(b[8:], r.Uint64())
		if got, want := h.Hash(inet.From16(b[:])), slowToeplitz(key[:], b[:]); got != want {
			t.Fatalf("key %x, %x: %08x, expected %08x", key, b, got, want)
		}
		if got, want := h.Hash(inet.From4(b[:4])), slowToeplitz(key[:], b[:4]); got != want {
			t.Fatalf("key %x, %x: %08x, expected %08x", key, b[:4], got, want)
		}
	}
}

// Each of several workers owns about its share, by a key that is another one with every start.
func TestOwnersShare(t *testing.T) {
	for _, workers := range []int{1, 2, 3, 64} {
		s, err := New(Sizes{Workers: workers, Sessions: 64 * workers, Seed: &[32]byte{1, 2, 3}})
		if err != nil {
			t.Fatal(err)
		}
		h := NewToeplitz(&s.fixed.Ownership.Key)
		n := make([]int, workers)
		const addresses = 64_000
		for i := range addresses {
			n[s.fixed.Ownership.Owners[h.Hash(inet.Addr{Lo: 0xffff_0800_0000 + uint64(i)*77})%OwnerSlots]]++
		}
		for w := range n {
			if share := addresses / workers; n[w] < share/2 || n[w] > share*2 {
				t.Errorf("worker %d of %d owns %d of %d addresses", w, workers, n[w], addresses)
			}
		}
		s.Close()
	}
}
