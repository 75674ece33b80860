// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"unsafe"

	"weir/appliance/link"
	"weir/dpdk"
	"weir/pipeline/header"
)

// Device is what a worker receives from: a device, and which of the ports on it a frame belongs to.
// Most have one port.
type Device struct {
	Port  *dpdk.Port
	Index int          // of the port, or of the one whose frames no other claims
	ByVID *[4096]uint8 // the port by a frame's first VID, 0 without a tag; nil: there is one
}

// Devices returns the devices of ports, some of which may share one.
func Devices(ports []*dpdk.Port, start []link.StartPort) []Device {
	var all []Device
	for i, p := range ports {
		at := slices.IndexFunc(all, func(d Device) bool { return d.Port == p })
		if at < 0 {
			all = append(all, Device{Port: p, Index: i})
			continue
		}
		if d := &all[at]; d.ByVID == nil {
			d.ByVID = new([4096]uint8)
		}
		if start[i].Inside { // attachments have all tags but those of outside ports
			all[at].Index = i
		}
	}
	for i := range all {
		d := &all[i]
		if d.ByVID == nil {
			continue
		}
		for vid := range d.ByVID {
			d.ByVID[vid] = uint8(d.Index)
		}
		for j, p := range ports {
			if p == d.Port && !start[j].Inside {
				d.ByVID[start[j].VLAN.Outer] = uint8(j)
			}
		}
	}
	return all
}

// port returns which port a frame belongs to.
func (d *Device) port(frame []byte) uint8 {
	vid := uint16(0)
	if len(frame) >= 16 {
		if tpid := binary.BigEndian.Uint16(frame[12:]); tpid == header.EtherTypeVLAN || tpid == header.EtherTypeQinQ {
			vid = binary.BigEndian.Uint16(frame[14:]) & 0xfff
		}
	}
	return d.ByVID[vid]
}

// divide takes what a device with several ports has received, in Rx, through the pipeline: a burst
// for each port.
func (w *Worker) divide(d *Device) {
	var of [dpdk.MaxBurst]uint8
	present := uint32(0)
	for i := range w.Rx.N {
		of[i] = d.port(unsafe.Slice((*byte)(w.Rx.Data[i]), w.Rx.Len[i]))
		present |= 1 << of[i]
	}
	for ; present != 0; present &= present - 1 {
		port := uint8(bits.TrailingZeros32(present))
		w.stock()
		b := &w.burst
		b.Port, b.N = int(port), 0
		for i := range w.Rx.N {
			if of[i] == port {
				w.fill(&b.Packets[b.N], i)
				b.N++
			}
		}
		w.Pipe.Process(b)
		w.send()
	}
}
