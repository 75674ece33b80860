// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"net/netip"

	"weir/config"
	"weir/pipeline/inet"
)

// PrivateSource reports whether flows may begin outside from a private address, by a port.
func (g *Generation) PrivateSource(port int, a inet.Addr) bool {
	for i := range g.Private {
		if p := &g.Private[i]; p.At.Port() == port && p.Holds(a) {
			return true
		}
	}
	return false
}

// Ways returns the outside ports by which a remote address may be reached by a route to a gateway;
// 0: it is reached nowhere. A /0 means the Internet, where no private address is: such a one is
// reached by the ports whose own prefix or private sources it is in, or where a longer route leads.
func (g *Generation) Ways(r *Route, remote inet.Addr) (ports uint32) {
	if r.All == 0 || !remote.Private() {
		return ^uint32(0)
	}
	for _, t := range [2]table[Prefix]{g.OnLink, g.Private} {
		for i := range t {
			if t[i].Holds(remote) {
				ports |= 1 << t[i].At.Port()
			}
		}
	}
	return ports
}

// privateWays returns all that Ways can be but all ports: what it says of an address is what it
// says of the longest prefix that holds it.
func privateWays(ports []config.Port) (list []uint32) {
	own := func(p *config.Port) (all []netip.Prefix) {
		if p.Side == config.Outside {
			for _, a := range p.Addresses {
				all = append(all, a.Masked())
			}
			all = append(all, p.PrivateSources...)
		}
		return all
	}
	for i := range ports {
		for _, longest := range own(&ports[i]) {
			ways := uint32(0)
			for j := range ports {
				for _, p := range own(&ports[j]) {
					if p.Bits() <= longest.Bits() && p.Contains(longest.Addr()) {
						ways |= 1 << j
					}
				}
			}
			list = append(list, ways)
		}
	}
	return list
}
