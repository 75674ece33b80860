// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"weir/config"
	"weir/pipeline/inet"
)

// What weir bench sends, and the gateway it sends it to. A flow is a number; instance, remote host
// and local port follow from it, so that a million of them need no memory of the generator's.

const (
	benchInstances = 64   // of each kind: with a floating address, with its own SNAT address
	benchRemotes   = 1024 // hosts that one worker's flows go to
	benchPort      = 443  // of the remote hosts
	benchLocalPort = 1024 // the first one of an instance's flows

	firstFloating, firstSNAT, firstNarrow = 10, 80, 150 // last byte of the instances' addresses

	narrowPorts = 16384 // of an instance whose range fills up: a quarter of an address
)

// The addresses of the two sides of each family, without the last byte of local ones and the host
// number of remote ones: the networks that RFC 2544 and RFC 5180 set apart for benchmarks are the
// Internet here.
var (
	benchPrivate  = addresses("10.0.0.0", "fd00::")
	benchExternal = addresses("192.0.2.0", "2001:db8:1::")
	benchRemote   = addresses("198.18.0.0", "2001:2::")

	benchMACs   = []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}} // weir's own
	benchSender = config.MAC{2, 0, 0, 0, 1, 9}
)

func addresses(v4, v6 string) [2]inet.Addr {
	return [2]inet.Addr{inet.FromNetip(netip.MustParseAddr(v4)), inet.FromNetip(netip.MustParseAddr(v6))}
}

// plus adds n to the last 32 bits of an address that ends in zeros.
func plus(a inet.Addr, n uint32) inet.Addr { return inet.Addr{Hi: a.Hi, Lo: a.Lo + uint64(n)} }

// benchConfig is the gateway's configuration. The devices that it names are not opened.
func benchConfig(sessions int, wire string) string {
	w := wires[wire]
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
dataplane: {sessions: %d}
ports:
  - {name: inside, device: net_null0, side: inside%s}
  - {name: outside, device: net_null1, side: outside, addresses: [198.51.100.2/24, "2001:db8::2/64"],
     next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}, {address: "2001:db8::1", mac: "02:00:00:00:02:01"}]}
pools:
  - {name: p, ranges: [192.0.2.0/24, "2001:db8:1::/64"]}
gateways:
  - {name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}
sessions: {limits: {per_instance: 0}, port_rest: 0s}
vpcs:
  - name: v
    attach: [{port: inside, addresses: [10.0.0.1/24, "fd00::1/64"]%s}]
    subnets: [10.0.0.0/24, "fd00::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}]
    instances:
`, sessions, w.port, w.attach)
	instance := func(n int, external string) {
		fmt.Fprintf(&b, "      - {name: i%d, addresses: [10.0.0.%d, \"fd00::%x\"], mac: \"02:00:00:00:01:%02x\"%s, external: {%s}}\n", n, n, n, n, w.instance, external)
	}
	for i := range benchInstances {
		n := firstFloating + i
		instance(n, fmt.Sprintf("floating: [192.0.2.%d, \"2001:db8:1::%x\"]", n, n))
		n = firstSNAT + i
		instance(n, fmt.Sprintf("snat: [{address: 192.0.2.%d, ports: 1024-65535}, {address: \"2001:db8:1::%x\", ports: 1024-65535}]", n, n))
		n = firstNarrow + i
		instance(n, fmt.Sprintf("snat: [{address: 192.0.2.%d, ports: %d-%d}]", n, narrowPorts, 2*narrowPorts-1))
	}
	return b.String()
}

// flows is a set of flows of one kind.
type flows struct {
	family    inet.Family
	snat      bool
	tcp       bool
	first     uint32
	instances uint32 // a power of two
	remotes   []uint32
}

// flow is one of them: its number, and the external port that weir gave it.
type flow struct {
	number uint32
	port   uint16
	set    uint8 // index of its flows
}

const (
	protoTCP = 6
	protoUDP = 17

	tcpSYN = 2
	tcpACK = 16

	etherHeader = 14
	crc         = 4 // counted in the length of frames, as is usual, and not in memory
)

// headerLen is the length of all headers.
func (f *flows) headerLen() int {
	n := etherHeader + 20 + 8
	if f.family == inet.V6 {
		n += 20
	}
	if f.tcp {
		n += 12
	}
	return n
}

// put writes a packet of a flow, as it comes to port (0: from inside), frame bytes long with its
// CRC but at least as long as its headers, and returns its length. Checksums are right when the
// payload is zeros. b has room for it.
func (f *flows) put(b []byte, w flow, port int, frame int, tcpFlags byte) int {
	n := max(frame-crc, f.headerLen())
	b = b[:n]
	instance := w.number & (f.instances - 1)
	rest := w.number / f.instances
	remote := plus(benchRemote[f.family], f.remotes[rest%uint32(len(f.remotes))])
	localPort := uint16(benchLocalPort + rest/uint32(len(f.remotes)))
	src, dst := plus(benchPrivate[f.family], f.first+instance), remote
	sport, dport := localPort, uint16(benchPort)
	if port == 1 {
		src, dst, sport, dport = remote, plus(benchExternal[f.family], f.first+instance), benchPort, w.port
		if !f.snat {
			dport = localPort
		}
	}
	f.write(b, port, src, dst, sport, dport, tcpFlags)
	return n
}

// write fills in the headers of the frame b.
func (f *flows) write(b []byte, port int, src, dst inet.Addr, sport, dport uint16, tcpFlags byte) {
	copy(b, benchMACs[port][:])
	copy(b[6:], benchSender[:])
	if port == 0 {
		b[11] = byte(src.Lo) // as configured for the instance
	}
	proto := byte(protoUDP)
	if f.tcp {
		proto = protoTCP
	}
	sum := uint64(proto) + uint64(sport) + uint64(dport)
	var t []byte
	if f.family == inet.V4 {
		binary.BigEndian.PutUint16(b[12:], 0x0800)
		ip := b[etherHeader:]
		binary.BigEndian.PutUint32(ip, 0x4500<<16|uint32(len(ip)))
		binary.BigEndian.PutUint32(ip[4:], 0)
		binary.BigEndian.PutUint32(ip[8:], 64<<24|uint32(proto)<<16)
		binary.BigEndian.PutUint32(ip[12:], src.Uint32())
		binary.BigEndian.PutUint32(ip[16:], dst.Uint32())
		addresses := uint64(src.Uint32()) + uint64(dst.Uint32())
		binary.BigEndian.PutUint16(ip[10:], ^fold(0x4500+uint64(len(ip))+64<<8+uint64(proto)+addresses))
		sum += addresses
		t = ip[20:]
	} else {
		binary.BigEndian.PutUint16(b[12:], 0x86dd)
		ip := b[etherHeader:]
		binary.BigEndian.PutUint32(ip, 6<<28)
		binary.BigEndian.PutUint32(ip[4:], uint32(len(ip)-40)<<16|uint32(proto)<<8|64)
		for i, a := range [2]inet.Addr{src, dst} {
			binary.BigEndian.PutUint64(ip[8+16*i:], a.Hi)
			binary.BigEndian.PutUint64(ip[16+16*i:], a.Lo)
			sum += a.Hi>>32 + a.Hi&0xffffffff + a.Lo>>32 + a.Lo&0xffffffff
		}
		t = ip[40:]
	}
	sum += uint64(len(t))
	binary.BigEndian.PutUint32(t, uint32(sport)<<16|uint32(dport))
	if f.tcp {
		// Sequence and acknowledgment number: each side has sent its SYN and nothing else.
		seq, ack := uint64(1), uint64(0)
		if tcpFlags&tcpSYN != 0 {
			seq = 0
		}
		if tcpFlags&tcpACK != 0 {
			ack = 1
		}
		binary.BigEndian.PutUint64(t[4:], seq<<32|ack)
		binary.BigEndian.PutUint64(t[12:], uint64(0x50)<<56|uint64(tcpFlags)<<48|0xffff<<32)
		binary.BigEndian.PutUint16(t[16:], ^fold(sum+seq+ack+0x5000+uint64(tcpFlags)+0xffff))
		return
	}
	binary.BigEndian.PutUint32(t[4:], uint32(len(t))<<16)
	if s := ^fold(sum + uint64(len(t))); s != 0 {
		binary.BigEndian.PutUint16(t[6:], s)
	} else {
		binary.BigEndian.PutUint16(t[6:], 0xffff)
	}
}

// fold is the one's complement sum of the 16-bit words in sum.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

// fragment turns the frame that put wrote into the first or second piece of a datagram, and returns
// its length. Only IPv4 has it.
func fragment(b []byte, id uint16, second bool) int {
	ip := b[etherHeader:]
	payload := (len(ip) - 20) &^ 7
	ip = ip[:20+payload]
	word := uint16(0x2000)
	if second {
		word = uint16(payload / 8)
	} else {
		// The datagram's length, of both pieces.
		binary.BigEndian.PutUint16(ip[24:], uint16(2*payload))
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[6:], word)
	binary.BigEndian.PutUint16(ip[10:], 0)
	var sum uint64
	for i := 0; i < 20; i += 4 {
		sum += uint64(binary.BigEndian.Uint32(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum))
	return etherHeader + len(ip)
}
