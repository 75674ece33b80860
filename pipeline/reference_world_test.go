// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/pipeline/session"
)

// world draws small configurations, each a small change from the one before, and what happens in
// them: few endpoints, few remote ones, a handful of ports, tiny limits, so that everything
// collides all the time.
type world struct {
	*generator
	pools [worldPools]struct {
		gateways     int // a bit each
		rules, ports string
	}
	vpcs [worldVPCs]struct {
		routes    []string
		limit     int
		instances [worldInstances]struct {
			name         string // "": it is gone
			host4, host6 int    // 0: no address of this family
			limit        int
		}
	}
	whole    [2 * worldPools * 3]struct{ owner, ephemeral int }
	shared   [2 * worldPools][4]struct{ owner, size, tcp, udp int } // forwarded; 0: none
	attached [2 * worldPools]struct{ owner int }

	spread, onMove, drain string
	rest, unknown         string
	beyond                [2]string // private sources of the outside ports
	udp                   string
	limited, lazy         bool
	private, remote       []uint16 // ports
	waits                 []time.Duration
	floating              []netip.Addr
	partner               int // the VPC whose addresses are known outside
}

const (
	worldVPCs      = 3
	worldInstances = 3
	worldPools     = 3
)

var (
	worldRemotes  = [2][]netip.Addr{addrs("8.8.8.8 8.8.4.4 9.9.9.9 203.0.113.4 172.20.0.9"), addrs("2001:4860::8 2001:4860::9 2a00::1 fd20::9")}
	worldRemote   = []uint16{53, 443, 80, 123, 5000}
	worldPrivate  = []uint16{1024, 1025, 1026, 1031, 5000, 5001, 5002, 5003, 5004, 5005}
	worldSegments = []string{"ack", "ack", "data", "data", "data", "syn", "synack", "fin", "rst"}
	worldMore     = []string{"", "", ",PSH", ",URG", ",ECE,CWR"}
	worldWaits    = []time.Duration{time.Millisecond, 5 * time.Millisecond, 11 * time.Millisecond, time.Second, 5 * time.Second, 15 * time.Second,
		29 * time.Second, 31 * time.Second, time.Minute, 90 * time.Second, 2 * time.Minute, 121 * time.Second, 4 * time.Minute, 5*time.Minute + time.Millisecond, 2*time.Hour + 5*time.Minute}
)

func addrs(text string) (list []netip.Addr) {
	for _, s := range strings.Fields(text) {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

func newWorld(seed uint64) *world {
	w := &world{generator: &generator{Rand: rand.New(rand.NewPCG(seed, 42))}}
	w.lazy = w.some(0.25)
	w.partner = w.IntN(2 * worldVPCs) // in every other world
	w.limited = !w.lazy && w.some(0.6)
	w.private, w.remote, w.waits = worldPrivate[:5], worldRemote[:2], worldWaits
	if w.some(0.4) { // a crowd: the table fills up
		w.private, w.remote, w.waits = worldPrivate, worldRemote, worldWaits[:6]
	}
	for p := range w.pools {
		w.changePool(p)
	}
	for v := range w.vpcs {
		w.changeRoutes(v)
		for i := range w.vpcs[v].instances {
			w.vpcs[v].instances[i].name = fmt.Sprint("i", i)
			w.changeInstance(v, i)
		}
	}
	for i := range w.whole {
		w.changeWhole(i)
	}
	for a := range w.shared {
		for c := range w.shared[a] {
			w.changeShared(a, c)
		}
		w.attached[a].owner = w.owner(0.2, 0, 1, 2)
	}
	w.changeSessions()
	return w
}

// owner is a number for one of some instances of any VPC; 0 is nobody.
func (w *world) owner(chance float64, instances ...int) int {
	if !w.some(chance) {
		return 0
	}
	return 1 + w.IntN(worldVPCs)*worldInstances + pick(w.generator, instances)
}

func (w *world) changePool(p int) {
	w.pools[p].gateways = pick(w.generator, []int{1 << p, 1 << p, 7, 7, 0, w.IntN(8)})
	filtering := []string{"address-dependent", "address-and-port-dependent", "endpoint-independent"}
	if w.lazy { // the last lets in to mappings that are over, until they are missed
		filtering = filtering[:2]
	}
	w.pools[p].rules = "filtering: " + pick(w.generator, filtering)
	if w.some(0.3) {
		w.pools[p].rules = "mapping: address-and-port-dependent"
	}
	w.pools[p].rules += pick(w.generator, []string{"", "", ", inbound_refresh: on"})
	w.pools[p].ports = pick(w.generator, []string{"", "", "", ", ports: [out0]", ", ports: [out1]"})
}

func (w *world) changeRoutes(v int) {
	var list []string
	seen := map[string]bool{}
	for i := range 2 + w.IntN(5) {
		to := pick(w.generator, strings.Fields("8.8.8.0/24 8.8.8.8/32 8.0.0.0/8 9.0.0.0/8 203.0.113.0/24 2001:4860::/32 2001:4860::8/128 172.16.0.0/12 fd20::/16"))
		if i < 2 {
			if to = []string{"0.0.0.0/0", "::/0"}[i]; w.some(0.05) {
				continue
			}
		}
		key := fmt.Sprintf("to: %q", to)
		if w.some(0.2) {
			key += ", class: system"
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		switch n := w.IntN(16); {
		case n == 0 && i >= 2:
			key += ", drop: true"
		case n == 1 && i >= 2:
			key += fmt.Sprintf(", subnet: %q", map[bool]string{true: "fd00::/64", false: "10.0.0.0/24"}[strings.Contains(to, ":")])
		case n == 2:
			key += ", gateway: unnamed"
		default:
			key += fmt.Sprint(", gateway: g", w.IntN(worldPools))
		}
		if v == w.partner && strings.Contains(key, "gateway:") && w.some(0.4) {
			key += ", translate: false"
		}
		list = append(list, "{"+key+"}")
	}
	w.vpcs[v].routes = list
	w.vpcs[v].limit = 0
	if w.limited {
		w.vpcs[v].limit = pick(w.generator, []int{0, 0, 8, 20})
	}
}

func (w *world) changeInstance(v, i int) {
	in := &w.vpcs[v].instances[i]
	in.host4, in.host6 = 5+i, 5+i
	switch w.IntN(8) {
	case 0:
		in.host4 = 15 + i
	case 1:
		in.host6 = 0
	case 2:
		in.host6 = 15 + i
	}
	in.limit = 0
	if w.limited {
		in.limit = pick(w.generator, []int{0, 3, 8, 8, 9, 12})
	}
}

func (w *world) changeWhole(i int) {
	w.whole[i].owner, w.whole[i].ephemeral = w.owner(0.6, 0, 0, 2), w.IntN(3)
}
func (w *world) changeShared(a, c int) {
	x := &w.shared[a][c]
	x.owner, x.size = w.owner(0.8, 1, 1, 1, 2), 1+w.IntN(8)
	w.changeForwards(a, c)
}

// changeForwards draws which ports of a share lead to its instance.
func (w *world) changeForwards(a, c int) {
	x := &w.shared[a][c]
	if x.tcp, x.udp = 0, 0; w.some(0.3) {
		x.tcp = w.IntN(x.size + 1)
	}
	if w.some(0.3) {
		x.udp = w.IntN(x.size + 1)
	}
}

// forwards writes those of a share that begins at a port. Each share of an address leads to another
// port.
func (w *world) forwards(a, c, first int) string {
	var list []string
	for proto, n := range map[string]int{"tcp": w.shared[a][c].tcp, "udp": w.shared[a][c].udp} {
		if n > 0 {
			list = append(list, fmt.Sprintf("{protocol: %s, port: %d, to_port: %d}", proto, first+n-1, w.private[c]))
		}
	}
	slices.Sort(list)
	return "[" + strings.Join(list, ", ") + "]"
}

func (w *world) changeSessions() {
	w.spread = pick(w.generator, []string{"flow", "endpoint", "instance"})
	w.onMove = pick(w.generator, []string{"keep", "keep", "drain", "cut"})
	w.drain = pick(w.generator, []string{"30s", "10m"})
	w.unknown = pick(w.generator, []string{"drop", "reset"})
	w.udp = pick(w.generator, []string{"", "53: 10s", "53: 10s, 443: 1h"})
	w.rest = pick(w.generator, []string{"120s", "30s"})
	for o := range w.beyond {
		w.beyond[o] = pick(w.generator, []string{"", "", ", private_sources: [172.16.0.0/12, \"fd20::/16\"]", ", private_sources: [172.20.0.9/32]", ", private_sources: [192.168.0.0/16, \"fd00::/8\"]"})
	}
}

// change changes a few things.
func (w *world) change() {
	for range 1 + w.IntN(3) {
		v, i, a := w.IntN(worldVPCs), w.IntN(worldInstances), w.IntN(len(w.shared))
		in := &w.vpcs[v].instances[i]
		switch w.IntN(13) {
		case 0, 1:
			w.changeWhole(w.IntN(len(w.whole)))
		case 2, 3, 4:
			w.changeShared(a, w.IntN(len(w.shared[a])))
		case 5:
			w.attached[a].owner = w.owner(0.2, 0, 1, 2)
		case 6:
			w.changePool(w.IntN(worldPools))
		case 7, 8:
			w.changeRoutes(v)
		case 9:
			w.changeInstance(v, i)
		case 10:
			in.name = pick(w.generator, []string{"", fmt.Sprint("i", i), fmt.Sprint("i", i), fmt.Sprint("j", i)})
		case 11:
			w.changeSessions()
		case 12:
			w.changeForwards(a, w.IntN(len(w.shared[a])))
		}
	}
}

func (w *world) external(family, pool, n int) netip.Addr {
	if family == 0 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(16*pool + n)})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%d:%x::%x", pool, n, n))
}

// text writes the configuration, and notes the addresses in it.
func (w *world) text() string {
	w.ofVPC, w.generator.external, w.floating = [3][]netip.Addr{}, nil, nil
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nsessions: {spread: %s, on_move: %s, drain_timeout: %s, port_rest: %s, unknown_tcp: %s, limits: {per_instance: 0}, timeouts: {udp_ports: {%s}}}\nports:\n", w.spread, w.onMove, w.drain, w.rest, w.unknown, w.udp)
	for v := range worldVPCs {
		fmt.Fprintf(&b, "  - {name: in%d, device: net_null%d, side: inside}\n", v, v)
	}
	fmt.Fprintf(&b, "  - {name: out0, device: net_null10, side: outside, addresses: [198.51.100.2/24, \"2001:db8::2/64\"], next_hops: [198.51.100.1, \"2001:db8::1\"]%s}\n", w.beyond[0])
	fmt.Fprintf(&b, "  - {name: out1, device: net_null11, side: outside, addresses: [203.0.113.3/29], next_hops: [203.0.113.1]%s}\npools:\n", w.beyond[1])
	for p := range w.pools {
		fmt.Fprintf(&b, "  - {name: p%d, ranges: [192.0.2.%d/28, \"2001:db8:1:%d::/64\"], sessions: {%s}%s}\n", p, 16*p, p, w.pools[p].rules, w.pools[p].ports)
	}
	b.WriteString("gateways:\n")
	for g := range worldPools {
		var pools []string
		for p := range w.pools {
			if w.pools[p].gateways>>g&1 != 0 {
				pools = append(pools, fmt.Sprint("p", p))
			}
		}
		fmt.Fprintf(&b, "  - {name: g%d, id: 00000000-0000-4000-8000-%012d, pools: %s}\n", g, 9-g, quoted(pools))
	}
	b.WriteString("vpcs:\n")
	for v := range w.vpcs {
		vpc := &w.vpcs[v]
		fmt.Fprintf(&b, "  - name: v%d\n    attach: [{port: in%d, addresses: [10.0.0.1/24, \"fd00::1/64\"]}]\n    subnets: [10.0.0.0/24, \"fd00::/64\"]\n", v, v)
		fmt.Fprintf(&b, "    limits: {per_vpc: %d}\n    weight: %d\n    routes: [%s]\n    instances:\n", vpc.limit, 1+vpc.limit%3, strings.Join(vpc.routes, ", "))
		none := true
		for i := range vpc.instances {
			if vpc.instances[i].name != "" {
				none = false
				b.WriteString(w.instance(v, i))
			}
		}
		if none {
			b.WriteString("      []\n")
		}
	}
	return b.String()
}

func (w *world) instance(v, i int) string {
	in, me := &w.vpcs[v].instances[i], 1+v*worldInstances+i
	private := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(in.host4)})}
	if in.host6 != 0 {
		private = append(private, netip.MustParseAddr(fmt.Sprintf("fd00::%x", in.host6)))
	}
	w.ofVPC[v] = append(w.ofVPC[v], private...)
	var floating, ephemeral, attached []netip.Addr
	var snat, prefixes []string
	for family := range private {
		had := len(ephemeral)
		for p := range worldPools {
			for n := range 3 {
				x := w.whole[(family*worldPools+p)*3+n]
				if a := w.external(family, p, 1+n); x.owner == me && x.ephemeral == 0 && len(ephemeral) == had {
					ephemeral = append(ephemeral, a)
				} else if x.owner == me {
					floating = append(floating, a)
				}
			}
			a := w.external(family, p, 8)
			for c, x := range w.shared[family*worldPools+p] {
				if x.owner == me {
					snat = append(snat, fmt.Sprintf("{address: %q, ports: %d-%d, forward: %s}", a, 1024+8*c, 1024+8*c+x.size-1, w.forwards(family*worldPools+p, c, 1024+8*c)))
					w.generator.external = append(w.generator.external, a)
				}
			}
			if w.attached[family*worldPools+p].owner == me {
				a := w.external(family, p, 12)
				attached = append(attached, a)
				w.ofVPC[v] = append(w.ofVPC[v], a)
				prefixes = append(prefixes, fmt.Sprint(netip.PrefixFrom(a, a.BitLen()-1).Masked()))
			}
		}
	}
	w.floating = append(w.floating, floating...)
	w.generator.external = append(append(append(w.generator.external, floating...), ephemeral...), attached...)
	return fmt.Sprintf("      - {name: %s, addresses: %s, limits: {per_instance: %d}, external: {floating: %s, ephemeral: %s, snat: [%s], attached: %s}}\n",
		in.name, quoted(private), in.limit, quoted(floating), quoted(ephemeral), strings.Join(snat, ", "), quoted(prefixes))
}

// event is one thing that happens: time passes, another configuration comes into force, the data
// plane dies and starts again, or a burst arrives. In lazy worlds a walk ends what is over.
type event struct {
	wait    time.Duration
	reload  string
	restart bool
	walk    bool
	burst   []question
	pieces  []int // the only packet of the burst is cut, and its pieces arrive in this order
	apart   bool  // in bursts of their own
}

func (e event) String() string {
	switch {
	case e.wait != 0:
		return fmt.Sprint("wait ", e.wait)
	case e.reload != "":
		return "reload"
	case e.restart:
		return "restart"
	case e.walk:
		return "walk"
	}
	var lines []string
	for _, q := range e.burst {
		lines = append(lines, q.line())
	}
	if e.pieces != nil {
		return fmt.Sprintf("port %d: %s in pieces %v, apart: %t", e.burst[0].port, lines[0], e.pieces, e.apart)
	}
	return fmt.Sprintf("port %d: %s", e.burst[0].port, strings.Join(lines, "; "))
}

// next draws what happens next to n.
func (w *world) next(n *reference) event {
	switch x := w.IntN(1000); {
	case x < 50:
		return event{wait: w.waits[min(w.IntN(len(w.waits)), w.IntN(len(w.waits)))]}
	case x < 53:
		w.change()
		return event{reload: w.text()}
	case x < 54:
		return event{restart: true}
	case x < 64 && w.lazy:
		return event{walk: true}
	}
	e := event{burst: []question{w.ask(n)}}
	if q := &e.burst[0]; !q.expired && (q.proto == "udp" || q.proto == "ping" || q.proto == "pong" || q.proto == "gre" && !n.ours(q.dst)) && !w.mixed(n, *q) && w.some(0.1) {
		q.long = true
		e.pieces, e.apart = w.Perm(3), w.some(0.5)
		return e
	}
	for proto := e.burst[0].proto; proto != "data" && proto != "fin" && w.some(0.1) && len(e.burst) < 8; {
		e.burst = append(e.burst, e.burst[0]) // the first one may begin a session that the look-up of the burst did not find
	}
	return e
}

// mixed reports whether a packet is of a session on a way that is untranslated without one: there a
// piece before the first one has no port to find the session by, and leaves as it is.
func (w *world) mixed(n *reference, q question) bool {
	v, in := w.partner, 0
	if q.port != v || v >= worldVPCs || n.find(q, inside) == nil {
		return false
	}
	for i := range n.VPCs[v].Instances {
		if x := &n.VPCs[v].Instances[i]; x.Address4 == q.src || x.Address6 == q.src {
			in = i
		}
	}
	return n.partner(&n.VPCs[v], &n.VPCs[v].Instances[in], q.dst)
}

// ask draws a packet: of a session, nearly of one, or any.
func (w *world) ask(n *reference) question {
	inside := w.some(0.55)
	if len(n.sessions) > 0 && w.some(0.6) {
		s := pick(w.generator, n.sessions)
		if inside && w.some(0.5) {
			w.preferClosed(n, &s)
		}
		if s.given && inside && w.some(0.6) { // another endpoint of its instance wants what it wanted
			return question{port: slices.Index([]string{"v0", "v1", "v2"}, s.vpc), proto: "syn", src: s.private, dst: s.remote,
				sport: worldPrivate[w.IntN(len(worldPrivate))], dport: s.remotePort, seq: w.Uint32()}
		}
		q := question{port: worldVPCs + w.IntN(2), src: s.remote, dst: s.external, sport: s.remotePort, dport: s.externalPort}
		if inside {
			q = question{port: slices.Index([]string{"v0", "v1", "v2"}, s.vpc), src: s.private, dst: s.remote, sport: s.privatePort, dport: s.remotePort}
		}
		if w.proto(s, &q, inside); w.some(0.3) {
			w.distort(&q, inside)
		}
		if w.some(0.08) {
			q = w.complain(q)
		}
		return q
	}
	q := question{port: w.IntN(worldVPCs), proto: pick(w.generator, []string{"udp", "udp", "udp", "syn", "syn", "ping", "ack", "pong", "gre", "error"}),
		sport: pick(w.generator, w.private), dport: pick(w.generator, w.remote)}
	local := w.ofVPC[q.port]
	if !inside {
		q.port = worldVPCs + w.IntN(2)
		if local = w.generator.external; w.some(0.5) {
			local = w.floating
		}
		if w.partner < worldVPCs && w.some(0.2) {
			local = w.ofVPC[w.partner]
		}
	}
	if len(local) == 0 || w.some(0.02) {
		local = addrs("10.0.0.5 fd00::6 10.0.0.77 192.0.2.1")
	}
	q.src = pick(w.generator, local)
	family := 0
	if q.src.Is6() {
		family = 1
	}
	q.dst = pick(w.generator, worldRemotes[family])
	if w.some(0.03) {
		q.dst = pick(w.generator, [2][]netip.Addr{addrs("10.0.0.6 10.0.0.1 127.0.0.1 198.51.100.2 192.0.2.1 192.0.2.8 192.0.2.12"),
			addrs("fd00::6 fd00::1 ::1 2001:db8::2 2001:db8:1:0:1::1 2001:db8:1:0:8::8")}[family])
	}
	if inside && w.some(0.15) && len(w.generator.external) > 0 { // it turns back
		if a := pick(w.generator, w.generator.external); a.Is4() == q.src.Is4() {
			q.dst, q.dport = a, pick(w.generator, w.private)
		}
	}
	if !inside {
		q.src, q.dst, q.sport, q.dport = q.dst, q.src, q.dport, q.sport
	}
	switch q.proto {
	case "ping", "pong":
		if q.dport = 0; !inside {
			q.sport, q.dport = 0, q.sport
			q.dport = pick(w.generator, w.private)
		}
	case "gre", "error":
		q.sport, q.dport = 0, 0
	}
	if modelTCP[q.proto] != "" {
		q.seq, q.ack = w.Uint32(), w.Uint32()
		if q.proto == "syn" {
			q.ack = 0
		}
	}
	if q.proto == "syn" {
		q.more = pick(w.generator, worldMore)
	}
	q.expired = w.some(0.01)
	return q
}

// preferClosed draws again among those whose connection is closed, if any is.
func (w *world) preferClosed(n *reference, s **refSession) {
	var closed []*refSession
	for _, t := range n.sessions {
		if t.given {
			closed = append(closed, t)
		}
	}
	if closed != nil {
		*s = pick(w.generator, closed)
	}
}

// proto draws a packet of a session.
func (w *world) proto(s *refSession, q *question, inside bool) {
	switch s.proto {
	case 6:
		w.segment(s, q, inside)
	case 17:
		q.proto = "udp"
	case 47:
		q.proto = "gre"
	default:
		if q.proto = "pong"; w.some(0.9) == (inside != s.fromOutside) {
			q.proto = "ping"
		}
	}
}

// segment draws a segment of a connection: mostly what comes next, so that connections open and
// close; of the rest from outside most by somebody who sees nothing of it.
func (w *world) segment(s *refSession, q *question, inside bool) {
	t, me, peer := &s.tcp, near, far
	if !inside {
		me, peer = far, near
	}
	q.proto, q.seq, q.ack = pick(w.generator, worldSegments), t.next[me], t.next[peer]
	switch {
	case w.some(0.7) && inside && s.state == session.Unconfirmed, w.some(0.8) && !inside && t.asked && !t.syn[far]:
		q.proto = "synack"
	case w.some(0.8) && s.state == session.TCPOpening && t.syn[near] && t.syn[far]:
		q.proto = "ack"
	case w.some(0.3) && s.state == session.TCPOpen && !t.fin[me]:
		q.proto = "fin"
	case w.some(0.5) && s.state == session.TCPClosing && !s.given:
		q.proto = "ack"
	}
	if q.proto == "syn" || q.proto == "synack" {
		q.seq = w.Uint32()
	}
	switch {
	case !inside && w.some(0.25), inside && w.some(0.01):
		q.seq, q.ack = w.Uint32(), w.Uint32()
	case w.some(0.03):
		q.seq += w.Uint32N(100) - 50
		q.ack += w.Uint32N(100) - 50
	}
	if q.proto == "syn" {
		q.ack = 0
	}
}

// complain draws an ICMP error about what q answers.
func (w *world) complain(q question) question {
	a := q
	a.src, a.dst, a.sport, a.dport, a.expired = q.dst, q.src, q.dport, q.sport, false
	q = question{port: q.port, src: q.src, dst: q.dst, proto: "error", quoted: &a, expired: q.expired}
	switch w.IntN(8) {
	case 0: // a router on the way says it
		if q.port >= worldVPCs && q.src.Is4() {
			q.src = pick(w.generator, addrs("9.9.9.77 10.1.8.1 192.168.100.1 169.254.7.7 127.0.0.9"))
		} else if q.port >= worldVPCs {
			q.src = pick(w.generator, addrs("2a00::77 fd77::1 fe80::77 ff02::77"))
		}
	case 1:
		q.dst = pick(w.generator, append(w.generator.external, q.dst))
	}
	if q.dst.Is4() != q.src.Is4() {
		q.dst = a.src
	}
	return q
}

// distort changes one thing of a packet of a session.
func (w *world) distort(q *question, inside bool) {
	family := 0
	if q.src.Is6() {
		family = 1
	}
	remote, remotePort, localPort := &q.src, &q.sport, &q.dport
	if inside {
		remote, remotePort, localPort = &q.dst, &q.dport, &q.sport
	}
	echo := q.proto == "ping" || q.proto == "pong"
	switch w.IntN(5) {
	case 0:
		*remote = pick(w.generator, worldRemotes[family])
	case 1:
		if !echo && q.proto != "gre" {
			*remotePort = pick(w.generator, w.remote)
		}
	case 2:
		if q.proto != "gre" {
			*localPort = pick(w.generator, w.private)
		}
	case 3:
		if !echo && q.proto != "gre" {
			q.proto = pick(w.generator, []string{"udp", "syn", "ack"})
		}
	case 4:
		q.expired = true
	}
}
