// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/header"
)

// MaxSpare is how many packet buffers a worker keeps for the pieces of packets that are too long
// for the next link.
const MaxSpare = MaxBurst

// Spare are empty packet buffers. The driver tops them up once a turn.
type Spare struct {
	N       int
	Handles [MaxSpare]uintptr
	Data    [MaxSpare][]byte // all of each buffer, but Front
	Front   uint16           // how much room is before Data
}

// split queues an IPv4 packet that is longer than its link in pieces, in order (RFC 791 §3.2, RFC
// 4787 REQ-13a), or reports that there are too few buffers.
func (w *Worker) split(to way, mac uint64, f *parcel) bool {
	mtu, port := int(w.gen.Links[to.link].MTU), to.at.Port()
	frame := f.frame
	ip := frame[header.EthernetSize:]
	hlen := int(ip[0]&0x0f) * 4
	word := binary.BigEndian.Uint16(ip[6:])
	data := ip[hlen:]
	var later [60]byte // the header of all but the first piece
	llen := copy(later[:], ip[:20])
	llen += copyOptions(later[20:], ip[20:hlen])
	later[0] = 0x40 | byte(llen/4)
	first, room := (mtu-hlen)&^7, (mtu-llen)&^7
	s := &w.Spare
	if more := (len(data) - first + room - 1) / room; more > s.N || int(s.Front) < overhead(to.at) {
		return false
	}
	binary.BigEndian.PutUint16(ip[6:], word|header.IPv4MoreFragments)
	sealIPv4(ip[:hlen+first])
	f.frame = frame[:header.EthernetSize+hlen+first]
	w.emit(to, mac, f)
	for at := first; at < len(data); at += room {
		n := min(room, len(data)-at)
		s.N--
		piece := s.Data[s.N][:header.EthernetSize+llen+n]
		binary.BigEndian.PutUint16(piece[12:], header.EtherTypeIPv4)
		ip := piece[header.EthernetSize:]
		copy(ip, later[:llen])
		copy(ip[llen:], data[at:at+n])
		flags := word + uint16(at/8)
		if at+n < len(data) {
			flags |= header.IPv4MoreFragments
		}
		binary.BigEndian.PutUint16(ip[6:], flags)
		sealIPv4(ip)
		q := &w.Out[port]
		q.extra[q.N/64] |= 1 << (q.N % 64)
		q.extras++
		w.emit(to, mac, &parcel{piece, s.Handles[s.N], s.Front, f.tci, f.flow})
	}
	return true
}

// copyOptions writes the options that every fragment carries, padded, and returns their length.
func copyOptions(to, o []byte) int {
	n := 0
	for len(o) > 0 && o[0] != 0 {
		size := 1
		if o[0] != 1 {
			size = int(o[1])
		}
		if o[0]&0x80 != 0 {
			n += copy(to[n:], o[:size])
		}
		o = o[size:]
	}
	return (n + 3) &^ 3 // to is zero: end of options
}

// sealIPv4 writes total length and checksum of a packet.
func sealIPv4(ip []byte) {
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	header.IPv4(ip).UpdateChecksum()
}
