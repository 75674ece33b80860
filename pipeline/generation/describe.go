// SPDX-License-Identifier: Apache-2.0

package generation

import "weir/pipeline/session"

// GatewayOf returns which gateway the route of a session names now: an index into the
// configuration's, or config.UnnamedGateway. False: its address is no instance's any more, or no
// route leads to a gateway.
func (g *Generation) GatewayOf(s *session.Session) (gateway int32, ok bool) {
	h := g.Host(0, s.External)
	if h == nil || h.Kind == HostOwn {
		return 0, false
	}
	index := h.Index
	if h.Kind == HostSNAT {
		r := g.rangeOf(h, s.ExternalPort())
		if r == nil {
			return 0, false
		}
		index = r.Instance
	}
	r := g.Find(g.Instances[index].Routes[s.Private.Family()], s.Remote)
	if r == 0 || g.Routes[r-1].Kind != RouteGateway {
		return 0, false
	}
	return g.Routes[r-1].Gateway, true
}

// IdleLimit returns for how many milliseconds a session may be idle, while its table is pressed or
// not. Its twin, for packets, is Worker.limit.
func (g *Generation) IdleLimit(s *session.Session, pressed bool) uint32 {
	if s.Timer != 0 && s.State() == session.UDP && int(s.Timer) < len(g.Header.UDPTimeouts) {
		return g.Header.UDPTimeouts[s.Timer]
	}
	which := 0
	if pressed {
		which = 1
	}
	return g.Header.Timeouts[which][s.State()%session.NumStates]
}
