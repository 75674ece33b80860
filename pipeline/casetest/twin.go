// SPDX-License-Identifier: Apache-2.0

package casetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"weir/config"
)

// Twin is another way for a VPC's packets: a case runs once more with its plain inside ports
// changed to it, in memory, and nothing else may change.
type Twin struct {
	Name   string
	change func(*config.Config, *config.Attachment)
	in     func(port int, mac config.MAC, frame []byte) []byte          // as it comes
	out    func(port int, mac config.MAC, frame []byte) ([]byte, error) // what left, checked
}

// vlanOf and vniOf are the tags of the twins' attachments.
func vlanOf(port int) uint16 { return uint16(100 + port) }
func vniOf(port int) uint32  { return uint32(70000 + port) }

// underlay is where the tunnels of twins run.
var (
	twinEnds  = []netip.Prefix{netip.MustParsePrefix("10.255.0.1/16"), netip.MustParsePrefix("fd00:ffff::1/64")}
	twinHosts = []netip.Addr{netip.MustParseAddr("10.255.0.9"), netip.MustParseAddr("fd00:ffff::9")}
)

var twinSender = config.MAC{2, 0, 0, 0, 0, 0xee} // of outer packets

// Twins returns the twins that every case has.
func Twins() []Twin {
	return []Twin{
		{"vlan", func(_ *config.Config, a *config.Attachment) { a.VLAN.Outer = vlanOf(a.Port) }, tagged, untagged},
		{"geneve", tunnel(config.Geneve, 0), outer(geneveTwin), inner(geneveTwin)},
		{"vxlan-ipv6", tunnel(config.VXLAN, 1), outer(vxlanTwin), inner(vxlanTwin)},
	}
}

func tagged(port int, _ config.MAC, frame []byte) []byte {
	if len(frame) < 12 {
		return frame
	}
	return slices.Concat(frame[:12], []byte{0x81, 0, 0, byte(vlanOf(port))}, frame[12:])
}

func untagged(port int, _ config.MAC, frame []byte) ([]byte, error) {
	if len(frame) < 16 || binary.BigEndian.Uint32(frame[12:]) != 0x81000000|uint32(vlanOf(port)) {
		return nil, errors.New("the frame has not the VLAN of its attachment")
	}
	return slices.Concat(frame[:12], frame[16:]), nil
}

// tunnel changes attachments to tunnels, with all instances on one host.
func tunnel(encap config.Encap, family int) func(*config.Config, *config.Attachment) {
	return func(c *config.Config, a *config.Attachment) {
		p := &c.Ports[a.Port]
		p.Addresses = twinEnds
		p.MTU += config.TunnelOverhead(family == 1)
		a.Encap = encap
		a.Tunnel = config.Tunnel{VNI: vniOf(a.Port), UDPPort: map[config.Encap]uint16{config.VXLAN: config.VXLANPort, config.Geneve: config.GenevePort}[encap]}
		for i := range c.VPCs {
			v := &c.VPCs[i]
			if !slices.ContainsFunc(v.Attach, func(t config.Attachment) bool { return t.Port == a.Port }) {
				continue
			}
			for j := range v.Instances {
				v.Instances[j].Hosts = []netip.Addr{twinHosts[family]}
			}
		}
	}
}

// tunnelTwin is the outer header of a twin, written and read here once more, apart from the
// pipeline.
type tunnelTwin struct {
	family int
	udp    uint16
	shim   func(port int) []byte // with an option, where there may be some
	plain  func(port int) []byte // without
}

var geneveTwin = tunnelTwin{0, config.GenevePort,
	func(port int) []byte {
		b := binary.BigEndian.AppendUint32([]byte{2, 0, 0x65, 0x58}, vniOf(port)<<8)
		return append(b, 0x01, 0x02, 0x03, 1, 'o', 'p', 't', 0) // an option that nobody need know
	},
	func(port int) []byte { return binary.BigEndian.AppendUint32([]byte{0, 0, 0x65, 0x58}, vniOf(port)<<8) }}

var vxlanTwin = tunnelTwin{1, config.VXLANPort, vxlanShim, vxlanShim}

func vxlanShim(port int) []byte {
	return binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vniOf(port)<<8)
}

func sum16(sum uint32, b []byte) uint32 {
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i&1))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}

func outer(t tunnelTwin) func(int, config.MAC, []byte) []byte {
	return func(port int, mac config.MAC, frame []byte) []byte {
		body := slices.Concat(t.shim(port), frame)
		udp := binary.BigEndian.AppendUint16(nil, 50000)
		udp = binary.BigEndian.AppendUint16(udp, t.udp)
		udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(body)))
		udp = append(udp, 0, 0)
		src, dst := twinHosts[t.family].AsSlice(), twinEnds[t.family].Addr().AsSlice()
		b := slices.Concat(mac[:], twinSender[:])
		if t.family == 0 {
			ip := []byte{0x45, 0, byte((28 + len(body)) >> 8), byte(28 + len(body)), 0, 0, 0x40, 0, 64, 17, 0, 0}
			ip = slices.Concat(ip, src, dst)
			binary.BigEndian.PutUint16(ip[10:], ^uint16(sum16(0, ip)))
			return slices.Concat(b, []byte{8, 0}, ip, udp, body)
		}
		sum := sum16(sum16(sum16(sum16(17+uint32(8+len(body)), src), dst), udp), body)
		binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
		ip := []byte{0x60, 0, 0, 0, byte((8 + len(body)) >> 8), byte(8 + len(body)), 17, 64}
		return slices.Concat(b, []byte{0x86, 0xdd}, ip, src, dst, udp, body)
	}
}

func inner(t tunnelTwin) func(int, config.MAC, []byte) ([]byte, error) {
	return func(port int, mac config.MAC, frame []byte) ([]byte, error) {
		n := 34
		if t.family == 1 {
			n = 54
		}
		if len(frame) < n+16 {
			return nil, errors.New("the frame is shorter than its outer headers")
		}
		if [6]byte(frame[6:]) != mac || [6]byte(frame) != neighbor {
			return nil, fmt.Errorf("outer addresses are % x", frame[:12])
		}
		ip, udp := frame[14:n], frame[n:]
		dst, src := twinHosts[t.family].AsSlice(), twinEnds[t.family].Addr().AsSlice()
		size := len(udp)
		if !slices.Equal(ip, wantOuter(t.family, ip, src, dst, size)) {
			return nil, fmt.Errorf("outer header is % x", ip)
		}
		inner := udp[16:]
		tos := byte(0)
		switch binary.BigEndian.Uint16(inner[12:]) {
		case 0x0800:
			tos = inner[15] & 3
		case 0x86dd:
			tos = inner[15] >> 4 & 3
		}
		if t.family == 0 && ip[1] != tos || t.family == 1 && ip[1] != tos<<4 {
			return nil, fmt.Errorf("outer ECN is not the inner one: % x", ip[:2])
		}
		sport := binary.BigEndian.Uint16(udp)
		if sport < 49152 || binary.BigEndian.Uint16(udp[2:]) != t.udp || int(binary.BigEndian.Uint16(udp[4:])) != size || !slices.Equal(udp[8:16], t.plain(port)) {
			return nil, fmt.Errorf("outer UDP and tunnel headers are % x", udp[:16])
		}
		if sum := binary.BigEndian.Uint16(udp[6:]); t.family == 0 && sum != 0 {
			return nil, fmt.Errorf("outer UDP checksum is %#x", sum)
		} else if all := sum16(sum16(sum16(17+uint32(size), src), dst), udp); t.family == 1 && (sum == 0 || all != 0xffff) && wholeSum(inner) {
			return nil, fmt.Errorf("outer UDP checksum %#x is wrong: the sum is %#x", sum, all)
		}
		return slices.Clone(inner), nil
	}
}

// wholeSum reports whether the checksum of an inner TCP or UDP packet is right: only then the outer
// one is, which follows from it.
func wholeSum(frame []byte) bool {
	var proto byte
	var addresses, t []byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		addresses, proto, t = frame[26:34], frame[23], frame[34:]
		if frame[14] != 0x45 || binary.BigEndian.Uint16(frame[20:])&0x3fff != 0 {
			return true
		}
	case 0x86dd:
		addresses, proto, t = frame[22:54], frame[20], frame[54:]
	}
	if proto != 6 && proto != 17 || len(t) < 8 || proto == 17 && t[6]|t[7] == 0 {
		return true
	}
	return sum16(sum16(uint32(proto)+uint32(len(t)), addresses), t) == 0xffff
}

// wantOuter is the outer IP header but for its traffic class, which is got's.
func wantOuter(family int, got, src, dst []byte, size int) []byte {
	if family == 1 {
		return slices.Concat([]byte{0x60, got[1], 0, 0, byte(size >> 8), byte(size), 17, 64}, src, dst)
	}
	ip := slices.Concat([]byte{0x45, got[1], byte((20 + size) >> 8), byte(20 + size), 0, 0, 0x40, 0, 64, 17, 0, 0}, src, dst)
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum16(0, ip)))
	return ip
}

// configure changes the plain inside ports of a configuration to the twin's.
func (t *Twin) configure(c *config.Config) {
	for i := range c.VPCs {
		list := c.VPCs[i].Attach
		for j := range list {
			t.change(c, &list[j])
		}
	}
}

// RunTwin runs the case as Run does, with its inside ports changed.
func (c *Case) RunTwin(tb testing.TB, t *Twin) *Result {
	tb.Helper()
	d := *c
	d.twin = t
	t.configure(d.Config)
	return d.Run(tb)
}

// wrapped returns whether frames of a port are changed in a twin.
func (c *Case) wrapped(port int) bool {
	return c.twin != nil && c.Config.Ports[port].Side == config.Inside
}
