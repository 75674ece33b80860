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
	if p.kind >= kindError {
		return w.errorOut(p, in, tag)
	}
	sel := &w.gen.selections[in.Selections+2*tag+uint32(p.family)]
	if sel.Kind == selectNone {
		return NoEligible
	}
	if p.pinned {
		return Untranslatable
	}
	if sel.Kind == selectSNAT {
		return w.selectSNAT(p, in, sel)
	}
	c := w.choose(p, in, sel)
	if p.loops(c.Addr, p.localPort) {
		return Martian
	}
	if p.fragmented && c.Rules&dropFragments != 0 {
		return Fragment
	}
	p.act, p.newAddr, p.newPort, p.ports = actOut, c.Addr, p.localPort, c.Ports
	p.setDeltas(p.local, c.Addr, p.localPort, p.localPort)
	// 1:1 never needs state: a session only keeps the address over changes. Without one the function chooses.
	f := flow{in: in, private: p.local, privatePort: p.localPort, external: c.Addr, externalPort: p.localPort, ports: c.Ports, mapping: session.None}
	if !begins(p) || w.filled(7) || w.create(p, &f) != Pass {
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
	case kindEchoReply, kindError, kindICMP, kindPiece:
		return false
	}
	return true
}

// choose picks a 1:1 address by rendezvous: a pure function of the flow and the eligible addresses.
func (w *Worker) choose(p *Packet, in *instanceRecord, sel *selection) *candidate {
	return w.pick(&flowKey{p.proto, in.Addr[p.family], p.remote, p.localPort, p.remotePort}, sel)
}

// pick is choose for a flow that is not the packet's own.
func (w *Worker) pick(f *flowKey, sel *selection) *candidate {
	list := w.gen.candidates[sel.Candidates.First:sel.Candidates.end()]
	best := &list[0]
	if len(list) == 1 {
		return best
	}
	spread := config.Spread(w.gen.h.Spread)
	weight := rendezvous(f, spread, best.Addr)
	for i := 1; i < len(list); i++ {
		if x := rendezvous(f, spread, list[i].Addr); x > weight {
			best, weight = &list[i], x
		}
	}
	return best
}

// selectSNAT gives a flow its port. With endpoint-independent mapping the internal endpoint has one towards everybody;
// else each flow takes one that no other flow uses towards the same remote endpoint.
func (w *Worker) selectSNAT(p *Packet, in *instanceRecord, sel *selection) Reason {
	space, ok := p.portSpace()
	switch {
	case !ok:
		return SNATProtocol
	case !begins(p):
		return NoSession
	}
	if r := w.limited(in); r != Pass {
		return r
	}
	if w.sessions.Len() == w.sessions.Capacity() {
		return TableFull
	}
	c := &w.gen.candidates[sel.Candidates.First]
	if p.fragmented && c.Rules&dropFragments != 0 {
		return Fragment
	}
	ranges := w.gen.portRanges[c.Ranges.First:c.Ranges.end()]
	p.act, p.newAddr, p.ports, p.shared = actOut, c.Addr, c.Ports, true
	mapping := session.None
	if c.Rules&overload != 0 {
		if ok = w.overload(p, in, c.Addr, ranges); !ok {
			return PortsExhausted
		}
	} else {
		vpc := w.gen.vpcs[in.VPC].Slot
		if mapping = w.mappings.Hold(vpc, p.local, p.localPort, space, c.Slot, ranges); mapping == session.None {
			var result session.Created
			switch mapping, result = w.mappings.Create(vpc, p.local, p.localPort, space, c.Slot, ranges, w.rand, w.tick); result {
			case session.NoPort:
				return PortsExhausted
			case session.MappingsFull:
				return TableFull
			}
		}
		p.newPort = w.mappings.At(mapping).ExternalPort
	}
	if p.loops(c.Addr, p.newPort) {
		if mapping != session.None {
			w.mappings.Release(mapping, w.tick)
		}
		return Martian
	}
	p.setDeltas(p.local, c.Addr, p.localPort, p.newPort)
	f := flow{in: in, private: p.local, privatePort: p.localPort, external: c.Addr, externalPort: p.newPort, ports: c.Ports, flags: session.SNAT, mapping: mapping}
	r := w.create(p, &f)
	if r != Pass && mapping != session.None {
		w.mappings.Release(mapping, w.tick)
	}
	return r
}

// portSpace returns the port space that a packet's local port or identifier belongs to. Other protocols have none.
func (p *Packet) portSpace() (session.PortSpace, bool) {
	switch p.kind {
	case kindTCP:
		return session.TCPPorts, true
	case kindUDP:
		return session.UDPPorts, true
	case kindEchoRequest, kindEchoReply:
		return session.EchoIdentifiers, true
	case kindPiece: // the first one's
		switch p.proto {
		case header.ProtocolTCP:
			return session.TCPPorts, true
		case header.ProtocolUDP:
			return session.UDPPorts, true
		case header.ProtocolICMP, header.ProtocolICMPv6:
			return session.EchoIdentifiers, true
		}
	}
	return 0, false
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

// failures counts the searches of an instance that found no port in one millisecond: there are more remote endpoints than exhaustions
// to remember.
type failures struct{ instance, tick, n uint32 }

// maxFailures bounds them.
const maxFailures = 4

// maxPortProbes bounds the search for a port that is overloaded.
const maxPortProbes = 128

// overload picks a port of the ranges at random (RFC 6056 §3.3.2: random start, then a step that meets every
// port once) such that no other session has it with this remote endpoint (RFC 7857 §3). A search that finds nothing is dear: for a
// while the same question gets the same answer.
func (w *Worker) overload(p *Packet, in *instanceRecord, external inet.Addr, ranges []session.PortRange) bool {
	flow := uint64(in.Slot)<<32 | uint64(p.proto)<<16 | uint64(p.remotePort)
	full := &w.exhausted[(flow^p.remote.Hi^p.remote.Lo)*0x9e3779b97f4a7c15>>(64-exhaustedBits)]
	if full.flow == flow && full.remote == p.remote && w.nanos-full.until < 0 {
		return false
	}
	failed := &w.failed[in.Slot%uint32(len(w.failed))]
	if failed.instance != in.Slot || failed.tick != w.tick {
		*failed = failures{instance: in.Slot, tick: w.tick}
	}
	if failed.n == maxFailures {
		return false
	}
	total := session.Ports(ranges)
	r := w.rand.Uint64()
	at := uint32(r>>32) % total
	step := uint32(r)%total | 1
	for gcd(step, total) != 1 {
		step++ // ends at a prime at the latest
	}
	for range min(total, maxPortProbes) {
		port := session.PortAt(ranges, at)
		key := session.OutsideKey(external, p.remote, port, p.remotePort, p.proto)
		ref := w.sessions.Find(&key)
		if ref == session.None || !w.usable(ref, w.sessions.At(ref)) {
			p.newPort = port
			return true
		}
		if at += step; at >= total {
			at %= total
		}
	}
	*full = exhaustion{flow, p.remote, w.nanos + exhaustedNanos}
	failed.n++
	return false
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

// flow is what a new session is made of, beside its packet.
type flow struct {
	in                        *instanceRecord
	private, external         inet.Addr
	privatePort, externalPort uint16
	ports                     uint32 // outside ports that it may leave by
	flags                     uint16
	mapping                   uint32 // that it holds, or session.None
}

// create makes a session for the flow of p.
func (w *Worker) create(p *Packet, f *flow) Reason {
	in := f.in
	if r := w.limited(in); r != Pass {
		return r
	}
	// The outside key may be taken: by a session of before a change, or begun from outside. One that overloads the port, since before
	// its pool's mapping changed, is live and stays.
	key := session.OutsideKey(f.external, p.remote, f.externalPort, p.remotePort, p.proto)
	if ref := w.sessions.Find(&key); ref != session.None && w.usable(ref, w.sessions.At(ref)) {
		if f.mapping != session.None && w.sessions.At(ref).State() != session.Unconfirmed {
			return PortsExhausted
		}
		w.end(ref)
	}
	ref, s, ok := w.sessions.Alloc()
	if !ok {
		return TableFull
	}
	v := &w.gen.vpcs[in.VPC]
	state := firstState(p.kind)
	*s = session.Session{
		Private: f.private, Remote: p.remote, External: f.external,
		VPC: v.Slot, Last: w.tick, Instance: in.Slot, Flags: f.flags, Created: w.tick, Mapping: f.mapping, Prev: session.None, Next: session.None,
	}
	w.gen.adjust(s, in, f.ports, p.proto, p.remotePort)
	s.Delta, s.HeaderDelta = p.delta, p.headerDelta
	if p.hairpin || p.turned {
		s.Flags |= session.Hairpin
	}
	side := inSide
	if f.flags&session.FromOutside != 0 {
		state = session.Unconfirmed
		s.Flags |= session.SeenOutside
		side = outSide
		s.Delta, s.HeaderDelta = p.delta.Invert(), p.headerDelta.Invert()
	}
	if p.kind == kindTCP {
		beginTCP(s, p, side)
	}
	if !w.sessions.Publish(ref, s, session.Word(f.privatePort, p.remotePort, f.externalPort, p.proto, state)) {
		return TableFull
	}
	if f.mapping != session.None && !w.sessions.Pair(ref, s) {
		w.sessions.Remove(ref)
		return TableFull
	}
	w.state.acquire(s.VPC, s.Instance)
	if state == session.Unconfirmed {
		atomic.AddUint32(&w.state.instances[s.Instance].Unconfirmed, 1)
		atomic.AddUint32(&w.state.vpcs[s.VPC].Unconfirmed, 1)
		w.unconfirmed[s.Instance].push(w.sessions, ref, s)
	}
	w.counters.SessionsCreated++
	w.created = true
	return Pass
}

// confirmed takes a session off its instance's list of unconfirmed ones.
func (w *Worker) confirmed(s *session.Session) {
	atomic.AddUint32(&w.state.instances[s.Instance].Unconfirmed, ^uint32(0))
	atomic.AddUint32(&w.state.vpcs[s.VPC].Unconfirmed, ^uint32(0))
	w.unconfirmed[s.Instance].remove(w.sessions, s)
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
	if w.beginOutside(p, in, h, session.FromOutside) {
		w.counts.stateless--
	}
}

// invited delivers a packet to a mapping of an SNAT address, if the filtering lets its sender in (RFC 4787 §5), and begins a
// session. The session holds the mapping from the first packet from inside on.
func (w *Worker) invited(p *Packet, h *host) Reason {
	space, ok := p.portSpace()
	piece := p.kind == kindPiece // its first one was let in; there may have been no room for a session
	if !ok || h.Rules&overload != 0 || space == session.EchoIdentifiers || !begins(p) && !piece {
		return Unsolicited
	}
	ref := w.mappings.FindOutside(h.Slot, space, p.localPort)
	if ref == session.None {
		return Unsolicited
	}
	m := w.mappings.At(ref)
	owner, ok := w.gen.portOwner(h, p.localPort)
	if !ok {
		return Unsolicited
	}
	in, f := &w.gen.instances[owner], p.family
	if in.Addr[f] != m.Private || w.gen.vpcs[in.VPC].Slot != m.VPC {
		return Unsolicited
	}
	switch {
	case h.Rules&filterPort != 0 || h.Rules&filterNone == 0 && !w.knows(h, p):
		return Filtered
	case p.expired:
		return TTLExceeded
	case p.pinned:
		return Untranslatable
	}
	p.act, p.newAddr, p.newPort, p.outPort, p.neighbor = actIn, m.Private, m.PrivatePort, in.Port[f], in.Neighbor[f]
	p.setDeltas(p.local, m.Private, p.localPort, m.PrivatePort)
	if r := w.gen.find(in.Routes[f], p.remote); !piece && r != 0 && w.gen.routes[r-1].Kind == routeGateway {
		w.beginOutside(p, in, h, session.FromOutside|session.SNAT)
	}
	return Pass
}

// knows reports whether the mapping that p goes to has a session with the remote address of p.
func (w *Worker) knows(h *host, p *Packet) bool {
	for {
		ref := w.sessions.FindPaired(h.Addr, p.remote, p.localPort, p.proto)
		if ref == session.None {
			return false
		}
		if w.usable(ref, w.sessions.At(ref)) {
			return true
		}
	}
}

// beginOutside makes an unconfirmed session for a packet from outside that is translated already, if there may be one.
func (w *Worker) beginOutside(p *Packet, in *instanceRecord, h *host, flags uint16) bool {
	// The inside key may be taken by a flow that the instance began and that left by another address: that one stays.
	key := session.InsideKey(w.gen.vpcs[in.VPC].Slot, p.newAddr, p.remote, p.newPort, p.remotePort, p.proto)
	if ref := w.sessions.Find(&key); ref != session.None && w.usable(ref, w.sessions.At(ref)) {
		return false
	}
	if w.filled(6) {
		return false
	}
	// At most a quarter of what the instance may have, and of what the VPC may: strangers take no limit away from those inside. The
	// oldest of the instance's at this worker gives way. Each worker has its share, so that those whom one of them owns deny nobody
	// the others.
	v, most := &w.gen.vpcs[in.VPC], quarter(in.Limit)
	all := v.Limit != 0 && atomic.LoadUint32(&w.state.vpcs[v.Slot].Unconfirmed) >= max(1, v.Limit/4)
	mine := &w.unconfirmed[in.Slot]
	if all || most == 0 || atomic.LoadUint32(&w.state.instances[in.Slot].Unconfirmed) >= most && mine.N >= max(1, most/uint32(w.state.Workers())) {
		if mine.Oldest == session.None {
			return false
		}
		w.end(mine.Oldest)
	}
	f := flow{in: in, private: p.newAddr, privatePort: p.newPort, external: p.local, externalPort: p.localPort, ports: h.Ports, flags: flags, mapping: session.None}
	return w.create(p, &f) == Pass
}

// defaultQuarter is for instances without a limit: a quarter of the limit's default.
const defaultQuarter = 65536 / 4

// quarter is how many unconfirmed sessions an instance of that limit may have.
func quarter(limit uint32) uint32 {
	if limit == 0 {
		return defaultQuarter
	}
	return limit / 4
}

// setDeltas notes what replacing the local address and port does to checksums. ICMPv4's sum covers no addresses.
func (p *Packet) setDeltas(old, new inet.Addr, oldPort, newPort uint16) {
	p.headerDelta = header.Delta(0).Replace32(old.Sum(), new.Sum())
	p.delta = header.Delta(0).Replace16(oldPort, newPort)
	if p.proto != header.ProtocolICMP {
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
