// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// class is a kind of frame for weir itself. Each has its own rate on each attachment, so that a
// flood of one, or on one attachment, takes nothing from the others.
type class uint8

const (
	discovery  class = iota // ARP and neighbor discovery
	nextHops                // the same, from a next hop: all tenants depend on it
	echo                    // pings to weir's own addresses
	resolution              // a neighbor is wanted
	numClasses
)

// What a worker answers, or hands to control.
const (
	puntsPerSecond  = 500 // of a class, from an attachment
	puntBurst       = 200
	errorsPerSecond = 1000 // ICMP errors, all together
	errorBurst      = 200
	errorsPerVPC    = 100
	errorVPCBurst   = 50
)

// allowed reports whether one more frame of a class is taken.
func (w *Worker) allowed(at attach.Word, c class) bool {
	return w.puntRates[puntSet(at)][c].take(w.nanos, puntsPerSecond, puntBurst)
}

// crowded reports whether an attachment has to leave what room there is in the ring to control to
// others: the last quarter is kept for outside ports, so what tenants say never fills it.
func (w *Worker) crowded(at attach.Word) bool {
	return w.gen.Ports[at.Port()].Side == uint8(config.Inside) && w.punts.Used() > state.RingSlots*3/4
}

// puntSets is how many sets of rates there are: one for the plain frames of each port, and some
// that tagged attachments share.
const puntSets = 1024

func puntSet(at attach.Word) int {
	if at.Plain() {
		return at.Port()
	}
	return state.MaxPorts + int(uint32(at)*0x9e3779b1>>16)%(puntSets-state.MaxPorts)
}

// punt takes ARP and neighbor discovery: it answers what asks for weir, and lets control learn from
// all of it.
func (w *Worker) punt(b *Burst, p *Packet) {
	c := discovery
	if w.fromNextHop(p) {
		c = nextHops
	}
	v := refuse(drop.PuntLimited)
	if w.allowed(p.from.At, c) {
		if w.discover(p) {
			v = punted
		}
		if len(p.Data) <= state.RingFrame && !w.crowded(p.from.At) && w.punts.Put(state.PuntFrame, p.from.At, drop.Pass, 0, w.gen.Links[p.via].Endpoint, p.Data) {
			v = punted
		}
	}
	w.out(p, b.Port, b.inside, v)
}

// fromNextHop reports whether an ARP message or advertisement claims to come from a next hop of its
// attachment.
func (w *Worker) fromNextHop(p *Packet) bool {
	var from inet.Addr
	switch d := p.Data; {
	case binary.BigEndian.Uint16(d[12:]) == header.EtherTypeARP && len(d) >= header.EthernetSize+18:
		from = inet.From4(d[header.EthernetSize+14:])
	case binary.BigEndian.Uint16(d[12:]) == header.EtherTypeIPv6 && len(d) >= header.EthernetSize+24:
		from = inet.From16(d[header.EthernetSize+8:])
	}
	hops := w.gen.Hops
	if w.gen.Ports[p.from.At.Port()].Side == uint8(config.Inside) {
		hops = w.gen.Routers
	}
	for i := range hops {
		if h := &hops[i]; h.At == p.from.At && h.Addr == from {
			return true
		}
	}
	return false
}

// answer asks control for the ICMP error that a drop calls for, if any; the packet itself is
// dropped by the caller. The rate is limited per VPC and in all (RFC 1812 §4.3.2.8, RFC 4443
// §2.4(f)).
func (w *Worker) answer(p *Packet, r drop.Reason, mtu uint16) {
	switch r {
	case drop.TTLExceeded, drop.SNATProtocol, drop.TooBig, drop.LimitInstance, drop.LimitVPC, drop.FairShare, drop.TableFull, drop.PortsExhausted:
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
	inside := p.from.Index != generation.Unattached
	if inside {
		vpc = w.vpcSlot(p)
	}
	if inside && w.punts.Used() > state.RingSlots*3/4 {
		return
	}
	share := 1 / float64(w.state.Workers()) // each worker has its own
	if w.errorRates[vpc].takeAbout(w.nanos, errorsPerVPC*share, max(1, errorVPCBurst*share), w.noise.Uint64()) &&
		w.errorRate.takeAbout(w.nanos, errorsPerSecond*share, max(1, errorBurst*share), w.noise.Uint64()) {
		w.punts.Put(state.PuntError, p.from.At, r, mtu, w.gen.Links[p.via].Endpoint, p.Data)
	}
}

// resets reports whether a packet that finds neither a session nor an address is answered by a
// reset: it is of a TCP connection that nobody here knows, or knows any more. Never a reset itself
// is (RFC 9293 §3.10.7.1), nor what asks for a new connection. Just after a start all connections
// through shares of addresses may be unknown at once, and some are not lost: whoever knew them may
// have the traffic back in a moment. A reset would end them for good.
func (w *Worker) resets(p *Packet) bool {
	return w.gen.Header.UnknownTCP == uint8(config.UnknownTCPReset) && p.kind == kindTCP && !p.fragmented && p.tcpFlags&tcpRST == 0 && !begins(p) &&
		w.nanos-w.resetFrom >= 0
}
