// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// S-1: a guest sends from every address that is not its own, of both families. Nothing leaves, and
// nobody is told.
func TestS01ForeignSources(t *testing.T) {
	a := newArena(t)
	for _, src := range []string{
		"10.0.0.77",            // nobody's
		"10.0.0.1", "10.1.0.5", // weir's own; outside of the subnet
		"192.0.2.5", "192.0.2.20", // its own external address, another's
		"192.0.2.6", "192.0.2.40", // an SNAT address, the other tenant's
		"203.0.114.1", "203.0.113.32", // an attached pool's, without attachment
		"198.51.100.2", "198.51.100.1", "8.8.4.4", "172.16.0.5",
	} {
		for _, dst := range []string{"8.8.8.8", "10.0.0.6", "10.0.0.7", "192.0.2.30"} {
			a.refused(0, parseLine(t, 0, "udp "+src+":1000 > "+dst+":53"), drop.AntiSpoof)
			a.refused(0, parseLine(t, 0, "tcp "+src+":1000 > "+dst+":53 SYN ttl=1"), drop.AntiSpoof)
			a.refused(0, parseLine(t, 0, "icmp echo-request "+src+" > "+dst+" id=5"), drop.AntiSpoof)
		}
	}
	for _, src := range []string{"fd00::77", "fd00::1", "fd00:1::5", "2001:db8:1::5", "2001:db8:1::20", "2001:db8:1::40", "2001:db8:3::1", "2001:db8::2", "2001:4860::4"} {
		for _, dst := range []string{"2001:4860::8", "fd00::6", "fd00::7", "2001:db8:1::21"} {
			a.refused(0, parseLine(t, 0, "udp ["+src+"]:1000 > ["+dst+"]:53"), drop.AntiSpoof)
			a.refused(0, parseLine(t, 0, "tcp ["+src+"]:1000 > ["+dst+"]:53 SYN ttl=1"), drop.AntiSpoof)
			a.refused(0, parseLine(t, 0, "icmp6 echo-request "+src+" > "+dst+" id=5"), drop.AntiSpoof)
		}
	}
	if m := a.punts.Peek(); m != nil {
		t.Errorf("control is told of %v", m.Reason)
	}
	a.rule(0)
}

// S-2: thirty tenants with one private address, the same ports and destinations, behind one SNAT
// address: each token comes back to its owner, a hundred thousand times.
func TestS02SameAddresses(t *testing.T) {
	const tenants, flows = 30, 20
	rounds := 85
	if testing.Short() {
		rounds = 10
	}
	var ports, vpcs strings.Builder
	for i := range tenants {
		fmt.Fprintf(&ports, "  - {name: t%02d, device: net_null%d, side: inside}\n", i, 10+i)
		fmt.Fprintf(&vpcs, `
  - name: v%d
    attach: [{port: t%02d, addresses: [10.0.0.1/24, "fd00::1/64"]}]
    subnets: [10.0.0.0/24, "fd00::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}]
    instances:
      - {name: i, addresses: [10.0.0.5, "fd00::5"], mac: "02:00:00:00:01:05",
         external: {snat: [{address: 192.0.2.1, ports: %[3]d-%[4]d}, {address: "2001:db8:1::1", ports: %[3]d-%[4]d}]}}`, i, i, 1024+i*2000, 3023+i*2000)
	}
	r := newRig(t, `version: 1
dataplane: {sessions: 8192}
ports:
  - {name: out, device: net_null1, side: outside, addresses: [198.51.100.2/24, "2001:db8::2/64"],
     next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}, {address: "2001:db8::1", mac: "02:00:00:00:02:01"}]}
`+ports.String()+`pools: [{name: p, ranges: [192.0.2.0/24, "2001:db8:1::/64"]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
vpcs:`+vpcs.String(), config.MAC{})
	var requests [2][flows][]byte
	for f := range flows {
		requests[0][f] = parseLine(t, 1, fmt.Sprintf("udp 10.0.0.5:%d > 8.8.8.8:53 df hex:00000000", 1000+f))
		requests[1][f] = parseLine(t, 1, fmt.Sprintf("udp [fd00::5]:%d > [2001:4860::8]:53 hex:00000000", 1000+f))
	}
	echoes := 0
	for range rounds {
		for tenant := range tenants {
			for f := range flows {
				token := binary.BigEndian.AppendUint32(nil, uint32(tenant<<16|f))
				for family := range requests {
					request := withPayload(requests[family][f], token)
					request[5] = byte(2 + tenant)
					out := r.process(1+tenant, request)[0]
					if out.port != 0 {
						t.Fatalf("tenant %d's packet does not leave", tenant)
					}
					back := r.process(0, bounced(out.frame))[0]
					echoes++
					if back.port != 1+tenant || !bytes.Equal(back.frame[len(back.frame)-4:], token) {
						t.Fatalf("token %x of tenant %d comes back by port %d as %s", token, tenant, back.port, packettext.Format(back.frame))
					}
					if port := binary.BigEndian.Uint16(back.frame[len(back.frame)-10:]); int(port) != 1000+f {
						t.Fatalf("the answer is for port %d, want %d", port, 1000+f)
					}
				}
			}
		}
	}
	if want := rounds * tenants * flows * 2; echoes != want {
		t.Errorf("%d echoes, want %d", echoes, want)
	}
}

// withPayload is a copy of a UDP frame with its last bytes replaced, and its checksum mended for
// that.
func withPayload(frame, payload []byte) []byte {
	f := bytes.Clone(frame)
	udp := len(f) - len(payload) - 8
	sum := uint32(^binary.BigEndian.Uint16(f[udp+6:]))
	for i := 0; i < len(payload); i += 2 { // the payload was zeros
		sum += uint32(payload[i])<<8 | uint32(payload[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum = 0xffff - sum; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(f[udp+6:], uint16(sum))
	copy(f[udp+8:], payload)
	return f
}

// bounced is the answer to a UDP frame that left by an outside port of MAC 02:00:00:00:00:01:
// addresses and ports change places, which no checksum sees.
func bounced(frame []byte) []byte {
	f := bytes.Clone(frame)
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 2, 1})
	at, n := 26, 4
	if f[12] == 0x86 {
		at, n = 22, 16
	}
	copy(f[at:], frame[at+n:at+2*n])
	copy(f[at+n:], frame[at:at+n])
	udp := at + 2*n
	copy(f[udp:], frame[udp+2:udp+4])
	copy(f[udp+2:], frame[udp:udp+2])
	return f
}

// S-3: a scan of every port of an SNAT address by TCP, UDP and ICMP: silence, and no state.
func TestS03SNATScan(t *testing.T) {
	a := newArena(t)
	frames := [][]byte{
		parseLine(t, 1, "tcp 9.9.9.9:40000 > 192.0.2.6:1 SYN"), parseLine(t, 1, "udp 9.9.9.9:40000 > 192.0.2.6:1 len=4"),
		parseLine(t, 1, "icmp echo-request 9.9.9.9 > 192.0.2.6 id=1"), parseLine(t, 1, "icmp echo-reply 9.9.9.9 > 192.0.2.6 id=1"),
		parseLine(t, 1, "tcp [2001:4860::9]:40000 > [2001:db8:1::6]:1 SYN,ACK"), parseLine(t, 1, "udp [2001:4860::9]:40000 > [2001:db8:1::6]:1 len=4"),
	}
	var b Burst
	for port := range 65536 {
		b.Port, b.N = 1, len(frames)
		for i, f := range frames {
			at := 14 + 20 + 2
			if f[12] == 0x86 {
				at = 14 + 40 + 2
			} else if f[23] == header.ProtocolICMP {
				at = 14 + 20 + 4
			}
			binary.BigEndian.PutUint16(f[at:], uint16(port))
			b.Packets[i].Data, b.Packets[i].Handle = bytes.Clone(f), uintptr(i+1)
		}
		refused := a.counters.Dropped[drop.Unsolicited] + a.counters.Dropped[drop.Filtered]
		a.watch.check(t, a.rig, &b)
		if n := a.counters.Dropped[drop.Unsolicited] + a.counters.Dropped[drop.Filtered] - refused; n != uint64(len(frames)) {
			t.Fatalf("port %d: %d of %d are unsolicited or filtered", port, n, len(frames))
		}
	}
	for _, f := range frames { // nor is an error asked of control
		if a.refused(1, f, drop.Unsolicited); a.punted(state.PuntError) != 0 {
			t.Errorf("%s is answered", packettext.Format(f))
		}
	}
	a.rule(0)
}

// S-4 and S-5: an external address whose instance is gone takes nothing any more; a private address
// never does from outside.
func TestS04GoneInstances(t *testing.T) {
	a := newArena(t)
	a.through(0, 1, parseLine(t, 0, "udp 10.0.0.5:1000 > 8.8.8.8:53"))
	reply := parseLine(t, 1, "udp 8.8.8.8:53 > 192.0.2.5:1000")
	a.through(1, 0, reply)
	without := strings.Replace(attackConfig, "floating: [192.0.2.5,", "floating: [192.0.2.77,", 1)
	a.reload(without)
	a.refused(1, reply, drop.UnknownDestination)
	a.refused(1, parseLine(t, 1, "tcp 8.8.8.8:53 > 192.0.2.5:22 SYN"), drop.UnknownDestination)
	a.rule(0)
}

func TestS05PrivateDestinations(t *testing.T) {
	a := newArena(t)
	for _, line := range []string{"udp 8.8.8.8:53 > 10.0.0.5:1000", "udp 8.8.8.8:53 > 10.0.0.1:1000", "tcp 8.8.8.8:53 > 10.9.0.5:1000 SYN",
		"udp [2001:4860::8]:53 > [fd00::5]:1000", "udp [2001:4860::8]:53 > [fd00::1]:1000"} {
		a.refused(1, parseLine(t, 1, line), drop.UnknownDestination, drop.Martian)
	}
	a.rule(0)
}

// everyError throws an ICMP error of every type, and of many codes, about a flow from outside,
// after each of which the flow must be as before: its session is neither ended nor refreshed nor in
// another state. A TCP flow may be established before.
func (a *arena) everyError(flow, outer, quote string, established bool) {
	a.t.Helper()
	frame := parseLine(a.t, 1, fmt.Sprintf(outer, quote))
	icmp := 14 + 20
	if frame[12] == 0x86 {
		icmp = 14 + 40
	}
	left := a.through(0, 1, parseLine(a.t, 0, flow))
	if established {
		a.through(1, 0, mirror(a.t, left))
		a.through(0, 1, parseLine(a.t, 0, strings.Replace(flow, "SYN", "ACK seq=1 ack=2", 1)))
	}
	a.rule(1)
	s := a.only0()
	if established && s.State() != session.TCPOpen {
		a.t.Fatalf("%s: %v after the handshake", flow, s.State())
	}
	was := *s
	for typ := range 256 {
		for code := range 256 {
			if code > 16 && code != 255 {
				continue
			}
			f := bytes.Clone(frame)
			f[icmp], f[icmp+1] = byte(typ), byte(code)
			resum(f)
			a.after(time.Millisecond)
			if echo := typ == 0 || typ == 8 || typ == 128 || typ == 129; echo { // a ping may begin a session of its own
				continue
			}
			a.throw(1, f)
			if *s != was {
				a.t.Fatalf("ICMP %d/%d changes the session of %s:\n%+v\n%+v", typ, code, flow, was, *s)
			}
		}
	}
	a.punts.Reset()
	if got := a.through(0, 1, parseLine(a.t, 0, flow)); !bytes.Equal(got, left) {
		a.t.Fatalf("after all ICMP errors %s leaves as\n%s, before as\n%s", flow, packettext.Format(got), packettext.Format(left))
	}
	a.rule(1)
	// Queries are flows themselves; they leave this one alone too.
	was = *s
	for _, typ := range []byte{0, 8, 128, 129} {
		f := bytes.Clone(frame)
		f[icmp], f[icmp+1] = typ, 0
		resum(f)
		a.after(time.Millisecond)
		if a.throw(1, f); *s != was {
			a.t.Fatalf("ICMP %d changes the session of %s:\n%+v\n%+v", typ, flow, was, *s)
		}
	}
	a.punts.Reset()
	a.restart()
}

// only0 is the one session of the attackers.
func (a *arena) only0() *session.Session {
	a.t.Helper()
	calm := a.gen.VPCs[a.gen.Attachments[a.gen.Ports[2].Own.Index].VPC].Slot
	return a.onlyOf(func(s *session.Session) bool { return s.VPC != calm })
}

// S-7 and S-8, and RFC 4787 REQ-12, RFC 5382 REQ-10: ICMP of no type and code, whoever sends it and
// whatever it quotes, changes a session; nor does weir let it lower an MTU of its own.
func TestS08ICMPErrors(t *testing.T) {
	a := newArena(t)
	for _, c := range []struct{ flow, outer, quote string }{
		{"udp 10.0.0.5:1000 > 8.8.8.8:53 df ipid=7", "icmp unreachable 4 8.8.8.8 > 192.0.2.5 mtu=68 quote(%s)", "udp 192.0.2.5:1000 > 8.8.8.8:53"},
		{"tcp 10.0.0.5:1000 > 8.8.8.8:443 SYN df ipid=7", "icmp unreachable 2 7.7.7.7 > 192.0.2.5 quote(%s)", "tcp 192.0.2.5:1000 > 8.8.8.8:443 SYN"},
		{"udp 10.0.0.6:1000 > 8.8.8.8:53 df ipid=7", "icmp unreachable 4 7.7.7.7 > 192.0.2.6 mtu=0 quote(%s)", ""},
		{"tcp 10.0.0.6:1000 > 8.8.8.8:443 SYN df ipid=7", "icmp time-exceeded 0 7.7.7.7 > 192.0.2.6 quote(%s)", ""},
		{"icmp echo-request 10.0.0.6 > 8.8.8.8 id=9 df ipid=7", "icmp unreachable 1 7.7.7.7 > 192.0.2.6 quote(%s)", ""},
		{"udp [fd00::5]:1000 > [2001:4860::8]:53", "icmp6 too-big 2001:4860::8 > 2001:db8:1::5 mtu=0 quote(%s)", "udp [2001:db8:1::5]:1000 > [2001:4860::8]:53"},
		{"tcp [fd00::6]:1000 > [2001:4860::8]:443 SYN", "icmp6 too-big 2001:4860::7 > 2001:db8:1::6 mtu=68 quote(%s)", ""},
	} {
		if c.quote == "" { // by the port that the flow got
			c.quote = bare(a.through(0, 1, parseLine(t, 0, c.flow)))
		}
		a.everyError(c.flow, c.outer, c.quote, false)
		if strings.HasPrefix(c.flow, "tcp") {
			if strings.Contains(c.quote, "2.6:") || strings.Contains(c.quote, "::6]:") { // by the port that it got this time
				c.quote = bare(a.through(0, 1, parseLine(t, 0, c.flow)))
			}
			a.everyError(c.flow, c.outer, c.quote, true)
		}
	}
	a.rule(0)
}

// S-9: another remote host does not come in by the session that somebody has, and does not touch
// it.
func TestS09Strangers(t *testing.T) {
	a := newArena(t)
	for _, flow := range []string{"tcp 10.0.0.6:1000 > 8.8.8.8:443 SYN", "tcp [fd00::6]:1000 > [2001:4860::8]:443 SYN"} {
		a.restart()
		reply := mirror(t, a.through(0, 1, parseLine(t, 0, flow)))
		a.through(1, 0, reply)
		s := a.only0()
		was := *s
		for _, flags := range []string{"SYN", "SYN,ACK", "ACK", "RST", "FIN,ACK", "none"} {
			for _, c := range [][2]string{{"8.8.8.8:443", "8.8.4.4:443"}, {"8.8.8.8:443", "8.8.4.4:444"}, {"[2001:4860::8]:443", "[2001:4860::9]:443"}} {
				line := strings.Replace(bare(reply), c[0], c[1], 1)
				if line == bare(reply) {
					continue
				}
				a.refused(1, parseLine(t, 1, strings.Replace(line, "SYN,ACK", flags, 1)), drop.Unsolicited, drop.Filtered)
				if *s != was {
					t.Fatalf("%s changes the session", line)
				}
			}
		}
	}
	a.restart()
	a.rule(0)
}

// S-15: a tagged frame, or an encapsulated one, from outside is none of a tenant's.
func TestS15TagsFromOutside(t *testing.T) {
	a := newArena(t)
	inner := fmt.Sprintf("%x", parseLine(t, 0, "udp 10.0.0.5:1000 > 8.8.8.8:53"))
	for _, line := range []string{"vlan=100 udp 10.0.0.5:1000 > 8.8.8.8:53", "qinq=1 vlan=2 udp 8.8.8.8:53 > 192.0.2.5:1000"} {
		f, err := packettext.Parse(neighborMAC + " > 02:00:00:00:00:02 " + line)
		if err != nil {
			t.Fatal(err)
		}
		a.refused(1, f, drop.VLANTag)
	}
	for _, port := range []int{6081, 4789} { // Geneve and VXLAN, with VNI 0 and 1
		for _, head := range []string{"0000655800000000", "0000655800000100", "0800000000000100"} {
			a.refused(1, parseLine(t, 1, fmt.Sprintf("udp 8.8.8.8:%d > 198.51.100.2:%d hex:%s%s", port, port, head, inner)), drop.NoService)
			a.refused(1, parseLine(t, 1, fmt.Sprintf("udp [2001:4860::8]:%d > [2001:db8::2]:%d hex:%s%s", port, port, head, inner)), drop.NoService)
		}
	}
	a.rule(0)
}

// S-16: from outside, every one of weir's own addresses as source, to every kind of destination.
func TestS16OwnSources(t *testing.T) {
	a := newArena(t)
	for _, src := range []string{"192.0.2.5", "192.0.2.6", "192.0.2.20", "192.0.2.30", "192.0.2.40", "198.51.100.2", "203.0.113.17"} {
		for _, dst := range []string{"192.0.2.22", "192.0.2.6", "192.0.2.40", "203.0.113.18", "192.0.2.30"} {
			if src != dst {
				a.refused(1, parseLine(t, 1, "udp "+src+":53 > "+dst+":1000"), drop.OwnSource)
				a.refused(1, parseLine(t, 1, "tcp "+src+":53 > "+dst+":1000 SYN"), drop.OwnSource)
				a.refused(1, parseLine(t, 1, "icmp echo-request "+src+" > "+dst+" id=3"), drop.OwnSource)
			}
		}
	}
	for _, src := range []string{"2001:db8:1::5", "2001:db8:1::6", "2001:db8:1::40", "2001:db8::2", "2001:db8:2::9"} {
		for _, dst := range []string{"2001:db8:1::21", "2001:db8:1::6", "2001:db8:1::40", "2001:db8:2::7"} {
			if src != dst {
				a.refused(1, parseLine(t, 1, "udp ["+src+"]:53 > ["+dst+"]:1000"), drop.OwnSource)
			}
		}
	}
	a.rule(0)
}
