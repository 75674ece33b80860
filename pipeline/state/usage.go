// SPDX-License-Identifier: Apache-2.0

package state

import (
	"sync/atomic"

	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// Acquire and release count a session in its VPC and instance.
func (s *State) Acquire(vpc, instance uint32) {
	atomic.AddUint32(&s.VPCs[vpc].Sessions, 1)
	atomic.AddUint32(&s.Instances[instance].Sessions, 1)
}

func (s *State) Release(vpc, instance uint32) {
	atomic.AddUint32(&s.VPCs[vpc].Sessions, ^uint32(0))
	atomic.AddUint32(&s.Instances[instance].Sessions, ^uint32(0))
}

// Usage counts the sessions of an instance or a VPC. Workers change it by atomic additions.
type Usage struct {
	Sessions    uint32
	Unconfirmed uint32 // of them, those begun from outside and not yet confirmed
}

// UnconfirmedList is the list of an instance's unconfirmed sessions that one worker has.
type UnconfirmedList struct{ Oldest, Newest, N uint32 }

// Unconfirmed returns worker w's lists of unconfirmed sessions, by slot of the instance. Those from
// Room().Instances on have no memory.
func (s *State) Unconfirmed(w int) []UnconfirmedList {
	return memory.Slice[UnconfirmedList](s.growing, s.fixed.Growing.Unconfirmed[w], InstanceSlots)
}

// Shares returns what the VPCs have of worker w's table, by slot, emptied: the worker counts them.
// Those from Room().VPCs on have no memory.
func (s *State) Shares(w int) []Share {
	shares := memory.Slice[Share](s.growing, s.fixed.Growing.Shares[w], VPCSlots)
	clear(shares[:s.Room().VPCs])
	return shares
}

// VPCSessions and InstanceSessions return how many sessions a slot has.
func (s *State) VPCSessions(slot uint32) int {
	if uint64(slot) >= atomic.LoadUint64(&s.h.Room.VPCs) {
		return 0
	}
	return int(atomic.LoadUint32(&s.VPCs[slot].Sessions))
}

// InstanceSessions returns how many sessions the instance in slot has.
func (s *State) InstanceSessions(slot uint32) int {
	if uint64(slot) >= atomic.LoadUint64(&s.h.Room.Instances) {
		return 0
	}
	return int(atomic.LoadUint32(&s.Instances[slot].Sessions))
}

// Push puts a session at the new end of the list.
func (u *UnconfirmedList) Push(t *session.Table, ref uint32, e *session.Session) {
	e.Prev, e.Next = u.Newest, session.None
	if u.Newest != session.None {
		t.At(u.Newest).Next = ref
	} else {
		u.Oldest = ref
	}
	u.Newest = ref
	u.N++
}

// Remove takes a session off the list.
func (u *UnconfirmedList) Remove(t *session.Table, e *session.Session) {
	if e.Prev != session.None {
		t.At(e.Prev).Next = e.Next
	} else {
		u.Oldest = e.Next
	}
	if e.Next != session.None {
		t.At(e.Next).Prev = e.Prev
	} else {
		u.Newest = e.Prev
	}
	u.N--
}
