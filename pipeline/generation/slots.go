// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weir/config"
)

// InstanceID is what a session knows its instance by: the slot of the VPC, and the IPv4 address
// there, else the IPv6 one. Names are labels, which anybody may change.
type InstanceID struct {
	VPC  uint32
	Addr netip.Addr
}

// IdentityOf returns what in is known by in the VPC with this slot.
func IdentityOf(vpc uint32, in *config.Instance) InstanceID {
	return InstanceID{vpc, in.Identity()}
}

// Slots gives keys numbers that stay as long as the key does. A number whose key is gone serves
// another key only when no session counts in it any more.
type Slots[K comparable] struct {
	what     string
	Capacity int
	Current  map[K]uint32
	Known    map[K]uint32 // also keys that are gone
	Next     uint32
	sessions func(slot uint32) int

	fresh []freshSlot[K] // given since begin
	began uint32         // Next then
}

// freshSlot is a slot that a key has been given, and whose it was before.
type freshSlot[K comparable] struct {
	key       K
	before    K
	reclaimed bool
}

func newSlots[K comparable](what string, capacity int, sessions func(uint32) int) Slots[K] {
	// Slot 0 is never given: a zero key is nobody's.
	return Slots[K]{what: what, Capacity: capacity, Known: map[K]uint32{}, Current: map[K]uint32{}, Next: 1, sessions: sessions}
}

func (s *Slots[K]) resume(key K, slot uint32) {
	s.Known[key], s.Current[key] = slot, slot
	s.Next = max(s.Next, slot+1)
}

// passOver keeps slots from being given that sessions of keys that are gone still count in.
func (s *Slots[K]) passOver() {
	for slot := s.Next; int(slot) < s.Capacity; slot++ {
		if s.sessions(slot) != 0 {
			s.Next = slot + 1
		}
	}
}

func (s *Slots[K]) get(key K, taken map[K]uint32) (uint32, error) {
	if slot, ok := taken[key]; ok {
		return slot, nil
	}
	slot, ok := s.Known[key]
	if !ok {
		if int(s.Next) < s.Capacity {
			slot = s.Next
			s.Next++
			s.fresh = append(s.fresh, freshSlot[K]{key: key})
		} else {
			var before K
			if before, slot, ok = s.reclaim(taken); !ok {
				return 0, fmt.Errorf("%d places for %ss are not enough: sessions of %ss that are gone still count in some; try again when they have ended",
					s.Capacity-1, s.what, s.what)
			}
			s.fresh = append(s.fresh, freshSlot[K]{key, before, true})
		}
		s.Known[key] = slot
	}
	taken[key] = slot
	return slot, nil
}

// clone returns a copy for somebody else.
func (s *Slots[K]) clone() Slots[K] {
	d := *s
	d.Known, d.Current, d.fresh = maps.Clone(s.Known), maps.Clone(s.Current), nil
	return d
}

// begin notes where a compilation begins, for undo.
func (s *Slots[K]) begin() { s.fresh, s.began = s.fresh[:0], s.Next }

// undo takes back what has been given since begin: what never came into force is owed no memory.
func (s *Slots[K]) undo() {
	for _, f := range slices.Backward(s.fresh) {
		if f.reclaimed {
			s.Known[f.before] = s.Known[f.key]
		}
		delete(s.Known, f.key)
	}
	s.fresh, s.Next = s.fresh[:0], s.began
}

func (s *Slots[K]) reclaim(taken map[K]uint32) (before K, slot uint32, ok bool) {
	for key, slot := range s.Known {
		_, live := s.Current[key]
		if _, ours := taken[key]; !live && !ours && s.sessions(slot) == 0 {
			delete(s.Known, key)
			return key, slot, true
		}
	}
	return before, 0, false
}

// swap exchanges the slots of two keys. Done twice it is undone.
func (s *Slots[K]) swap(a, b K) {
	x, known := s.Known[a]
	if y, ok := s.Known[b]; ok {
		s.Known[a] = y
	} else {
		delete(s.Known, a)
	}
	if known {
		s.Known[b] = x
	} else {
		delete(s.Known, b)
	}
}

// rename is a VPC that has another name than in the last generation.
type rename struct{ from, to string }

// inherit lets each VPC whose name is new go on with the slot of one that is gone and had the same
// set of attachments: its traffic comes and goes where it did, so it has only been renamed.
func (b *builder) inherit() {
	current, known := b.c.VPCs.Current, b.c.VPCs.Known
	var names map[string]bool // of cfg, made when somebody asks
	for i := range b.cfg.VPCs {
		v := &b.cfg.VPCs[i]
		if _, was := current[v.Name]; was || len(v.Attach) == 0 {
			continue
		}
		if names == nil {
			names = make(map[string]bool, len(b.cfg.VPCs))
			for i := range b.cfg.VPCs {
				names[b.cfg.VPCs[i].Name] = true
			}
		}
		from, ok := b.c.attachments[v.AttachmentSet()]
		if !ok || names[from] {
			continue
		}
		b.renames = append(b.renames, rename{from, v.Name})
		b.newVPCs[v.Name] = known[from]
	}
}

// attachmentsOf returns the names of the VPCs by the set of their attachments.
func attachmentsOf(cfg *config.Config) map[string]string {
	m := make(map[string]string, len(cfg.VPCs))
	for i := range cfg.VPCs {
		if v := &cfg.VPCs[i]; len(v.Attach) > 0 {
			m[v.AttachmentSet()] = v.Name
		}
	}
	return m
}
