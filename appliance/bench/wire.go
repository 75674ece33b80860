// SPDX-License-Identifier: Apache-2.0

package bench

import "encoding/binary"

// wire is how an attachment's frames differ from plain ones.
type wire struct {
	port, attach, instance string                           // what the configuration says of it
	wrap                   func(frame []byte, size int) int // puts it before a plain frame at wireRoom, at the start of frame
}

// wireRoom is where plain frames are made that something goes before.
const wireRoom = 64

var wires = map[string]wire{
	"vlan":   {attach: ", vlan: 100", wrap: wrapVLAN},
	"vxlan":  {port: underlay, attach: ", encap: vxlan, vni: 7, peers: [10.254.0.0/16]", instance: host, wrap: wrapTunnel(4789, [4]byte{8})},
	"geneve": {port: underlay, attach: ", encap: geneve, vni: 7, peers: [10.254.0.0/16]", instance: host, wrap: wrapTunnel(6081, [4]byte{0, 0, 0x65, 0x58})},
}

const (
	underlay = `, addresses: [10.255.0.1/24], next_hops: [{address: 10.255.0.254, mac: "02:00:00:00:09:fe"}]`
	host     = ", host: 10.254.0.9"
)

func wrapVLAN(b []byte, size int) int {
	copy(b, b[wireRoom:wireRoom+12])
	copy(b[12:], []byte{0x81, 0, 0, 100})
	return 16 + copy(b[16:], b[wireRoom+12:wireRoom+size])
}

func wrapTunnel(port uint16, shim [4]byte) func([]byte, int) int {
	var head [50]byte
	copy(head[:], benchMACs[0][:])
	copy(head[6:], benchSender[:])
	copy(head[12:], []byte{8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 254, 0, 9, 10, 255, 0, 1, 0xc0, 1, byte(port >> 8), byte(port)})
	copy(head[42:], shim[:])
	head[48] = 7
	return func(b []byte, size int) int {
		copy(b, head[:])
		binary.BigEndian.PutUint16(b[16:], uint16(36+size))
		binary.BigEndian.PutUint16(b[38:], uint16(16+size))
		sum := uint64(0)
		for i := 14; i < 34; i += 2 {
			sum += uint64(binary.BigEndian.Uint16(b[i:]))
		}
		binary.BigEndian.PutUint16(b[24:], ^fold(sum))
		return 50 + copy(b[50:], b[wireRoom:wireRoom+size])
	}
}
