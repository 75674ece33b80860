// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/header"
)

// hairpin makes those packets of a burst that go to an external address of weir, translated as they
// would be for the Internet, packets from outside (RFC 4787 REQ-9): their receiver sees the
// sender's external address and port. They turn once: what comes from outside never leaves through
// an outside port. The sender's external address is their remote one now, so they may have another
// owner.
func (w *Worker) hairpin(b *Burst) {
	if len(b.back) == 0 {
		return
	}
	b.live, b.back, b.inside = b.back, b.turned[:0], false
	for _, i := range b.live {
		b.Packets[i].reverse()
	}
	if w.handoff != nil {
		w.steer(b, 0)
	}
	w.lookupAll(b)
	w.forward(b)
}

// reverse looks at a packet from the other side. Its bytes are translated already.
func (p *Packet) reverse() {
	sender, port := p.local, p.localPort
	if p.act == actOut {
		sender, port = p.newAddr, p.newPort
	}
	if p.kind == kindError {
		p.quote.reverse(p)
	}
	p.local, p.remote = p.remote, sender
	switch {
	case p.kind == kindEchoRequest, p.kind == kindEchoReply, p.kind == kindPiece && (p.proto == header.ProtocolICMP || p.proto == header.ProtocolICMPv6):
		p.localPort = port
	default:
		p.localPort, p.remotePort = p.remotePort, port
	}
	p.act, p.headerDelta, p.hairpin, p.turned, p.expired, p.shared, p.plain = actNone, 0, false, true, false, false, false
}
