// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"net/netip"
	"slices"
)

// Destination ports of tunnels, when none is configured.
const (
	VXLANPort  = 4789 // RFC 7348 section 8
	GenevePort = 6081 // RFC 8926 section 3.3
)

// TunnelOverhead is what a tunnel adds to an IP packet: the inner Ethernet header, that of VXLAN or
// Geneve without options, UDP's and the outer IP header.
func TunnelOverhead(outer6 bool) int {
	if outer6 {
		return 14 + 8 + 8 + 40
	}
	return 14 + 8 + 8 + 20
}

// attachKey is what two attachments may not share.
type attachKey struct {
	port  int
	vlan  VLAN
	encap Encap
	vni   uint32
}

// outerTag is the first tag of frames on a device, 0 for none: it names an outside port.
type outerTag struct {
	device string
	vid    uint16
}

// kindKey is what has one UDP port: the tunnels of one kind on a port.
type kindKey struct {
	port  int
	encap Encap
}

// checkDevices lets ports share a device whose frames can be told apart by their first tag.
func (c *checker) checkDevices() {
	first := map[string]*portText{}
	interfaces := map[string]*portText{}
	inside := map[string]owner{}
	c.outer = map[outerTag]owner{}
	for i := range c.doc.ports {
		p := &c.doc.ports[i]
		if !p.device.ok || !p.side.ok {
			continue
		}
		name := DeviceName(p.device.value)
		me := owner{"port", p.name.value, p.device.spot}
		if f := first[name]; f == nil {
			first[name] = p
			if i := interfaceOf(p.device.value); i != "" && interfaces[i] != nil {
				c.faults.add(p.device.spot, "interface %s of port %q is already used by %v; expected another interface",
					i, p.name.value, owner{"port", interfaces[i].name.value, interfaces[i].device.spot})
			} else {
				interfaces[i] = p
			}
		} else {
			other := owner{"port", f.name.value, f.device.spot}
			if f.device.value != p.device.value && p.vlan.value != f.vlan.value {
				c.faults.add(p.device.spot, "device %s of port %q is also that of %v, with other arguments; expected the same text", name, p.name.value, other)
			}
			if f.mac.value != p.mac.value {
				c.faults.add(p.device.spot, "ports %q and %q share device %s and have different mac; expected the same", f.name.value, p.name.value, name)
			}
		}
		if p.side.value == Inside {
			if o := inside[name]; o.spot != nil {
				c.faults.add(p.device.spot, "device %s of port %q is already used by %v; expected one inside port on a device, whose VLANs are under vpcs[].attach[]", name, p.name.value, o)
			} else {
				inside[name] = me
			}
			continue
		}
		tag := outerTag{name, p.vlan.value.Outer}
		if o := c.outer[tag]; o.spot != nil {
			c.faults.add(p.device.spot, "device %s of port %q is already used by %v; expected another device, or another first vlan", name, p.name.value, o)
			continue
		}
		c.outer[tag] = me
	}
}

// inside checks what an inside port has: weir's own addresses in the network that tunnels go over.
func (c *checker) inside(i int, p *portText, port *Port) {
	if len(p.privateSources) > 0 {
		c.faults.add(p.privateSources[0].spot, "private_sources on an inside port; expected them on outside ports, where private addresses are strange")
	}
	if p.answer.given() {
		c.faults.add(p.answer.spot, "an inside port answers for no external address; expected answer on outside ports only")
	}
	if p.vlan.ok && p.vlan.value != (VLAN{}) {
		c.faults.add(p.vlan.spot, "an inside port has no vlan of its own; expected vlan under vpcs[].attach[]")
	}
	if p.pcp.given() {
		c.faults.add(p.pcp.spot, "an inside port has no tag; expected pcp under vpcs[].attach[]")
	}
	if len(p.addresses) == 0 && len(p.nextHops) > 0 {
		c.faults.add(p.spot, "an inside port without addresses takes no next_hops; expected them under vpcs[].attach[]")
		return
	}
	var families [2]bool
	for _, a := range p.addresses {
		if !a.ok {
			continue
		}
		if f := family(a.value.Addr()); families[f] {
			c.faults.add(a.spot, "%v is the port's second %s address; expected one of each family, where tunnels end", a.value.Addr(), familyOf(a.value.Addr()))
		} else {
			families[f] = true
		}
		port.Addresses = append(port.Addresses, a.value)
	}
	port.NextHops = c.nextHops(p.nextHops, p.addresses, "the port's")
	if o := c.outer[outerTag{DeviceName(p.device.value), 0}]; o.spot != nil && len(p.addresses) > 0 {
		c.faults.add(p.addresses[0].spot, "untagged frames of the device belong to %v; expected a vlan there, or no addresses here", o)
	}
}

// place checks where an attachment is, and that nothing else is there.
func (v *vpcChecker) place(t *attachmentText, port int, a *Attachment) {
	p := &v.doc.ports[port]
	a.VLAN, a.PCP, a.Encap = t.vlan.value, t.pcp.value, t.encap.value
	if a.Encap == NoEncap {
		for _, only := range []struct {
			key  string
			spot *spot
		}{{"vni", t.vni.spot}, {"mac", t.mac.spot}, {"udp_port", t.udpPort.spot}, {"dscp", t.dscp.spot}, {"udp_checksum", t.checksum.spot}} {
			if only.spot != nil {
				v.faults.add(only.spot, "%s belongs to a tunnel; expected it beside encap", only.key)
			}
		}
		if len(t.peers) > 0 {
			v.faults.add(t.spot, "peers belong to a tunnel; expected them beside encap")
		}
		if t.pcp.given() && a.VLAN == (VLAN{}) {
			v.faults.add(t.pcp.spot, "an attachment without vlan has no tag to write a priority in; expected pcp beside vlan")
		}
	} else {
		v.tunnel(t, port, a)
	}
	key := attachKey{port, a.VLAN, a.Encap, a.Tunnel.VNI}
	here := owner{"VPC", v.vpc.Name, t.port.spot}
	if o := v.attached[key]; o.spot != nil {
		v.faults.add(t.port.spot, "inside port %q with this tag is already attached to %v; expected another vlan or vni", t.port.value, o)
	} else {
		v.attached[key] = here
	}
	if a.Encap == NoEncap {
		if o := v.outer[outerTag{DeviceName(p.device.value), a.VLAN.Outer}]; o.spot != nil {
			v.faults.add(t.port.spot, "frames with this first tag belong to %v on the same device; expected another vlan", o)
		}
		if a.VLAN == (VLAN{}) && len(p.addresses) > 0 {
			v.faults.add(t.port.spot, "untagged frames of inside port %q belong to the network that tunnels go over; expected vlan, encap, or a port without addresses", t.port.value)
		}
	}
}

// tunnel checks what an attachment with encap has.
func (v *vpcChecker) tunnel(t *attachmentText, port int, a *Attachment) {
	p := &v.doc.ports[port]
	if t.vlan.ok && a.VLAN != (VLAN{}) {
		v.faults.add(t.vlan.spot, "a tunnel has no vlan; expected vlan or encap")
		a.VLAN = VLAN{}
	}
	if t.pcp.given() {
		v.faults.add(t.pcp.spot, "a tunnel has no tag to write a priority in; expected dscp, or no pcp")
	}
	if !t.vni.given() {
		v.faults.add(t.spot, "a tunnel has no vni; expected one")
	}
	if len(t.nextHops) > 0 {
		v.faults.add(t.nextHops[0].address.spot, "a tunnel has no next_hops: each instance names its host; expected none")
	}
	if len(p.addresses) == 0 {
		v.faults.add(t.port.spot, "tunnels end on inside port %q, which has no address; expected addresses there", t.port.value)
	}
	u := &a.Tunnel
	u.VNI, u.MAC, u.ZeroChecksum, u.DSCP = uint32(t.vni.value), t.mac.value, t.checksum.value, t.dscp.value
	u.UDPPort = uint16(t.udpPort.or(map[Encap]int{VXLAN: VXLANPort, Geneve: GenevePort}[a.Encap]))
	for _, peer := range t.peers {
		if peer.ok {
			u.Peers = append(u.Peers, peer.value)
		}
	}
	if len(t.peers) == 0 {
		v.faults.add(t.spot, "a tunnel has no peers, so nobody may send through it; expected prefixes of endpoints")
	}
	slices.SortFunc(u.Peers, comparePrefix)
	u.Peers = slices.Compact(u.Peers)
	kind, other := kindKey{port, a.Encap}, kindKey{port, VXLAN + Geneve - a.Encap}
	switch o, known := v.udpPorts[kind]; {
	case known && o.port != u.UDPPort:
		v.faults.add(t.spot, "inside port %q has tunnels of this kind with udp_port %d at %v and %d; expected one", t.port.value, o.port, o.spot, u.UDPPort)
	case v.udpPorts[other].port == u.UDPPort:
		v.faults.add(t.spot, "inside port %q has VXLAN and Geneve with udp_port %d; expected different ports", t.port.value, u.UDPPort)
	default:
		v.udpPorts[kind] = udpPortOf{u.UDPPort, t.spot}
	}
}

type udpPortOf struct {
	port uint16
	spot *spot
}

// Via returns which of the attachments leads to an address of the VPC, or nil: the one with its
// prefix, else the first.
func (v *VPC) Via(a netip.Addr) *Attachment {
	for i := range v.Attach {
		t := &v.Attach[i]
		if slices.ContainsFunc(t.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
			return t
		}
	}
	if len(v.Attach) == 0 {
		return nil
	}
	return &v.Attach[0]
}

// hosts checks the endpoints that an instance's packets come from.
func (v *vpcChecker) hosts(t *instanceText, i *Instance) {
	for _, h := range t.hosts {
		if h.ok && !slices.Contains(i.Hosts, h.value) {
			i.Hosts = append(i.Hosts, h.value) // in their order: the first is sent to
		}
	}
	behind := false
	for _, a := range []netip.Addr{i.Address4, i.Address6} {
		if !a.IsValid() {
			continue
		}
		at := v.vpc.Via(a)
		if at == nil || at.Encap == NoEncap {
			continue
		}
		behind = true
		if len(t.hosts) == 0 {
			v.faults.add(t.spot, "instance %q is behind a tunnel and has no host; expected the endpoint that its packets come from", i.Name)
			return
		}
		for k, h := range i.Hosts {
			if !slices.ContainsFunc(at.Tunnel.Peers, func(p netip.Prefix) bool { return p.Contains(h) }) {
				v.faults.add(t.hosts[min(k, len(t.hosts)-1)].spot, "host %v is not among the peers of the instance's attachment; expected one of them", h)
			}
			if !slices.ContainsFunc(v.config.Ports[at.Port].Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == h.Is4() }) {
				v.faults.add(t.hosts[min(k, len(t.hosts)-1)].spot, "host %v: inside port %q has no %s address; expected one, or a host of the other family",
					h, v.config.Ports[at.Port].Name, familyOf(h))
			}
		}
	}
	if !behind && len(i.Hosts) > 0 {
		v.faults.add(t.hosts[0].spot, "instance %q is not behind a tunnel; expected no host, or encap under attach", i.Name)
	}
}

// compareAttachments orders the attachments of a VPC.
func compareAttachments(a, b Attachment) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.VLAN.Outer, b.VLAN.Outer), cmp.Compare(a.VLAN.Inner, b.VLAN.Inner),
		cmp.Compare(a.Encap, b.Encap), cmp.Compare(a.Tunnel.VNI, b.Tunnel.VNI))
}
