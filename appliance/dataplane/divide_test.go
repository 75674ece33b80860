// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"weir/appliance/link"
	"weir/config"
	"weir/dpdk"
)

// Frames of a device with several ports belong to the outside port that their first tag names, else
// to the inside port.
func TestDevicesOfPorts(t *testing.T) {
	shared, alone := new(dpdk.Port), new(dpdk.Port)
	list := Devices([]*dpdk.Port{shared, alone, shared, shared}, []link.StartPort{
		{VLAN: config.VLAN{Outer: 300}}, {}, {Inside: true}, {VLAN: config.VLAN{Outer: 400, Inner: 7}}})
	if len(list) != 2 || list[1].Port != alone || list[1].Index != 1 || list[1].ByVID != nil || list[0].Port != shared || list[0].Index != 2 {
		t.Fatalf("devices are %+v", list)
	}
	d := &list[0]
	tag := func(tpid, tci uint16) []byte {
		return append(make([]byte, 12), byte(tpid>>8), byte(tpid), byte(tci>>8), byte(tci), 8, 0)
	}
	for _, c := range []struct {
		frame []byte
		port  uint8
	}{
		{tag(0x8100, 300), 0}, {tag(0x8100, 0xe000|300), 0}, {tag(0x88a8, 400), 3}, {tag(0x8100, 400), 3},
		{tag(0x8100, 100), 2}, {tag(0x8100, 0), 2}, {tag(0x0800, 300), 2}, {nil, 2}, {tag(0x8100, 300)[:15], 2},
	} {
		if got := d.port(c.frame); got != c.port {
			t.Errorf("%x belongs to port %d, want %d", c.frame, got, c.port)
		}
	}
	// An outside port without a tag takes what has none.
	list = Devices([]*dpdk.Port{shared, shared}, []link.StartPort{{}, {Inside: true}})
	if d = &list[0]; d.port(tag(0x0800, 0)) != 0 || d.port(tag(0x8100, 5)) != 1 {
		t.Errorf("devices are %+v", list)
	}
}
