// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/inet"
)

// transmit writes the Ethernet header of each packet and queues it, or holds it until its neighbor is resolved.
func (w *Worker) transmit(b *Burst) {
	for _, i := range b.live {
		p := &b.Packets[i]
		if mac := w.resolved(p.neighbor); mac != 0 {
			w.queue(p.outPort, mac, p.Handle, p.Data)
		} else {
			w.hold(p)
		}
	}
}

// queue puts a frame into the queue of a port. The driver empties the queues after each call, so there is room.
func (w *Worker) queue(port uint8, mac uint64, handle uintptr, frame []byte) {
	src := w.macs[port]
	binary.BigEndian.PutUint64(frame, mac<<16|src>>32) // destination, and the first two bytes of the source
	binary.BigEndian.PutUint32(frame[8:], uint32(src))
	q := &w.Out[port]
	q.Handles[q.N], q.Frames[q.N] = handle, frame
	q.N++
}

// Packets that wait for a neighbor: few in all and few each, for a short time.
const (
	maxHeld            = 256
	maxHeldPerNeighbor = 3
	holdMillis         = 3000
)

// heldPacket is a packet that is ready but for its destination MAC.
type heldPacket struct {
	frame  []byte
	handle uintptr
	hop    inet.Addr
	port   uint8
	since  uint32 // millisecond
}

// hold keeps a packet until its neighbor is resolved, and asks control to resolve it.
func (w *Worker) hold(p *Packet) {
	hop := p.hop
	if p.neighbor != NoNeighbor {
		_, hop = w.neighbors.At(p.neighbor)
	}
	same := 0
	for i := range w.holding {
		if h := &w.held[i]; h.port == p.outPort && h.hop == hop {
			same++
		}
	}
	if w.holding == maxHeld || same == maxHeldPerNeighbor {
		w.drop(p, NeighborUnresolved)
		return
	}
	w.held[w.holding] = heldPacket{p.Data, p.Handle, hop, p.outPort, w.tick}
	w.holding++
	if w.puntRate.take(w.nanos, puntsPerSecond, puntBurst) {
		w.punts.Put(PuntResolve, p.outPort, Pass, 0, hop, nil)
	}
}

// Release queues held packets whose neighbor has been resolved since, and drops those that waited too long. The
// driver calls it every turn, and empties the queues after it.
func (w *Worker) Release() {
	if w.holding == 0 {
		return
	}
	keep := 0
	for i := range w.holding {
		h := w.held[i]
		mac := w.resolved(w.neighbors.Find(h.port, h.hop))
		switch {
		case mac != 0 && w.Out[h.port].N < queueSize:
			w.queue(h.port, mac, h.handle, h.frame)
		case w.tick-h.since > holdMillis:
			w.dropped[NeighborUnresolved]++
			w.Done = append(w.Done, h.handle)
		default:
			w.held[keep] = h
			keep++
		}
	}
	w.holding = keep
	w.flush()
}

// Abandon drops all held packets: the worker stops.
func (w *Worker) Abandon() {
	for i := range w.holding {
		w.dropped[NeighborUnresolved]++
		w.Done = append(w.Done, w.held[i].handle)
	}
	w.holding = 0
	w.flush()
}

// What a worker may hand to control.
const (
	puntsPerSecond  = 2000
	puntBurst       = 500
	errorsPerSecond = 1000 // ICMP errors, all together
	errorBurst      = 200
	errorsPerVPC    = 100
	errorVPCBurst   = 50
)

// punt hands a frame to control.
func (w *Worker) punt(port int, p *Packet) {
	if len(p.Data) > ringFrame || !w.puntRate.take(w.nanos, puntsPerSecond, puntBurst) ||
		!w.punts.Put(PuntFrame, uint8(port), Pass, 0, inet.Addr{}, p.Data) {
		w.drop(p, PuntLimited)
		return
	}
	w.counts.punted++
	w.Done = append(w.Done, p.Handle)
}

// answer asks control for the ICMP error that a drop calls for, if any; the packet itself is dropped by the caller. The
// rate is limited per VPC and in all (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
func (w *Worker) answer(port int, p *Packet, r Reason, mtu uint16) {
	switch r {
	case TTLExceeded, NoEligible, TooBig, LimitInstance, LimitVPC, TableFull, PortsExhausted:
	default:
		return
	}
	vpc := uint32(0) // slot 0 is no VPC's: the outside's
	if v := w.gen.ports[port].VPC; v >= 0 {
		vpc = w.gen.vpcs[v].Slot
	}
	if w.errorRates[vpc].take(w.nanos, errorsPerVPC, errorVPCBurst) && w.errorRate.take(w.nanos, errorsPerSecond, errorBurst) {
		w.punts.Put(PuntError, uint8(port), r, mtu, inet.Addr{}, p.Data)
	}
}
