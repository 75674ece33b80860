// SPDX-License-Identifier: Apache-2.0

package session

import "fmt"

// Check holds the table against itself: every live session is found by both of its keys and stands twice in the index,
// which holds nothing else; every free one stands once on the free stack; every overflow bucket is in one chain or
// spare. The owner must not run. Check is for tests and for finding faults: it walks everything, and allocates.
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
	}
	return t.checkIndex()
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
		if t.sessions[ref].word != 0 && n != 2 {
			return fmt.Errorf("session table: session %d stands %d times in the index, expected 2", ref, n)
		}
	}
	return nil
}
