// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// packet is one captured packet: where it arrived, and what it is.
type packet struct {
	port     string
	protocol string // udp, ping, syn, syn-ack
	from, to string // address:port; for ping the port is the identifier
}

// story is what `make replay` plays, a millisecond between each two packets.
var story = []packet{
	// web-1 to a destination behind each route, and every protocol on the default one.
	{"blue", "udp", "172.30.0.5:40001", "198.18.0.10:7"}, // leaves as 192.0.2.1
	{"blue", "syn", "172.30.0.5:40002", "198.18.0.10:7"},
	{"blue", "ping", "172.30.0.5:4003", "198.18.0.10:0"},
	{"blue", "udp", "[fd00:1::5]:40004", "[2001:db8:100::10]:7"}, // leaves as 2001:db8:1::1
	{"blue", "udp", "172.30.0.5:40005", "198.18.1.10:7"},         // another gateway: 203.0.113.20
	{"blue", "udp", "172.30.0.5:40006", "198.18.5.10:7"},         // custom beats system: 203.0.113.20
	{"blue", "udp", "172.30.0.5:40007", "198.18.4.10:7"},         // drop route
	// web-2: two floating addresses share its flows; none of the gateway `partner`.
	{"blue", "udp", "172.30.0.6:41001", "198.18.0.10:7"},
	{"blue", "udp", "172.30.0.6:41002", "198.18.0.10:7"},
	{"blue", "udp", "172.30.0.6:41003", "198.18.0.10:7"},
	{"blue", "udp", "172.30.0.6:41004", "198.18.0.10:7"},
	{"blue", "udp", "172.30.0.6:41005", "198.18.0.10:7"},
	{"blue", "udp", "172.30.0.6:41006", "198.18.0.10:7"},
	{"blue", "udp", "172.30.0.6:41007", "198.18.1.10:7"}, // no eligible address: dropped
	// batch-1 shares an address: 192.0.2.14, a port from its range.
	{"blue", "udp", "172.30.0.7:42001", "198.18.0.10:7"},
	// The other tenant has web-1's private address, and even the same port.
	{"green", "udp", "172.30.0.5:40001", "198.18.0.10:7"}, // leaves as 192.0.2.4
	// An answer to web-1's first packet, and a call for its floating address with the guest's
	// answer to that.
	{"outside", "udp", "198.18.0.10:7", "192.0.2.1:40001"},
	{"outside", "syn", "198.18.0.10:50001", "203.0.113.20:7"},
	{"blue", "syn-ack", "172.30.0.5:7", "198.18.0.10:50001"}, // leaves as 203.0.113.20, not as 192.0.2.1
	// Nobody can call a shared address.
	{"outside", "udp", "198.18.0.10:50002", "192.0.2.14:2000"},
}

// capture writes the story as DIR/PORT.pcap, one file for each port. The same bytes every time.
func capture(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i, p := range story {
		frame, err := p.frame()
		if err != nil {
			return fmt.Errorf("packet %d (%+v): %w", i, p, err)
		}
		if files[p.port] == nil {
			files[p.port] = pcapHeader()
		}
		files[p.port] = appendPcapRecord(files[p.port], start.Add(time.Duration(i)*time.Millisecond), frame)
	}
	for port, b := range files {
		if err := os.WriteFile(filepath.Join(dir, port+".pcap"), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// pcapHeader begins a capture file of Ethernet frames with microsecond stamps
// (draft-ietf-opsawg-pcap, section 4).
func pcapHeader() []byte {
	const magic, major, minor, snapLen, ethernet = 0xa1b2c3d4, 2, 4, 65535, 1
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint16(b, major)
	b = binary.LittleEndian.AppendUint16(b, minor)
	b = append(b, make([]byte, 8)...) // two reserved words
	b = binary.LittleEndian.AppendUint32(b, snapLen)
	return binary.LittleEndian.AppendUint32(b, ethernet)
}

func appendPcapRecord(b []byte, at time.Time, frame []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(at.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(at.Nanosecond()/1000))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame))) // captured
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame))) // on the wire
	return append(b, frame...)
}

// frame builds the packet's Ethernet frame, checksums included.
func (p packet) frame() ([]byte, error) {
	from, err := netip.ParseAddrPort(p.from)
	if err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(p.to)
	if err != nil {
		return nil, err
	}
	ethernet := &layers.Ethernet{
		SrcMAC:       []byte{2, 0, 0, 0, 0, from.Addr().AsSlice()[from.Addr().BitLen()/8-1]}, // a guest's as in weir.yaml
		DstMAC:       []byte{2, 0, 0, 0, 0, 1},
		EthernetType: layers.EthernetTypeIPv4,
	}
	data := gopacket.Payload("weir playground")
	stack := []gopacket.SerializableLayer{ethernet}
	var network gopacket.NetworkLayer
	protocol := map[string]layers.IPProtocol{
		"udp": layers.IPProtocolUDP, "syn": layers.IPProtocolTCP, "syn-ack": layers.IPProtocolTCP, "ping": layers.IPProtocolICMPv4,
	}[p.protocol]
	if from.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		network, stack = ip, append(stack, ip)
	} else {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		network, stack = ip, append(stack, ip)
	}
	switch p.protocol {
	case "udp":
		udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
		udp.SetNetworkLayerForChecksum(network)
		stack = append(stack, udp, data)
	case "syn", "syn-ack":
		tcp := &layers.TCP{SrcPort: layers.TCPPort(from.Port()), DstPort: layers.TCPPort(to.Port()), Seq: 1000, SYN: true, Window: 65535}
		if p.protocol == "syn-ack" {
			tcp.ACK, tcp.Ack = true, 1001
		}
		tcp.SetNetworkLayerForChecksum(network)
		stack = append(stack, tcp)
	case "ping":
		icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: from.Port(), Seq: 1}
		stack = append(stack, icmp, data)
	default:
		return nil, fmt.Errorf("protocol %q: expected udp, syn, syn-ack or ping", p.protocol)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
