// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"fmt"
	"sync/atomic"
	"unsafe"

	"weir/config"
	"weir/pipeline/fault"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// How many slots there are: twice what a configuration may name, so that it can be replaced by
// another one while sessions of the old one still count in theirs. Slot 0 is nobody's.
const (
	VPCSlots      = 2 * (config.MaxVPCs + 1)
	InstanceSlots = 2 * config.MaxInstances
	AddressSlots  = 2 * config.MaxSNATAddresses
)

// The first table of neighbors, and how many there may be: the last is for more than four million.
const (
	firstNeighbors = 1 << 14
	neighborTables = 4
	allNeighbors   = firstNeighbors * (1<<(3*neighborTables) - 1) / 7
)

// Slots are taken into use so many at a time.
const (
	vpcBlock      = 512
	instanceBlock = 512
	addressBlock  = 16
)

// Room says what of the segment that grows has memory. Control takes it, and says so in the header
// of the state; the data plane maps it before it publishes a generation that names it. So a worker
// never faults, and whoever takes over maps what the header says. Nothing gets smaller.
type Room struct {
	VPCs, Instances, Addresses uint64 // slots
	NeighborTables             uint64
}

// max returns the larger of each.
func (r Room) max(o Room) Room {
	return Room{max(r.VPCs, o.VPCs), max(r.Instances, o.Instances), max(r.Addresses, o.Addresses), max(r.NeighborTables, o.NeighborTables)}
}

// growingSections is where everything lies in the segment that grows.
type growingSections struct {
	Neighbors, VPCs, Instances uint64
	Unconfirmed, Shares        [maxWorkers]uint64
}

// layGrowing lays the segment that grows out at its largest.
func layGrowing(l *memory.Layout, workers int) (g growingSections) {
	memory.Add[memory.Header](l, 1)
	l.Align()
	g.Neighbors = memory.Add[Neighbor](l, allNeighbors)
	l.Align()
	g.VPCs = memory.Add[Usage](l, VPCSlots)
	l.Align()
	g.Instances = memory.Add[Usage](l, InstanceSlots)
	for w := range workers {
		l.Align()
		g.Unconfirmed[w] = memory.Add[UnconfirmedList](l, InstanceSlots)
		l.Align()
		g.Shares[w] = memory.Add[Share](l, VPCSlots)
	}
	l.Align()
	return g
}

// piece is a run of bytes of the segment that grows, on the NUMA node of a worker or, with -1, of
// all by turns.
type piece struct {
	begin, end uint64
	worker     int
}

// pieces calls f for everything that has memory in to and not in from, until that fails.
func (s *State) pieces(from, to Room, f func(piece) error) error {
	var failed error
	add := func(section, size, from, to uint64, worker int) {
		if failed == nil && from < to {
			failed = f(piece{section + from*size, section + to*size, worker})
		}
	}
	add(0, uint64(unsafe.Sizeof(memory.Header{})), min(from.NeighborTables, 1), 1, -1)
	g, m := &s.fixed.Growing, &s.fixed.Mappings
	entries := func(tables uint64) uint64 { return uint64(s.Neighbors.before(uint32(tables))) }
	add(g.Neighbors, uint64(unsafe.Sizeof(Neighbor{})), entries(from.NeighborTables), entries(to.NeighborTables), -1)
	add(g.VPCs, uint64(unsafe.Sizeof(Usage{})), from.VPCs, to.VPCs, -1)
	add(g.Instances, uint64(unsafe.Sizeof(Usage{})), from.Instances, to.Instances, -1)
	add(m.Ports, session.PortBytes, from.Addresses, to.Addresses, -1)
	add(m.Taken, session.TakenBytes, from.Addresses, to.Addresses, -1)
	add(m.Resting, session.PortBytes, from.Addresses, to.Addresses, -1)
	add(m.InUse, session.InUseBytes, from.Addresses, to.Addresses, -1)
	for w := range s.Workers() {
		add(g.Unconfirmed[w], uint64(unsafe.Sizeof(UnconfirmedList{})), from.Instances, to.Instances, w)
		add(g.Shares[w], uint64(unsafe.Sizeof(Share{})), from.VPCs, to.VPCs, w)
	}
	return failed
}

// Room returns what has memory.
func (s *State) Room() Room {
	r := &s.h.Room
	return Room{atomic.LoadUint64(&r.VPCs), atomic.LoadUint64(&r.Instances), atomic.LoadUint64(&r.Addresses), atomic.LoadUint64(&r.NeighborTables)}
}

// Reserve makes room for so many slots of each kind, those that are free among them, while packets
// flow. Only control calls it. On an error nothing has changed.
func (s *State) Reserve(vpcs, instances, addresses int) error {
	block := func(n, block, most int) uint64 { return uint64(min((n+block-1)/block*block, most)) }
	return s.grow(Room{VPCs: block(vpcs, vpcBlock, VPCSlots), Instances: block(instances, instanceBlock, InstanceSlots), Addresses: block(addresses, addressBlock, AddressSlots)})
}

// ReserveNeighbors makes room for n neighbors, as far as there may be.
func (s *State) ReserveNeighbors(n int) error {
	tables := uint64(1)
	for tables < neighborTables && n > firstNeighbors<<(3*(tables-1))/2 {
		tables++
	}
	return s.grow(Room{NeighborTables: tables})
}

// grow takes memory for what to has and the state has not yet.
func (s *State) grow(to Room) error {
	from := s.Room()
	if to = to.max(from); to == from {
		return nil
	}
	var taken []piece
	err := s.pieces(from, to, func(p piece) error {
		nodes := s.nodes
		if p.worker >= 0 && nodes != nil {
			nodes = nodes[p.worker : p.worker+1]
		}
		refused, err := s.growing.Grow(p.begin, p.end, nodes)
		s.refused = cmp.Or(s.refused, refused)
		if err == nil {
			taken = append(taken, p)
		}
		return err
	})
	if err != nil {
		for _, p := range taken {
			s.growing.Shrink(p.begin, p.end)
		}
		return fmt.Errorf("the state cannot grow to %d VPCs, %d instances, %d SNAT addresses and %d neighbors: %w; free memory",
			to.VPCs, to.Instances, to.Addresses, s.Neighbors.before(uint32(to.NeighborTables)), err)
	}
	for w := range s.Workers() {
		clearLists(s.Unconfirmed(w)[from.Instances:to.Instances])
	}
	fault.Point("grow.taken")
	r := &s.h.Room
	atomic.StoreUint64(&r.VPCs, to.VPCs)
	atomic.StoreUint64(&r.Instances, to.Instances)
	atomic.StoreUint64(&r.Addresses, to.Addresses)
	s.Mappings().SetRoom(int(to.Addresses))
	atomic.StoreUint64(&r.NeighborTables, to.NeighborTables)
	fault.Point("grow.said")
	s.mapped = to
	s.Neighbors.tables.Store(uint32(to.NeighborTables))
	return nil
}

// Populate maps into this process what control has made room for since the last time. It allocates
// nothing.
func (s *State) Populate() error {
	to := s.Room()
	if err := s.pieces(s.mapped, to, func(p piece) error { return s.growing.Populate(p.begin, p.end) }); err != nil {
		return fmt.Errorf("the state that grew: %w", err)
	}
	s.mapped = to
	s.Neighbors.tables.Store(uint32(to.NeighborTables))
	return nil
}

// Place says on which NUMA nodes what grows lies from now on: by worker, -1 for any.
func (s *State) Place(nodes []int) { s.nodes = nodes }

// GrowingFD returns the descriptor of the segment that grows.
func (s *State) GrowingFD() int { return s.growing.FD() }

// Taken returns how many bytes of memory the state takes.
func (s *State) Taken() uint64 { return s.Segment.Size() + s.growing.Taken() }

// PlacementRefused tells why parts may lie on other NUMA nodes than was asked; nil if none do.
func (s *State) PlacementRefused() error { return cmp.Or(s.Segment.PlacementRefused(), s.refused) }

// Close unmaps the state. Nothing that points into it may be used afterwards.
func (s *State) Close() error { return cmp.Or(s.growing.Close(), s.Segment.Close()) }

func clearLists(lists []UnconfirmedList) {
	for i := range lists {
		lists[i] = UnconfirmedList{session.None, session.None, 0}
	}
}
