// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"strings"
)

// talk gives the segments of a connection the numbers that two proper hosts would.
type talk struct {
	next [2]uint32 // per side, inside first: what it sends next
	isn  uint32
	syn  [2]bool // a SYN is the last that it said
}

// say returns the flags, numbers and n bytes of the next segment of a side as packettext has them.
func (c *talk) say(side int, flags string, n int) string {
	has := func(f string) bool { return strings.Contains(flags, f) }
	if has("SYN") {
		if !has("ACK") || !c.syn[side] {
			c.isn += 1_000_003
			c.next[side] = c.isn
		} else {
			c.next[side]-- // the same number as the SYN before
		}
		if !has("ACK") {
			c.syn[1-side] = c.syn[1-side] && c.next[1-side] != 0
		}
	}
	c.syn[side] = has("SYN")
	text := flags
	if seq := c.next[side]; seq != 0 {
		text += fmt.Sprintf(" seq=%d", seq)
	}
	if has("ACK") && c.next[1-side] != 0 {
		text += fmt.Sprintf(" ack=%d", c.next[1-side])
	}
	if n > 0 {
		text += fmt.Sprintf(" len=%d", n)
	}
	if has("SYN") || has("FIN") {
		c.next[side]++
	}
	c.next[side] += uint32(n)
	return text
}
