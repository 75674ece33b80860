// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"weir/pipeline/inet"
)

// martian reports whether a may be nobody's address on the Internet's side: RFC 1122 §3.2.1.3, RFC
// 6890, RFC 4291. A private address is not among them: a VPC may route one to a gateway.
func martian(a inet.Addr) bool {
	if a.Is4() {
		switch n := a.Uint32(); n >> 24 {
		case 0, 127:
			return true
		case 169:
			return n>>16 == 0xa9fe
		default:
			return n>>28 >= 14 // multicast, class E, broadcast
		}
	}
	switch {
	case a.Hi == 0: // unspecified, loopback, mapped, compatible
		return true
	case a.Hi>>56 == 0xff: // multicast
		return true
	case a.Hi>>54 == 0xfe80>>6: // link-local
		return true
	}
	return false
}

// linkLocal reports whether a has the scope of one link (RFC 3927, RFC 4291 §2.5.6).
func linkLocal(a inet.Addr) bool {
	if a.Is4() {
		return a.Uint32()>>16 == 0xa9fe
	}
	return a.Hi>>54 == 0xfe80>>6
}
