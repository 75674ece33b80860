// SPDX-License-Identifier: Apache-2.0

package state

import (
	"weir/pipeline/inet"
)

// A flow belongs to one worker: the owner of its remote address, which no translation changes and
// which both directions and all fragments carry. So sessions need no locks, and filtering and
// reassembly ask nobody else.

// RSSKeySize is enough for every network card known.
const RSSKeySize = 52

// OwnerSlots is how many parts the hash divides the remote addresses into.
const OwnerSlots = 128

// ownership says who owns which addresses: Owners[Toeplitz(Key, address) mod 128], which a network
// card can compute too.
type ownership struct {
	Key    [RSSKeySize]byte
	Owners [OwnerSlots]uint8
	_      [4]byte
}

// Toeplitz is the Toeplitz hash under one key, by a table for each byte of the input.
type Toeplitz [16][256]uint32

// NewToeplitz returns the hash under key: the exclusive or of the key's 32 bits from place i on,
// for every bit i of the input that is set.
func NewToeplitz(key *[RSSKeySize]byte) *Toeplitz {
	window := func(bit int) (w uint32) {
		for i := range 32 {
			at := bit + i
			w = w<<1 | uint32(key[at/8]>>(7-at%8)&1)
		}
		return w
	}
	t := new(Toeplitz)
	for i := range t {
		for b := range t[i] {
			for bit := range 8 {
				if b>>(7-bit)&1 != 0 {
					t[i][b] ^= window(8*i + bit)
				}
			}
		}
	}
	return t
}

// Hash is the Toeplitz hash of an address in network order, four bytes or sixteen.
func (t *Toeplitz) Hash(a inet.Addr) uint32 {
	lo := a.Lo
	if a.Is4() {
		return t[0][lo>>24&0xff] ^ t[1][lo>>16&0xff] ^ t[2][lo>>8&0xff] ^ t[3][lo&0xff]
	}
	h := uint32(0)
	for i := range 8 {
		h ^= t[i][a.Hi>>(56-8*i)&0xff] ^ t[8+i][lo>>(56-8*i)&0xff]
	}
	return h
}

// RSS returns what a network card needs to hand each packet to the queue of the worker that owns
// it: a key, and a table of queues.
func (s *State) RSS() (key []byte, queues []uint16) {
	o := s.Ownership()
	for _, w := range o.Owners {
		queues = append(queues, uint16(w))
	}
	return o.Key[:], queues
}

// Ownership returns who owns which remote addresses.
func (s *State) Ownership() *ownership { return &s.fixed.Ownership }
