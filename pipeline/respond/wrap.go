// SPDX-License-Identifier: Apache-2.0

package respond

import (
	"encoding/binary"
	"slices"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/state"
)

// wrap puts before a frame what frames of its attachment have. The frame may be moved.
func (r *Responder) wrap(at attach.Word, b []byte) []byte {
	const addresses = 12 // of the Ethernet header: tags come after them
	switch at.Kind() {
	case attach.VLAN:
		return slices.Insert(b, addresses, r.tag(header.EtherTypeVLAN, at, at.Outer())...)
	case attach.QinQ:
		return slices.Insert(b, addresses, append(r.tag(header.EtherTypeQinQ, at, at.Outer()), r.tag(header.EtherTypeVLAN, at, at.Inner())...)...)
	case attach.VXLAN, attach.Geneve:
		return r.encap(at, b)
	}
	return b
}

// encap puts a frame into a packet to the endpoint that the message in hand came from; nil: that is
// no host any more, or not resolved.
func (r *Responder) encap(at attach.Word, b []byte) []byte {
	i, known := r.gen.Attachment(at)
	if !known {
		return nil
	}
	h := r.gen.Host(generation.EndpointDomain(i), r.via)
	if h == nil {
		return nil
	}
	l := &r.gen.Links[h.Index]
	is, mac := r.state.Neighbors.Get(l.Neighbor)
	if is < state.NeighborReachable {
		if mac = r.Assume; !r.Passive {
			r.want(probeKey{attach.Port(at.Port()), l.Hop}, r.now)
			return nil
		}
	}
	return l.Wrap(b, at.Tag(), uint16(r.via.Lo), r.macs[at.Port()], mac)
}

// mac returns weir's own MAC on an attachment.
func (r *Responder) mac(at attach.Word) header.MAC {
	if a := r.attachments[at]; a != nil && a.Tunnel.MAC != (config.MAC{}) {
		return header.MAC(a.Tunnel.MAC)
	}
	return header.MAC(r.macs[at.Port()])
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
