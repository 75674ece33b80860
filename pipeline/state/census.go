// SPDX-License-Identifier: Apache-2.0

package state

import (
	"weir/pipeline/inet"
	"weir/pipeline/session"
)

// Census is what control learns by walking the session tables from outside, now and then: numbers
// that no worker has to keep.
type Census struct {
	Sessions map[string]int // by VPC
	// SNATPorts are different external ports, by VPC, over addresses and protocols: those of SNAT
	// sessions but closed ones, and those that rest.
	SNATPorts map[string]int
}

// TakeCensus walks all tables while the workers go on: a session that begins or ends meanwhile may
// be missed. It may run beside everything else of control; names are the VPCs' by slot.
func (s *State) TakeCensus(names map[uint32]string) *Census {
	c := &Census{Sessions: map[string]int{}, SNATPorts: map[string]int{}}
	for slot, name := range names {
		c.Sessions[name] = s.VPCSessions(slot)
		c.SNATPorts[name] = 0
	}
	type space struct {
		addr  inet.Addr
		proto uint8
	}
	used := map[space]*[1 << 16 / 64]uint64{}
	for w := range s.Workers() {
		t := s.Table(w)
		for ref := range uint32(t.Capacity()) {
			e, live := t.Read(ref)
			word := e.Load()
			if !live || e.Flags&(session.SNAT|session.Given) != session.SNAT {
				continue
			}
			name, ok := names[e.VPC]
			if !ok {
				continue
			}
			k := space{e.External, session.ProtoOf(word)}
			ports := used[k]
			if ports == nil {
				ports = new([1 << 16 / 64]uint64)
				used[k] = ports
			}
			port := session.ExternalPortOf(word)
			if bit := uint64(1) << (port % 64); ports[port/64]&bit == 0 {
				ports[port/64] |= bit
				c.SNATPorts[name]++
			}
		}
	}
	s.Mappings().EachResting(func(vpc uint32) {
		if name, ok := names[vpc]; ok {
			c.SNATPorts[name]++
		}
	})
	return c
}

// SessionCapacity returns how many sessions all tables together can hold.
func (s *State) SessionCapacity() int {
	n := 0
	for w := range s.Workers() {
		n += int(s.fixed.Worker[w].Table.Capacity)
	}
	return n
}
