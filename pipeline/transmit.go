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
		case mac == 0:
			w.hold(b, p)
		case !p.long:
			w.queue(p.to.at.Port(), mac, p.Handle, p.Data)
		case !w.split(p.to, mac, p.Handle, p.Data):
			w.out(p, b.Port, b.inside, refuse(drop.TooBig))
		}
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
