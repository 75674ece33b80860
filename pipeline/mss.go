// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
)

// clampMSS lowers the segment size that a SYN offers to what fits both links, or to what the
// configuration says.
func (w *Worker) clampMSS(from int, p *Packet) {
	limit := w.gen.Header.MSSClamp
	switch limit {
	case generation.ClampOff:
		return
	case generation.ClampAuto:
		headers := uint16(header.IPv4Size + header.TCPSize)
		if p.family == inet.V6 {
			headers = header.IPv6Size + header.TCPSize
		}
		mtu := min(w.gen.Links[max(p.via, uint16(from))].MTU, w.gen.Links[p.to.link].MTU)
		if mtu <= headers {
			return
		}
		limit = mtu - headers
	}
	header.TCP(p.Data[p.transport:]).ClampMSS(limit)
}
