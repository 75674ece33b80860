// SPDX-License-Identifier: Apache-2.0

// Package state is the memory that both processes see and that outlives them: counters, session
// tables, limits, neighbors and rings, flat, in two segments. Workers write their own parts;
// control writes neighbors and the rings to the workers. Nothing in it is a pointer, and no lock
// lies in it: a process may die between any two stores.
package state

import (
	"cmp"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

const maxWorkers = config.MaxWorkers

// stateHeader stands at the start of the state segment.
type stateHeader struct {
	memory.Header
	fixed
	Generation uint64 // the published one's number
	Room       Room
	Runtime    Runtime
	Devices    [MaxPorts]Device
	Lost       uint64 // frames of control's that found no room in the ring to a worker; control writes
}

// fixed is what control decides when it makes the state. Each process reads it once and goes by its
// own copy.
type fixed struct {
	Workers        uint64
	NeighborSecret uint64
	Growing        growingSections
	Ownership      ownership
	Mappings       session.MappingsRegion
	Worker         [maxWorkers]workerRegion
}

// Runtime is what the data plane tells of itself, once a second.
type Runtime struct {
	Collections uint64 // of Go's collector since the process's start
	HeapBytes   uint64 // live heap objects
	Alive       int64  // nanoseconds of the monotonic clock
}

// Device is what a port's driver says of it, once a second.
type Device struct {
	MAC      config.MAC
	LinkUp   bool
	_        bool
	Speed    uint32 // Mbit/s, 0: unknown
	RxMissed uint64
	RxErrors uint64
	RxNoMbuf uint64
	TxErrors uint64
}

// workerRegion is where one worker's parts lie.
type workerRegion struct {
	Counters, Punt, Inject uint64
	Table                  session.Region
}

// State is the memory that outlives both processes' turns: counters, sessions, limits, neighbors
// and rings. It lies in two segments that control makes and the data plane maps: one of a fixed
// size, and one for what grows with the configuration.
type State struct {
	Segment   *memory.Segment
	Neighbors *Neighbors
	h         *stateHeader
	fixed     fixed
	VPCs      []Usage // those from Room().VPCs on have no memory
	Instances []Usage

	growing *memory.Segment
	mapped  Room  // what this process has mapped
	nodes   []int // by worker, where what grows goes
	refused error // why it may have gone elsewhere
}

// Sizes sizes a State.
type Sizes struct {
	Workers  int
	Sessions int       // all workers together
	Nodes    []int     // by worker: the NUMA node that its part lies on, -1: any; nil: any for all
	Huge     bool      // try huge pages
	Seed     *[32]byte // nil: random secrets; else these, for tests and replays
}

// stateLayout is the hash over everything that lies in a state segment.
var stateLayout = memory.Hash(append(session.Types(), stateHeader{}, Room{}, Share{}, Usage{}, UnconfirmedList{}, Counters{}, Neighbor{}, ring{})...)

// New makes a fresh State.
func New(c Sizes) (*State, error) {
	if c.Workers < 1 || c.Workers > maxWorkers {
		return nil, fmt.Errorf("%d workers; expected 1 to %d", c.Workers, maxWorkers)
	}
	nodes := c.Nodes
	if nodes == nil {
		nodes = slices.Repeat([]int{-1}, c.Workers)
	}
	if len(nodes) != c.Workers {
		return nil, fmt.Errorf("NUMA nodes of %d workers; expected %d", len(nodes), c.Workers)
	}
	var l, growing memory.Layout
	var h stateHeader
	l.Place(nodes...) // what all share: by turns
	memory.Add[stateHeader](&l, 1)
	h.Workers = uint64(c.Workers)
	h.Growing = layGrowing(&growing, c.Workers)
	h.Mappings = session.ReserveMappings(&l, &growing, max(64, c.Sessions), AddressSlots)
	var byNode []int
	for w := range c.Workers {
		byNode = append(byNode, w)
	}
	slices.SortStableFunc(byNode, func(a, b int) int { return nodes[a] - nodes[b] })
	for _, w := range byNode {
		l.Place(nodes[w])
		h.Worker[w] = workerRegion{
			Counters: memory.Add[Counters](&l, 1),
			Punt:     memory.Add[ring](&l, 1),
			Inject:   memory.Add[ring](&l, 1),
			Table:    session.Reserve(&l, max(64, c.Sessions/c.Workers)),
		}
	}
	s, err := l.New("state", c.Huge)
	if err != nil {
		return nil, err
	}
	grown, err := growing.NewSparse("growing")
	if err != nil {
		s.Close()
		return nil, err
	}
	*memory.At[stateHeader](s, 0) = h
	st := viewState(s, grown)
	st.nodes = c.Nodes
	if err := cmp.Or(st.Reserve(1, 1, 1), st.ReserveNeighbors(1)); err != nil {
		st.Close()
		return nil, err
	}
	random := NewRandom(c.Seed).Uint64
	st.h.NeighborSecret = random()
	st.Neighbors.secret = st.h.NeighborSecret
	for w := range c.Workers {
		t := session.Open(s, h.Worker[w].Table)
		t.Init(newSecret(random))
		t.Fill()
	}
	st.Mappings().Init(newSecret(random))
	o := &st.h.Ownership
	for i := range o.Key {
		o.Key[i] = byte(random())
	}
	for i := range o.Owners {
		o.Owners[i] = uint8(i % c.Workers)
	}
	st.fixed = st.h.fixed
	grown.Seal(stateLayout)
	s.Seal(stateLayout)
	return st, nil
}

func newSecret(random func() uint64) (s session.Secret) {
	for i := range s {
		s[i] = random()
	}
	return s
}

// NewRandom returns a ChaCha8 generator: it allocates nothing afterwards and takes no lock.
func NewRandom(seed *[32]byte) *mathrand.ChaCha8 {
	var key [32]byte
	if seed != nil {
		key = *seed
	} else {
		rand.Read(key[:]) // never fails: crypto/rand ends the program if the system has no randomness
	}
	return mathrand.NewChaCha8(key)
}

// Attach maps the state whose segments lie behind fd and growing, and takes both over, also when it
// fails.
func Attach(fd, growing int) (*State, error) {
	s, g := new(memory.Segment), new(memory.Segment)
	if err := s.Map(fd); err != nil {
		unix.Close(growing)
		return nil, err
	}
	if err := s.Check(stateLayout); err != nil {
		s.Close()
		unix.Close(growing)
		return nil, err
	}
	if err := g.MapSparse(growing); err != nil {
		s.Close()
		return nil, err
	}
	if err := g.Check(stateLayout); err != nil {
		s.Close()
		g.Close()
		return nil, err
	}
	st, err := within(s, g)
	if err != nil {
		s.Close()
		g.Close()
		return nil, err
	}
	if err := st.Populate(); err != nil {
		st.Close()
		return nil, err
	}
	return st, nil
}

// within is viewState for a header that may be damaged: nothing that it names lies outside of the
// segments.
func within(s, growing *memory.Segment) (st *State, err error) {
	defer func() {
		if r := recover(); r != nil {
			st, err = nil, fmt.Errorf("its header is damaged: %v", r)
		}
	}()
	h := memory.At[stateHeader](s, 0)
	switch r := &h.Room; {
	case h.Workers < 1 || h.Workers > maxWorkers:
		return nil, fmt.Errorf("its header is damaged: it says %d workers", h.Workers)
	case r.VPCs > VPCSlots || r.Instances > InstanceSlots || r.Addresses > AddressSlots || r.NeighborTables < 1 || r.NeighborTables > neighborTables:
		return nil, fmt.Errorf("its header is damaged: it says %+v", *r)
	}
	for _, w := range h.Ownership.Owners {
		if uint64(w) >= h.Workers {
			return nil, fmt.Errorf("its header is damaged: worker %d owns addresses, of %d", w, h.Workers)
		}
	}
	st = viewState(s, growing)
	if st.Mappings().Addresses() > AddressSlots {
		return nil, fmt.Errorf("its header is damaged: there is room for %d SNAT addresses", st.Mappings().Addresses())
	}
	for w := range st.Workers() {
		st.Counters(w)
		st.Punt(w)
		st.Inject(w)
		st.Table(w)
		st.Unconfirmed(w)
		memory.Slice[Share](growing, st.fixed.Growing.Shares[w], VPCSlots)
	}
	return st, nil
}

// Restore writes what this process, control, knows of the segments over what stands in them: a data
// plane that died may have damaged it. Nobody else may use the state.
func (s *State) Restore() {
	h := s.h
	h.fixed = s.fixed
	h.Room = s.mapped
	s.Mappings().SetRoom(int(s.mapped.Addresses))
	s.growing.Seal(stateLayout)
	s.Segment.Seal(stateLayout)
}

func viewState(s, growing *memory.Segment) *State {
	h := memory.At[stateHeader](s, 0)
	return &State{
		Segment:   s,
		growing:   growing,
		Neighbors: NewNeighbors(memory.Slice[Neighbor](growing, h.Growing.Neighbors, allNeighbors), firstNeighbors, 0, h.NeighborSecret),
		h:         h,
		fixed:     h.fixed,
		VPCs:      memory.Slice[Usage](growing, h.Growing.VPCs, VPCSlots),
		Instances: memory.Slice[Usage](growing, h.Growing.Instances, InstanceSlots),
	}
}

// Workers returns the number of workers that the state was made for.
func (s *State) Workers() int { return int(s.fixed.Workers) }

// Counters returns worker w's counters.
func (s *State) Counters(w int) *Counters {
	return memory.At[Counters](s.Segment, s.fixed.Worker[w].Counters)
}

// Counts returns what worker w has counted, for whoever is not that worker.
func (s *State) Counts(w int) Counters { return memory.Read(s.Counters(w)) }

// Runtime and Device return what the data plane writes about itself; it alone writes.
func (s *State) Runtime() *Runtime { return &s.h.Runtime }

// Device returns the record of a port's device.
func (s *State) Device(port int) *Device { return &s.h.Devices[port] }

// Punt returns the ring from worker w to control.
func (s *State) Punt(w int) Ring { return openRing(s.Segment, s.fixed.Worker[w].Punt) }

// Inject returns the ring from control to worker w.
func (s *State) Inject(w int) Ring { return openRing(s.Segment, s.fixed.Worker[w].Inject) }

// CountLost counts a frame of control's that found no room in the ring to a worker, and Lost
// returns how many there were. Control alone counts.
func (s *State) CountLost() { atomic.AddUint64(&s.h.Lost, 1) }

// Lost returns how many frames CountLost has counted.
func (s *State) Lost() uint64 { return atomic.LoadUint64(&s.h.Lost) }

// Table returns worker w's session table.
func (s *State) Table(w int) *session.Table { return session.Open(s.Segment, s.fixed.Worker[w].Table) }

// Mappings returns a view of the mappings that all workers share. Each worker has its own view.
func (s *State) Mappings() *session.Mappings {
	return session.OpenMappings(s.Segment, s.growing, s.fixed.Mappings)
}

// Seen returns the number of the generation that worker w has come to.
func (s *State) Seen(w int) uint64 { return atomic.LoadUint64(&s.Counters(w).Generation) }

// Published returns the number of the generation that workers should be at.
func (s *State) Published() uint64 { return atomic.LoadUint64(&s.h.Generation) }

// Publish tells the workers of generation number. They have it mapped already.
func (s *State) Publish(number uint64) { atomic.StoreUint64(&s.h.Generation, number) }

// Pressed reports whether worker w's table is nearly full, so that what has not been answered ends
// early.
func (s *State) Pressed(w int) bool { return atomic.LoadUint64(&s.Counters(w).Pressed) != 0 }

// Idle returns for how many milliseconds worker w has not begun a turn, at millisecond now.
func (s *State) Idle(w int, now uint32) uint32 {
	if idle := now - uint32(atomic.LoadUint64(&s.Counters(w).Tick)); int32(idle) > 0 {
		return idle
	}
	return 0
}

// OldestTurn returns when the worker whose turn lasts longest began it, before millisecond now.
func (s *State) OldestTurn(now uint32) uint32 {
	oldest := now
	for w := range s.Workers() {
		if tick := uint32(atomic.LoadUint64(&s.Counters(w).Tick)); int32(tick-oldest) < 0 {
			oldest = tick
		}
	}
	return oldest
}
