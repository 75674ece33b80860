// SPDX-License-Identifier: Apache-2.0

package respond

import (
	"encoding/binary"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
)

// wrap puts before a frame what frames of its attachment have. The frame may be moved.
func (r *Responder) wrap(at attach.Word, b []byte) []byte {
	const addresses = 12 // of the Ethernet header: tags come after them
	switch at.Kind() {
	case attach.VLAN:
		return slices.Insert(b, addresses, r.tag(0x8100, at, at.Outer())...)
	case attach.QinQ:
		return slices.Insert(b, addresses, append(r.tag(0x88a8, at, at.Outer()), r.tag(0x8100, at, at.Inner())...)...)
	}
	return b
}

// tag returns a VLAN tag with the priority that the attachment's frames have.
func (r *Responder) tag(tpid uint16, at attach.Word, vid uint16) []byte {
	pcp := r.cfg.Ports[at.Port()].PCP
	if a := r.attachments[at]; a != nil {
		pcp = a.PCP
	}
	if pcp != config.KeepPCP {
		vid |= uint16(pcp-1) << 13
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tpid), vid)
}
