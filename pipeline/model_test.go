// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/rendezvous"
	"weir/pipeline/state"
)

// The model decides on a packet without a session straight from a Config: loops and comparisons, in
// the order of the product's rules. It shares only the published hash with the pipeline.
type model struct{ *config.Config }

// question is a packet as the model sees it: by which port it came, and what is in its header.
type question struct {
	port         int
	src, dst     netip.Addr
	proto        string    // udp, ping, pong, error, gre, or one of modelTCP
	sport, dport uint16    // echo: the identifier is sport inside, dport outside
	expired      bool      // TTL 1
	seq, ack     uint32    // TCP
	more         string    // TCP: flags that a SYN may have beside it
	long         bool      // it has a payload, to be cut
	quoted       *question // error: what it is about; nil: some UDP packet that went the other way
}

// about is the packet that an error quotes.
func (q question) about() question {
	if q.quoted != nil {
		return *q.quoted
	}
	return question{src: q.dst, dst: q.src, proto: "udp", sport: 5, dport: 7}
}

// modelTCP are the segments that questions ask about, by their flags.
var modelTCP = map[string]string{"syn": "SYN", "ack": "ACK", "data": "PSH,ACK", "synack": "SYN,ACK", "fin": "FIN,ACK", "rst": "RST,ACK"}

// begins reports whether a packet may begin a session.
func (q question) begins() bool {
	return q.proto == "udp" || q.proto == "syn" || q.proto == "ping" || q.proto == "gre"
}

// toWeir is what becomes of a packet to an address of weir's own: pings are answered.
func (q question) toWeir() forecast {
	if q.proto == "ping" {
		return forecast{fate: "punt"}
	}
	return droppedAs(drop.NoService)
}

// forecast is what is to become of a packet. Of two kinds with ports, any in the list will do.
type forecast struct {
	fate     string        // "punt", "drop REASON", "out", "snat", "in", "plain"
	kind     string        // "out", "snat": also of a packet that then has no next hop
	src, dst netip.Addr    // when it leaves
	ports    []int         // by which it may leave
	shares   []config.SNAT // snat: source ports it may have
	session  bool

	newSource, newTarget uint16 // ports of a forward; 0: as it came
	untranslated         bool   // by a route without translation
}

func droppedAs(r drop.Reason) forecast { return forecast{fate: "drop " + r.String()} }

var modelMartians = prefixes("0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 240.0.0.0/4 ::/64 fe80::/10 ff00::/8")
var modelLinkLocal = prefixes("169.254.0.0/16 fe80::/10")
var modelPrivate = prefixes("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7")

func prefixes(text string) (list []netip.Prefix) {
	for _, s := range strings.Fields(text) {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Masked().Contains(a) })
}

// leaving is what becomes of a packet from inside up to the side it leaves by. Does it turn back
// there, to an address of weir's own?
func (m model) leaving(q question) (v forecast, turns bool) {
	vi := slices.IndexFunc(m.VPCs, func(v config.VPC) bool {
		return slices.ContainsFunc(v.Attach, func(a config.Attachment) bool { return a.Port == q.port })
	})
	if vi < 0 {
		return droppedAs(drop.AntiSpoof), false
	}
	vpc := &m.VPCs[vi]
	if q.src == q.dst {
		return droppedAs(drop.Martian), false
	}
	if within(modelMartians, q.dst) {
		return droppedAs(drop.Martian), false
	}
	in, own, transit, attached := source(vpc, q.src)
	if in == nil {
		return droppedAs(drop.AntiSpoof), false
	}
	is, other := in.Address4, in.Address6
	if q.src.Is6() {
		is, other = other, is
	}
	if !is.IsValid() {
		is = other
	}
	if !slices.Equal(m.instancePort(vpc, in, is), []int{q.port}) {
		return droppedAs(drop.SpoofedAttachment), false
	}
	for _, a := range vpc.Attach {
		for _, own := range a.Addresses {
			if own.Addr() == q.dst {
				return q.toWeir(), false
			}
		}
	}
	if q.expired {
		return droppedAs(drop.TTLExceeded), false
	}
	route, ok := m.route(vpc, in, q.dst)
	switch {
	case !ok:
		return droppedAs(drop.NoRoute), false
	case route.Target == config.TargetDrop:
		return droppedAs(drop.RouteDrop), false
	case route.Target != config.TargetGateway:
		if attached.IsValid() && !own {
			return droppedAs(drop.PublicSource), false
		}
		return forecast{fate: "plain", src: q.src, dst: q.dst, ports: m.internalPorts(vpc, route, q.dst)}, false
	case transit:
		return droppedAs(drop.PublicSource), false
	}
	for _, p := range m.Ports {
		for _, a := range p.Addresses {
			if a.Addr() == q.dst {
				return droppedAs(drop.NoService), false
			}
		}
	}
	if !m.reaches(route, q.dst) {
		return droppedAs(drop.PrivateDestination), false
	}
	v = m.tagged(q, in, own, attached, route)
	return v, m.ours(q.dst) && !strings.HasPrefix(v.fate, "drop")
}

// reaches reports whether a route to a gateway leads to dst: a private address is not where a /0
// leads to.
func (m model) reaches(route config.Route, dst netip.Addr) bool {
	return !m.byPort(route, dst) || m.beside(dst) != nil
}

// byPort reports whether nothing but the ports can know where dst is.
func (m model) byPort(route config.Route, dst netip.Addr) bool {
	return route.To.Bits() == 0 && within(modelPrivate, dst) && !m.ours(dst)
}

// beside lists the outside ports whose own prefix or private sources have an address.
func (m model) beside(a netip.Addr) (ports []int) {
	for i, p := range m.Ports {
		if p.Side == config.Outside && (within(p.Addresses, a) || within(p.PrivateSources, a)) {
			ports = append(ports, i)
		}
	}
	return ports
}

func (m model) inside(q question) forecast {
	tagged, turns := m.leaving(q)
	if !turns {
		return tagged
	}
	// It turns back: its receiver sees it come from the sender's external address. Not to the very
	// socket that sent it.
	leaving := q.sport
	if tagged.newSource != 0 {
		leaving = tagged.newSource
	}
	if another := q.proto == "ping" || q.proto == "pong" || q.proto == "error" || q.proto != "gre" && leaving != q.dport; tagged.fate == "out" && tagged.src == q.dst && !another {
		return droppedAs(drop.Martian)
	}
	back := q
	if back.src = tagged.src; tagged.newSource != 0 {
		back.sport = tagged.newSource
	}
	if q.proto == "ping" || q.proto == "pong" { // the identifier is the local side's
		back.sport, back.dport = q.dport, q.sport
	}
	v2 := m.outside(back, true)
	v2.session, v2.newSource = v2.session || tagged.session, tagged.newSource
	if tagged.fate == "snat" && !strings.HasPrefix(v2.fate, "drop") {
		v2.fate, v2.shares = "snat", tagged.shares
	}
	return v2
}

// tagged is what becomes of a packet that a route led to a gateway, up to the side it leaves by.
func (m model) tagged(q question, in *config.Instance, own bool, attached netip.Prefix, route config.Route) forecast {
	if attached.IsValid() {
		pool := m.pool(attached.Addr())
		if slices.Contains(m.gatewaysOfPool(pool), route.Gateway) {
			return m.leaves(forecast{fate: "plain", src: q.src, dst: q.dst}, attached.Addr(), q.dst, route)
		}
		if !own {
			return droppedAs(drop.NoEligible)
		}
	}
	if route.Untranslated && !m.ours(q.dst) {
		v := forecast{fate: "plain", src: q.src, dst: q.dst, untranslated: true}
		if allowed := m.portsOf(route.Gateway); allowed != nil {
			return m.leavesBy(v, allowed, q.dst, route)
		}
		return forecast{fate: droppedAs(drop.NoEligible).fate, untranslated: true}
	}
	return m.selects(q, in, route)
}

// portsOf lists the outside ports that a gateway leads to: those of its pools, and of the pools of
// its addresses.
func (m model) portsOf(gateway int) (list []int) {
	for p := range m.Pools {
		of := slices.Contains(m.gatewaysOfPool(p), gateway)
		if gateway >= 0 {
			of = of || slices.ContainsFunc(m.Gateways[gateway].Addresses, func(a netip.Addr) bool { return m.pool(a) == p })
		}
		for i := range m.Ports {
			if of && m.Ports[i].Side == config.Outside && (len(m.Pools[p].Ports) == 0 || slices.Contains(m.Pools[p].Ports, i)) {
				list = append(list, i)
			}
		}
	}
	return list
}

// partner reports whether an instance and a remote address know each other untranslated.
func (m model) partner(v *config.VPC, in *config.Instance, remote netip.Addr) bool {
	r, ok := m.route(v, in, remote)
	return ok && r.Untranslated
}

// privateSubnet finds the VPC that has an untranslated route for the subnet of a private address.
func (m model) privateSubnet(a netip.Addr) *config.VPC {
	for vi := range m.VPCs {
		v := &m.VPCs[vi]
		for _, r := range v.Routes {
			for _, s := range v.Subnets {
				if r.Untranslated && r.To.Addr().Is4() == a.Is4() && s.Contains(a) && (!r.From.IsValid() || r.From == s) {
					return v
				}
			}
		}
	}
	return nil
}

// privateOwner finds the instance that has a private address in such a subnet.
func (m model) privateOwner(a netip.Addr) (*config.VPC, *config.Instance) {
	v := m.privateSubnet(a)
	if v == nil {
		return nil, nil
	}
	for i := range v.Instances {
		if in := &v.Instances[i]; in.Address4 == a || in.Address6 == a {
			return v, in
		}
	}
	return v, nil
}

// source says whose an address in a VPC is.
func source(v *config.VPC, a netip.Addr) (in *config.Instance, own, transit bool, attached netip.Prefix) {
	longest := -1
	for i := range v.Instances {
		x := &v.Instances[i]
		for _, p := range x.Transit {
			if p.Contains(a) && p.Bits() > longest {
				in, transit, attached, longest = x, true, netip.Prefix{}, p.Bits()
			}
		}
		for _, p := range x.Attached {
			if p.Contains(a) && p.Bits() > longest {
				in, transit, attached, longest = x, false, p, p.Bits()
			}
		}
	}
	for i := range v.Instances {
		if x := &v.Instances[i]; x.Address4 == a || x.Address6 == a {
			if in != x {
				attached = netip.Prefix{}
			}
			return x, true, false, attached
		}
	}
	return in, false, transit, attached
}

// route is the longest match; custom before system, with from before without, a longer from before
// a shorter.
func (m model) route(v *config.VPC, in *config.Instance, dst netip.Addr) (best config.Route, found bool) {
	mine := in.Address4
	if dst.Is6() {
		mine = in.Address6
	}
	if !mine.IsValid() {
		return best, false
	}
	var routes []config.Route
	for _, s := range v.Subnets { // before the others: a subnet's own route beats its equal
		routes = append(routes, config.Route{To: s, Class: config.System, Target: config.TargetSubnet, Subnet: s})
	}
	routes = append(routes, v.Routes...)
	rank := func(r config.Route) [3]int {
		from := -1
		if r.From.IsValid() {
			from = r.From.Bits()
		}
		return [3]int{r.To.Bits(), int(r.Class), from}
	}
	for _, r := range routes {
		if !r.To.Contains(dst) || r.From.IsValid() && !r.From.Contains(mine) {
			continue
		}
		if x, y := rank(r), rank(best); !found || slices.Compare(x[:], y[:]) > 0 {
			best, found = r, true
		}
	}
	return best, found
}

// internalPorts is the attachment whose prefix has the route's target, else the first.
func (m model) internalPorts(v *config.VPC, r config.Route, dst netip.Addr) []int {
	target := r.Address
	if r.Target == config.TargetSubnet {
		target = r.Subnet.Addr()
	}
	for _, a := range v.Attach {
		if within(a.Addresses, target) {
			return []int{a.Port}
		}
	}
	return []int{v.Attach[0].Port}
}

func (m model) pool(a netip.Addr) int {
	return slices.IndexFunc(m.Pools, func(p config.Pool) bool {
		return slices.ContainsFunc(p.Ranges, func(r config.Range) bool { return r.Contains(a) })
	})
}

// gatewaysOfPool lists the gateways of a pool; one of none is the unnamed gateway's.
func (m model) gatewaysOfPool(pool int) (list []int) {
	for i, g := range m.Gateways {
		if slices.Contains(g.Pools, pool) {
			list = append(list, i)
		}
	}
	if list == nil {
		list = []int{config.UnnamedGateway}
	}
	return list
}

func (m model) eligible(a netip.Addr, gateway int, family netip.Addr) bool {
	if a.Is4() != family.Is4() {
		return false
	}
	var of []int
	for i, g := range m.Gateways {
		if slices.Contains(g.Pools, m.pool(a)) || slices.Contains(g.Addresses, a) {
			of = append(of, i)
		}
	}
	if gateway == config.UnnamedGateway {
		return len(of) == 0
	}
	return slices.Contains(of, gateway)
}

// ours reports whether a is an external address of weir, an instance or an attached prefix.
func (m model) ours(a netip.Addr) bool {
	for _, p := range m.Ports {
		for _, x := range p.Addresses {
			if x.Addr() == a {
				return true
			}
		}
	}
	for _, v := range m.VPCs {
		for _, in := range v.Instances {
			if slices.Contains(in.Floating, a) || slices.Contains(in.Ephemeral, a) || within(in.Attached, a) ||
				slices.ContainsFunc(in.SNAT, func(s config.SNAT) bool { return s.Address == a }) {
				return true
			}
		}
	}
	return false
}

// leaves fills in the outside ports: the one whose own prefix has the destination, else those with
// a next hop; of the pool's ports, if it names some.
func (m model) leaves(v forecast, external, dst netip.Addr, route config.Route) forecast {
	if m.ours(dst) {
		return v
	}
	return m.leavesBy(v, m.Pools[m.pool(external)].Ports, dst, route)
}

// leavesBy is leaves by some outside ports; none named: by any.
func (m model) leavesBy(v forecast, allowed []int, dst netip.Addr, route config.Route) forecast {
	may := func(i int) bool {
		return m.Ports[i].Side == config.Outside && (len(allowed) == 0 || slices.Contains(allowed, i)) && (!m.byPort(route, dst) || slices.Contains(m.beside(dst), i))
	}
	for i, p := range m.Ports {
		if !may(i) {
			continue
		}
		if within(p.Addresses, dst) {
			v.ports = []int{i}
			return v
		}
	}
	for i, p := range m.Ports {
		if may(i) &&
			slices.ContainsFunc(p.NextHops, func(h config.NextHop) bool { return h.Address.Is4() == dst.Is4() }) {
			v.ports = append(v.ports, i)
		}
	}
	if v.ports == nil {
		v.fate = "drop " + drop.NoNextHop.String()
	}
	return v
}

// numbers are the protocol numbers of a question's protocols.
func (q question) number() uint8 {
	switch {
	case q.proto == "udp":
		return 17
	case modelTCP[q.proto] != "":
		return 6
	case q.proto == "gre":
		return 47
	case q.src.Is4():
		return 1
	}
	return 58
}

// weight is the published text under the published hash.
func (m model) weight(proto uint8, private netip.Addr, port uint16, remote netip.Addr, remotePort uint16, candidate netip.Addr) uint64 {
	p, r, c := private.As16(), remote.As16(), candidate.As16()
	switch m.Sessions.Spread {
	case config.SpreadEndpoint:
		r, remotePort = [16]byte{}, 0
	case config.SpreadInstance:
		proto, port, r, remotePort = 0, 0, [16]byte{}, 0
	}
	text := append([]byte{proto}, p[:]...)
	text = binary.BigEndian.AppendUint16(text, port)
	text = append(text, r[:]...)
	text = binary.BigEndian.AppendUint16(text, remotePort)
	return rendezvous.SipHash24(rendezvous.Key0, rendezvous.Key1, append(text, c[:]...))
}

// oneToOne is the 1:1 address of a flow: the floating one of most weight, else the ephemeral one.
func (m model) oneToOne(q question, in *config.Instance, private netip.Addr, port uint16, remote netip.Addr, remotePort uint16, gateway int) netip.Addr {
	var best netip.Addr
	var most uint64
	for _, a := range in.Floating {
		if m.eligible(a, gateway, private) {
			if w := m.weight(q.number(), private, port, remote, remotePort, a); !best.IsValid() || w > most {
				best, most = a, w
			}
		}
	}
	if best.IsValid() {
		return best
	}
	for _, a := range in.Ephemeral {
		if m.eligible(a, gateway, private) {
			return a
		}
	}
	return netip.Addr{}
}

func (m model) selects(q question, in *config.Instance, route config.Route) forecast {
	gateway := route.Gateway
	flow := q
	if q.proto == "error" { // the address is that of the flow which it quotes, seen from the other side
		flow = q.about()
		flow.src, flow.dst, flow.sport, flow.dport = flow.dst, flow.src, flow.dport, flow.sport
	}
	one := m.oneToOne(flow, in, q.src, flow.sport, flow.dst, flow.dport, gateway)
	if one.IsValid() {
		return m.leaves(forecast{fate: "out", kind: "out", src: one, dst: q.dst, session: q.begins()}, one, q.dst, route)
	}
	var shares []config.SNAT
	var most uint64
	byInstance := model{&config.Config{Sessions: config.Sessions{Spread: config.SpreadInstance}}}
	for _, s := range in.SNAT {
		if !m.eligible(s.Address, gateway, q.src) {
			continue
		}
		w := byInstance.weight(0, q.src, 0, netip.Addr{}, 0, s.Address)
		switch {
		case len(shares) == 0 || w > most:
			shares, most = []config.SNAT{s}, w
		case shares[0].Address == s.Address:
			shares = append(shares, s)
		}
	}
	if len(shares) > 0 {
		if f := forwardOf(in, shares[0].Address, flow.number(), func(f config.Forward) bool { return f.ToPort == flow.sport }); f != nil {
			return m.leaves(forecast{fate: "out", kind: "out", src: f.Address, dst: q.dst, session: q.begins(), newSource: f.Port}, f.Address, q.dst, route)
		}
	}
	switch {
	case len(shares) == 0:
		return droppedAs(drop.NoEligible)
	case q.proto == "error":
		return droppedAs(drop.ICMPUnrelated)
	case q.proto == "gre":
		return droppedAs(drop.SNATProtocol)
	case !q.begins():
		return droppedAs(drop.NoSession)
	}
	return m.leaves(forecast{fate: "snat", kind: "snat", src: shares[0].Address, dst: q.dst, shares: shares, session: true}, shares[0].Address, q.dst, route)
}

// forwardOf finds a forward of an instance.
func forwardOf(in *config.Instance, address netip.Addr, proto uint8, is func(config.Forward) bool) *config.Forward {
	i := slices.IndexFunc(in.Forwards, func(f config.Forward) bool { return f.Address == address && uint8(f.Protocol) == proto && is(f) })
	if i < 0 {
		return nil
	}
	return &in.Forwards[i]
}

// forwarded is what becomes of a packet from outside to an SNAT address, if its port always leads
// to an instance: nil, if not.
func (m model) forwarded(q question, v *config.VPC, in *config.Instance) *forecast {
	flow := q
	if q.proto == "error" {
		flow = q.about()
		flow.dport = flow.sport
	}
	f := forwardOf(in, q.dst, flow.number(), func(f config.Forward) bool { return f.Port == flow.dport })
	if f == nil {
		return nil
	}
	if q.expired {
		r := droppedAs(drop.TTLExceeded)
		return &r
	}
	private := in.Address4
	if q.dst.Is6() {
		private = in.Address6
	}
	r := forecast{fate: "in", src: q.src, dst: private, ports: m.instancePort(v, in, private), newTarget: f.ToPort}
	if route, ok := m.route(v, in, q.src); ok && route.Target == config.TargetGateway {
		r.session = q.begins()
	}
	return &r
}

// outside is what becomes of a packet from outside, or of one from inside that turned back.
func (m model) outside(q question, turned bool) forecast {
	switch {
	case q.src == q.dst && !turned:
		return droppedAs(drop.Martian)
	case turned:
	case m.ours(q.src):
		return droppedAs(drop.OwnSource)
	}
	for _, p := range m.Ports {
		for _, a := range p.Addresses {
			if a.Addr() == q.dst {
				return q.toWeir()
			}
		}
	}
	scoped, private := within(modelLinkLocal, q.src), within(modelPrivate, q.src)
	if !turned && within(modelMartians, q.src) && !(scoped && q.proto == "error") {
		return droppedAs(drop.Martian)
	}
	if !turned && m.privateSubnet(q.dst) != nil {
		v, in := m.privateOwner(q.dst)
		if in == nil {
			return droppedAs(drop.UnknownDestination)
		}
		about := q.about()
		switch {
		case !m.partner(v, in, q.src) && !(q.proto == "error" && about.src == q.dst && m.partner(v, in, about.dst)):
			return droppedAs(drop.NoPartner)
		case q.expired:
			return droppedAs(drop.TTLExceeded)
		}
		return forecast{fate: "plain", src: q.src, dst: q.dst, ports: m.instancePort(v, in, q.dst)}
	}
	listed := private && within(m.Ports[q.port].PrivateSources, q.src)
	router := (scoped || private) && q.proto == "error" && q.about().src == q.dst
	if !turned && !router && !listed && (within(modelMartians, q.src) || private) {
		return droppedAs(drop.Martian)
	}
	for vi := range m.VPCs {
		v := &m.VPCs[vi]
		for i := range v.Instances {
			in := &v.Instances[i]
			if within(in.Attached, q.dst) {
				if q.expired {
					return droppedAs(drop.TTLExceeded)
				}
				return forecast{fate: "plain", src: q.src, dst: q.dst, ports: m.instancePort(v, in, q.dst)}
			}
			if r := m.forwarded(q, v, in); r != nil {
				return *r
			}
		}
	}
	for vi := range m.VPCs {
		v := &m.VPCs[vi]
		for i := range v.Instances {
			in := &v.Instances[i]
			if slices.ContainsFunc(in.SNAT, func(s config.SNAT) bool { return s.Address == q.dst }) {
				switch {
				case q.proto == "error" && q.expired:
					return droppedAs(drop.TTLExceeded)
				case q.proto == "error":
					return droppedAs(drop.ICMPUnrelated)
				}
				return droppedAs(drop.Unsolicited)
			}
			if !slices.Contains(in.Floating, q.dst) && !slices.Contains(in.Ephemeral, q.dst) {
				continue
			}
			if q.expired {
				return droppedAs(drop.TTLExceeded)
			}
			private := in.Address4
			if q.dst.Is6() {
				private = in.Address6
			}
			r := forecast{fate: "in", src: q.src, dst: private, ports: m.instancePort(v, in, private)}
			if route, ok := m.route(v, in, q.src); ok && route.Target == config.TargetGateway && q.begins() {
				r.session = route.Untranslated && !turned || m.oneToOne(q, in, private, q.dport, q.src, q.sport, route.Gateway) != q.dst
			}
			return r
		}
	}
	return droppedAs(drop.UnknownDestination)
}

func (m model) instancePort(v *config.VPC, in *config.Instance, family netip.Addr) []int {
	a := in.Address4
	if family.Is6() {
		a = in.Address6
	}
	for _, t := range v.Attach {
		if within(t.Addresses, a) {
			return []int{t.Port}
		}
	}
	return []int{v.Attach[0].Port}
}

// generator makes random small configurations, legal by construction, and packets that mean
// something in them.
type generator struct {
	*rand.Rand
	sources      []netip.Addr
	ofVPC        [3][]netip.Addr // the sources of each VPC
	destinations []netip.Addr
	external     []netip.Addr
	forwards     []modelForward
	partner      int // the VPC that has routes without translation
}

// modelForward is a port that leads to an instance.
type modelForward struct {
	proto         string
	port, private uint16
}

func (g *generator) some(chance float64) bool { return g.Float64() < chance }

func pick[T any](g *generator, list []T) T { return list[g.IntN(len(list))] }

func quoted[T any](list []T) string {
	var b strings.Builder
	for i, x := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", fmt.Sprint(x))
	}
	return "[" + b.String() + "]"
}

// Every pool takes whole units: 192.0.2.8k/29 and 2001:db8:1:k::/64.
const units = 8

func (g *generator) config() string {
	g.external, g.forwards = nil, nil
	g.ofVPC = [3][]netip.Addr{}
	g.sources = []netip.Addr{netip.MustParseAddr("10.0.0.77"), netip.MustParseAddr("fd00::77")}
	g.destinations = nil
	for _, s := range strings.Fields("8.8.8.8 8.8.4.4 8.1.1.1 9.9.9.9 10.0.0.5 10.0.0.20 10.0.0.1 10.9.0.7 100.64.1.1 127.0.0.1 224.0.0.5 255.255.255.255 0.0.0.1 " +
		"169.254.1.1 198.51.100.2 198.51.100.1 198.51.100.77 203.0.113.3 203.0.113.9 192.0.2.250 2001:db8::2 2001:db8::1 2001:db8::77 2001:4860::8 2001:4860:1::8 " +
		"fd00::5 fd00::1 fd00:0:0:1::9 fe80::1 ff02::1 ::1 2a00::1") {
		g.destinations = append(g.destinations, netip.MustParseAddr(s))
	}
	var b strings.Builder
	nVPC, nPool, nGateway := 1+g.IntN(3), 1+g.IntN(4), g.IntN(5)
	fmt.Fprintf(&b, "version: 1\ndataplane: {sessions: 1024}\nsessions: {spread: %s}\nports:\n", pick(g, []string{"flow", "endpoint", "instance"}))
	for i := range nVPC + 1 {
		fmt.Fprintf(&b, "  - {name: in%d, device: net_null%d, side: inside}\n", i, i)
	}
	fmt.Fprintf(&b, "  - {name: out0, device: net_null10, side: outside, addresses: [198.51.100.2/24, \"2001:db8::2/64\"], next_hops: [198.51.100.1, \"2001:db8::1\"]}\n")
	fmt.Fprintf(&b, "  - {name: out1, device: net_null11, side: outside, addresses: [203.0.113.3/29], next_hops: [203.0.113.1, 203.0.113.2]}\n")
	owner := make([]int, 2*units)
	for u := range owner {
		owner[u] = g.IntN(nPool)
		owner[u%nPool] = u % nPool // no pool is empty
	}
	b.WriteString("pools:\n")
	for p := range nPool {
		var ranges []string
		for u, o := range owner {
			if o == p && u < units {
				ranges = append(ranges, fmt.Sprintf("192.0.2.%d/29", 8*u))
			} else if o == p {
				ranges = append(ranges, fmt.Sprintf("2001:db8:1:%d::/64", u-units))
			}
		}
		ports := []string{"", "", ", ports: [out0]", ", ports: [out1]", ", ports: [out0, out1]"}
		fmt.Fprintf(&b, "  - {name: p%d, ranges: %s%s}\n", p, quoted(ranges), pick(g, ports))
	}
	g.partner = g.IntN(nVPC)
	vpcs := g.vpcs(nVPC, nGateway)
	if nGateway > 0 {
		b.WriteString("gateways:\n")
	}
	for i := range nGateway {
		var pools []string
		for p := range nPool {
			if g.some(0.6) {
				pools = append(pools, fmt.Sprintf("p%d", p))
			}
		}
		var single []netip.Addr
		for _, a := range g.external {
			if g.some(0.1) {
				single = append(single, a)
			}
		}
		fmt.Fprintf(&b, "  - {name: g%d, id: 00000000-0000-4000-8000-%012d, pools: %s, addresses: %s}\n", i, 9-i, quoted(pools), quoted(single))
	}
	b.WriteString(vpcs)
	for range 6 {
		g.destinations = append(g.destinations, pick(g, g.sources))
	}
	return b.String()
}

func (g *generator) vpcs(nVPC, nGateway int) string {
	var b strings.Builder
	b.WriteString("vpcs:\n")
	free := g.Perm(2 * units * 8)                                                                            // unit*8 + place: 0-3 whole addresses, 4-5 shared, 6 attached
	free = slices.DeleteFunc(free, func(n int) bool { return n%8 == 6 && n/8 >= units && n/8 < units+nVPC }) // native IPv6's
	shared := map[netip.Addr]int{}
	unit := func(n int) netip.Addr {
		u, place := n/8, n%8
		if u < units {
			return netip.AddrFrom4([4]byte{192, 0, 2, byte(8*u + place)})
		}
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%d:%d::%d", u-units, place, place))
	}
	for v := range nVPC {
		before := len(g.sources)
		subnets := []string{"10.0.0.0/28", "10.0.0.16/28", "fd00::/64", "fd00:0:0:1::/64"}
		attach := fmt.Sprintf("{port: in%d, addresses: [10.0.0.1/28, \"fd00::1/64\"]}", v)
		if v == 0 && g.some(0.4) {
			attach += fmt.Sprintf(", {port: in%d, addresses: [10.0.0.17/28, \"fd00:0:0:1::1/64\"]}", nVPC)
		}
		// Native IPv6: the instance's own address lies in its attached prefix.
		public := v != g.partner && g.some(0.3)
		if public {
			subnets = append(subnets, fmt.Sprintf("2001:db8:1:%d::/64", v))
		}
		fmt.Fprintf(&b, "  - name: v%d\n    attach: [%s]\n    subnets: %s\n    routes: %s\n", v, attach, quoted(subnets), g.routes(nGateway, v == g.partner))
		b.WriteString("    instances:\n")
		for i := range 1 + g.IntN(4) {
			var addresses, attached []netip.Addr
			var prefixes []string
			if g.some(0.8) {
				addresses = append(addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(pick(g, []int{2, 18}) + i)}))
			}
			has4 := len(addresses) > 0
			switch {
			case public && i == 0:
				a := netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%d:6::5", v))
				addresses = append(addresses, a)
				g.sources = append(g.sources, a.Next())
				prefixes = append(prefixes, fmt.Sprintf("2001:db8:1:%d:6::/80", v))
			case !has4 || g.some(0.6):
				addresses = append(addresses, netip.MustParseAddr(fmt.Sprintf(pick(g, []string{"fd00::%x", "fd00:0:0:1::%x"}), 5+i)))
			}
			has6 := addresses[len(addresses)-1].Is6()
			g.sources = append(g.sources, addresses...)
			var floating, ephemeral []netip.Addr
			var snat, transit []string
			ephemerals := [2]bool{}
			for range g.IntN(9) {
				n := free[0]
				a := unit(n)
				if a.Is4() && !has4 || a.Is6() && !has6 {
					free = append(free[1:], n)
					continue
				}
				switch place := n % 8; {
				case place <= 3 && g.some(0.3) && !ephemerals[n/8/units]:
					ephemeral = append(ephemeral, a)
					ephemerals[n/8/units] = true
					free = free[1:]
				case place <= 3:
					floating = append(floating, a)
					free = free[1:]
				case place <= 5: // several entries, also of several VPCs, may share it
					first := 1024 + 100*shared[a]
					shared[a] += 1 + g.IntN(2)
					last, forwards := first+1+g.IntN(89), "" // a port is left for other flows
					if g.some(0.5) {
						f := modelForward{pick(g, []string{"tcp", "udp"}), uint16(first + g.IntN(last-first+1)), uint16(6000 + first)}
						if g.some(0.3) && first == 1024 {
							f.private = 7 // errors quote it
						}
						g.forwards = append(g.forwards, f)
						forwards = fmt.Sprintf(", forward: [{protocol: %s, port: %d, to_port: %d}]", f.proto, f.port, f.private)
					}
					snat = append(snat, fmt.Sprintf("{address: %q, ports: %d-%d%s}", a, first, last, forwards))
					if g.some(0.5) {
						free = append(free[1:], n)
					}
					attached = append(attached, a)
				case place == 6 && a.Is4():
					prefixes = append(prefixes, a.String()+"/31")
					g.sources = append(g.sources, a, a.Next())
					free = free[1:]
				case place == 6:
					prefixes = append(prefixes, fmt.Sprint(netip.PrefixFrom(a, 80).Masked()))
					g.sources = append(g.sources, a)
					free = free[1:]
				default:
					free = append(free[1:], n)
				}
			}
			if g.some(0.2) && has4 {
				transit = append(transit, fmt.Sprintf("10.9.%d.0/24", i))
				g.sources = append(g.sources, netip.AddrFrom4([4]byte{10, 9, byte(i), 7}))
			}
			if g.some(0.1) && has4 {
				transit = append(transit, fmt.Sprintf("10.8.0.0/%d", 16+i))
				g.sources = append(g.sources, netip.AddrFrom4([4]byte{10, 8, byte(16 << g.IntN(3)), 7}))
			}
			g.external = append(append(append(g.external, floating...), ephemeral...), attached...)
			fmt.Fprintf(&b, "      - {name: i%d, addresses: %s, transit: %s, external: {floating: %s, ephemeral: %s, snat: [%s], attached: %s}}\n",
				i, quoted(addresses), quoted(transit), quoted(floating), quoted(ephemeral), strings.Join(snat, ", "), quoted(prefixes))
		}
		g.ofVPC[v] = slices.Clone(g.sources[before:])
	}
	slices.SortFunc(g.external, netip.Addr.Compare)
	g.external = slices.Compact(g.external)
	g.destinations = append(g.destinations, g.external...)
	return b.String()
}

func (g *generator) routes(nGateway int, partner bool) string {
	to := [2][]string{
		strings.Fields("0.0.0.0/0 0.0.0.0/0 0.0.0.0/0 8.0.0.0/8 8.8.8.0/24 8.8.8.8/32 8.8.0.0/16 10.0.0.0/8 10.0.0.0/28 10.9.0.0/16 100.64.0.0/10 192.0.2.0/24 203.0.113.0/24 128.0.0.0/1"),
		strings.Fields("::/0 ::/0 ::/0 2000::/3 2001:db8::/32 2001:4860::/32 2001:4860:1::/48 2001:4860::8/128 fd00::/64 fd00::/16"),
	}
	from := [2][]string{{"10.0.0.0/28", "10.0.0.16/28"}, {"fd00::/64", "fd00:0:0:1::/64"}}
	target := [2]string{"10.0.0.9", "fd00::9"}
	var list []string
	seen := map[string]bool{}
	for range 4 + g.IntN(12) {
		f := g.IntN(2)
		key := fmt.Sprintf("to: %q, class: %s", pick(g, to[f]), pick(g, []string{"custom", "system"}))
		if g.some(0.3) {
			key += fmt.Sprintf(", from: %q", pick(g, from[f]))
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		switch n := g.IntN(10); {
		case n == 0:
			key += ", drop: true"
		case n == 1:
			key += fmt.Sprintf(", address: %q", target[f])
		case n == 2:
			key += fmt.Sprintf(", subnet: %q", pick(g, from[f]))
		case n <= 4 || nGateway == 0:
			key += ", gateway: unnamed"
		default:
			key += fmt.Sprintf(", gateway: g%d", g.IntN(nGateway))
		}
		if partner && strings.Contains(key, "gateway:") && g.some(0.3) {
			key += ", translate: false"
		}
		list = append(list, "{"+key+"}")
	}
	return "[" + strings.Join(list, ", ") + "]"
}

var internet = []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("203.0.113.4"),
	netip.MustParseAddr("2001:4860::8"), netip.MustParseAddr("2a00::1")}

func (g *generator) question(m model) question {
	q := question{
		port:  min(g.IntN(len(m.Ports)+1), len(m.Ports)-1),
		proto: pick(g, []string{"udp", "udp", "syn", "ack", "ping", "pong", "error", "gre"}),
		// Below the identifiers with which an echo sums to 0xffff, for which 0 and 0xffff are both
		// right.
		sport: uint16(1 + g.IntN(60000)), dport: uint16(1 + g.IntN(60000)), expired: g.some(0.02),
	}
	local, remote := g.sources, g.destinations
	outside := m.Ports[q.port].Side == config.Outside
	if !outside && g.some(0.9) {
		if q.port < len(m.VPCs) {
			local = g.ofVPC[q.port]
		}
	}
	if g.some(0.6) {
		remote = internet
	}
	for {
		q.src, q.dst = pick(g, local), pick(g, remote)
		if outside {
			q.src, q.dst = pick(g, remote), pick(g, append(slices.Clone(g.external), pick(g, local)))
			if g.some(0.1) {
				q.dst = pick(g, remote)
			} else if own := g.ofVPC[g.partner]; len(own) > 0 && g.some(0.2) {
				q.dst = pick(g, own)
			}
		}
		if q.src.Is4() == q.dst.Is4() {
			break
		}
	}
	if outside && g.some(0.02) { // to weir itself
		if q.proto, q.dst = "ping", netip.MustParseAddr("198.51.100.2"); q.src.Is6() {
			q.dst = netip.MustParseAddr("2001:db8::2")
		}
	}
	if len(g.forwards) > 0 && q.proto != "ping" && g.some(0.3) {
		f := pick(g, g.forwards)
		if q.proto = "udp"; f.proto == "tcp" {
			q.proto = pick(g, []string{"syn", "syn", "ack"})
		}
		if q.sport = f.private; outside || g.some(0.1) {
			q.sport, q.dport = q.dport, f.port
		}
	}
	switch q.proto {
	case "ping", "pong":
		if q.dport = 0; outside {
			q.sport, q.dport = 0, q.sport
		}
	case "gre", "error":
		q.sport, q.dport = 0, 0
	}
	return q
}

func (q question) line() string {
	if q.expired {
		return q.text() + " ttl=1"
	}
	return q.text()
}

// longText is what long questions carry.
const longText = ` "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-+0123456789abcdef"`

func (q question) text() string {
	if q.long {
		q.long = false
		return q.text() + longText
	}
	icmp := "icmp"
	if q.src.Is6() {
		icmp = "icmp6"
	}
	if flags, ok := modelTCP[q.proto]; ok {
		line := fmt.Sprintf("tcp %v > %v %s seq=%d ack=%d", netip.AddrPortFrom(q.src, q.sport), netip.AddrPortFrom(q.dst, q.dport), flags+q.more, q.seq, q.ack)
		if q.proto == "data" {
			line += " len=10"
		}
		return line
	}
	switch q.proto {
	case "udp":
		return fmt.Sprintf("udp %v > %v", netip.AddrPortFrom(q.src, q.sport), netip.AddrPortFrom(q.dst, q.dport))
	case "ping":
		return fmt.Sprintf("%s echo-request %v > %v id=%d", icmp, q.src, q.dst, q.sport|q.dport)
	case "pong":
		return fmt.Sprintf("%s echo-reply %v > %v id=%d", icmp, q.src, q.dst, q.sport|q.dport)
	case "error":
		return fmt.Sprintf("%s unreachable 1 %v > %v quote(%s)", icmp, q.src, q.dst, q.about().text())
	}
	return fmt.Sprintf("ip proto=47 %v > %v len=12", q.src, q.dst)
}

// check compares what the worker did with the forecast.
func (v forecast) check(r *rig, q question) error {
	frame := parseLine(r.t, q.port, q.line())
	sessions := r.sessions.Len()
	dropped, punted := r.counters.Dropped, r.counters.Punted
	f := r.process(q.port, frame)[0]
	got := "left"
	switch {
	case f.held:
		got = "held"
	case r.counters.Punted > punted:
		got = "punt"
	case f.port < 0:
		for reason, n := range r.counters.Dropped {
			if n > dropped[reason] {
				got = "drop " + drop.Reason(reason).String()
			}
		}
	}
	if (r.sessions.Len() > sessions) != v.session {
		return fmt.Errorf("%s, want %s; a session: %t, want %t", got, v.fate, r.sessions.Len() > sessions, v.session)
	}
	if got != "left" {
		if got != v.fate {
			return fmt.Errorf("%s, want %s", got, v.fate)
		}
		return nil
	}
	if v.ports == nil {
		return fmt.Errorf("left as %s, want %s", bare(f.frame), v.fate)
	}
	if !slices.Contains(v.ports, f.port) {
		return fmt.Errorf("left by port %d, want one of %v", f.port, v.ports)
	}
	w := q
	if w.src, w.dst = v.src, v.dst; q.proto == "error" {
		if a := w.about(); v.newSource != 0 {
			a.dport, w.quoted = v.newSource, &a
		}
	} else {
		w.sport, w.dport = cmp.Or(v.newSource, w.sport), cmp.Or(v.newTarget, w.dport)
	}
	if v.fate == "snat" {
		w.sport = portOf(f.frame)
		if !slices.ContainsFunc(v.shares, func(s config.SNAT) bool { return s.First <= w.sport && w.sport <= s.Last }) {
			return fmt.Errorf("left as %s, want a port of %v", bare(f.frame), v.shares)
		}
	}
	want := bare(parseLine(r.t, 0, w.line()))
	if got := bare(f.frame); got != want {
		return fmt.Errorf("left as %s, want %s", got, want)
	}
	return nil
}

// portOf is the source port or echo identifier of a frame that weir sent, without options or
// extension headers.
func portOf(frame []byte) uint16 {
	proto, transport := frame[23], frame[34:]
	if frame[12] == 0x86 {
		proto, transport = frame[20], frame[54:]
	}
	if proto == 1 || proto == 58 {
		transport = transport[4:]
	}
	return binary.BigEndian.Uint16(transport)
}

func TestAgreesWithModel(t *testing.T) {
	configs := 3000
	if testing.Short() {
		configs = 150
	}
	g := &generator{Rand: rand.New(rand.NewPCG(7, 7))}
	r := newRig(t, g.config(), config.MAC{2, 0, 0, 0, 9, 9})
	fates := map[string]int{}
	for i := range configs {
		text := g.config()
		for _, old := range r.gens {
			old.Close()
		}
		r.gens = r.gens[:0]
		r.reload(text)
		for p := range r.cfg.Ports {
			r.macs[p] = state.MACWord(config.MAC{2, 0, 0, 0, 0, byte(1 + p)})
		}
		m := model{r.cfg}
		for range 40 {
			q := g.question(m)
			var v forecast
			if m.Ports[q.port].Side == config.Inside {
				v = m.inside(q)
			} else {
				v = m.outside(q, false)
			}
			r.after(1e9) // no rate limit
			r.punts.Reset()
			if err := v.check(r, q); err != nil {
				t.Fatalf("configuration %d, %s into port %s: %v\n%s", i, q.line(), m.Ports[q.port].Name, err, text)
			}
			fates[v.fate]++
			r.forget()
		}
	}
	t.Log(fates)
	for _, reason := range []drop.Reason{drop.AntiSpoof, drop.Martian, drop.NoRoute, drop.RouteDrop, drop.NoEligible, drop.PublicSource, drop.SNATProtocol, drop.NoSession,
		drop.ICMPUnrelated, drop.OwnSource, drop.NoPartner, drop.UnknownDestination, drop.Unsolicited, drop.NoNextHop} {
		if fates["drop "+reason.String()] == 0 {
			t.Errorf("no packet was dropped for %v: the property says nothing about it", reason)
		}
	}
	for _, kind := range []string{"out", "snat", "in", "plain", "punt"} {
		least := configs / 10
		if kind == "punt" { // of the packets to weir's own addresses, pings alone
			least = configs / 40
		}
		if fates[kind] < least {
			t.Errorf("only %d packets went %s", fates[kind], kind)
		}
	}
}
