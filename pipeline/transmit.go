// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"

	"weir/pipeline/drop"
	"weir/pipeline/header"
)

// transmit writes the Ethernet header of each packet and queues it, or holds it until its neighbor
// is resolved.
func (w *Worker) transmit(b *Burst) {
	for _, i := range b.live {
		p := &b.Packets[i]
		if p.hairpin {
			b.back = append(b.back, i)
			continue
		}
		switch mac := w.resolved(p.neighbor); {
		case mac == 0 && p.to.at.Tunnel(): // nobody is asked through a tunnel
			w.out(p, b.Port, b.inside, refuse(drop.NeighborUnresolved))
		case mac == 0 || p.to.at.Tunnel() && w.resolved(w.gen.Links[p.to.link].Neighbor) == 0:
			w.hold(b, p, mac)
		default:
			f := parcel{p.Data, p.Handle, p.Front, p.tci, uint16(p.hash)}
			if r := w.send(p.to, mac, &f, p.long); r != drop.Pass {
				w.out(p, b.Port, b.inside, refuse(r))
			}
		}
	}
}

// parcel is a packet that is ready but for what is before its IP header.
type parcel struct {
	frame  []byte
	handle uintptr
	front  uint16
	tci    uint16
	flow   uint16 // a hash of it
}

// send queues a packet, tagged as its attachment's frames are, or in pieces when it is longer than
// the link takes.
func (w *Worker) send(to way, mac uint64, f *parcel, long bool) drop.Reason {
	switch {
	case !to.at.Plain() && int(f.front) < overhead(to.at):
		return drop.NoHeadroom
	case !long:
		w.emit(to, mac, f)
	case !w.split(to, mac, f):
		return drop.TooBig
	}
	return drop.Pass
}

// emit queues a frame that fits, and has room for its tags.
func (w *Worker) emit(to way, mac uint64, f *parcel) {
	if to.at.Plain() {
		w.queue(to.at.Port(), mac, f.handle, f.frame)
	} else {
		w.wrap(to, mac, f)
	}
}

// queue puts a frame into the queue of a port. Every frame that is sent goes through it, as every
// packet that ends otherwise goes through out. The driver empties the queues after each call, so
// there is room.
func (w *Worker) queue(port int, mac uint64, handle uintptr, frame []byte) {
	src := w.macs[port]
	e := (*[header.EthernetSize]byte)(frame)
	binary.LittleEndian.PutUint64(e[:], mac|src<<48) // and two bytes of the source
	binary.LittleEndian.PutUint32(e[8:], uint32(src>>16))
	q := &w.Out[port]
	n := q.N & (queueSize - 1) // as q.N is
	q.Handles[n], q.Frames[n] = handle, frame
	q.N = n + 1
	q.bytes += uint64(len(frame))
}
