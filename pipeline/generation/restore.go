// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"weir/pipeline/header"
	"weir/pipeline/session"
)

// Restore decides, at millisecond tick, whether a session stays that a dead data plane has left,
// and derives anew all of it that the generation or other fields decide: whatever had become of it
// in memory, it is a session that could have been made, of an instance's own with an address of its
// own. slot is that of its external address, if that is shared.
func (g *Generation) Restore(s *session.Session, tick uint32) (slot uint32, ok bool) {
	if !consistent(s) || !g.Recheck(s, tick) {
		return 0, false
	}
	s.HeaderDelta, s.Delta = header.AddressDeltas(s.Proto(), s.Private.Sum(), s.External.Sum(), s.PrivatePort(), s.ExternalPort())
	if s.Flags&session.SNAT != 0 {
		slot = g.Host(0, s.External).Slot
	}
	return slot, true
}

// consistent reports whether the parts of a session fit each other.
func consistent(s *session.Session) bool {
	f := s.Private.Family()
	if s.Remote.Family() != f || s.External.Family() != f {
		return false
	}
	proto := s.Proto()
	space, translated := session.SpaceOf(proto)
	echo := uint8(header.ProtocolICMP)
	if !s.Private.Is4() {
		echo = header.ProtocolICMPv6
	}
	switch s.State() {
	case session.UDP:
		translated = proto == header.ProtocolUDP
	case session.ICMP:
		translated = proto == echo
	case session.TCPOpening, session.TCPOpen, session.TCPClosing:
		translated = proto == header.ProtocolTCP
	case session.Other:
		translated = s.Flags&session.SNAT == 0
	case session.Unconfirmed:
		translated = s.Flags&session.FromOutside != 0 && (s.Flags&session.SNAT == 0 || translated && (space != session.EchoIdentifiers || proto == echo))
	}
	mapped := s.Mapping != session.None
	switch {
	case !translated:
		return false
	case s.Flags&session.SNAT == 0:
		return !mapped && s.ExternalPort() == s.PrivatePort() && s.Flags&(session.Given|session.Forward) == 0
	case s.Flags&session.Given != 0:
		return !mapped && proto == header.ProtocolTCP
	}
	return s.Flags&session.Forward == 0 || !mapped
}
