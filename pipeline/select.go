// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/rendezvous"
	"weir/pipeline/session"
)

// selectSource gives a tagged packet its external address, and a session if it may begin one. There
// is no other way for a private source to leave: a packet without an eligible address is dropped.
func (w *Worker) selectSource(p *Packet, in *generation.Instance, tag uint32) drop.Reason {
	if p.kind >= kindError {
		return w.errorOut(p, in, tag)
	}
	sel := &w.gen.Selections[in.Selections+2*tag+uint32(p.family)]
	if sel.Kind == generation.SelectNone {
		return drop.NoEligible
	}
	if p.pinned {
		return drop.Untranslatable
	}
	if sel.Kind == generation.SelectSNAT {
		return w.selectSNAT(p, in, sel)
	}
	return w.leaveKept(p, in, w.choose(p, in, sel), p.localPort, 0)
}

// begins reports whether a packet may begin a session: a SYN that neither ends nor answers
// anything, an echo request, or anything without such rules. PSH, URG, ECE and CWR may come with a
// SYN (RFC 9293 §3.10.7.4, RFC 3168 §6.1.1).
func begins(p *Packet) bool {
	switch p.kind {
	case kindTCP:
		return p.tcpFlags&(tcpFIN|tcpSYN|tcpRST|tcpACK) == tcpSYN
	case kindEchoReply, kindError, kindICMP, kindPiece:
		return false
	}
	return true
}

// loops reports whether a packet that leaves as from external and port would come back to the very
// socket that sent it.
func (p *Packet) loops(external inet.Addr, port uint16) bool {
	if !p.hairpin || p.remote != external {
		return false
	}
	switch p.kind {
	case kindTCP, kindUDP:
		return port == p.remotePort
	case kindEchoRequest, kindEchoReply, kindPiece: // the piece's first one has been asked
		return false
	}
	return true
}

// choose picks a 1:1 address by rendezvous: a pure function of the flow and the eligible addresses.
func (w *Worker) choose(p *Packet, in *generation.Instance, sel *generation.Selection) *generation.Candidate {
	return w.pick(&rendezvous.Flow{Proto: p.proto, Private: in.Addr[p.family], Remote: p.remote, PrivatePort: p.localPort, RemotePort: p.remotePort}, sel)
}

// pick is choose for a flow that is not the packet's own.
func (w *Worker) pick(f *rendezvous.Flow, sel *generation.Selection) *generation.Candidate {
	list := w.gen.Candidates[sel.Candidates.First:sel.Candidates.End()]
	best := &list[0]
	if len(list) == 1 {
		return best
	}
	spread := config.Spread(w.gen.Header.Spread)
	weight := rendezvous.Weight(f, spread, best.Addr)
	for i := 1; i < len(list); i++ {
		if x := rendezvous.Weight(f, spread, list[i].Addr); x > weight {
			best, weight = &list[i], x
		}
	}
	return best
}

// leaveKept lets a flow leave as from an external address and port that it has without a session,
// as with a 1:1 address or by a forward. A session only keeps it over changes: without one the
// packets are told the same. flags are the session's.
func (w *Worker) leaveKept(p *Packet, in *generation.Instance, c *generation.Candidate, port, flags uint16) drop.Reason {
	if p.loops(c.Addr, port) {
		return drop.Martian
	}
	if p.fragmented && c.Rules&generation.DropFragments != 0 {
		return drop.Fragment
	}
	p.leaveAs(c.Addr, port, c.Ports, flags&session.SNAT != 0)
	p.setDeltas(p.local, c.Addr, p.localPort, port)
	f := flow{in: in, private: p.local, privatePort: p.localPort, external: c.Addr, externalPort: port, ports: c.Ports, refresh: c.Rules&generation.InboundRefresh != 0, flags: flags, mapping: session.None}
	if !begins(p) || w.filled(7) || w.create(p, &f) != drop.Pass {
		w.counts.stateless++
	}
	return drop.Pass
}

// selectSNAT gives a flow its port. With endpoint-independent mapping the internal endpoint has one
// towards everybody; else each flow takes one that no other flow uses towards the same remote
// endpoint.
func (w *Worker) selectSNAT(p *Packet, in *generation.Instance, sel *generation.Selection) drop.Reason {
	space, ok := p.portSpace()
	if !ok {
		return drop.SNATProtocol
	}
	c := &w.gen.Candidates[sel.Candidates.First]
	if c.Forwards.Count > 0 {
		if f := w.gen.ForwardFrom(c, space, p.localPort); f != nil {
			return w.leaveKept(p, in, c, f.Port, session.SNAT|session.Forward)
		}
	}
	if !begins(p) {
		return drop.NoSession
	}
	if r := w.limited(in); r != drop.Pass {
		return r
	}
	if w.crowds(&w.gen.VPCs[in.VPC]) {
		return drop.FairShare
	}
	if w.sessions.Len() == w.sessions.Capacity() {
		return drop.TableFull
	}
	if p.fragmented && c.Rules&generation.DropFragments != 0 {
		return drop.Fragment
	}
	ranges := w.gen.PortRanges[c.Ranges[space].First:c.Ranges[space].End()]
	if len(ranges) == 0 {
		return drop.PortsExhausted
	}
	p.leaveAs(c.Addr, p.localPort, c.Ports, true) // the port is found below
	mapping, alone := session.None, false
	if c.Rules&generation.Overload != 0 {
		if ok = w.overload(p, in, c.Addr, ranges); !ok {
			return drop.PortsExhausted
		}
	} else {
		vpc := w.gen.VPCs[in.VPC].Slot
		if mapping = w.mappings.Hold(vpc, p.local, p.localPort, space, c.Slot, ranges); mapping == session.None {
			to := session.Toward{Table: w.sessions, External: c.Addr, Remote: p.remote, RemotePort: p.remotePort, Proto: p.proto}
			if p.kind == kindTCP {
				to.Seq = p.segment().seq
			}
			var result session.Created
			switch mapping, alone, result = w.mappings.CreateToward(&to, vpc, p.local, p.localPort, space, c.Slot, ranges, w.rand, w.tick); result {
			case session.NoPort:
				return drop.PortsExhausted
			case session.MappingsFull:
				return drop.TableFull
			}
		}
		p.newPort = w.mappings.At(mapping).ExternalPort
	}
	if p.loops(c.Addr, p.newPort) {
		if mapping != session.None {
			w.mappings.Release(mapping, w.tick)
		}
		return drop.Martian
	}
	p.setDeltas(p.local, c.Addr, p.localPort, p.newPort)
	f := flow{in: in, private: p.local, privatePort: p.localPort, external: c.Addr, externalPort: p.newPort, ports: c.Ports, refresh: c.Rules&generation.InboundRefresh != 0, flags: session.SNAT, mapping: mapping, alone: alone}
	r := w.create(p, &f)
	if r != drop.Pass && mapping != session.None {
		w.mappings.Release(mapping, w.tick)
	}
	return r
}
