// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"math/bits"
)

// Hash keys the open tables of addresses: hosts, within a domain, and neighbors, within a port.
func Hash(secret uint64, domain uint32, a Addr) uint32 {
	h, l := bits.Mul64(a.Hi^secret, (a.Lo^uint64(domain)<<32)*0x9e3779b97f4a7c15|1)
	h2, l2 := bits.Mul64((h^l^a.Lo)+secret, 0xd6e8feb86659fd93)
	return uint32(h2 ^ l2)
}
