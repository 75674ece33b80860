// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/session"
)

// reference is the whole NAT once more, as its rules say it: lists, loops, and one packet after the
// other. What a packet without a session meets it asks the model. It shares the names of states and
// reasons with the pipeline, and the published hash.
//
// What is random it cannot know: it says which external ports a session may get, and is told which
// one it got.
type reference struct {
	model
	now      int64 // milliseconds
	capacity int   // of the session table
	pressed  bool
	crowding map[string]bool // VPCs that had more than their share before the last endings
	sessions []*refSession
	mappings []*refMapping
	spent    int                    // mappings without their ports, until the next walk
	lazy     bool                   // what is over may not have been missed yet
	regained func(*refSession) bool // where it may be so: whether the fast one let it have its port again
	refused  map[string]int64       // flows for which there was no port to overload, and when

	stateless, created, ended uint64
	replaced                  int // unconfirmed sessions that gave way
	given, again              int // closed connections that let go of their mappings, and those that got them back
	reused, takenOver         int // ports of closed connections, and ports that rested, in other hands
}

// refMapping is the external endpoint of an internal one.
type refMapping struct {
	vpc               string
	private, external netip.Addr
	privatePort, port uint16
	proto             uint8
	rests             bool  // a session let go that was not closed
	released          int64 // when the last of those did
}

// refSession is both directions of a flow. Instances are named as identityOf says.
type refSession struct {
	vpc, instance                         string
	private, external, remote             netip.Addr
	privatePort, externalPort, remotePort uint16
	proto                                 uint8
	snat, fromOutside, hairpin, forward   bool
	state                                 session.State
	last                                  int64 // refreshed
	drain                                 int64 // ends then; 0: does not drain
	mapping                               *refMapping
	given                                 bool // closed, it has let go of it
	tcp                                   refTCP
}

// refTCP is what is known of a connection.
type refTCP struct {
	acked [2]uint32 // what they have acknowledged last
	next  [2]uint32 // sequence numbers that come next, of the instance and the remote
	syn   [2]bool   // next is known
	fin   [2]bool
	asked bool // a SYN is the last that the instance said
	reset bool // closing because of a reset, which somebody may go on after
	vague bool // numbers passed that are near enough to be the connection's, and are not what came next: any state will do
}

// The sides of a connection.
const (
	near = iota
	far
)

func (s *refSession) String() string {
	return fmt.Sprintf("%s %d %v = %v > %v, %v", s.instance, s.proto, netip.AddrPortFrom(s.private, s.privatePort),
		netip.AddrPortFrom(s.external, s.externalPort), netip.AddrPortFrom(s.remote, s.remotePort), s.state)
}

// origin is where a packet comes from.
type origin uint8

const (
	inside origin = iota
	outside
	turned // from inside, to an external address of weir's own
)

// outcome is what is to become of a packet, and the session it begins.
type outcome struct {
	forecast
	sport, dport uint16 // when it leaves; of echo the identifier, as in a question
	begins       *refSession
	may          []uint16               // external ports that begins may get, if that is SNAT
	mapped       bool                   // and by a mapping that it then holds
	vain         map[uint16]drop.Reason // of those, ports with which it is refused nevertheless
	perhaps      map[uint16]bool        // of those, ports with which it may be refused
	turns        bool                   // it is as if from outside now
	quoted       *question              // what an error is about, when it leaves
	tracked
	of          *refSession // the session that it belongs to
	orExhausted bool        // a refusal of a moment ago may still hold
}

func refused(r drop.Reason) outcome { return outcome{forecast: droppedAs(r)} }

// find returns the session of a packet, that comes from inside, from outside, or turns back as if
// from outside. ICMP errors and packets whose TTL is used up take no part in sessions.
func (n *reference) find(q question, from origin) *refSession {
	if q.proto == "error" || q.expired {
		return nil
	}
	for _, s := range n.sessions {
		if s.proto != q.number() || from == outside && s.hairpin || from == turned && !s.hairpin {
			continue
		}
		if from == inside && s.vpc == n.vpcOf(q.port) && s.private == q.src && s.privatePort == q.sport && s.remote == q.dst && s.remotePort == q.dport ||
			from != inside && s.external == q.dst && s.externalPort == q.dport && s.remote == q.src && s.remotePort == q.sport {
			return s
		}
	}
	return nil
}

// vpcOf is the name of the VPC that is attached to a port, or "".
func (n *reference) vpcOf(port int) string {
	for _, v := range n.VPCs {
		for _, a := range v.Attach {
			if a.Port == port {
				return v.Name
			}
		}
	}
	return ""
}

// identityOf says what sessions know an instance by, whatever its name: the VPC, and its IPv4
// address there, else its IPv6 address.
func identityOf(v *config.VPC, in *config.Instance) string {
	if in.Address4.IsValid() {
		return v.Name + "/" + in.Address4.String()
	}
	return v.Name + "/" + in.Address6.String()
}

// instanceOf finds an instance by its identity.
func (n *reference) instanceOf(name string) (*config.VPC, *config.Instance) {
	for i := range n.VPCs {
		for j := range n.VPCs[i].Instances {
			if in := &n.VPCs[i].Instances[j]; identityOf(&n.VPCs[i], in) == name {
				return &n.VPCs[i], in
			}
		}
	}
	return nil, nil
}

func (n *reference) count(is func(*refSession) bool) int {
	c := 0
	for _, s := range n.sessions {
		if is(s) {
			c++
		}
	}
	return c
}

// fromInside decides on a packet from inside, up to the side it leaves by.
func (n *reference) fromInside(q question) outcome {
	s := n.find(q, inside)
	if s != nil && s.state == session.Unconfirmed && (q.proto == "syn" || q.proto == "ping" || q.proto != "rst" && !n.confirm(s)) {
		n.end(s) // no reply, but a flow of the instance's own; or its mapping is gone
		s = nil
	}
	if s != nil && s.given && (q.proto == "syn" || q.proto == "synack") && !n.regain(s) {
		n.end(s) // its port is another's
		s = nil
	}
	if s == nil {
		return n.leaving(q)
	}
	o := n.out(s, q)
	o.tracked, o.of = n.refresh(s, q), s
	return o
}

// fromOutside decides on a packet from outside, or on one that turned back.
func (n *reference) fromOutside(q question, from origin) outcome {
	s := n.find(q, from)
	if s != nil && s.state == session.Unconfirmed && s.snat && !s.forward && !n.leads(s) {
		n.end(s)
		s = nil
	}
	if s == nil || s.snat && q.proto == "ping" { // nobody pings through an identifier that is mapped for replies
		return n.arriving(q, from)
	}
	o := n.in(s, q)
	o.tracked, o.of = n.track(s, q, from), s
	if !o.dropped && n.rules(s.external).InboundRefresh == config.RefreshOn && q.proto != "rst" {
		switch s.state {
		case session.UDP, session.ICMP, session.Other, session.TCPOpen:
			s.last = n.now
		}
	}
	if o.dropped {
		o.forecast = droppedAs(drop.TCPReset)
	}
	return o
}

// back is what a packet that turns looks like from outside: its receiver sees the sender's external
// address (RFC 4787 REQ-9a).
func (o outcome) back(q question) question {
	q.src, q.sport = o.src, o.sport
	if o.quoted != nil {
		a := *o.quoted
		if a.proto == "ping" || a.proto == "pong" { // what came to the one side left by the other
			a.sport, a.dport = a.dport, 0
		}
		q.quoted = &a
	}
	if q.proto == "ping" || q.proto == "pong" { // the identifier is the local side's
		q.sport, q.dport = 0, o.sport
	}
	return q
}

// loops reports whether a packet that leaves from a port of its destination would come back to the
// very socket that sent it.
func (q question) loops(external netip.Addr, port uint16) bool {
	return q.dst == external && q.proto != "ping" && q.proto != "pong" && (q.proto == "gre" || port == q.dport)
}

// refresh is what a packet from inside does to its session. A reset may answer what came from
// outside, and proves nothing.
func (n *reference) refresh(s *refSession, q question) tracked {
	if q.proto != "rst" {
		s.last = n.now
		if s.state == session.Unconfirmed {
			s.state = begun(q)
		}
	}
	return n.track(s, q, inside)
}

// begun is the state of a session after its first packet from inside.
func begun(q question) session.State {
	switch {
	case q.proto == "udp":
		return session.UDP
	case q.proto == "ping", q.proto == "pong":
		return session.ICMP
	case q.proto == "gre":
		return session.Other
	}
	return session.TCPOpening
}

// tracked is what a segment does to its session.
type tracked struct {
	dropped   bool // a reset that is not the connection's
	mayDrop   bool
	uncertain bool // any state will do
	last      int64
}

// track follows a TCP connection. What comes next in sequence counts; a segment from outside whose
// numbers have nothing to do with the connection's comes from somebody who sees nothing, and has no
// effect. What lies between may be an old one, and may do what it likes.
func (n *reference) track(s *refSession, q question, from origin) (r tracked) {
	if s.proto != 6 {
		return tracked{}
	}
	t, was := &s.tcp, s.state
	me, peer := near, far
	if from != inside {
		me, peer = far, near
	}
	acks := q.proto != "syn"
	exact := t.syn[me] && q.seq == t.next[me] && acks && t.syn[peer] && q.ack == t.next[peer]
	blind := from != inside && !(t.syn[me] && plausible(q.seq, t.next[me])) && !(acks && t.syn[peer] && plausible(q.ack, t.next[peer]))
	switch q.proto {
	case "rst":
		switch {
		case was == session.Unconfirmed:
		case exact, from != inside && t.asked && q.ack == t.next[near]: // or it refuses a SYN
			t.reset = t.reset || was == session.TCPOpen
			s.state = session.TCPClosing
		case blind:
			r.dropped = true
		default:
			r.mayDrop, r.uncertain = from != inside, true
		}
	case "syn":
		n.synchronize(s, q, from, &r)
	case "synack":
		switch {
		case from == inside && was == session.TCPOpen, from == inside && t.asked:
			r.uncertain = true
		case from == inside: // it answers
			*t = refTCP{syn: [2]bool{true, true}, vague: t.vague && was != session.TCPClosing}
			s.state = session.TCPOpening
		case t.asked && q.ack == t.next[near]:
			r.uncertain = t.syn[far] && q.seq+1 != t.next[far] // another one than before
			t.syn[far] = true
		case !blind:
			r.uncertain = true
		default:
			return r
		}
		if t.next[me] = q.seq + 1; from == inside {
			t.next[far] = q.ack
		}
	default:
		switch {
		case exact:
			n.goOn(s, q, from, &r)
		case !blind:
			r.uncertain = was != session.Unconfirmed
		}
	}
	if r.last = s.last; was == session.TCPOpen && s.state == session.TCPClosing {
		s.last = n.now // the closing timer begins
	}
	r.uncertain = r.uncertain || t.vague
	if t.vague = r.uncertain; !t.vague && s.mapping != nil && s.closed() {
		n.give(s)
	}
	if r.uncertain && q.proto == "rst" && from != inside {
		r.mayDrop, r.dropped = true, false
	}
	return r
}

// plausible reports whether two sequence numbers may be of one connection.
func plausible(a, b uint32) bool { return a-b+1<<17 < 1<<18 }

// synchronize handles a SYN.
func (n *reference) synchronize(s *refSession, q question, from origin, r *tracked) {
	t := &s.tcp
	switch {
	case from == inside && s.state == session.TCPOpen: // the instance has lost the connection; what the remote says to that decides
		r.uncertain = true
		t.asked, t.syn[near], t.next[near] = true, true, q.seq+1
	case from == inside: // also anew
		again := s.state == session.TCPOpening
		*t = refTCP{syn: [2]bool{true, again && t.syn[far]}, asked: true, next: [2]uint32{q.seq + 1, t.next[far]}, vague: again && t.vague}
		s.state = session.TCPOpening
	case s.state == session.Unconfirmed:
		t.syn[far], t.next[far] = true, q.seq+1
	case s.state == session.TCPOpening && t.asked && !t.syn[far]: // simultaneous open
		t.syn[far], t.next[far] = true, q.seq+1
		s.state = session.TCPOpen
	}
}

// goOn handles what comes next in sequence.
func (n *reference) goOn(s *refSession, q question, from origin, r *tracked) {
	t, me := &s.tcp, near
	if from != inside {
		me = far
	} else {
		t.asked = false
	}
	t.acked[me] = q.ack
	switch q.proto {
	case "data":
		t.next[me] += 10
	case "fin":
		t.next[me]++
		t.fin[me] = true
	}
	switch {
	case s.state == session.TCPOpening:
		s.state = session.TCPOpen
	case s.state == session.TCPClosing && t.reset && (from == inside || q.proto == "data"): // the reset was not the connection's
		s.state, t.reset = session.TCPOpen, false
	case s.state == session.TCPClosing && t.reset:
		r.uncertain = true
	}
	if s.state == session.TCPOpen && t.fin[near] && t.fin[far] {
		s.state = session.TCPClosing
	}
}

// out and in are a packet's way through its session.
func (n *reference) out(s *refSession, q question) outcome {
	v := n.leaves(forecast{fate: "out", src: s.external, dst: q.dst}, s.external, q.dst, n.routeOf(s))
	return outcome{forecast: v, sport: s.externalPort, dport: q.dport, turns: s.hairpin}
}

// routeOf is the route of a session's packets from inside.
func (n *reference) routeOf(s *refSession) config.Route {
	vpc, in := n.instanceOf(s.instance)
	route, _ := n.route(vpc, in, s.remote)
	return route
}

func (n *reference) in(s *refSession, q question) outcome {
	vpc, in := n.instanceOf(s.instance)
	return outcome{forecast: forecast{fate: "in", src: q.src, dst: s.private, ports: n.instancePort(vpc, in, s.private)}, sport: q.sport, dport: s.privatePort}
}

// leaving decides on a packet from inside without a session.
func (n *reference) leaving(q question) outcome {
	v, turns := n.model.leaving(q)
	o := outcome{forecast: v, sport: q.sport, dport: q.dport, turns: turns}
	if v.untranslated && (q.proto != "error" || n.quotedSession(q) == nil) {
		return o
	}
	if q.proto == "error" && (v.untranslated || v.kind != "" || v.fate == "drop "+drop.ICMPUnrelated.String() || v.fate == "drop "+drop.NoEligible.String()) {
		return n.errorOut(q, o)
	}
	if v.kind == "" {
		return o
	}
	s := n.begin(q.src, q.dst, q.sport, q.dport, q)
	s.external, s.externalPort, s.state = v.src, q.sport, begun(q)
	if v.newSource != 0 {
		s.externalPort, o.sport, s.snat, s.forward = v.newSource, v.newSource, true, true
	}
	s.tcp = refTCP{syn: [2]bool{true, false}, next: [2]uint32{q.seq + 1, 0}, asked: true}
	if v.kind == "snat" {
		return n.share(s, o, q)
	}
	if q.loops(v.src, s.externalPort) {
		return refused(drop.Martian)
	}
	// 1:1 never needs a session.
	if v.session && !n.filled(7) && n.limit(s) == drop.Pass {
		o.begins = s
	} else {
		n.stateless++
	}
	return o
}

// errorOut decides on an ICMP error from inside: it goes to who sent what it is about, as from
// where that was sent to. It touches no session.
func (n *reference) errorOut(q question, o outcome) outcome {
	a := q.about()
	if s := n.begin(q.src, q.dst, 0, 0, q); o.fate == "drop "+drop.NoEligible.String() {
		if _, in := n.owner(s); in == nil { // from an attached prefix
			return o
		}
	}
	if a.src != q.dst || a.dst != q.src {
		return refused(drop.ICMPUnrelated)
	}
	if s := n.quotedSession(q); s != nil {
		a.dst, a.dport = s.external, s.externalPort
		return outcome{forecast: n.leaves(forecast{fate: "out", src: s.external, dst: q.dst}, s.external, q.dst, n.routeOf(s)), quoted: &a, turns: n.ours(q.dst)}
	}
	if o.kind != "" { // 1:1 needs no session
		n.stateless++
		a.dst, a.dport, o.quoted = o.src, cmp.Or(o.newSource, a.dport), &a
	}
	return o
}

// quotedSession is the session of what an ICMP error from inside is about, if it goes to who sent
// that.
func (n *reference) quotedSession(q question) *refSession {
	a := q.about()
	for _, s := range n.sessions {
		if a.src == q.dst && a.dst == q.src && s.vpc == n.vpcOf(q.port) && s.private == a.dst && s.privatePort == a.dport && s.remote == a.src && s.remotePort == a.sport && s.proto == a.number() {
			return s
		}
	}
	return nil
}

// errorIn decides on an ICMP error from outside to an external address of an instance.
func (n *reference) errorIn(q question, o outcome) outcome {
	a := q.about()
	if a.src != q.dst {
		return refused(drop.ICMPUnrelated)
	}
	for _, s := range n.sessions {
		if s.external == a.src && s.externalPort == a.sport && s.remote == a.dst && s.remotePort == a.dport && s.proto == a.number() {
			a.src, a.sport = s.private, s.privatePort
			o := n.in(s, q)
			o.quoted = &a
			return o
		}
	}
	if o.fate == "in" {
		n.stateless++
		a.src, a.sport, o.quoted = o.dst, cmp.Or(o.newTarget, a.sport), &a
	}
	return o
}

// begin is a session between the endpoints of q, whose private address is known.
func (n *reference) begin(private, remote netip.Addr, privatePort, remotePort uint16, q question) *refSession {
	return &refSession{hairpin: n.ours(remote), private: private, remote: remote, privatePort: privatePort, remotePort: remotePort, proto: q.number(), last: n.now,
		vpc: n.vpcOf(q.port)}
}

// owner fills in whose a session of a VPC is.
func (n *reference) owner(s *refSession) (*config.VPC, *config.Instance) {
	for i := range n.VPCs {
		v := &n.VPCs[i]
		for j := range v.Instances {
			if in := &v.Instances[j]; v.Name == s.vpc && (in.Address4 == s.private || in.Address6 == s.private) {
				s.instance = identityOf(v, in)
				return v, in
			}
		}
	}
	return nil, nil
}

// share finds a port for a session through SNAT.
func (n *reference) share(s *refSession, o outcome, q question) outcome {
	s.snat = true
	o.shares = n.unforwarded(s, o.shares)
	if r := n.limit(s); r != drop.Pass {
		return refused(r)
	}
	if n.crowds(s.vpc) {
		return refused(drop.FairShare)
	}
	if len(n.sessions) == n.capacity {
		return refused(drop.TableFull)
	}
	o.begins, o.vain = s, map[uint16]drop.Reason{}
	if n.rules(s.external).Mapping == config.AddressAndPortDependentMapping {
		return n.overload(s, o, q)
	}
	o.mapped = true
	for _, m := range n.mappings { // its own, also a resting one
		if m.belongsTo(s) && inShares(o.shares, m.port) {
			o.may = append(o.may, m.port)
		}
	}
	if o.perhaps = map[uint16]bool{}; o.may == nil {
		n.draw(s, &o, q)
		switch {
		case o.may == nil:
			return refused(drop.PortsExhausted)
		case len(n.mappings)+n.spent == n.capacity:
			return refused(drop.TableFull)
		}
	}
	for _, port := range o.may {
		switch {
		case q.loops(s.external, port):
			o.vain[port] = drop.Martian
		case n.taken(s, port): // sessions that overload a port since before the pool's mapping changed are not put out
			o.vain[port] = drop.PortsExhausted
		}
		if t := n.with(s, port); t != nil && t.tcp.vague {
			o.perhaps[port] = true
		}
	}
	return o
}

// unforwarded takes from the shares of an instance the ports that are forwarded.
func (n *reference) unforwarded(s *refSession, shares []config.SNAT) (list []config.SNAT) {
	_, in := n.owner(s)
	for _, share := range shares {
		for port := share.First; port <= share.Last; port++ {
			if forwardOf(in, s.external, s.proto, func(f config.Forward) bool { return f.Port == port }) == nil {
				list = append(list, config.SNAT{Address: share.Address, First: port, Last: port})
			}
		}
	}
	return list
}

// draw finds the ports that a new mapping may get: free ones, first those with which there is no
// session with the remote endpoint, then those whose session gives way; and when there is none, the
// one of the subscriber's own that has rested longest, for a second at least.
func (n *reference) draw(s *refSession, o *outcome, q question) {
	var list [2][3][]uint16 // free or resting; whose session gives way surely, perhaps, or that have none
	sort := func(ports []uint16, into *[3][]uint16) {
		for _, port := range ports {
			switch t := n.with(s, port); {
			case t == nil:
				into[2] = append(into[2], port)
			case t.tcp.vague && t.state != session.Unconfirmed:
				into[1] = append(into[1], port)
			case t.givesWay(q.seq):
				into[0] = append(into[0], port)
			}
		}
	}
	of := func(port uint16) *refMapping {
		if i := slices.IndexFunc(n.mappings, func(m *refMapping) bool { return m.external == s.external && m.proto == s.proto && m.port == port }); i >= 0 {
			return n.mappings[i]
		}
		return nil
	}
	sort(free(o.shares, func(port uint16) bool { return of(port) == nil }), &list[0])
	sort(free(o.shares, func(port uint16) bool {
		m := of(port)
		return m != nil && !n.held(m) && m.vpc == s.vpc && m.private == s.private && n.now-m.released >= 1000
	}), &list[1])
	if n.lazy { // what is free may rest in the fast one's eyes, and what gives way may be over
		for _, l := range list {
			o.may = append(o.may, slices.Concat(l[:]...)...)
		}
		return
	}
	for i, l := range list {
		longest := func(ports []uint16) []uint16 {
			if i == 0 || len(ports) == 0 {
				return ports
			}
			first := of(slices.MinFunc(ports, func(a, b uint16) int { return int(of(a).released - of(b).released) })).released
			return slices.DeleteFunc(slices.Clone(ports), func(port uint16) bool { return of(port).released != first })
		}
		switch {
		case l[2] != nil:
			o.may = append(o.may, longest(l[2])...)
			return
		case l[1] != nil: // which of them give way nobody knows
			o.may = append(append(o.may, l[0]...), l[1]...)
			o.orExhausted = true
		case l[0] != nil:
			o.may = append(o.may, longest(l[0])...)
			return
		}
	}
}

// with returns the session that has a port with the remote endpoint of s.
func (n *reference) with(s *refSession, port uint16) *refSession {
	if i := slices.IndexFunc(n.sessions, func(t *refSession) bool { return n.sameOutside(t, s, port) }); i >= 0 {
		return n.sessions[i]
	}
	return nil
}

// closed reports whether both sides have ended a connection, and heard of it.
func (s *refSession) closed() bool {
	t := &s.tcp
	return s.given || s.state == session.TCPClosing && t.fin[near] && t.fin[far] && !t.reset && t.acked == [2]uint32{t.next[far], t.next[near]}
}

// givesWay reports whether a session ends for another endpoint's SYN of number seq.
func (s *refSession) givesWay(seq uint32) bool {
	return s.state == session.Unconfirmed || s.proto == 6 && s.closed() && int32(seq-s.tcp.next[near]) > 0
}

// give lets a closed connection go of its mapping, which is free if nobody else has had it.
func (n *reference) give(s *refSession) {
	m := s.mapping
	s.mapping, s.given = nil, true
	n.given++
	if !n.held(m) && (!m.rests || n.now-m.released > 24*3600*1000) {
		n.drop(m)
	}
}

// drop takes a mapping's port away.
func (n *reference) drop(m *refMapping) {
	n.mappings = slices.DeleteFunc(n.mappings, func(o *refMapping) bool { return o == m })
	n.spent++
}

// regain lets a session have its mapping again, if its endpoint has no other one there and nobody
// else has the port.
func (n *reference) regain(s *refSession) bool {
	if !n.hold(s, false) {
		for _, m := range n.mappings {
			if m.belongsTo(s) || m.external == s.external && m.proto == s.proto && m.port == s.externalPort {
				return false
			}
		}
		if len(n.mappings)+n.spent == n.capacity || n.lazy && !n.regained(s) {
			return false
		}
		n.hold(s, true)
	}
	s.given = false
	n.again++
	return true
}

// taken reports whether a session has a port with the remote endpoint of s. One that began outside,
// when the port was another's, gives way.
func (n *reference) taken(s *refSession, port uint16) bool {
	return slices.ContainsFunc(n.sessions, func(t *refSession) bool {
		return n.sameOutside(t, s, port) && t.state != session.Unconfirmed && !t.closed()
	})
}

// sameOutside reports whether t has a port of the external address of s with its remote endpoint.
func (n *reference) sameOutside(t, s *refSession, port uint16) bool {
	return t.external == s.external && t.externalPort == port && t.proto == s.proto && t.remote == s.remote && t.remotePort == s.remotePort
}

// overload finds the ports that no other session has with the remote endpoint.
func (n *reference) overload(s *refSession, o outcome, q question) outcome {
	flow := fmt.Sprint(s.instance, s.proto, s.remote, s.remotePort)
	o.may = free(o.shares, func(port uint16) bool {
		return !slices.ContainsFunc(n.sessions, func(t *refSession) bool { return n.sameOutside(t, s, port) })
	})
	sure := o.may != nil
	if o.may == nil { // else by those whose connection is closed
		o.may = free(o.shares, func(port uint16) bool {
			t := n.with(s, port)
			sure = sure || t.state != session.Unconfirmed && !t.tcp.vague && t.givesWay(q.seq)
			return t.proto == 6 && t.state != session.Unconfirmed && (t.tcp.vague || t.givesWay(q.seq))
		})
	}
	if !sure {
		n.refused[flow] = n.now
	}
	if o.may == nil {
		return refused(drop.PortsExhausted)
	}
	for _, port := range o.may {
		if q.loops(s.external, port) {
			o.vain[port] = drop.Martian
		}
	}
	at, before := n.refused[flow]
	o.orExhausted = before && n.now < at+10
	return o
}

// free lists the ports of shares that are.
func free(shares []config.SNAT, is func(uint16) bool) (list []uint16) {
	for _, share := range shares {
		for port := share.First; port <= share.Last; port++ {
			if is(port) {
				list = append(list, port)
			}
		}
	}
	return list
}

func inShares(shares []config.SNAT, port uint16) bool {
	return slices.ContainsFunc(shares, func(s config.SNAT) bool { return s.First <= port && port <= s.Last })
}

// belongsTo reports whether a mapping is that of the internal endpoint of s on its external
// address.
func (m *refMapping) belongsTo(s *refSession) bool {
	return m.vpc == s.vpc && m.private == s.private && m.privatePort == s.privatePort && m.external == s.external && m.proto == s.proto
}

// hold lets s hold the mapping with its external port, a new one if make says so.
func (n *reference) hold(s *refSession, make bool) bool {
	for _, m := range n.mappings {
		if m.belongsTo(s) && m.port == s.externalPort {
			s.mapping = m
			return true
		}
	}
	if make {
		for _, m := range slices.Clone(n.mappings) {
			if m.external == s.external && m.proto == s.proto && m.port == s.externalPort { // it rested
				n.drop(m)
				n.takenOver++
			}
		}
		s.mapping = &refMapping{vpc: s.vpc, private: s.private, privatePort: s.privatePort, external: s.external, port: s.externalPort, proto: s.proto}
		n.mappings = append(n.mappings, s.mapping)
	}
	return make
}

func (n *reference) held(m *refMapping) bool {
	return slices.ContainsFunc(n.sessions, func(s *refSession) bool { return s.mapping == m })
}

// confirm lets the first packet from inside confirm a session that began outside, if what it was
// let in to is still there.
func (n *reference) confirm(s *refSession) bool { return !s.snat || s.forward || n.hold(s, false) }

// leads reports whether the port of a session that began outside is still that of the endpoint to
// which it leads.
func (n *reference) leads(s *refSession) bool {
	return slices.ContainsFunc(n.mappings, func(m *refMapping) bool { return m.belongsTo(s) && m.port == s.externalPort && n.held(m) })
}

// rules are those of the pool of an external address.
func (n *reference) rules(a netip.Addr) config.Translation { return n.Pools[n.pool(a)].Sessions }

// arriving decides on a packet from outside without a session.
func (n *reference) arriving(q question, from origin) outcome {
	v := n.model.outside(q, from == turned)
	o := outcome{forecast: v, sport: q.sport, dport: q.dport}
	if q.proto == "error" && (v.fate == "in" || v.fate == "drop "+drop.ICMPUnrelated.String()) {
		return n.errorIn(q, o)
	}
	if v.fate == "drop "+drop.Unsolicited.String() {
		return n.invited(q)
	}
	if v.fate != "in" {
		return o
	}
	n.stateless++
	o.dport = cmp.Or(v.newTarget, q.dport)
	if !v.session {
		return o
	}
	vpc, in := n.holder(q)
	s := n.begin(v.dst, q.src, cmp.Or(v.newTarget, q.dport), q.sport, q)
	s.forward = v.newTarget != 0
	s.snat = s.forward
	if n.admit(s, q, vpc, in) {
		n.stateless--
		o.begins = s
	}
	return o
}

// invited decides on a packet to an SNAT address without a session: a mapping may let it in.
func (n *reference) invited(q question) outcome {
	rules := n.rules(q.dst)
	if rules.Mapping == config.AddressAndPortDependentMapping || q.proto != "udp" && q.proto != "syn" {
		return refused(drop.Unsolicited)
	}
	i := slices.IndexFunc(n.mappings, func(m *refMapping) bool {
		return m.external == q.dst && m.port == q.dport && m.proto == q.number() && n.held(m)
	})
	if i < 0 {
		return refused(drop.Unsolicited)
	}
	m := n.mappings[i]
	known := slices.ContainsFunc(n.sessions, func(s *refSession) bool { return s.mapping == m && s.remote == q.src })
	switch {
	case rules.Filtering == config.AddressAndPortDependentFiltering, rules.Filtering == config.AddressDependentFiltering && !known:
		return refused(drop.Filtered)
	case q.expired:
		return refused(drop.TTLExceeded)
	}
	s := n.begin(m.private, q.src, m.privatePort, q.sport, q)
	s.vpc, s.snat = m.vpc, true
	vpc, in := n.owner(s)
	o := outcome{forecast: forecast{fate: "in", src: q.src, dst: m.private, ports: n.instancePort(vpc, in, m.private)}, sport: q.sport, dport: m.privatePort}
	if route, ok := n.route(vpc, in, q.src); ok && route.Target == config.TargetGateway && n.admit(s, q, vpc, in) {
		o.begins = s
	}
	return o
}

// admit reports whether what came from outside may begin a session. It ends the oldest unconfirmed
// one of the instance where that has to give way.
func (n *reference) admit(s *refSession, q question, vpc *config.VPC, in *config.Instance) bool {
	s.vpc, s.instance = vpc.Name, identityOf(vpc, in)
	s.external, s.externalPort, s.state, s.fromOutside = q.dst, q.dport, session.Unconfirmed, true
	s.tcp = refTCP{syn: [2]bool{false, true}, next: [2]uint32{0, q.seq + 1}}
	for _, t := range n.sessions { // the instance's own flow with that remote endpoint stays
		if t.vpc == s.vpc && t.proto == s.proto && t.private == s.private && t.privatePort == s.privatePort && t.remote == s.remote && t.remotePort == s.remotePort {
			return false
		}
	}
	if n.filled(6) {
		return false
	}
	quarter := in.PerInstance / 4
	if in.PerInstance == 0 {
		quarter = 16384
	}
	unconfirmed := func(t *refSession) bool { return t.instance == s.instance && t.state == session.Unconfirmed }
	all := func(t *refSession) bool { return t.vpc == s.vpc && t.state == session.Unconfirmed }
	if n.count(unconfirmed) >= quarter || vpc.PerVPC != 0 && n.count(all) >= max(1, vpc.PerVPC/4) {
		oldest := slices.IndexFunc(n.sessions, unconfirmed)
		if oldest < 0 {
			return false
		}
		n.replaced++
		n.end(n.sessions[oldest])
	}
	return n.limit(s) == drop.Pass
}

// holder returns whose the 1:1 address, or the forwarded port, is that a packet is to.
func (n *reference) holder(q question) (*config.VPC, *config.Instance) {
	for i := range n.VPCs {
		for j := range n.VPCs[i].Instances {
			if in := &n.VPCs[i].Instances[j]; slices.Contains(in.Floating, q.dst) || slices.Contains(in.Ephemeral, q.dst) || n.forwarded(q, &n.VPCs[i], in) != nil {
				return &n.VPCs[i], in
			}
		}
	}
	return nil, nil
}

// filled reports whether so many eighths of the table are in use.
func (n *reference) filled(eighths int) bool { return len(n.sessions) >= n.capacity/8*eighths }

// limit says which limit keeps a session from beginning.
func (n *reference) limit(s *refSession) drop.Reason {
	if s.instance == "" {
		n.owner(s)
	}
	vpc, in := n.instanceOf(s.instance)
	switch {
	case in.PerInstance > 0 && n.count(func(t *refSession) bool { return t.instance == s.instance }) >= in.PerInstance:
		return drop.LimitInstance
	case vpc.PerVPC > 0 && n.count(func(t *refSession) bool { return t.vpc == s.vpc }) >= vpc.PerVPC:
		return drop.LimitVPC
	}
	return drop.Pass
}

// crowds reports whether a VPC has more than its share of a table that is fuller than seven
// eighths: more than the level, rounded up, up to which all VPCs together fill those. Up to 32 it
// is rounded to a number, then to two, to four, and so on.
func (n *reference) crowds(vpc string) bool {
	room, use, weight := n.capacity/8*7, map[string]int{}, map[string]int{}
	if len(n.sessions) <= room {
		return false
	}
	for _, s := range n.sessions {
		use[s.vpc]++
	}
	for i := range n.VPCs {
		weight[n.VPCs[i].Name] = n.VPCs[i].Weight
	}
	for level := 1; ; {
		sum := 0
		for name, n := range use {
			sum += min(n, level*max(weight[name], 1))
		}
		if sum > room {
			return use[vpc] > level*weight[vpc]
		}
		if level < 32 {
			level++
		} else {
			level += 1 << (bits.Len(uint(level)) - 5)
		}
	}
}

// gives reports whether a session may end before its time, because its VPC has more than its share.
func (n *reference) gives(s *refSession) bool {
	return s.state == session.UDP && n.now-s.last > 120_000 && (n.crowding[s.vpc] || n.crowds(s.vpc))
}

// noteCrowds notes whose sessions may give way in the walk to come: what is over and not ended yet
// counts there too.
func (n *reference) noteCrowds() {
	n.crowding = map[string]bool{}
	for i := range n.VPCs {
		n.crowding[n.VPCs[i].Name] = n.crowds(n.VPCs[i].Name)
	}
}

// add begins a session. A session from outside that has the same outside gives way: it was let in
// when the port was another's.
func (n *reference) add(s *refSession) {
	for _, t := range n.sessions {
		if n.sameOutside(t, s, s.externalPort) {
			if t.closed() {
				n.reused++
			}
			n.end(t)
			break
		}
	}
	n.sessions = append(n.sessions, s)
	n.created++
}

func (n *reference) end(s *refSession) {
	n.sessions = slices.DeleteFunc(n.sessions, func(t *refSession) bool { return t == s })
	n.ended++
	if s.mapping != nil {
		s.mapping.rests, s.mapping.released = true, n.now
	}
}

// endIf ends the sessions that are over by some rule.
func (n *reference) endIf(over func(*refSession) bool) {
	for _, s := range slices.Clone(n.sessions) {
		if over(s) {
			n.end(s)
		}
	}
}

// wait lets time pass.
func (n *reference) wait(millis int64) {
	n.now += millis
	n.noteCrowds()
	n.weigh()
	n.endIf(n.over)
	n.rested()
}

// rested gives up the mappings that rested long enough: a second is, while there is hardly room for
// more.
func (n *reference) rested() {
	rest := n.Sessions.PortRest.Milliseconds()
	if len(n.mappings)+n.spent >= n.capacity/8*6 {
		rest = min(rest, 1000)
	}
	n.mappings = slices.DeleteFunc(n.mappings, func(m *refMapping) bool { return !n.held(m) && n.now-m.released >= rest })
	n.spent = 0
}

// weigh looks whether the table is nearly full, when what has not been answered ends early.
func (n *reference) weigh() {
	n.pressed = n.filled(6) || n.pressed && n.filled(5)
}

func (n *reference) over(s *refSession) bool {
	t := n.Sessions.Timeouts
	timeout := map[session.State]int64{
		session.UDP: t.UDP.Milliseconds(), session.ICMP: t.ICMP.Milliseconds(), session.Other: t.Other.Milliseconds(),
		session.TCPOpening: t.TCPPartiallyOpen.Milliseconds(), session.TCPOpen: t.TCPEstablished.Milliseconds(),
		session.TCPClosing: t.TCPClosing.Milliseconds(), session.Unconfirmed: 30_000,
	}[s.state]
	if n.pressed && (s.state == session.TCPOpening || s.state == session.Unconfirmed) {
		timeout = min(timeout, 10_000)
	}
	for _, p := range t.UDPPorts {
		if s.state == session.UDP && p.Port == s.remotePort {
			timeout = p.Timeout.Milliseconds()
		}
	}
	return n.now-s.last > timeout || s.drain != 0 && n.now >= s.drain
}

// reload puts another configuration in force: the sessions are held against it.
func (n *reference) reload(cfg *config.Config) {
	n.Config = cfg
	n.noteCrowds()
	n.weigh()
	n.endIf(func(s *refSession) bool { return !n.stays(s) || n.over(s) })
	n.rested()
}

// stays holds a session against the rules of affinity.
func (n *reference) stays(s *refSession) bool {
	vpc, in := n.instanceOf(s.instance)
	if in == nil || in.Address4 != s.private && in.Address6 != s.private || n.ours(s.remote) != s.hairpin {
		return false
	}
	mine := slices.Contains(in.Floating, s.external) || slices.Contains(in.Ephemeral, s.external)
	if s.snat {
		mine = slices.ContainsFunc(in.SNAT, func(r config.SNAT) bool {
			return r.Address == s.external && r.First <= s.externalPort && s.externalPort <= r.Last
		})
		if f := forwardOf(in, s.external, s.proto, func(f config.Forward) bool { return f.Port == s.externalPort }); f == nil && s.forward || f != nil && f.ToPort != s.privatePort {
			return false // a forward ends with its sessions, and is nobody else's
		}
	}
	route, ok := n.route(vpc, in, s.remote)
	if !mine || !ok || route.Target != config.TargetGateway || route.Untranslated && !s.fromOutside && !s.hairpin || !n.reaches(route, s.remote) {
		return false
	}
	switch {
	case s.fromOutside || n.eligible(s.external, route.Gateway, s.private) || n.Sessions.OnMove == config.OnMoveKeep:
		s.drain = 0
	case n.Sessions.OnMove == config.OnMoveCut:
		return false
	case s.drain == 0:
		s.drain = n.now + n.Sessions.DrainTimeout.Milliseconds()
	}
	return true
}
