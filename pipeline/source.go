// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"sync/atomic"

	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// Whose a source address is, and whether the packet comes from there. Nothing else decides that a
// packet from inside is its sender's.

// sender is what the sender of a packet from inside is.
type sender struct {
	in       *generation.Instance
	attached *generation.Attached // the prefix that the address lies in
	own      bool                 // it is the instance's own address
	transit  bool                 // it lies in a further prefix that the instance may send from
}

// sender finds the instance that may send from the packet's address: its own, or one in a prefix
// that is behind it. It reports packets that come from elsewhere than the instance does.
func (w *Worker) sender(p *Packet) (s sender, r drop.Reason) {
	g, v := w.gen, w.vpc(p)
	if from := g.Host(v+1, p.local); from != nil && from.Kind == generation.HostInstance {
		s.in, s.own = &g.Instances[from.Index], true
	}
	if r := g.Find(g.VPCs[v].Sources[p.family], p.local); r != 0 {
		at := &g.Sources[r-1]
		if s.in == nil {
			s.in = &g.Instances[at.Instance]
			s.transit = at.Kind == generation.SourceTransit
		}
		if at.Kind == generation.SourceAttached && s.in == &g.Instances[at.Instance] {
			s.attached = &g.Attached[at.Attached]
		}
	}
	if s.in == nil {
		return s, drop.AntiSpoof
	}
	f := p.family
	if s.in.At[f] == attach.None { // it has no address of this family itself
		f = 1 - f
	}
	at, mac := s.in.At[f], s.in.MAC[f]
	switch {
	case p.from.At != at:
		return s, drop.SpoofedAttachment
	case p.via != 0 && !g.Hosted(s.in, f, p.via):
		return s, drop.SpoofedHost
	case mac != 0 && !s.transit && mac != p.source():
		return s, drop.SpoofedMAC
	}
	return s, drop.Pass
}

// sends reports whether a packet from inside comes from where the instance of a session is: certain
// is whether an endpoint that is not the first of the instance's hosts will do.
func (w *Worker) sends(s *session.Session, p *Packet, certain bool) bool {
	if p.via != 0 && p.via != s.Link {
		if !certain {
			return false
		}
		h := w.gen.Host(w.vpc(p)+1, s.Private)
		if h == nil || h.Kind != generation.HostInstance || !w.gen.Hosted(&w.gen.Instances[h.Index], p.family, p.via) {
			return false
		}
	}
	return p.from.At == s.At && (s.Flags&session.Bound == 0 || w.bound(s) == p.source())
}

// bound returns the MAC of a session's instance.
func (w *Worker) bound(s *session.Session) uint64 {
	if s.Neighbor == state.NoNeighbor {
		return 0
	}
	return atomic.LoadUint64(&w.neighbors.Entries[s.Neighbor].Word) & state.MACMask
}

// source returns the MAC that a packet came from.
func (p *Packet) source() uint64 { return binary.LittleEndian.Uint64(p.Data[4:]) >> 16 }

// learn notes the MAC of an instance behind a tunnel that was not known: nobody asks for it there,
// and a guest whose own neighbor entry for weir is fresh says nothing by ARP for a while. Control
// may write the entry at the same time.
func (w *Worker) learn(in *generation.Instance, p *Packet) {
	slot := in.Neighbor[p.family]
	if slot == state.NoNeighbor {
		return
	}
	word := &w.neighbors.Entries[slot].Word
	if was := atomic.LoadUint64(word); state.NeighborState(was>>48) == state.NeighborIncomplete {
		atomic.CompareAndSwapUint64(word, was, uint64(state.NeighborReachable)<<48|p.source())
	}
}
