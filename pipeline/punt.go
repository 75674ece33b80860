// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

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
	if w.gen.Ports[port].Side == uint8(config.Inside) && w.punts.Used() > state.RingSlots*3/4 {
		return false
	}
	return w.punted[port][c].take(w.nanos, puntsPerSecond, puntBurst)
}

// punt hands a frame to control.
func (w *Worker) punt(port int, p *Packet, c class) {
	if c == discovery && w.fromNextHop(port, p) {
		c = nextHops
	}
	if len(p.Data) > state.RingFrame || !w.allowed(uint8(port), c) || !w.punts.Put(state.PuntFrame, uint8(port), drop.Pass, 0, inet.Addr{}, p.Data) {
		w.drop(p, drop.PuntLimited)
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
	for i := range w.gen.Hops {
		if h := &w.gen.Hops[i]; int(h.Port) == port && h.Addr == from {
			return true
		}
	}
	return false
}

// serve hands what is addressed to weir itself to control: pings. Nothing else has an answer.
func (w *Worker) serve(port int, p *Packet) {
	if p.kind != kindEchoRequest || p.fragmented || p.Data[p.transport] == header.ICMPv4Timestamp {
		w.drop(p, drop.NoService)
		return
	}
	w.punt(port, p, echo)
}

// answer asks control for the ICMP error that a drop calls for, if any; the packet itself is dropped by the caller. The
// rate is limited per VPC and in all (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
func (w *Worker) answer(port int, p *Packet, r drop.Reason, mtu uint16) {
	switch r {
	case drop.TTLExceeded, drop.SNATProtocol, drop.TooBig, drop.LimitInstance, drop.LimitVPC, drop.TableFull, drop.PortsExhausted:
	case drop.NoEligible, drop.PrivateDestination: // TCP takes the error that this is else for a passing fault, and goes on for minutes (RFC 5461 §2)
		if w.resets(p) {
			r = drop.NoSession
		}
	case drop.NoSession, drop.NoRoute: // a reset, or nothing
		if !w.resets(p) {
			return
		}
		r = drop.NoSession
	default:
		return
	}
	if p.turned { // it does not say who sent it any more
		return
	}
	vpc := uint32(0) // slot 0 is no VPC's: the outside's
	if v := w.gen.Ports[port].VPC; v >= 0 {
		vpc = w.gen.VPCs[v].Slot
	}
	if w.gen.Ports[port].Side == uint8(config.Inside) && w.punts.Used() > state.RingSlots*3/4 {
		return
	}
	share := 1 / float64(w.state.Workers()) // each worker has its own
	if w.errorRates[vpc].takeAbout(w.nanos, errorsPerVPC*share, max(1, errorVPCBurst*share), w.noise.Uint64()) &&
		w.errorRate.takeAbout(w.nanos, errorsPerSecond*share, max(1, errorBurst*share), w.noise.Uint64()) {
		w.punts.Put(state.PuntError, uint8(port), r, mtu, inet.Addr{}, p.Data)
	}
}

// resets reports whether a packet that finds neither a session nor an address is answered by a reset: it is of a TCP connection that nobody
// here knows, or knows any more. Never a reset itself is (RFC 9293 §3.10.7.1), nor what asks for a new connection. Just after a start
// all connections through shares of addresses may be unknown at once, and some are not lost: whoever knew them may have the traffic back in a
// moment. A reset would end them for good.
func (w *Worker) resets(p *Packet) bool {
	return w.gen.Header.UnknownTCP == uint8(config.UnknownTCPReset) && p.kind == kindTCP && !p.fragmented && p.tcpFlags&tcpRST == 0 && !begins(p) &&
		w.nanos-w.resetFrom >= 0
}
