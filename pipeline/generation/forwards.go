// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"cmp"
	"net/netip"
	"slices"

	"weir/config"
	"weir/pipeline/session"
)

// spaceOf returns the port space of a protocol.
func spaceOf(p config.Protocol) session.PortSpace {
	if p == config.TCP {
		return session.TCPPorts
	}
	return session.UDPPorts
}

// byPort and byPrivate are the two orders in which forwards are searched: from outside and from
// inside.
func byPort(f *Forward) uint32    { return uint32(f.Space)<<16 | uint32(f.Port) }
func byPrivate(f *Forward) uint32 { return uint32(f.Space)<<16 | uint32(f.Private) }

// addForwards adds the forwards of an instance from first to last of an address, in an order.
func (b *builder) addForwards(in *config.Instance, address netip.Addr, first, last uint16, order func(*Forward) uint32) span {
	s := span{First: uint32(len(b.Forwards))}
	for _, f := range in.Forwards {
		if f.Address == address && first <= f.Port && f.Port <= last {
			b.Forwards = append(b.Forwards, Forward{Port: f.Port, Private: f.ToPort, Space: spaceOf(f.Protocol)})
			s.Count++
		}
	}
	slices.SortFunc(b.Forwards[s.First:], func(x, y Forward) int { return cmp.Compare(order(&x), order(&y)) })
	return s
}

// addPortRanges adds the ports of an address that an instance's flows may take: its shares without
// what is forwarded.
func (b *builder) addPortRanges(in *config.Instance, address netip.Addr, space session.PortSpace) span {
	s := span{First: uint32(len(b.PortRanges))}
	add := func(first, last int) {
		if first <= last {
			b.PortRanges = append(b.PortRanges, session.PortRange{First: uint16(first), Last: uint16(last)})
			s.Count++
		}
	}
	for _, n := range in.SNAT {
		if n.Address != address {
			continue
		}
		from := int(n.First)
		for _, f := range in.Forwards { // by port
			if f.Address == address && spaceOf(f.Protocol) == space && n.First <= f.Port && f.Port <= n.Last {
				add(from, int(f.Port)-1)
				from = int(f.Port) + 1
			}
		}
		add(from, int(n.Last))
	}
	return s
}

// ForwardTo returns the forward that a port of the SNAT address h has, nil for none, and the
// instance whose range holds the port, nil for none.
func (g *Generation) ForwardTo(h *Host, space session.PortSpace, port uint16) (*Forward, *Instance) {
	r := g.rangeOf(h, port)
	if r == nil {
		return nil, nil
	}
	return g.forwardByPort(r.Forwards, space, port), &g.Instances[r.Instance]
}

// ForwardFrom returns the forward by which what an instance sends from a private port leaves, or
// nil.
func (g *Generation) ForwardFrom(c *Candidate, space session.PortSpace, private uint16) *Forward {
	want := Forward{Space: space, Private: private}
	lo, hi, key := c.Forwards.First, c.Forwards.End(), byPrivate(&want)
	for lo < hi {
		if mid := (lo + hi) / 2; byPrivate(&g.Forwards[mid]) < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == c.Forwards.End() || byPrivate(&g.Forwards[lo]) != key {
		return nil
	}
	return &g.Forwards[lo]
}

// forwardByPort finds a forward by its external port in a list of that order.
func (g *Generation) forwardByPort(list span, space session.PortSpace, port uint16) *Forward {
	want := Forward{Space: space, Port: port}
	lo, hi, key := list.First, list.End(), byPort(&want)
	for lo < hi {
		if mid := (lo + hi) / 2; byPort(&g.Forwards[mid]) < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == list.End() || byPort(&g.Forwards[lo]) != key {
		return nil
	}
	return &g.Forwards[lo]
}
