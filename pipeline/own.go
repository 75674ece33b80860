// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"net/netip"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// What asks for weir itself is answered here, so that neighbors go on sending while control is busy
// or away: ARP and neighbor discovery for its addresses, and pings. Who asked control learns.

// own reports whether a is weir's own where a packet came from: of the attachment, or the port's.
func (w *Worker) own(p *Packet, a inet.Addr) bool {
	port := p.from.At.Port()
	switch {
	case w.gen.Ports[port].Side == uint8(config.Outside):
		h := w.gen.Host(0, a)
		return h != nil && h.Kind == generation.HostOwn && int(h.Port) == port
	case p.from.Index == generation.Unattached: // where tunnels end
		return a == w.gen.Ports[port].Ends[a.Family()] && a != inet.Addr{}
	}
	h := w.gen.Host(w.vpc(p)+1, a)
	return h != nil && h.Kind == generation.HostOwn && h.Index == p.from.Index
}

// answersFor reports whether weir answers for a there: its own, and on an outside port, as the
// port's answer key says, external addresses of instances.
func (w *Worker) answersFor(p *Packet, a inet.Addr) bool {
	if w.own(p, a) {
		return true
	}
	index := p.from.At.Port()
	port := &w.gen.Ports[index]
	if port.Side != uint8(config.Outside) || port.Answer == uint8(config.AnswerNone) {
		return false
	}
	if h := w.gen.Host(0, a); h != nil && h.Kind == generation.HostOwn || !w.gen.Own(a) {
		return false
	}
	if port.Answer == uint8(config.AnswerAll) {
		return true
	}
	for i := range w.gen.OnLink {
		if l := &w.gen.OnLink[i]; l.At.Port() == index && l.Holds(a) {
			return true
		}
	}
	return false
}

// back is the way to where a packet came from.
func (w *Worker) back(p *Packet) way {
	switch {
	case p.via != 0:
		return way{p.from.At, p.via}
	case p.from.Index != generation.Unattached:
		return way{p.from.At, w.gen.Attachments[p.from.Index].Link}
	}
	return wayOut(p.from.At)
}

// ownMAC is weir's own MAC where a packet came from.
func (w *Worker) ownMAC(p *Packet) header.MAC {
	word := w.macs[p.from.At.Port()]
	if p.via != 0 {
		word = w.station(p.via, word)
	}
	return header.MAC(state.MACOf(word))
}

// draft begins a frame that answers p, in a spare buffer, which say takes; nil: there is none, or
// no way back, and the answer is counted as unsent.
func (w *Worker) draft(p *Packet, to header.MAC, etherType uint16) []byte {
	s := &w.Spare
	const more = 64 // than the packet: what an advertisement has that its question has not
	if s.N == 0 || len(p.Data)+more > len(s.Data[s.N-1]) || int(s.Front) < overhead(p.from.At) ||
		p.from.At.Tunnel() && w.resolved(w.gen.Links[p.via].Neighbor) == 0 {
		w.Unsent(1)
		return nil
	}
	return header.AppendEthernet(s.Data[s.N-1][:0], to, w.ownMAC(p), etherType)
}

// say queues a frame that draft has begun.
func (w *Worker) say(p *Packet, frame []byte) {
	s := &w.Spare
	s.N--
	to := w.back(p)
	q := &w.Out[to.at.Port()]
	q.own[q.N/64] |= 1 << (q.N % 64)
	q.owns++
	w.emit(to, state.MACWord(config.MAC(header.Ethernet(frame).Dst())), &parcel{frame, s.Handles[s.N], s.Front, p.tci, uint16(w.gen.Links[p.via].Endpoint.Lo)})
}

// discover answers an ARP request or a neighbor solicitation, or reports that there is nothing to
// say.
func (w *Worker) discover(p *Packet) bool {
	e := header.Ethernet(p.Data)
	if e.Type() == header.EtherTypeARP {
		a, ok := header.ParseARP(e.Payload())
		// The sender's MAC may differ from the frame's source: a virtual router's address is at a
		// virtual MAC (RFC 5798 §8.1.2).
		if !ok || a.Operation() != header.ARPRequest || a.SenderMAC() == (header.MAC{}) || a.SenderMAC().IsGroup() ||
			w.own(p, inet.FromNetip(a.Sender())) || !w.answersFor(p, inet.FromNetip(a.Target())) {
			return false
		}
		b := w.draft(p, a.SenderMAC(), header.EtherTypeARP)
		if b == nil {
			return false
		}
		w.say(p, header.AppendARPReply(b, w.ownMAC(p), a))
		return true
	}
	ip, ok := header.ParseIPv6(e.Payload())
	if !ok {
		return false
	}
	s, ok := header.ParseNeighborSolicitation(ip)
	if !ok || !w.answersFor(p, inet.FromNetip(s.Target())) {
		return false
	}
	flags := uint8(header.NDPRouter | header.NDPSolicited | header.NDPOverride)
	to := e.Src()
	if ip.Src().IsUnspecified() { // duplicate detection: all nodes shall hear it
		to = header.MulticastMAC(netip.IPv6LinkLocalAllNodes())
	}
	b := w.draft(p, to, header.EtherTypeIPv6)
	if b == nil {
		return false
	}
	w.say(p, header.AppendNeighborAdvertisement(b, w.ownMAC(p), flags, s.Target(), ip.Src(), s.Target()))
	return true
}

// serve answers what is addressed to weir itself: pings. Nothing else has an answer.
func (w *Worker) serve(b *Burst, p *Packet) {
	v := punted
	switch {
	case p.kind != kindEchoRequest || p.fragmented || p.Data[p.transport] == header.ICMPv4Timestamp:
		v = refuse(drop.NoService)
	case !w.allowed(p.from.At, echo):
		v = refuse(drop.PuntLimited)
	default:
		v = w.pong(p)
	}
	w.out(p, b.Port, b.inside, v)
}

// pong answers an echo request.
func (w *Worker) pong(p *Packet) verdict {
	e := header.Ethernet(p.Data)
	b := w.draft(p, e.Src(), e.Type())
	if b == nil {
		return punted
	}
	var ok bool
	if p.family == inet.V4 {
		b, ok = header.AppendEchoReplyIPv4(b, header.IPv4(e.Payload()))
	} else {
		b, ok = header.AppendEchoReplyIPv6(b, header.IPv6(e.Payload()))
	}
	if !ok {
		return refuse(drop.BadICMP)
	}
	w.say(p, b)
	return punted
}
