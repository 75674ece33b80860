// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// Packets that wait for a neighbor: few in all and few each, for a short time.
const (
	maxHeld            = 256
	maxHeldPerNeighbor = 3  // datagrams, whole or in pieces
	maxHeldFrames      = 48 // of them in all: the longest datagram in pieces of 1,500 bytes
	minHeldPerPort     = 8  // each port has a share, so that a silent network fills no other's share
	holdMillis         = 3000
)

// heldPacket is a packet that is ready but for its destination MAC.
type heldPacket struct {
	frame  []byte
	handle uintptr
	hop    inet.Addr // the neighbor, on an attachment
	on     attach.Word
	to     way
	inner  uint64 // through a tunnel: the instance's MAC
	flow   uint16
	front  uint16
	tci    uint16
	since  uint32 // millisecond
	asked  uint32 // millisecond
	from   uint8  // the port by which it came
	inside bool   // likewise
	piece  bool   // it is a fragment
	first  bool   // the first of its datagram that came to be held
	of     datagramKey
}

// hold keeps a packet until its neighbor is resolved, and asks control to resolve it.
func (w *Worker) hold(b *Burst, p *Packet, inner uint64) {
	on, hop := p.to.at, p.hop
	if on.Tunnel() {
		on, hop = attach.Port(on.Port()), w.gen.Links[p.to.link].Hop
	} else if p.neighbor != state.NoNeighbor {
		_, hop = w.neighbors.At(p.neighbor)
	}
	// The fragments of a datagram count as one: each is worth nothing without the others.
	of := datagramKey{local: p.local, remote: p.remote, id: p.id, vpc: uint32(p.from.At), proto: p.proto}
	if p.family == inet.V6 {
		of.proto = 0
	}
	same, frames, here, begun := 0, 0, 0, false
	for i := range w.holding {
		h := &w.held[i]
		if h.to.at != p.to.at {
			continue
		}
		here++
		if h.hop != hop || h.on != on {
			continue
		}
		frames++
		if h.first {
			same++
		}
		begun = begun || p.fragmented && h.piece && h.of == of
	}
	// Held or not, the neighbor is asked for: the next packet shall find it.
	if frames == 0 {
		w.resolve(on, hop)
	}
	if share := max(minHeldPerPort, maxHeld/len(w.gen.Ports)); w.holding == maxHeld || here >= share || !begun && same == maxHeldPerNeighbor || frames == maxHeldFrames {
		w.out(p, b.Port, b.inside, refuse(drop.NeighborUnresolved))
		return
	}
	w.held[w.holding] = heldPacket{frame: p.Data, handle: p.Handle, hop: hop, on: on, to: p.to, inner: inner, flow: uint16(p.hash), front: p.Front, tci: p.tci,
		since: w.tick, asked: w.tick, from: uint8(b.Port), inside: b.inside, piece: p.fragmented, first: !begun, of: of}
	w.holding++
	w.out(p, b.Port, b.inside, held)
}

// resolve asks control for a neighbor.
func (w *Worker) resolve(at attach.Word, hop inet.Addr) {
	if !w.crowded(at) && w.allowed(at, resolution) {
		w.punts.Put(state.PuntResolve, at, drop.Pass, 0, hop, nil)
	}
}

// Release queues held packets whose neighbor has been resolved since, and drops those that waited
// too long, for that or for their first fragment. The driver calls it every turn, and empties the
// queues after it.
func (w *Worker) Release() {
	w.ageFragments()
	if w.counters.Held == 0 {
		return
	}
	keep := 0
	for i := range w.holding {
		h := w.held[i]
		mac := w.resolved(w.neighbors.Find(h.on, h.hop))
		switch {
		case mac != 0 && w.Out[h.to.at.Port()].N+w.Spare.N < queueSize:
			if h.to.at.Tunnel() {
				mac = h.inner
			}
			f := parcel{h.frame, h.handle, h.front, h.tci, h.flow}
			if r := w.send(h.to, mac, &f, len(h.frame)-header.EthernetSize > int(w.gen.Links[h.to.link].MTU)); r != drop.Pass {
				w.outHeld(&h, r)
			}
		case w.tick-h.since > holdMillis:
			w.outHeld(&h, drop.NeighborUnresolved)
		default:
			if w.tick-h.asked >= 1000 { // the question may have been lost
				h.asked = w.tick
				w.resolve(h.on, h.hop)
			}
			w.held[keep] = h
			keep++
		}
	}
	w.holding = keep
	w.flush()
}

// outHeld drops a packet that was held.
func (w *Worker) outHeld(h *heldPacket, r drop.Reason) {
	w.outFrame(h.frame, h.handle, int(h.from), h.inside, refuse(r))
}

// Abandon drops all held packets, and gives the spare buffers back: the worker stops.
func (w *Worker) Abandon() {
	w.abandonFragments()
	w.Done = append(w.Done, w.Spare.Handles[:w.Spare.N]...)
	w.Spare.N = 0
	for i := range w.holding {
		w.outHeld(&w.held[i], drop.NeighborUnresolved)
	}
	w.holding = 0
	w.flush()
}
