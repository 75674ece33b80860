// SPDX-License-Identifier: Apache-2.0

package generation

import "weir/pipeline/inet"

// PrivateSource reports whether flows may begin outside from a private address, by a port.
func (g *Generation) PrivateSource(port int, a inet.Addr) bool {
	for i := range g.Private {
		if p := &g.Private[i]; int(p.Port) == port && p.Holds(a) {
			return true
		}
	}
	return false
}

// Ways returns the outside ports by which a remote address may be reached by a route to a gateway; 0: it is reached nowhere. A /0 means the
// Internet, where no private address is: such a one is reached by the ports whose own prefix or private sources it is in, or where a longer
// route leads.
func (g *Generation) Ways(r *Route, remote inet.Addr) (ports uint32) {
	if r.All == 0 || !remote.Private() {
		return ^uint32(0)
	}
	for _, t := range [2]table[Prefix]{g.OnLink, g.Private} {
		for i := range t {
			if t[i].Holds(remote) {
				ports |= 1 << t[i].Port
			}
		}
	}
	return ports
}
