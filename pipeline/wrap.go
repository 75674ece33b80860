// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"unsafe"

	"weir/config"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
)

// Tags and outer headers come off before parsePlain and parse look at a packet, and go on when it
// is queued. Everything between sees it as if it had come untagged.

const tagSize = 4 // of a VLAN tag

// overhead returns how many bytes go before a frame of an attachment.
func overhead(at attach.Word) int {
	switch at.Kind() {
	case attach.VLAN:
		return tagSize
	case attach.QinQ:
		return 2 * tagSize
	case attach.VXLAN, attach.Geneve:
		return header.EthernetSize + generation.MaxOuter
	}
	return 0
}

// unwrap takes the tags off a frame of a port where some frames have them, and finds the attachment
// that it came from.
func (w *Worker) unwrap(b *Burst, p *Packet) drop.Reason {
	d := p.Data
	own := w.gen.Ports[b.Port].Own
	p.from, p.via, p.tci = own, 0, 0
	if p.Long || len(d) < header.EthernetSize {
		return drop.Pass // parse says what is wrong with it
	}
	port := &w.gen.Ports[b.Port]
	at, n := attach.Port(b.Port), 0
	if port.UDP[0]|port.UDP[1] != 0 {
		if r, tunnel := w.decap(port, b.Port, p); tunnel {
			return r
		}
	}
	switch tpid := binary.BigEndian.Uint16(d[12:]); tpid {
	case header.EtherTypeVLAN, header.EtherTypeQinQ:
		if len(d) < header.EthernetSize+tagSize {
			return drop.ShortFrame
		}
		tci := binary.BigEndian.Uint16(d[14:])
		vid := uint32(tci & 0xfff)
		p.tci, n = tci&^0xfff, tagSize
		switch next := binary.BigEndian.Uint16(d[16:]); {
		case next == header.EtherTypeVLAN:
			if len(d) < header.EthernetSize+2*tagSize {
				return drop.ShortFrame
			}
			inner := uint32(binary.BigEndian.Uint16(d[18:]) & 0xfff)
			if vid == 0 || inner == 0 {
				return drop.VLANTag
			}
			at, n = attach.Make(b.Port, attach.QinQ, vid<<12|inner), 2*tagSize
		case tpid != header.EtherTypeVLAN:
			return drop.VLANTag
		case vid != 0: // else it is an untagged frame with a priority (IEEE 802.1Q, priority tags)
			at = attach.Make(b.Port, attach.VLAN, vid)
		}
	}
	switch {
	case at == own.At:
	case !b.inside:
		return drop.VLANTag
	default:
		i, known := w.gen.Attachment(at)
		if !known {
			return drop.VLANTag
		}
		p.from = generation.Place{At: at, Index: i}
	}
	if n != 0 {
		p.untag(n)
	}
	return drop.Pass
}

// untag takes n bytes of tags out of the Ethernet header: the addresses move up to the type.
func (p *Packet) untag(n int) {
	d := p.Data
	first, second := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:])
	d = d[n:]
	binary.LittleEndian.PutUint64(d, first)
	binary.LittleEndian.PutUint32(d[8:], second)
	p.Data, p.Front = d, p.Front+uint16(n)
}

// untagPriority takes a priority tag, of VID 0, off a frame of a port without tags.
func (p *Packet) untagPriority() bool {
	d := p.Data
	if len(d) < header.EthernetSize+tagSize || binary.BigEndian.Uint16(d[12:]) != header.EtherTypeVLAN || binary.BigEndian.Uint16(d[14:])&0xfff != 0 {
		return false
	}
	p.tci = binary.BigEndian.Uint16(d[14:])
	p.untag(tagSize)
	return true
}

// wrap queues a frame with what its attachment's frames have. The caller knows that there is room.
func (w *Worker) wrap(to way, mac uint64, f *parcel) {
	if to.at.Tunnel() {
		w.encap(to, mac, f)
		return
	}
	n := overhead(to.at)
	frame := grow(f.frame, n)
	tci := f.tci
	if pcp := w.gen.Links[to.link].PCP; pcp != config.KeepPCP {
		tci = uint16(pcp-1) << 13
	}
	if n == tagSize {
		binary.BigEndian.PutUint32(frame[12:], header.EtherTypeVLAN<<16|uint32(tci)|to.at.Tag())
	} else {
		binary.BigEndian.PutUint32(frame[12:], header.EtherTypeQinQ<<16|uint32(tci)|to.at.Tag()>>12)
		binary.BigEndian.PutUint32(frame[16:], header.EtherTypeVLAN<<16|uint32(tci)|to.at.Tag()&0xfff)
	}
	w.queue(to.at.Port(), mac, f.handle, frame)
}

// grow returns a frame with n more bytes before it, which are free in its buffer.
func grow(frame []byte, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(frame)), -n)), len(frame)+n)
}
