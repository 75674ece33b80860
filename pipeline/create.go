// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// end removes a session and everything that counts it. Every session that ends, ends here, as every
// one begins in create: a log of sessions hangs on these two.
func (w *Worker) end(ref uint32) {
	s := w.sessions.At(ref)
	if s.State() == session.Unconfirmed {
		w.confirmed(s)
	}
	if s.Mapping != session.None {
		w.mappings.Release(s.Mapping, w.tick)
	}
	w.state.Release(s.VPC, s.Instance)
	w.level.Remove(s.VPC)
	w.sessions.Remove(ref)
	w.counters.SessionsEnded++
}

// limited reports which limit, if any, keeps the instance from another session.
func (w *Worker) limited(in *generation.Instance) drop.Reason {
	v := &w.gen.VPCs[in.VPC]
	switch {
	case in.Limit != 0 && atomic.LoadUint32(&w.state.Instances[in.Slot].Sessions) >= in.Limit:
		return drop.LimitInstance
	case v.Limit != 0 && atomic.LoadUint32(&w.state.VPCs[v.Slot].Sessions) >= v.Limit:
		return drop.LimitVPC
	}
	return drop.Pass
}

// flow is what a new session is made of, together with its packet.
type flow struct {
	in                        *generation.Instance
	private, external         inet.Addr
	privatePort, externalPort uint16
	ports                     uint32 // outside ports that it may leave by
	refresh                   bool   // packets from outside refresh it
	flags                     uint16
	mapping                   uint32 // that it holds, or session.None
	alone                     bool   // no session has its outside key
}

// create makes a session for the flow of p. Every session begins here: see end.
func (w *Worker) create(p *Packet, f *flow) drop.Reason {
	in := f.in
	if r := w.limited(in); r != drop.Pass {
		return r
	}
	// The outside key may be taken: by a session of before a change, begun from outside, or closed.
	// One that overloads the port, since before its pool's mapping changed, is live and stays.
	if !f.alone {
		key := session.OutsideKey(f.external, p.remote, f.externalPort, p.remotePort, p.proto)
		if ref := w.sessions.Find(&key); ref != session.None && w.usable(ref, w.sessions.At(ref)) {
			if s := w.sessions.At(ref); f.mapping != session.None && s.State() != session.Unconfirmed && !s.Closed() {
				return drop.PortsExhausted
			}
			w.end(ref)
		}
	}
	ref, s, ok := w.sessions.Alloc()
	if !ok {
		return drop.TableFull
	}
	v := &w.gen.VPCs[in.VPC]
	state := firstState(p.kind)
	*s = session.Session{
		Private: f.private, Remote: p.remote, External: f.external,
		VPC: v.Slot, Last: w.tick, Instance: in.Slot, Flags: f.flags, Created: w.tick, Mapping: f.mapping, Prev: session.None, Next: session.None,
	}
	w.gen.Adjust(s, in, f.ports, f.refresh, p.proto, p.remotePort)
	s.Delta, s.HeaderDelta = p.delta, p.headerDelta
	if p.hairpin || p.turned {
		s.Flags |= session.Hairpin
	}
	side := inSide
	if f.flags&session.FromOutside != 0 {
		state = session.Unconfirmed
		s.Flags |= session.SeenOutside
		side = outSide
		s.Delta, s.HeaderDelta = p.delta.Invert(), p.headerDelta.Invert()
	}
	if p.kind == kindTCP {
		beginTCP(s, p, side)
	}
	if !w.sessions.Publish(ref, s, session.Word(f.privatePort, p.remotePort, f.externalPort, p.proto, state)) {
		return drop.TableFull
	}
	if f.mapping != session.None && !w.sessions.Pair(ref, s) {
		w.sessions.Remove(ref)
		return drop.TableFull
	}
	w.state.Acquire(s.VPC, s.Instance)
	w.level.Add(s.VPC, uint16(v.Weight))
	if state == session.Unconfirmed {
		atomic.AddUint32(&w.state.Instances[s.Instance].Unconfirmed, 1)
		atomic.AddUint32(&w.state.VPCs[s.VPC].Unconfirmed, 1)
		w.unconfirmed[s.Instance].Push(w.sessions, ref, s)
	}
	w.counters.SessionsCreated++
	w.created = true
	return drop.Pass
}

// confirmed takes a session off its instance's list of unconfirmed ones.
func (w *Worker) confirmed(s *session.Session) {
	atomic.AddUint32(&w.state.Instances[s.Instance].Unconfirmed, ^uint32(0))
	atomic.AddUint32(&w.state.VPCs[s.VPC].Unconfirmed, ^uint32(0))
	w.unconfirmed[s.Instance].Remove(w.sessions, s)
}
