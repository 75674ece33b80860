// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"sync/atomic"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// selectSource gives a tagged packet its external address (design 2.3), and a session if it may begin one. There is
// no other way for a private source to leave: nothing eligible means dropped.
func (w *Worker) selectSource(p *Packet, in *instanceRecord, tag uint32) Reason {
	sel := &w.gen.selections[in.Selections+2*tag+uint32(p.family)]
	if sel.Kind == selectNone {
		return NoEligible
	}
	if p.kind == kindICMP { // its quote would carry the private address out
		return ICMPUnsupported
	}
	if p.pinned {
		return Untranslatable
	}
	if sel.Kind == selectSNAT {
		return w.selectSNAT(p, in, sel)
	}
	c := w.choose(p, in, sel)
	p.act, p.newAddr, p.newPort, p.ports = actOut, c.Addr, p.localPort, c.Ports
	p.setDeltas(p.local, c.Addr, p.localPort, p.localPort)
	// 1:1 never needs state: a session only keeps the address over changes. Without one the function chooses.
	if !begins(p) || w.filled(7) || w.create(p, in, p.local, c.Addr, p.localPort, c.Ports, 0) != Pass {
		w.counts.stateless++
	}
	return Pass
}

// filled reports whether eighths of the session table are in use. The last eighth is for SNAT, which cannot do without a
// session; the eighth before it is for 1:1 flows that begin inside too; what the Internet begins has to stay below both.
func (w *Worker) filled(eighths int) bool {
	return w.sessions.Len() >= w.sessions.Capacity()/8*eighths
}

// begins reports whether a packet may begin a session: a plain SYN, an echo request, or anything without such rules.
func begins(p *Packet) bool {
	switch p.kind {
	case kindTCP:
		return p.tcpFlags&(tcpFIN|tcpSYN|tcpRST|tcpPSH|tcpACK|tcpURG) == tcpSYN
	case kindEchoReply, kindICMP:
		return false
	}
	return true
}

// choose picks a 1:1 address by rendezvous: a pure function of the flow and the eligible addresses.
func (w *Worker) choose(p *Packet, in *instanceRecord, sel *selection) *candidate {
	list := w.gen.candidates[sel.Candidates.First:sel.Candidates.end()]
	best := &list[0]
	if len(list) == 1 {
		return best
	}
	f := flowKey{p.proto, in.Addr[p.family], p.remote, p.localPort, p.remotePort}
	spread := config.Spread(w.gen.h.Spread)
	weight := rendezvous(&f, spread, best.Addr)
	for i := 1; i < len(list); i++ {
		if x := rendezvous(&f, spread, list[i].Addr); x > weight {
			best, weight = &list[i], x
		}
	}
	return best
}

func (w *Worker) selectSNAT(p *Packet, in *instanceRecord, sel *selection) Reason {
	switch {
	case p.kind == kindOther:
		return SNATProtocol
	case !begins(p):
		return NoSession
	}
	if r := w.limited(in); r != Pass {
		return r
	}
	// A search that finds nothing is dear: for a while the same question gets the same answer.
	flow := uint64(in.Slot)<<32 | uint64(p.proto)<<16 | uint64(p.remotePort)
	full := &w.exhausted[(flow^p.remote.Hi^p.remote.Lo)*0x9e3779b97f4a7c15>>(64-exhaustedBits)]
	if full.flow == flow && full.remote == p.remote && w.nanos < full.until {
		return PortsExhausted
	}
	list := w.gen.candidates[sel.Candidates.First:sel.Candidates.end()]
	port, ok := w.freePort(p, list)
	if !ok {
		*full = exhaustion{flow, p.remote, w.nanos + exhaustedNanos}
		return PortsExhausted
	}
	c := &list[0]
	p.act, p.newAddr, p.newPort, p.ports = actOut, c.Addr, port, c.Ports
	p.setDeltas(p.local, c.Addr, p.localPort, port)
	return w.create(p, in, p.local, c.Addr, port, c.Ports, session.SNAT)
}

// exhaustion remembers that an instance has no port left towards a remote endpoint.
type exhaustion struct {
	flow   uint64 // instance, protocol, remote port
	remote inet.Addr
	until  int64 // nanoseconds: an entry may lie here until milliseconds come round again
}

const (
	exhaustedNanos = 10e6
	exhaustedBits  = 10
)

// maxPortProbes bounds the search for a port.
const maxPortProbes = 128

// freePort picks a port of the ranges at random (RFC 6056 §3.3.2: random start, then a step that meets every
// port once) such that no other session has it with this remote endpoint: ports are overloaded (RFC 7857 §3).
func (w *Worker) freePort(p *Packet, ranges []candidate) (uint16, bool) {
	total := uint32(0)
	for i := range ranges {
		total += uint32(ranges[i].Last-ranges[i].First) + 1
	}
	r := w.rand.Uint64()
	at := uint32(r>>32) % total
	step := uint32(r)%total | 1
	for gcd(step, total) != 1 {
		step++ // ends at a prime at the latest
	}
	for range min(total, maxPortProbes) {
		port := nthPort(ranges, at)
		key := session.OutsideKey(ranges[0].Addr, p.remote, port, p.remotePort, p.proto)
		ref := w.sessions.Find(&key)
		if ref == session.None || !w.usable(ref, w.sessions.At(ref)) {
			return port, true
		}
		if at += step; at >= total {
			at %= total
		}
	}
	return 0, false
}

func nthPort(ranges []candidate, n uint32) uint16 {
	for i := range ranges {
		size := uint32(ranges[i].Last-ranges[i].First) + 1
		if n < size {
			return ranges[i].First + uint16(n)
		}
		n -= size
	}
	return ranges[0].First
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// limited reports which limit, if any, keeps the instance from another session.
func (w *Worker) limited(in *instanceRecord) Reason {
	v := &w.gen.vpcs[in.VPC]
	switch {
	case in.Limit != 0 && atomic.LoadUint32(&w.state.instances[in.Slot].Sessions) >= in.Limit:
		return LimitInstance
	case v.Limit != 0 && atomic.LoadUint32(&w.state.vpcs[v.Slot].Sessions) >= v.Limit:
		return LimitVPC
	}
	return Pass
}

// create makes a session for the flow of p between the instance's private address and external.
func (w *Worker) create(p *Packet, in *instanceRecord, private, external inet.Addr, externalPort uint16, ports uint32, flags uint16) Reason {
	if r := w.limited(in); r != Pass {
		return r
	}
	// A 1:1 session's outside key may be taken: by a session of before a change, or begun from outside.
	if flags&session.SNAT == 0 {
		key := session.OutsideKey(external, p.remote, externalPort, p.remotePort, p.proto)
		if ref := w.sessions.Find(&key); ref != session.None {
			w.end(ref)
		}
	}
	ref, s, ok := w.sessions.Alloc()
	if !ok {
		return TableFull
	}
	v := &w.gen.vpcs[in.VPC]
	state := firstState(p.kind)
	privatePort := p.localPort
	*s = session.Session{
		Private: private, Remote: p.remote, External: external,
		VPC: v.Slot, Last: w.tick, Generation: uint32(w.gen.Number), Instance: in.Slot,
		Neighbor: in.Neighbor[p.family], InPort: in.Port[p.family], Ports: ports,
		Flags: flags, Created: w.tick, Mapping: session.None, Prev: session.None, Next: session.None,
	}
	s.Delta, s.HeaderDelta = p.delta, p.headerDelta
	if flags&session.FromOutside != 0 {
		state = session.Unconfirmed
		s.Flags |= session.SeenOutside
		s.Delta, s.HeaderDelta = p.delta.Invert(), p.headerDelta.Invert()
	} else if p.kind == kindTCP {
		s.Flags |= session.SeenInside
	}
	if !w.sessions.Publish(ref, s, session.Word(privatePort, p.remotePort, externalPort, p.proto, state)) {
		return TableFull
	}
	w.state.acquire(s.VPC, s.Instance)
	if state == session.Unconfirmed {
		w.state.appendUnconfirmed(w.sessions, ref, s)
	}
	w.counters.SessionsCreated++
	w.created = true
	return Pass
}

// inbound delivers an unsolicited packet to a 1:1 address. It begins a session only where the function, applied to the
// reply, would not give the address it arrived on (design 2.10).
func (w *Worker) inbound(p *Packet, in *instanceRecord, h *host) {
	f := p.family
	p.act, p.newAddr, p.newPort, p.outPort, p.neighbor = actIn, in.Addr[f], p.localPort, in.Port[f], in.Neighbor[f]
	p.setDeltas(p.local, in.Addr[f], p.localPort, p.localPort)
	w.counts.stateless++
	r := w.gen.find(in.Routes[f], p.remote)
	if r == 0 || w.gen.routes[r-1].Kind != routeGateway || !begins(p) {
		return
	}
	sel := &w.gen.selections[in.Selections+2*w.gen.routes[r-1].Tag+uint32(f)]
	if sel.Kind == selectFloating || sel.Kind == selectEphemeral {
		if w.choose(p, in, sel).Addr == p.local {
			return
		}
	}
	// The inside key may be taken by a flow that the instance began and that left by another address: that one stays.
	key := session.InsideKey(w.gen.vpcs[in.VPC].Slot, in.Addr[f], p.remote, p.localPort, p.remotePort, p.proto)
	if ref := w.sessions.Find(&key); ref != session.None && w.usable(ref, w.sessions.At(ref)) {
		return
	}
	if w.filled(6) {
		return
	}
	// At most a quarter of what the instance may have; the oldest gives way.
	u := &w.state.instances[in.Slot]
	if quarter := w.quarter(in); u.Unconfirmed >= quarter {
		if u.Oldest == session.None {
			return
		}
		w.end(u.Oldest)
	}
	if w.create(p, in, in.Addr[f], p.local, p.localPort, h.Ports, session.FromOutside) == Pass {
		w.counts.stateless--
	}
}

// defaultQuarter is for instances without a limit: a quarter of the limit's default.
const defaultQuarter = 65536 / 4

// quarter is how many unconfirmed sessions an instance may have.
func (w *Worker) quarter(in *instanceRecord) uint32 {
	if in.Limit == 0 {
		return defaultQuarter
	}
	return in.Limit / 4
}

// setDeltas notes what replacing the local address and port does to checksums. ICMPv4's sum covers no addresses.
func (p *Packet) setDeltas(old, new inet.Addr, oldPort, newPort uint16) {
	p.headerDelta = header.Delta(0).Replace32(old.Sum(), new.Sum())
	p.delta = header.Delta(0).Replace16(oldPort, newPort)
	if p.proto != protoICMP {
		p.delta = p.delta.Add(p.headerDelta)
	}
}

// acquire and release count a session in its VPC and instance.
func (s *State) acquire(vpc, instance uint32) {
	atomic.AddUint32(&s.vpcs[vpc].Sessions, 1)
	atomic.AddUint32(&s.instances[instance].Sessions, 1)
}

func (s *State) release(vpc, instance uint32) {
	atomic.AddUint32(&s.vpcs[vpc].Sessions, ^uint32(0))
	atomic.AddUint32(&s.instances[instance].Sessions, ^uint32(0))
}
