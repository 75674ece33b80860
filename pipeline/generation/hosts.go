// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"math/bits"
	"net/netip"

	"weir/config"
	"weir/pipeline/inet"
)

func (b *builder) addHosts(in *config.Instance, index, vi uint32, shared map[inet.Addr][]SNATRange) {
	for _, a := range []netip.Addr{in.Address4, in.Address6} {
		if a.IsValid() {
			b.hostList = append(b.hostList, Host{Addr: inet.FromNetip(a), Domain: vi + 1, Kind: HostInstance, Index: index})
		}
	}
	external := func(list []netip.Addr, kind uint8) {
		for _, a := range list {
			b.hostList = append(b.hostList, Host{Addr: inet.FromNetip(a), Kind: kind, Index: index, Ports: b.poolPorts[b.poolOf(a)], Set: b.setOf(a), Rules: b.poolRules[b.poolOf(a)]})
		}
	}
	external(in.Floating, hostFloating)
	external(in.Ephemeral, hostEphemeral)
	for _, n := range in.SNAT {
		a := inet.FromNetip(n.Address)
		shared[a] = append(shared[a], SNATRange{index, n.First, n.Last, b.addForwards(in, n.Address, n.First, n.Last, byPort)})
	}
}

func (b *builder) buildHosts() {
	b.hostSecret = b.c.random()
	b.Hosts = make(table[Host], 1<<bits.Len(uint(2*len(b.hostList)+1)))
	for _, h := range b.hostList {
		b.insertHost(h)
	}
}

func (b *builder) insertHost(h Host) {
	mask := uint32(len(b.Hosts) - 1)
	at := inet.Hash(b.hostSecret, h.Domain, h.Addr) & mask
	for b.Hosts[at].Kind != 0 {
		at = (at + 1) & mask
	}
	b.Hosts[at] = h
}

// Host returns what a is in a domain, or nil.
func (g *Generation) Host(domain uint32, a inet.Addr) *Host {
	mask := uint32(len(g.Hosts) - 1)
	for at := inet.Hash(g.Header.HostSecret, domain, a) & mask; ; at = (at + 1) & mask {
		h := &g.Hosts[at]
		if h.Kind == 0 {
			return nil
		}
		if h.Addr == a && h.Domain == domain {
			return h
		}
	}
}
