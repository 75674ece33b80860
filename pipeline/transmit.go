// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// transmit writes the Ethernet header of each packet and queues it, or holds it until its neighbor is resolved.
func (w *Worker) transmit(b *Burst) {
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.hairpin {
			b.back = append(b.back, i)
			continue
		}
		switch mac := w.resolved(p.neighbor); {
		case mac == 0:
			w.hold(p)
		case !p.long:
			w.queue(p.outPort, mac, p.Handle, p.Data)
		case !w.split(p.outPort, mac, p.Handle, p.Data):
			w.drop(p, TooBig)
		}
	}
}

// queue puts a frame into the queue of a port. The driver empties the queues after each call, so there is room.
func (w *Worker) queue(port uint8, mac uint64, handle uintptr, frame []byte) {
	src := w.macs[port]
	e := (*[header.EthernetSize]byte)(frame)
	binary.LittleEndian.PutUint64(e[:], mac|src<<48) // destination, and the first two bytes of the source
	binary.LittleEndian.PutUint32(e[8:], uint32(src>>16))
	q := &w.Out[port]
	n := q.N & (queueSize - 1) // as q.N is
	q.Handles[n], q.Frames[n] = handle, frame
	q.N = n + 1
	q.bytes += uint64(len(frame))
}

// Packets that wait for a neighbor: few in all and few each, for a short time.
const (
	maxHeld            = 256
	maxHeldPerNeighbor = 3
	minHeldPerPort     = 8 // each port has a share, so that one network's silence is not another's
	holdMillis         = 3000
)

// heldPacket is a packet that is ready but for its destination MAC.
type heldPacket struct {
	frame  []byte
	handle uintptr
	hop    inet.Addr
	port   uint8
	since  uint32 // millisecond
	asked  uint32 // millisecond
}

// hold keeps a packet until its neighbor is resolved, and asks control to resolve it.
func (w *Worker) hold(p *Packet) {
	hop := p.hop
	if p.neighbor != NoNeighbor {
		_, hop = w.neighbors.At(p.neighbor)
	}
	same, here := 0, 0
	for i := range w.holding {
		if h := &w.held[i]; h.port == p.outPort {
			here++
			if h.hop == hop {
				same++
			}
		}
	}
	// Held or not, the neighbor is asked for: the next packet shall find it.
	if same == 0 {
		w.resolve(p.outPort, hop)
	}
	if share := max(minHeldPerPort, maxHeld/len(w.gen.ports)); w.holding == maxHeld || here >= share || same == maxHeldPerNeighbor {
		w.drop(p, NeighborUnresolved)
		return
	}
	w.held[w.holding] = heldPacket{p.Data, p.Handle, hop, p.outPort, w.tick, w.tick}
	w.holding++
}

// resolve asks control for a neighbor.
func (w *Worker) resolve(port uint8, hop inet.Addr) {
	if w.allowed(port, resolution) {
		w.punts.Put(PuntResolve, port, Pass, 0, hop, nil)
	}
}

// Release queues held packets whose neighbor has been resolved since, and drops those that waited too long, for that or for
// their first fragment. The
// driver calls it every turn, and empties the queues after it.
func (w *Worker) Release() {
	w.ageFragments()
	if w.counters.Held == 0 {
		return
	}
	keep := 0
	for i := range w.holding {
		h := w.held[i]
		mac := w.resolved(w.neighbors.Find(h.port, h.hop))
		switch {
		case mac != 0 && w.Out[h.port].N+w.Spare.N < queueSize:
			if len(h.frame)-header.EthernetSize <= int(w.gen.ports[h.port].MTU) {
				w.queue(h.port, mac, h.handle, h.frame)
			} else if !w.split(h.port, mac, h.handle, h.frame) {
				w.dropped[TooBig]++
				w.Done = append(w.Done, h.handle)
			}
		case w.tick-h.since > holdMillis:
			w.dropped[NeighborUnresolved]++
			w.Done = append(w.Done, h.handle)
		default:
			if w.tick-h.asked >= 1000 { // the question may have been lost
				h.asked = w.tick
				w.resolve(h.port, h.hop)
			}
			w.held[keep] = h
			keep++
		}
	}
	w.holding = keep
	w.flush()
}

// Abandon drops all held packets, and gives the spare buffers back: the worker stops.
func (w *Worker) Abandon() {
	w.abandonFragments()
	w.Done = append(w.Done, w.Spare.Handles[:w.Spare.N]...)
	w.Spare.N = 0
	for i := range w.holding {
		w.dropped[NeighborUnresolved]++
		w.Done = append(w.Done, w.held[i].handle)
	}
	w.holding = 0
	w.flush()
}

// class is a kind of message to control. Each has a rate of its own on each port, so that a flood of one, or on one port,
// takes nothing from the others.
type class uint8

const (
	discovery  class = iota // ARP and neighbor discovery
	nextHops                // the same, from a next hop: all tenants depend on it
	echo                    // pings to weir's own addresses
	resolution              // a neighbor is wanted
	numClasses
)

// What a worker may hand to control.
const (
	puntsPerSecond  = 500 // of a class, by a port
	puntBurst       = 200
	errorsPerSecond = 1000 // ICMP errors, all together
	errorBurst      = 200
	errorsPerVPC    = 100
	errorVPCBurst   = 50
)

// allowed reports whether one more message of a class may go to control. The last quarter of the ring is kept for outside
// ports: what tenants say never fills it.
func (w *Worker) allowed(port uint8, c class) bool {
	if w.gen.ports[port].Side == uint8(config.Inside) && w.punts.used() > ringSlots*3/4 {
		return false
	}
	return w.punted[port][c].take(w.nanos, puntsPerSecond, puntBurst)
}

// punt hands a frame to control.
func (w *Worker) punt(port int, p *Packet, c class) {
	if c == discovery && w.fromNextHop(port, p) {
		c = nextHops
	}
	if len(p.Data) > ringFrame || !w.allowed(uint8(port), c) || !w.punts.Put(PuntFrame, uint8(port), Pass, 0, inet.Addr{}, p.Data) {
		w.drop(p, PuntLimited)
		return
	}
	w.counts.punted++
	w.Done = append(w.Done, p.Handle)
}

// fromNextHop reports whether an ARP message or advertisement claims to come from a next hop of the port.
func (w *Worker) fromNextHop(port int, p *Packet) bool {
	var from inet.Addr
	switch d := p.Data; {
	case binary.BigEndian.Uint16(d[12:]) == header.EtherTypeARP && len(d) >= header.EthernetSize+18:
		from = inet.From4(d[header.EthernetSize+14:])
	case binary.BigEndian.Uint16(d[12:]) == header.EtherTypeIPv6 && len(d) >= header.EthernetSize+24:
		from = inet.From16(d[header.EthernetSize+8:])
	}
	for i := range w.gen.hops {
		if h := &w.gen.hops[i]; int(h.Port) == port && h.Addr == from {
			return true
		}
	}
	return false
}

// serve hands what is addressed to weir itself to control: pings. Nothing else has an answer.
func (w *Worker) serve(port int, p *Packet) {
	if p.kind != kindEchoRequest || p.fragmented || p.Data[p.transport] == header.ICMPv4Timestamp {
		w.drop(p, NoService)
		return
	}
	w.punt(port, p, echo)
}

// answer asks control for the ICMP error that a drop calls for, if any; the packet itself is dropped by the caller. The
// rate is limited per VPC and in all (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
func (w *Worker) answer(port int, p *Packet, r Reason, mtu uint16) {
	switch r {
	case TTLExceeded, NoEligible, SNATProtocol, TooBig, LimitInstance, LimitVPC, TableFull, PortsExhausted:
	case NoSession: // a reset, if it is TCP and configured; never about one (RFC 9293 §3.10.7.1)
		if w.gen.h.UnknownTCP != uint8(config.UnknownTCPReset) || p.kind != kindTCP || p.fragmented || p.tcpFlags&tcpRST != 0 {
			return
		}
	default:
		return
	}
	if p.turned { // it does not say who sent it any more
		return
	}
	vpc := uint32(0) // slot 0 is no VPC's: the outside's
	if v := w.gen.ports[port].VPC; v >= 0 {
		vpc = w.gen.vpcs[v].Slot
	}
	if w.gen.ports[port].Side == uint8(config.Inside) && w.punts.used() > ringSlots*3/4 {
		return
	}
	share := 1 / float64(w.state.Workers()) // each worker has its own
	if w.errorRates[vpc].takeAbout(w.nanos, errorsPerVPC*share, max(1, errorVPCBurst*share), w.noise.Uint64()) &&
		w.errorRate.takeAbout(w.nanos, errorsPerSecond*share, max(1, errorBurst*share), w.noise.Uint64()) {
		w.punts.Put(PuntError, uint8(port), r, mtu, inet.Addr{}, p.Data)
	}
}
