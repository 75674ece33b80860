// SPDX-License-Identifier: Apache-2.0

package pipeline

import "weir/pipeline/session"

// trackTCP moves a TCP session on, loosely: when both sides have sent a SYN, a segment without one opens it; FIN from both
// sides, or a reset, starts the closing timer and no more (RFC 7857 §2.2); data from inside after a reset proves that it was
// not the connection's; a new SYN begins anew.
func (w *Worker) trackTCP(s *session.Session, p *Packet, inside bool) {
	flags := p.tcpFlags
	var seen, other, fin uint16 = session.SeenOutside, session.SeenInside, session.FinOutside
	if inside {
		seen, other, fin = session.SeenInside, session.SeenOutside, session.FinInside
	}
	st, fl := s.State(), s.Flags
	if flags&tcpSYN != 0 {
		fl |= seen
	}
	switch {
	case flags&tcpRST != 0:
		if st == session.TCPOpen {
			fl |= session.Reset
		}
		st = session.TCPClosing
	case flags&(tcpSYN|tcpACK) == tcpSYN:
		if st == session.TCPClosing {
			st = session.TCPOpening
			fl = fl&^(session.SeenInside|session.SeenOutside|session.FinInside|session.FinOutside|session.Reset) | seen
		}
	default:
		if flags&tcpFIN != 0 {
			fl |= fin
		}
		if st == session.TCPOpening && flags&tcpSYN == 0 && fl&seen != 0 && fl&other != 0 {
			st = session.TCPOpen
		}
		if inside && fl&session.Reset != 0 {
			st, fl = session.TCPOpen, fl&^session.Reset
		}
		if fl&session.FinInside != 0 && fl&session.FinOutside != 0 {
			st = session.TCPClosing
		}
	}
	if st != s.State() {
		if s.State() == session.TCPOpen { // the closing timer begins; resets and SYNs in turn must not keep a session alive
			s.Last = w.tick
		}
		s.SetState(st)
	}
	if fl != s.Flags {
		s.Flags = fl
	}
}
