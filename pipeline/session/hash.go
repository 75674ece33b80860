// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"
)

// Secret keys the table's hash. It is random for every table, so that no sender can choose flows
// that fall into one bucket.
type Secret [8]uint64

// hash is NH (RFC 4418 §5.2: a sum of products of keyed words), over 64-bit words, folded by a
// keyed multiplication. For two different keys the chance of one hash, over the secret, is about
// 2^-64, whatever the sender knows but the secret; and it costs three multiplications.
func (s *Secret) hash(k *Key) uint64 {
	a, al := bits.Mul64(k.Local.Hi+s[0], k.Local.Lo+s[1])
	b, bl := bits.Mul64(k.Remote.Hi+s[2], k.Remote.Lo+s[3])
	c, cl := bits.Mul64(k.word+s[4], uint64(k.VPC)<<32+(k.mask>>32)+s[5])
	lo, carry := bits.Add64(al, bl, 0)
	hi, _ := bits.Add64(a, b, carry)
	lo, carry = bits.Add64(lo, cl, 0)
	hi, _ = bits.Add64(hi, c, carry)
	h, l := bits.Mul64(hi^s[6], lo^s[7])
	return h ^ l
}
