// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/header"
)

// As many VPCs as there can be are attached to one port, with the same addresses; the first, the
// last and one between find their own.
func TestEveryVPCAttaches(t *testing.T) {
	n := config.MaxVPCs
	if testing.Short() {
		n = 4000
	}
	var b strings.Builder
	b.WriteString(`version: 1
ports:
  - {name: in, device: net_null0, side: inside}
  - {name: out, device: net_null1, side: outside, addresses: [198.51.100.2/24], next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}]}
pools: [{name: p, ranges: [100.64.0.0/10]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
vpcs:
`)
	for i := range n {
		fmt.Fprintf(&b, `  - {name: v%d, attach: [{port: in, vlan: [%d, %d]}], subnets: [10.0.0.0/24], routes: [{to: 0.0.0.0/0, gateway: g}],
     instances: [{name: i, addresses: [10.0.0.5], external: {floating: [100.64.%d.%d]}}]}
`, i, 1+i/4000, 1+i%4000, i>>8, i&255)
	}
	w := newTestWorker(t, b.String())
	r := &tunnelRig{t, w}
	plain := udpFrame(nil, 1, []byte{10, 0, 0, 5}, []byte{8, 8, 8, 8}, 1000, 53)
	for _, i := range []int{0, n / 2, n - 1} {
		outer, inner := 1+i/4000, 1+i%4000
		tagged := slices.Insert(slices.Clone(plain), 12, 0x88, 0xa8, byte(outer>>8), byte(outer), 0x81, 0, byte(inner>>8), byte(inner))
		out, by, reason := r.send(0, tagged)
		if want := []byte{100, 64, byte(i >> 8), byte(i)}; by != 1 || !slices.Equal(out[header.EthernetSize+12:][:4], want) {
			t.Errorf("VPC %d: port %d, %v: % x", i, by, reason, out)
		}
	}
	if _, _, reason := r.send(0, slices.Insert(slices.Clone(plain), 12, 0x88, 0xa8, 0, 200, 0x81, 0, 0, 1)); reason != drop.VLANTag {
		t.Errorf("a tag that no VPC has: %v", reason)
	}
}
