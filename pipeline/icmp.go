// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/rendezvous"
	"weir/pipeline/session"
)

// ICMP errors are translated by the packet that they quote (RFC 5508 §4): it names the flow, and
// went the other way. The error's own addresses and the quoted packet's change alike, so both ends
// of a flow meet only addresses that they know. An error never begins, refreshes or ends a session
// (RFC 4787 REQ-12, RFC 5508 REQ-6).

// quote is the packet that an ICMP error is about. Local and remote are the error's: an error from
// outside quotes what local sent, one from inside what local received.
type quote struct {
	local, remote         inet.Addr
	localPort, remotePort uint16 // as a Packet's
	ip, transport, end    uint16 // offsets in Data: IP header, transport header, end or cut
	proto                 uint8
	kind                  kind
	fault                 drop.Reason // why no translation of the error may pass; Pass: one may
	plain                 bool        // to an attached prefix: it was not translated and is not now
}

// icmpKind returns what an ICMP or ICMPv6 type is to the translation.
func icmpKind(f inet.Family, typ uint8) kind {
	if f == inet.V6 {
		switch typ {
		case header.ICMPv6EchoRequest:
			return kindEchoRequest
		case header.ICMPv6EchoReply:
			return kindEchoReply
		case header.ICMPv6Unreachable, header.ICMPv6PacketTooBig, header.ICMPv6TimeExceeded, header.ICMPv6ParamProblem:
			return kindError
		}
		return kindICMP
	}
	switch typ {
	case header.ICMPv4EchoRequest, header.ICMPv4Timestamp: // one space of identifiers
		return kindEchoRequest
	case header.ICMPv4EchoReply, header.ICMPv4TimestampReply:
		return kindEchoReply
	case header.ICMPv4Unreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
		return kindError
	}
	return kindICMP
}

// parseError reads what the error d quotes. What is wrong with it matters only for translation:
// within a VPC and through attached prefixes weir is a router, which looks at no ICMP that is not
// its own.
func (p *Packet) parseError(d []byte, inside bool) {
	p.quote = quote{}
	p.quote.fault = p.readQuote(d, inside)
}

// readQuote trusts no length beyond the packet. Of the quoted transport the first eight bytes have
// to be there, which is what RFC 792 asks for; their checksum is not looked at (RFC 5508 REQ-3).
func (p *Packet) readQuote(d []byte, inside bool) drop.Reason {
	q := &p.quote
	var b []byte // the quoted packet
	var src, dst inet.Addr
	var transport int
	if p.family == inet.V4 {
		m := header.ICMPv4(d)
		if b = m.Quoted(); !m.ChecksumOK() || len(b) < header.IPv4Size || b[0]>>4 != 4 {
			return drop.BadICMP
		}
		ip := header.IPv4(b)
		transport = ip.HeaderLength()
		if transport < header.IPv4Size || transport > len(b) || int(ip.TotalLength()) < transport || !ip.ChecksumOK() ||
			ip.FragmentOffset() != 0 { // only a first fragment says whose it is
			return drop.BadICMP
		}
		b = b[:min(len(b), int(ip.TotalLength()))]
		src, dst = inet.From4(b[header.IPv4SrcOffset:]), inet.From4(b[header.IPv4DstOffset:])
		if q.proto = ip.Protocol(); q.proto == header.ProtocolAH {
			return drop.ICMPUnrelated // nothing that was translated
		}
	} else {
		outer := p.Data[header.EthernetSize:]
		sum := header.PseudoHeader(outer[header.IPv6SrcOffset:header.IPv6DstOffset], outer[header.IPv6DstOffset:header.IPv6Size], header.ProtocolICMPv6, len(d))
		m := header.ICMPv6(d)
		if b = m.Quoted(); !m.ChecksumOK(sum) || len(b) < header.IPv6Size || b[0]>>4 != 6 {
			return drop.BadICMP
		}
		b = b[:min(len(b), header.IPv6Size+int(header.IPv6(b).PayloadLength()))]
		chain, fault := header.IPv6(b).Walk()
		if fault != header.ChainOK || chain.FragmentOffset != 0 {
			return drop.BadICMP
		}
		src, dst = inet.From16(b[header.IPv6SrcOffset:]), inet.From16(b[header.IPv6DstOffset:])
		if src.Is4() || dst.Is4() {
			return drop.BadICMP
		}
		if q.proto, transport = chain.Protocol, chain.Offset; chain.Pinned {
			return drop.ICMPUnrelated
		}
	}
	q.ip = p.transport + header.ICMPSize
	q.transport, q.end = q.ip+uint16(transport), q.ip+uint16(len(b))
	t := b[transport:]
	switch {
	case q.proto == header.ProtocolTCP:
		q.kind = kindTCP
	case q.proto == header.ProtocolUDP:
		q.kind = kindUDP
	case q.proto == p.proto: // ICMP of the family
		q.kind = kindICMP
	}
	var from, to uint16
	switch {
	case q.kind == kindOther:
	case len(t) < 8:
		return drop.BadICMP
	case q.kind != kindICMP:
		from, to = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	case p.family == inet.V4 && header.ICMPv4(t).IsError() || p.family == inet.V6 && header.ICMPv6(t).IsError():
		return drop.BadICMP // no error is about an error (RFC 1122 §3.2.2)
	default:
		if q.kind = icmpKind(p.family, t[0]); q.kind == kindICMP {
			return drop.ICMPUnrelated
		}
		q.localPort = binary.BigEndian.Uint16(t[header.ICMPIDOffset:])
	}
	q.local, q.remote = src, dst
	if inside {
		q.local, q.remote = dst, src
		from, to = to, from
	}
	if q.kind == kindTCP || q.kind == kindUDP {
		q.localPort, q.remotePort = from, to
	}
	return drop.Pass
}

// remoteOwner returns the remote address of the flow that the packet belongs to: for an ICMP error
// the quoted packet's, since any router on the way may have sent the error.
func (p *Packet) remoteOwner() inet.Addr {
	if p.kind == kindError && p.quote.fault == drop.Pass {
		return p.quote.remote
	}
	return p.remote
}

// reverse looks at the quote of p from the other side, as Packet.reverse does at p.
func (q *quote) reverse(p *Packet) {
	local, port := q.local, q.localPort
	if p.act == actOut && !q.plain {
		local, port = p.newAddr, p.newPort
	}
	q.local, q.remote, q.plain = q.remote, local, false
	if q.kind == kindEchoRequest || q.kind == kindEchoReply {
		q.localPort = port
	} else {
		q.localPort, q.remotePort = q.remotePort, port
	}
}

// refused returns why an ICMP packet other than a query may not be translated, or Pass.
func (p *Packet) refused() drop.Reason {
	switch {
	case p.kind != kindError:
		return drop.ICMPUnsupported
	case p.pinned:
		return drop.Untranslatable
	}
	return p.quote.fault
}

// errorOut gives an ICMP error from inside the address under which the remote knows its instance
// (RFC 5508 REQ-5): that of the quoted packet's session, which may come with another port; without
// one, for 1:1, the address that its reply would get.
func (w *Worker) errorOut(p *Packet, in *generation.Instance, tag uint32) drop.Reason {
	q := &p.quote
	sel := &w.gen.Selections[in.Selections+2*tag+uint32(p.family)]
	if r := p.refused(); r != drop.Pass {
		if sel.Kind == generation.SelectNone {
			return drop.NoEligible
		}
		return r
	}
	switch {
	case q.remote != p.remote: // an error goes to the sender of the packet it is about
		return drop.ICMPUnrelated
	case q.local == p.local:
		s := w.liveSession(session.InsideKey(w.gen.VPCs[in.VPC].Slot, q.local, q.remote, q.localPort, q.remotePort, q.proto))
		if s != nil {
			p.leaveAs(s.External, s.ExternalPort(), w.gen.Groups[s.HopGroup].Ports, s.Flags&session.SNAT != 0)
			p.setDeltas(p.local, s.External, q.localPort, p.newPort)
			return drop.Pass
		}
	case w.gen.AttachedTo(in, q.local):
		q.plain = true
	default:
		return drop.ICMPUnrelated
	}
	switch {
	case sel.Kind == generation.SelectNone:
		return drop.NoEligible
	case sel.Kind == generation.SelectSNAT && !q.plain:
		return w.forwardedErrorOut(p, &w.gen.Candidates[sel.Candidates.First])
	}
	c := w.pick(&rendezvous.Flow{Proto: q.proto, Private: in.Addr[p.family], Remote: q.remote, PrivatePort: q.localPort, RemotePort: q.remotePort}, sel)
	p.leaveAs(c.Addr, q.localPort, c.Ports, sel.Kind == generation.SelectSNAT)
	p.setDeltas(p.local, c.Addr, q.localPort, q.localPort)
	w.counts.stateless++
	return drop.Pass
}

// forwardedErrorOut is errorOut for SNAT without a session: a port that leads to the instance needs
// none.
func (w *Worker) forwardedErrorOut(p *Packet, c *generation.Candidate) drop.Reason {
	q := &p.quote
	space, ok := q.portSpace()
	if !ok {
		return drop.ICMPUnrelated
	}
	f := w.gen.ForwardFrom(c, space, q.localPort)
	if f == nil {
		return drop.ICMPUnrelated
	}
	p.leaveAs(c.Addr, f.Port, c.Ports, true)
	p.setDeltas(p.local, c.Addr, q.localPort, f.Port)
	w.counts.stateless++
	return drop.Pass
}

// portSpace returns the port space of the quoted packet's ports, if it is one with forwards.
func (q *quote) portSpace() (session.PortSpace, bool) {
	switch q.kind {
	case kindTCP:
		return session.TCPPorts, true
	case kindUDP:
		return session.UDPPorts, true
	}
	return 0, false
}

// errorIn delivers an ICMP error from outside to the sender of the quoted packet (RFC 5508 REQ-4):
// by its session, or, to a 1:1 address, by the address alone.
func (w *Worker) errorIn(p *Packet, h *generation.Host) drop.Reason {
	q := &p.quote
	if p.expired {
		return drop.TTLExceeded
	}
	if r := p.refused(); r != drop.Pass {
		return r
	}
	if q.local != p.local {
		return drop.ICMPUnrelated
	}
	p.act = actIn
	if s := w.liveSession(session.OutsideKey(q.local, q.remote, q.localPort, q.remotePort, q.proto)); s != nil {
		p.newAddr, p.newPort, p.to, p.neighbor = s.Private, s.PrivatePort(), way{s.At, s.Link}, s.Neighbor
	} else {
		var in *generation.Instance
		port := q.localPort
		if h.Kind != generation.HostSNAT {
			in = &w.gen.Instances[h.Index]
		} else if space, ok := q.portSpace(); ok {
			var to *generation.Forward
			if to, in = w.gen.ForwardTo(h, space, port); to == nil {
				return drop.ICMPUnrelated
			}
			port = to.Private
		} else {
			return drop.ICMPUnrelated
		}
		p.newAddr, p.newPort = in.Addr[p.family], port
		p.reach(in)
		w.counts.stateless++
	}
	p.setDeltas(p.local, p.newAddr, q.localPort, p.newPort)
	return drop.Pass
}

// translateError replaces the local address and port of the quoted packet, mends its checksums as
// far as they are quoted, and then the error's own. What RFC 4884 puts after the quote, with its
// checksum, is not touched.
func (p *Packet) translateError(icmp []byte, out bool) {
	q := &p.quote
	var sum header.Delta // what happens to the error's checksum
	if p.family == inet.V6 {
		sum = p.headerDelta // the error's own address
	}
	if !q.plain {
		sum = sum.Add(p.translateQuote(out))
	}
	if out && p.family == inet.V4 {
		sum = sum.Add(p.concealQuote())
	}
	field := icmp[header.ICMPChecksumOffset:]
	if p.family == inet.V4 {
		binary.BigEndian.PutUint16(field, sum.ApplyICMP(binary.BigEndian.Uint16(field)))
	} else {
		binary.BigEndian.PutUint16(field, sum.Apply(binary.BigEndian.Uint16(field)))
	}
}

// translateQuote returns what it does to a checksum over the quote.
func (p *Packet) translateQuote(out bool) (sum header.Delta) {
	q := &p.quote
	b, t := p.Data[q.ip:q.end], p.Data[q.transport:q.end]
	// What leaves is about what came in: there the local side was the destination.
	if p.family == inet.V4 {
		at := header.IPv4SrcOffset
		if out {
			at = header.IPv4DstOffset
		}
		p.newAddr.Put4(b[at:])
		field := b[header.IPv4ChecksumOffset:]
		sum = replace16(p.headerDelta, field, p.headerDelta.Apply(binary.BigEndian.Uint16(field)))
	} else {
		at := header.IPv6SrcOffset
		if out {
			at = header.IPv6DstOffset
		}
		p.newAddr.Put16(b[at:])
		sum = p.headerDelta
	}
	d := header.Delta(0).Replace16(q.localPort, p.newPort) // to the quoted transport's checksum
	if q.proto != header.ProtocolICMP {
		d = d.Add(p.headerDelta)
	}
	port, field, apply := -1, 0, header.Delta.Apply
	switch {
	case q.kind == kindTCP:
		port, field = header.TCPSrcPortOffset, header.TCPChecksumOffset
	case q.kind == kindUDP:
		port, field, apply = header.UDPSrcPortOffset, header.UDPChecksumOffset, header.Delta.ApplyUDP
	case q.kind == kindOther && q.proto == header.ProtocolUDPLite:
		field, apply = 6, header.Delta.ApplyUDP
	case q.kind == kindOther && q.proto == header.ProtocolDCCP:
		field = 6
	case q.kind == kindOther:
		return sum
	default:
		port, field = header.ICMPIDOffset, header.ICMPChecksumOffset
		if p.family == inet.V4 {
			apply = header.Delta.ApplyICMP
		}
	}
	if port >= 0 {
		if out && q.kind != kindEchoRequest && q.kind != kindEchoReply {
			port += 2 // the destination's
		}
		sum = replace16(sum, t[port:], p.newPort)
	}
	if field+2 <= len(t) {
		sum = replace16(sum, t[field:], apply(d, binary.BigEndian.Uint16(t[field:])))
	}
	return sum
}

// replace16 writes a word and adds what that does to a checksum over it.
func replace16(d header.Delta, field []byte, word uint16) header.Delta {
	d = d.Replace16(binary.BigEndian.Uint16(field), word)
	binary.BigEndian.PutUint16(field, word)
	return d
}
