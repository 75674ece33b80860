// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"testing"

	"weir/pipeline/packettext"
)

// Every frame that weir bench sends is right in all its lengths and checksums, by the independent
// verifier.
func TestBenchFrames(t *testing.T) {
	for name, f := range map[string]flows{"floating4": floating4, "floating6": floating6, "snat4": snat4, "snat6": snat6, "snatTCP4": snatTCP4, "narrow4": narrow4} {
		f.remotes = []uint32{1, 77, 0xffff}
		for port := range benchMACs {
			for _, frame := range []int{64, 594, 1518} {
				for _, flags := range []byte{tcpSYN, tcpSYN | tcpACK, tcpACK} {
					for number := range uint32(2000) {
						b := make([]byte, 1600)
						b = b[:f.put(b, flow{number: number * 997, port: uint16(number) * 31}, port, frame, flags)]
						if err := packettext.Verify(b); err != nil {
							t.Fatalf("%s, flow %d into port %d: %v\n%s", name, number, port, err, packettext.Format(b))
						}
					}
				}
			}
		}
	}
	f := floating4
	f.remotes = []uint32{1}
	for _, second := range []bool{false, true} {
		b := make([]byte, 1600)
		b = b[:f.put(b, flow{number: 5}, 0, 594, 0)]
		b = b[:fragment(b, 7, second)]
		if err := packettext.Verify(b); err != nil {
			t.Errorf("fragment, second: %v: %v\n%s", second, err, packettext.Format(b))
		}
	}
}
