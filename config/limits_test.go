// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"strings"
	"testing"
)

// As much as there may be is no fault; one more is, with its place.
func TestAmounts(t *testing.T) {
	at := &spot{}
	check := func(instances, addresses int) string {
		c := &checker{doc: &document{vpcs: []vpcText{{spot: at}, {spot: at}}}}
		c.config.VPCs = []VPC{{Name: "a", Instances: make([]Instance, 1)}, {Name: "b", Instances: make([]Instance, instances-1)}}
		a := netip.MustParseAddr("100.64.0.0")
		for range addresses {
			for range 2 { // two shares of each
				c.external.shared = append(c.external.shared, claim{address: a, spot: at})
			}
			a = a.Next()
		}
		c.checkAmounts()
		var text []string
		for _, f := range c.faults.list {
			text = append(text, f.Message)
		}
		return strings.Join(text, "; ")
	}
	for _, c := range []struct {
		instances, addresses int
		want                 string
	}{
		{MaxInstances, MaxSNATAddresses, ""},
		{MaxInstances + 1, 1, `with VPC "b" there are 1048577 instances; expected at most 1048576`},
		{1, MaxSNATAddresses + 1, "100.65.0.0 is one SNAT address more than 65536; expected at most so many different ones"},
	} {
		if got := check(c.instances, c.addresses); got != c.want {
			t.Errorf("%d instances, %d addresses: %q, expected %q", c.instances, c.addresses, got, c.want)
		}
	}
}
