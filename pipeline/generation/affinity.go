// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// Beyond returns the MTU of the link to the instance that has an external address, or the most
// there is.
func (g *Generation) Beyond(external inet.Addr) uint16 {
	index, f := uint32(0), external.Family()
	switch h := g.Host(0, external); {
	case h == nil:
		r := g.Find(AttachedTables+uint32(f), external)
		if r == 0 {
			return ^uint16(0)
		}
		index = g.Attached[r-1].Instance
	case h.Kind == HostSNAT: // whose it is its mapping says; the instances behind one address may have different links
		return ^uint16(0)
	default:
		index = h.Index
	}
	if in := &g.Instances[index]; in.At[f] != attach.None {
		return g.Links[in.Link[f]].MTU
	}
	return ^uint16(0)
}

// AttachedTo reports whether a lies in a prefix that is attached to the instance.
func (g *Generation) AttachedTo(in *Instance, a inet.Addr) bool {
	r := g.Find(AttachedTables+uint32(a.Family()), a)
	return r != 0 && &g.Instances[g.Attached[r-1].Instance] == in
}

// Recheck holds a session against a newer generation: it ends when its remote address has no route
// to a gateway any more, or when its address, or port within its range, is not the instance's any
// more. When its address is merely not eligible for the route's gateway any more, sessions.on_move
// decides; a session that began from outside replies from the address it arrived on, whichever
// gateway the route names.
func (g *Generation) Recheck(s *session.Session, tick uint32) bool {
	h := g.Host(0, s.External)
	if h == nil || g.Own(s.Remote) != (s.Flags&session.Hairpin != 0) {
		return false
	}
	if to := g.Host(0, s.Remote); to != nil && to.Kind == HostOwn { // weir's own serves nobody inside
		return false
	}
	index := h.Index
	switch {
	case s.Flags&session.SNAT == 0 && (h.Kind == hostFloating || h.Kind == hostEphemeral):
	case s.Flags&session.SNAT != 0 && h.Kind == HostSNAT:
		r := g.rangeOf(h, s.ExternalPort())
		if r == nil || !g.through(r, s) {
			return false
		}
		index = r.Instance
	default:
		return false
	}
	in := &g.Instances[index]
	f := s.Private.Family()
	if in.Slot != s.Instance || g.VPCs[in.VPC].Slot != s.VPC || in.Addr[f] != s.Private {
		return false
	}
	r := g.Find(in.Routes[f], s.Remote)
	if r == 0 || g.Routes[r-1].Kind != RouteGateway || g.Routes[r-1].Plain && s.Flags&(session.FromOutside|session.Hairpin) == 0 ||
		s.Flags&session.Hairpin == 0 && g.Ways(&g.Routes[r-1], s.Remote) == 0 {
		return false
	}
	switch {
	case s.Flags&session.FromOutside != 0 || g.Eligible(h.Set, g.Routes[r-1].Gateway) || g.Header.OnMove == uint8(config.OnMoveKeep):
		s.Flags &^= session.Draining
	case g.Header.OnMove == uint8(config.OnMoveCut):
		return false
	case s.Flags&session.Draining == 0:
		s.Flags |= session.Draining
		if s.Drain = tick + g.Header.Drain; g.Header.Drain == 0 {
			return false
		}
	}
	g.Adjust(s, in, h.Ports, h.Rules&InboundRefresh != 0, s.Proto(), s.RemotePort())
	return true
}

// through reports whether the port of an SNAT session is still for what uses it: a port that is
// forwarded leads to one port of the instance alone, and what came through a forward ends with it.
func (g *Generation) through(r *SNATRange, s *session.Session) bool {
	var f *Forward
	switch s.Proto() {
	case header.ProtocolTCP:
		f = g.forwardByPort(r.Forwards, session.TCPPorts, s.ExternalPort())
	case header.ProtocolUDP:
		f = g.forwardByPort(r.Forwards, session.UDPPorts, s.ExternalPort())
	}
	if f == nil {
		return s.Flags&session.Forward == 0
	}
	return f.Private == s.PrivatePort()
}

// Adjust notes in a session, of instance in, what only the generation decides. Ports are those that
// its external address may use; refresh is what its pool says of packets from outside.
func (g *Generation) Adjust(s *session.Session, in *Instance, ports uint32, refresh bool, proto uint8, remotePort uint16) {
	f := s.Remote.Family()
	if s.Remote.Private() {
		if r := g.Find(in.Routes[f], s.Remote); r != 0 {
			ports &= g.Ways(&g.Routes[r-1], s.Remote)
		}
	}
	s.Delivery = session.Delivery{At: in.At[f], Link: in.Link[f], HopGroup: g.group(ports)}
	s.Neighbor, s.Timer = in.Neighbor[f], g.Header.timer(proto, remotePort)
	s.Flags &^= session.OnLink | session.Refresh | session.Bound
	if refresh {
		s.Flags |= session.Refresh
	}
	if in.MAC[f] != 0 {
		s.Flags |= session.Bound
	}
	for i := range g.OnLink {
		if g.OnLink[i].Holds(s.Remote) {
			s.Flags |= session.OnLink
		}
	}
	s.Generation = uint32(g.Number)
}

// Own reports whether a is one of weir's external addresses: its own, an instance's, or in an
// attached prefix.
func (g *Generation) Own(a inet.Addr) bool {
	return g.Host(0, a) != nil || g.Find(AttachedTables+uint32(a.Family()), a) != 0
}

// rangeOf returns the range of the SNAT address h that holds port, or nil.
func (g *Generation) rangeOf(h *Host, port uint16) *SNATRange {
	list := g.SNAT[h.Index : h.Index+uint32(h.Ranges)]
	lo, hi := 0, len(list)
	for lo < hi { // the last range that starts at or below port is lo-1
		if mid := int(uint(lo+hi) >> 1); list[mid].First > port {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == 0 || list[lo-1].Last < port {
		return nil
	}
	return &list[lo-1]
}
