// SPDX-License-Identifier: Apache-2.0

package config

// checkAmounts checks that there is no more of anything than the memory that grows with the
// configuration has places for. There is no other bound: a gateway that began with less grows.
func (c *checker) checkAmounts() {
	instances := 0
	for i := range c.config.VPCs {
		if instances += len(c.config.VPCs[i].Instances); instances > MaxInstances {
			c.faults.add(c.doc.vpcs[i].spot, "with VPC %q there are %d instances; expected at most %d", c.config.VPCs[i].Name, instances, MaxInstances)
			break
		}
	}
	addresses := 0
	for i, h := range c.external.shared {
		if i > 0 && c.external.shared[i-1].address == h.address {
			continue
		}
		if addresses++; addresses > MaxSNATAddresses {
			c.faults.add(h.spot, "%v is one SNAT address more than %d; expected at most so many different ones", h.address, MaxSNATAddresses)
			break
		}
	}
}
