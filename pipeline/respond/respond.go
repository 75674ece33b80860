// SPDX-License-Identifier: Apache-2.0

// Package respond is what control says for weir on the wire: questions for neighbors, ICMP errors
// and resets. What asks for weir itself, workers answer. It is ordinary Go and runs in control,
// behind the punt rings.
package respond

import (
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/state"
)

// Responder is control's end of the punt rings: it resolves neighbors, learns from what they say,
// and writes ICMP errors. Ordinary Go: it may allocate and take its time. One goroutine uses it.
type Responder struct {
	state *state.State
	cfg   *config.Config
	gen   *generation.Generation
	macs  []config.MAC

	attachments map[attach.Word]*config.Attachment // of VPCs
	via         inet.Addr                          // the endpoint that the message in hand came from
	now         int64                              // when it came

	// Passive: neighbors count as resolved, so nobody is asked and nothing learned. For replays.
	Passive bool
	Assume  config.MAC // then: of neighbors that nobody resolved

	probes map[probeKey]*probe
	scan   int64 // when to look through the probes next

	announce []announcement // to be said

	buf []byte
}

type probeKey struct {
	at   attach.Word
	addr inet.Addr
}

// probe is a neighbor that is being asked for, or asked again from time to time.
type probe struct {
	next    int64 // when to ask next, nanoseconds
	tries   int   // unanswered
	wanted  bool  // a packet waits
	hop     bool  // a next hop of the configuration: always kept resolved
	dynamic bool  // not named by the configuration
}

// Times of neighbor resolution. RFC 4861 §10: three questions, a second apart.
const (
	probeInterval = int64(1e9)
	ProbeTries    = 3
	scanInterval  = int64(100e6)
	hopInterval   = int64(1e9)   // a next hop is asked again after this
	ReaskInterval = int64(300e9) // any other neighbor
	MaxDynamic    = 1024         // neighbors of an attachment that no configuration names
)

// New returns a responder for the state's rings.
func New(s *state.State, macs []config.MAC) *Responder {
	return &Responder{state: s, macs: macs, probes: map[probeKey]*probe{}}
}

// Configure tells of the generation that answers are to follow, and of the configuration it was
// compiled from.
func (r *Responder) Configure(cfg *config.Config, g *generation.Generation) {
	first := r.gen == nil
	r.cfg, r.gen = cfg, g
	r.attachments = make(map[attach.Word]*config.Attachment, len(g.Attachments))
	for i := range cfg.VPCs {
		list := cfg.VPCs[i].Attach
		for j := range list {
			r.attachments[generation.WordOf(&list[j])] = &list[j]
		}
	}
	asked := map[uint32]bool{} // the only ones of which it matters whether an instance has them
	for k := range r.probes {
		asked[r.state.Neighbors.Find(k.at, k.addr)] = true
	}
	named := map[uint32]bool{}
	for i := range g.Instances {
		for _, slot := range g.Instances[i].Neighbor {
			if first || asked[slot] {
				named[slot] = true
			}
		}
	}
	for k, p := range r.probes {
		slot := r.state.Neighbors.Find(k.at, k.addr)
		if p.hop || slot == state.NoNeighbor {
			delete(r.probes, k)
		} else if named[slot] {
			p.dynamic = false // so that nobody removes it
		}
	}
	if first {
		r.inherit(named)
	}
	for _, hops := range [][]generation.Hop{g.Hops, g.Routers} {
		for i := range hops {
			h := &hops[i]
			if now, _ := r.state.Neighbors.Get(h.Neighbor); now != state.NeighborStatic {
				r.probes[probeKey{h.At, h.Addr}] = &probe{hop: true}
			}
		}
	}
}

// inherit takes over the neighbors that an earlier responder resolved: they are asked again one
// after the other.
func (r *Responder) inherit(named map[uint32]bool) {
	for slot := range r.state.Neighbors.Len() {
		now, _ := r.state.Neighbors.Get(uint32(slot))
		if now == state.NeighborNone || now == state.NeighborStatic || now == state.NeighborIncomplete && named[uint32(slot)] {
			continue
		}
		at, addr := r.state.Neighbors.At(uint32(slot))
		r.probes[probeKey{at, addr}] = &probe{next: ReaskInterval / 1024 * int64(len(r.probes)%1024), dynamic: !named[uint32(slot)]}
	}
}

// Poll handles what the workers have punted and asks for neighbors whose time has come.
func (r *Responder) Poll(now int64) {
	if r.scan == 0 && !r.Passive { // what was configured before the first turn counts from it
		for _, p := range r.probes {
			p.next += now
		}
	}
	for w := range r.state.Workers() {
		ring := r.state.Punt(w)
		for range state.RingSlots { // no more: a data plane out of order must not keep control from other things
			m := ring.Peek()
			if m == nil {
				break
			}
			r.Handle(m, now)
			ring.Pop()
		}
	}
	if r.Passive || now < r.scan {
		return
	}
	r.scan = now + scanInterval
	r.announceSome()
	for k, p := range r.probes {
		if now >= p.next {
			r.ask(k, p, now)
		}
	}
}

// Probing returns how many neighbors are asked for, now or later.
func (r *Responder) Probing() int { return len(r.probes) }

// Handle does what a message from a worker asks for.
func (r *Responder) Handle(m *state.Message, now int64) {
	if m.At.Port() >= len(r.macs) {
		return
	}
	r.via, r.now = m.Addr, now
	switch m.Kind {
	case state.PuntResolve:
		r.want(probeKey{m.At, m.Addr}, now)
	case state.PuntError:
		r.sendError(m)
	case state.PuntFrame:
		e, ok := header.ParseEthernet(m.Data())
		if !ok {
			return
		}
		switch e.Type() {
		case header.EtherTypeARP:
			r.arp(m.At, e, now)
		case header.EtherTypeIPv6:
			if ip, ok := header.ParseIPv6(e.Payload()); ok {
				r.ipv6(m.At, e, ip, now)
			}
		}
	}
}

// frame begins a frame of ours to dst in the responder's buffer.
func (r *Responder) frame(dst header.MAC, at attach.Word, etherType uint16) []byte {
	return header.AppendEthernet(r.buf[:0], dst, r.mac(at), etherType)
}

// send hands a frame to a worker, any of which can transmit through every port.
func (r *Responder) send(at attach.Word, b []byte) {
	r.buf = b
	if b = r.wrap(at, b); b == nil || !r.state.Inject(0).Put(state.InjectFrame, at, drop.Pass, 0, inet.Addr{}, b) {
		r.state.CountLost()
	}
}

func (r *Responder) arp(at attach.Word, e header.Ethernet, now int64) {
	// The sender's MAC may differ from the frame's source: a virtual router's address is at a
	// virtual MAC (RFC 5798 §8.1.2).
	a, ok := header.ParseARP(e.Payload())
	if !ok || a.SenderMAC() == (header.MAC{}) || a.SenderMAC().IsGroup() || r.ours(at, a.Sender()) {
		return // malformed, or somebody claims one of our addresses
	}
	if a.Sender().IsValid() && !a.Sender().IsUnspecified() {
		r.Learn(at, a.Sender(), a.SenderMAC(), now)
	}
}

func (r *Responder) ipv6(at attach.Word, e header.Ethernet, ip header.IPv6, now int64) {
	if s, ok := header.ParseNeighborSolicitation(ip); ok {
		if mac, ok := s.LinkLayer(); ok && mac == e.Src() && !mac.IsGroup() && !r.ours(at, ip.Src()) {
			r.Learn(at, ip.Src(), mac, now)
		}
		return
	}
	if a, ok := header.ParseNeighborAdvertisement(ip); ok {
		mac, ok := a.LinkLayer()
		if !ok {
			mac = e.Src()
		}
		if !mac.IsGroup() && !r.ours(at, a.Target()) {
			r.Learn(at, a.Target(), mac, now)
		}
	}
}

// ours reports whether a is an address of weir itself on an attachment.
func (r *Responder) ours(at attach.Word, a netip.Addr) bool {
	return slices.ContainsFunc(r.prefixes(at), func(p netip.Prefix) bool { return p.Addr() == a })
}

// prefixes returns weir's own addresses on an attachment with their prefixes: the port's outside.
func (r *Responder) prefixes(at attach.Word) []netip.Prefix {
	p := &r.cfg.Ports[at.Port()]
	if p.Side == config.Outside {
		return p.Addresses
	}
	if a := r.attachments[at]; a != nil {
		return a.Addresses
	}
	if at.Plain() { // where tunnels end
		return p.Addresses
	}
	return nil
}

// Learn takes a neighbor's MAC if anybody wants to know it. A configured MAC stays.
func (r *Responder) Learn(at attach.Word, a netip.Addr, mac header.MAC, now int64) {
	x := inet.FromNetip(a)
	slot := r.state.Neighbors.Find(at, x)
	if slot == state.NoNeighbor || r.Passive {
		return
	}
	if now, _ := r.state.Neighbors.Get(slot); now == state.NeighborStatic {
		return
	}
	if _, err := r.state.Neighbors.Set(at, x, state.NeighborReachable, config.MAC(mac)); err != nil {
		return
	}
	k := probeKey{at, x}
	p := r.probes[k]
	if p == nil {
		p = &probe{}
		r.probes[k] = p
	}
	p.tries, p.wanted = 0, false
	p.next = now + ReaskInterval
	if p.hop {
		p.next = now + hopInterval
	}
}

// want asks for a neighbor that a packet waits for.
func (r *Responder) want(k probeKey, now int64) {
	p := r.probes[k]
	if p == nil {
		p = &probe{}
		if r.state.Neighbors.Find(k.at, k.addr) == state.NoNeighbor {
			r.makeRoom(k.at)
			if _, err := r.state.Neighbors.Set(k.at, k.addr, state.NeighborIncomplete, config.MAC{}); err != nil {
				return
			}
			p.dynamic = true
		}
		r.probes[k] = p
	}
	if !p.wanted {
		p.wanted, p.tries = true, 0
		r.ask(k, p, now)
	}
}

// makeRoom lets an attachment have one more neighbor that no configuration names. When it has its
// share, one that was never resolved gives way, else the one that was heard of longest ago: a scan
// of a large prefix must not keep others from being found (RFC 6583).
func (r *Responder) makeRoom(at attach.Word) {
	n := 0
	var oldest probeKey
	var age *probe
	for k, p := range r.probes {
		if !p.dynamic || k.at != at {
			continue
		}
		n++
		if age == nil || p.tries > age.tries || p.tries == age.tries && p.next < age.next {
			oldest, age = k, p
		}
	}
	if n < MaxDynamic {
		return
	}
	if slot := r.state.Neighbors.Find(oldest.at, oldest.addr); slot != state.NoNeighbor {
		r.state.Neighbors.Remove(slot)
	}
	delete(r.probes, oldest)
}

// ask sends the next question for a neighbor, or gives up.
func (r *Responder) ask(k probeKey, p *probe, now int64) {
	slot := r.state.Neighbors.Find(k.at, k.addr)
	if slot == state.NoNeighbor {
		delete(r.probes, k)
		return
	}
	if k.at.Tunnel() { // guests tell of themselves: nobody is asked through a tunnel
		p.tries, p.wanted, p.next = 0, false, now+ReaskInterval
		return
	}
	if p.tries >= ProbeTries {
		r.state.Neighbors.Set(k.at, k.addr, state.NeighborIncomplete, config.MAC{})
		switch {
		case p.hop:
			p.next, p.tries, p.wanted = now+probeInterval, ProbeTries, false // and go on asking
		case p.dynamic:
			r.state.Neighbors.Remove(slot)
			fallthrough
		default:
			delete(r.probes, k)
			return
		}
	} else {
		p.tries++
		p.next = now + probeInterval
	}
	target := k.addr.Netip()
	src, ok := r.source(k.at, target)
	if !ok {
		return
	}
	mac := r.mac(k.at)
	if target.Is4() {
		r.send(k.at, header.AppendARPRequest(r.frame(header.Broadcast, k.at, header.EtherTypeARP), mac, src, target))
		return
	}
	group := header.SolicitedNode(target)
	r.send(k.at, header.AppendNeighborSolicitation(r.frame(header.MulticastMAC(group), k.at, header.EtherTypeIPv6), mac, src, group, target))
}

// source returns weir's own address on an attachment that is fit to speak to target: on its prefix,
// else any of its family.
func (r *Responder) source(at attach.Word, target netip.Addr) (netip.Addr, bool) {
	var any netip.Addr
	for _, p := range r.prefixes(at) {
		if p.Addr().BitLen() != target.BitLen() {
			continue
		}
		if p.Masked().Contains(target) {
			return p.Addr(), true
		}
		if !any.IsValid() {
			any = p.Addr()
		}
	}
	return any, any.IsValid()
}

// sendReset answers a TCP segment of no session as its destination would that does not know the
// connection.
func (r *Responder) sendReset(m *state.Message, e header.Ethernet) {
	var src, dst netip.Addr
	var segment header.TCP
	length := 0
	switch data := e.Payload(); e.Type() { // may be cut: all but the lengths in the headers is there
	case header.EtherTypeIPv4:
		ip := header.IPv4(data)
		if len(ip) < header.IPv4Size || len(ip) < ip.HeaderLength()+header.TCPSize || !header.MayAnswerIPv4(ip, e.Dst()) {
			return
		}
		src, dst = ip.Dst(), ip.Src()
		segment, length = header.TCP(ip.Payload()), int(ip.TotalLength())-ip.HeaderLength()
	case header.EtherTypeIPv6:
		ip := header.IPv6(data)
		if len(ip) < header.IPv6Size || !header.MayAnswerIPv6(ip, e.Dst(), header.HostUnreachable) {
			return
		}
		chain, _ := ip.Walk()
		if len(ip) < chain.Offset+header.TCPSize {
			return
		}
		src, dst = ip.Dst(), ip.Src()
		segment, length = header.TCP(ip[chain.Offset:]), header.IPv6Size+int(ip.PayloadLength())-chain.Offset
	}
	if length >= header.TCPSize && segment.Flags()&header.TCPRst == 0 {
		r.send(m.At, header.AppendTCPReset(r.frame(e.Src(), m.At, e.Type()), src, dst, segment, length))
	}
}

// errorSource returns the address that an error about a packet from src to dst speaks with: weir's
// own on the attachment. No private one leaves through an outside port: there the external address
// that the packet was for stands in, or the private one that its sender, a partner, knows.
func (r *Responder) errorSource(at attach.Word, src, dst netip.Addr) (netip.Addr, bool) {
	own, ok := r.source(at, src)
	if r.cfg.Ports[at.Port()].Side == config.Inside || ok && !own.IsPrivate() {
		return own, ok
	}
	a := inet.FromNetip(dst)
	_, known := r.gen.PrivateOwner(a)
	return dst, known || r.gen.Own(a)
}

// sendError answers a dropped packet with the ICMP error that its reason calls for, back the way it
// came.
func (r *Responder) sendError(m *state.Message) {
	e, ok := header.ParseEthernet(m.Data())
	if !ok {
		return
	}
	kind := header.HostUnreachable
	switch m.Reason {
	case drop.NoSession:
		r.sendReset(m, e)
		return
	case drop.TTLExceeded:
		kind = header.TimeExceeded
	case drop.NoEligible, drop.SNATProtocol, drop.PrivateDestination:
		kind = header.Prohibited
	case drop.TooBig:
		kind = header.PacketTooBig
	}
	// The ring cuts long packets: a quote is shorter anyway, but the lengths that parsers check
	// would lie.
	switch data := e.Payload(); e.Type() {
	case header.EtherTypeIPv4:
		ip := header.IPv4(data)
		if len(ip) < header.IPv4Size || len(ip) < ip.HeaderLength() || !header.MayAnswerIPv4(ip, e.Dst()) || kind == header.PacketTooBig && !ip.DontFragment() {
			return
		}
		if src, ok := r.errorSource(m.At, ip.Src(), ip.Dst()); ok {
			r.send(m.At, header.AppendICMPv4Error(r.frame(e.Src(), m.At, header.EtherTypeIPv4), kind, src, m.MTU, ip))
		}
	case header.EtherTypeIPv6:
		ip := header.IPv6(data)
		if len(ip) < header.IPv6Size || !header.MayAnswerIPv6(ip, e.Dst(), kind) {
			return
		}
		if src, ok := r.errorSource(m.At, ip.Src(), ip.Dst()); ok {
			r.send(m.At, header.AppendICMPv6Error(r.frame(e.Src(), m.At, header.EtherTypeIPv6), kind, src, uint32(m.MTU), ip))
		}
	}
}
