// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"math/bits"
)

// Check holds the table against itself: every live session is found by both of its keys and stands
// twice in the index, which holds nothing else; every free one stands once on the free stack; every
// overflow bucket is in one chain or spare. The owner must not run. Check is for tests and for
// finding faults: it walks everything, and allocates.
func (t *Table) Check() error {
	if t.h.free > uint64(len(t.free)) {
		return fmt.Errorf("session table: %d indexes on the free stack, which has room for %d", t.h.free, len(t.free))
	}
	stacked := make([]bool, len(t.sessions))
	for _, ref := range t.free[:t.h.free] {
		switch {
		case int(ref) >= len(t.sessions):
			return fmt.Errorf("session table: index %d on the free stack, of %d sessions", ref, len(t.sessions))
		case stacked[ref]:
			return fmt.Errorf("session table: session %d is twice on the free stack", ref)
		case t.sessions[ref].word != 0:
			return fmt.Errorf("session table: session %d is on the free stack and alive", ref)
		}
		stacked[ref] = true
	}
	for i := range t.sessions {
		s := &t.sessions[i]
		if s.word == 0 {
			if !stacked[i] {
				return fmt.Errorf("session table: session %d is neither alive nor on the free stack", i)
			}
			continue
		}
		if s.State() == Free || s.State() >= NumStates {
			return fmt.Errorf("session table: session %d is in state %d, which is none", i, s.State())
		}
		inside, outside := s.keys()
		if got := t.Find(&inside); got != uint32(i) {
			return fmt.Errorf("session table: the inside key of session %d finds %d", i, int32(got))
		}
		if got := t.Find(&outside); got != uint32(i) {
			return fmt.Errorf("session table: the outside key of session %d finds %d", i, int32(got))
		}
		if s.Flags&Paired != 0 {
			if err := t.checkPaired(uint32(i), s); err != nil {
				return err
			}
		}
	}
	return t.checkIndex()
}

// checkPaired looks at the neighbors of a session in the list of those that share mapping and
// remote address.
func (t *Table) checkPaired(ref uint32, s *Session) error {
	k := s.pair()
	if got := t.findPaired(t.secret.hash(&k), &k); got == None {
		return fmt.Errorf("session table: session %d is not found by its mapping and remote address", ref)
	}
	if s.Prev != None && t.sessions[s.Prev].Next != ref || s.Next != None && (t.sessions[s.Next].Prev != ref || !k.Names(&t.sessions[s.Next])) {
		return fmt.Errorf("session table: the list of session %d, between %d and %d, is broken", ref, int32(s.Prev), int32(s.Next))
	}
	return nil
}

// checkIndex walks the buckets.
func (t *Table) checkIndex() error {
	reached := make([]bool, len(t.overflow))
	entries := make([]uint8, len(t.sessions))
	overflow := func(n uint64) (*bucket, error) {
		switch {
		case n > uint64(len(t.overflow)):
			return nil, fmt.Errorf("session table: overflow bucket %d of %d", n, len(t.overflow))
		case reached[n-1]:
			return nil, fmt.Errorf("session table: overflow bucket %d is reached twice", n)
		}
		reached[n-1] = true
		return &t.overflow[n-1], nil
	}
	for i := range t.buckets {
		for b := &t.buckets[i]; ; {
			for place, tag := range b.tags {
				if tag == 0 {
					continue
				}
				ref := b.refs[place]
				if int(ref) >= len(t.sessions) || t.sessions[ref].word == 0 {
					return fmt.Errorf("session table: bucket %d leads to session %d, which does not live", i, ref)
				}
				entries[ref]++
			}
			if b.next == 0 {
				break
			}
			var err error
			if b, err = overflow(uint64(b.next)); err != nil {
				return err
			}
		}
	}
	for spare := t.h.spare; spare != 0; {
		b, err := overflow(spare)
		if err != nil {
			return err
		}
		spare = uint64(b.next)
	}
	for i := range reached {
		if !reached[i] {
			return fmt.Errorf("session table: overflow bucket %d is neither in a chain nor spare", i+1)
		}
	}
	for ref, n := range entries {
		s := &t.sessions[ref]
		expected := uint8(2)
		if s.Flags&Paired != 0 && s.Prev == None {
			expected++
		}
		if s.word != 0 && n != expected {
			return fmt.Errorf("session table: session %d stands %d times in the index, expected %d", ref, n, expected)
		}
	}
	return nil
}

// Check holds the mappings against themselves: each that lives is held as often as holds says,
// stands once in either chain and has its port's bit, and where nobody holds it the bit of those
// that rest; no other bit is set, and all others but those that the reaper has are free. No worker
// may run.
func (m *Mappings) Check(holds map[uint32]uint32) error {
	chained := func(heads []uint64, link func(*Mapping) *uint32, what string) (map[uint32]bool, error) {
		seen := map[uint32]bool{}
		for i := range heads {
			for at := uint32(heads[i]); at != 0; at = *link(&m.mappings[at-1]) {
				if seen[at-1] {
					return nil, fmt.Errorf("mapping %d stands twice in the chains by %s endpoint", at-1, what)
				}
				seen[at-1] = true
			}
		}
		return seen, nil
	}
	inside, err := chained(m.inside, func(e *Mapping) *uint32 { return &e.inside }, "internal")
	if err != nil {
		return err
	}
	outside, err := chained(m.outside, func(e *Mapping) *uint32 { return &e.outside }, "external")
	if err != nil {
		return err
	}
	live, yielded, ports, used := 0, 0, 0, 0
	for i := range m.mappings {
		e, ref := &m.mappings[i], uint32(i)
		state, n := e.word&stateMask, uint32(e.word&holdsMask)
		if state != mappingFree {
			used++
		}
		if state == mappingYielded {
			yielded++
			if !inside[ref] || !outside[ref] || holds[ref] != 0 || n != 0 {
				return fmt.Errorf("mapping %d has yielded its port, and is held or not in both chains: %v, %v", ref, inside[ref], outside[ref])
			}
			continue
		}
		if state != mappingLive {
			if inside[ref] || outside[ref] || holds[ref] != 0 || n != 0 {
				return fmt.Errorf("mapping %d does not live, and is chained or held", ref)
			}
			continue
		}
		live++
		switch {
		case n != holds[ref]:
			return fmt.Errorf("mapping %d is held %d times, by %d sessions", ref, n, holds[ref])
		case !inside[ref] || !outside[ref]:
			return fmt.Errorf("mapping %d lives and is not in both chains: %v, %v", ref, inside[ref], outside[ref])
		case m.wordsOf(e.Address, e.Protocol)[e.ExternalPort>>6]>>(e.ExternalPort&63)&1 == 0:
			return fmt.Errorf("mapping %d lives and its port %d has no bit", ref, e.ExternalPort)
		case n == 0 && m.restingOf(e.Address, e.Protocol)[e.ExternalPort>>6]>>(e.ExternalPort&63)&1 == 0:
			return fmt.Errorf("mapping %d rests and its port %d has no bit among those", ref, e.ExternalPort)
		}
	}
	for i, counted := range m.taken[:m.Addresses()*int(PortSpaces)*groupsPerSpace] {
		n := 0
		for _, w := range m.ports[i*wordsPerGroup:][:wordsPerGroup] {
			n += bits.OnesCount64(w)
		}
		if n != int(counted) {
			return fmt.Errorf("mappings: %d ports of group %d are taken, %d counted", n, i, int32(counted))
		}
		ports += n
	}
	if linked := live + yielded; ports != live || used != m.Len() || len(inside) != linked || len(outside) != linked {
		return fmt.Errorf("mappings: %d live, %d without their ports, %d bits, %d and %d in chains; %d not free, %d counted", live, yielded, ports, len(inside), len(outside), used, m.Len())
	}
	free := 0
	for at := uint32(m.h.free); at != 0; at = m.mappings[at-1].outside {
		if m.mappings[at-1].word != mappingFree {
			return fmt.Errorf("mapping %d is on the free list and not free", at-1)
		}
		if free++; free > len(m.mappings) {
			return fmt.Errorf("mappings: the free list has a loop")
		}
	}
	if free+used != len(m.mappings) {
		return fmt.Errorf("mappings: %d free and %d used of %d", free, used, len(m.mappings))
	}
	return nil
}
