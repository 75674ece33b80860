// SPDX-License-Identifier: Apache-2.0

// Package state is the memory that both processes see and that outlives them: counters, session tables, limits,
// neighbors and rings, in one flat segment. Workers write their own parts; control writes neighbors and the rings
// to the workers. Nothing in it is a pointer, and no lock lies in it: a process may die between any two stores.
package state

import (
	"crypto/rand"
	"fmt"
	"math/bits"
	mathrand "math/rand/v2"
	"slices"
	"sync/atomic"

	"weir/config"
	"weir/pipeline/memory"
	"weir/pipeline/session"
)

// Sizes that are fixed for the life of a State.
const (
	maxWorkers   = config.MaxWorkers
	VPCSlots     = 1 << 16
	minInstances = 1 << 16
	minAddresses = 256
)

// stateHeader stands at the start of the state segment.
type stateHeader struct {
	memory.Header
	Workers        uint64
	Generation     uint64 // the published one's number
	NeighborSecret uint64
	Neighbors      uint64 // offsets
	NeighborCount  uint64
	VPCs           uint64
	Instances      uint64
	InstanceCount  uint64
	Ownership      ownership
	Mappings       session.MappingsRegion
	Worker         [maxWorkers]workerRegion
	Runtime        Runtime
	Devices        [MaxPorts]Device
	Lost           uint64 // frames of control's that found no room in the ring to a worker; control writes
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
	Counters, Punt, Inject, Unconfirmed uint64
	Table                               session.Region
}

// State is the memory that outlives both processes' turns: counters, sessions, limits, neighbors and rings. It
// lies in one segment that control makes and the data plane maps.
type State struct {
	Segment   *memory.Segment
	Neighbors *Neighbors
	h         *stateHeader
	VPCs      []Usage
	Instances []Usage
}

// Sizes sizes a State.
type Sizes struct {
	Workers   int
	Sessions  int       // all workers together
	Instances int       // at the most, over all generations; a floor applies
	Addresses int       // SNAT addresses of the first generation; there is room for a quarter more, and a floor
	Nodes     []int     // by worker: the NUMA node that its part lies on, -1: any; nil: any for all
	Huge      bool      // try huge pages
	Seed      *[32]byte // nil: random secrets; else these, for tests and replays
}

// stateLayout is the hash over everything that lies in a state segment.
var stateLayout = memory.Hash(append(session.Types(), stateHeader{}, Usage{}, UnconfirmedList{}, Counters{}, Neighbor{}, ring{})...)

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
	instances := max(minInstances, 2*c.Instances)
	neighbors := 1 << bits.Len(uint(4*instances-1))
	var l memory.Layout
	var h stateHeader
	l.Place(nodes...) // what all share: by turns
	memory.Add[stateHeader](&l, 1)
	h.Workers = uint64(c.Workers)
	h.NeighborCount, h.InstanceCount = uint64(neighbors), uint64(instances)
	h.Neighbors = memory.Add[Neighbor](&l, neighbors)
	h.VPCs = memory.Add[Usage](&l, VPCSlots)
	h.Instances = memory.Add[Usage](&l, instances)
	h.Mappings = session.ReserveMappings(&l, max(64, c.Sessions), c.Addresses+max(minAddresses, c.Addresses/4))
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

			Unconfirmed: memory.Add[UnconfirmedList](&l, instances),
		}
	}
	s, err := l.New("state", c.Huge)
	if err != nil {
		return nil, err
	}
	*memory.At[stateHeader](s, 0) = h
	st := viewState(s)
	random := NewRandom(c.Seed).Uint64
	st.h.NeighborSecret = random()
	st.Neighbors.secret = st.h.NeighborSecret
	for w := range c.Workers {
		t := session.Open(s, h.Worker[w].Table)
		t.Init(newSecret(random))
		t.Fill()
		list := st.Unconfirmed(w)
		for i := range list {
			list[i] = UnconfirmedList{session.None, session.None, 0}
		}
	}
	st.Mappings().Init(newSecret(random))
	o := &st.h.Ownership
	for i := range o.Key {
		o.Key[i] = byte(random())
	}
	for i := range o.Owners {
		o.Owners[i] = uint8(i % c.Workers)
	}
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

// Attach maps the state segment behind fd and takes fd over, also when it fails.
func Attach(fd int) (*State, error) {
	s := new(memory.Segment)
	if err := s.Map(fd); err != nil {
		return nil, err
	}
	if err := s.Check(stateLayout); err != nil {
		s.Close()
		return nil, err
	}
	return viewState(s), nil
}

func viewState(s *memory.Segment) *State {
	h := memory.At[stateHeader](s, 0)
	return &State{
		Segment:   s,
		Neighbors: &Neighbors{Entries: memory.Slice[Neighbor](s, h.Neighbors, int(h.NeighborCount)), secret: h.NeighborSecret},
		h:         h,
		VPCs:      memory.Slice[Usage](s, h.VPCs, VPCSlots),
		Instances: memory.Slice[Usage](s, h.Instances, int(h.InstanceCount)),
	}
}

// Workers returns the number of workers that the state was made for.
func (s *State) Workers() int { return int(s.h.Workers) }

// Counters returns worker w's counters.
func (s *State) Counters(w int) *Counters {
	return memory.At[Counters](s.Segment, s.h.Worker[w].Counters)
}

// Runtime and Device return what the data plane writes about itself; it alone writes.
func (s *State) Runtime() *Runtime { return &s.h.Runtime }

// Device returns the record of a port's device.
func (s *State) Device(port int) *Device { return &s.h.Devices[port] }

// Punt returns the ring from worker w to control.
func (s *State) Punt(w int) Ring { return openRing(s.Segment, s.h.Worker[w].Punt) }

// Inject returns the ring from control to worker w.
func (s *State) Inject(w int) Ring { return openRing(s.Segment, s.h.Worker[w].Inject) }

// CountLost counts a frame of control's that found no room in the ring to a worker, and Lost returns how
// many there were. Control alone counts.
func (s *State) CountLost() { atomic.AddUint64(&s.h.Lost, 1) }

// Lost returns how many frames CountLost has counted.
func (s *State) Lost() uint64 { return atomic.LoadUint64(&s.h.Lost) }

// Table returns worker w's session table.
func (s *State) Table(w int) *session.Table { return session.Open(s.Segment, s.h.Worker[w].Table) }

// Mappings returns a view of the mappings that all workers share. Each worker has its own view.
func (s *State) Mappings() *session.Mappings { return session.OpenMappings(s.Segment, s.h.Mappings) }

// Seen returns the number of the generation that worker w has come to.
func (s *State) Seen(w int) uint64 { return atomic.LoadUint64(&s.Counters(w).Generation) }

// Published returns the number of the generation that workers should be at.
func (s *State) Published() uint64 { return atomic.LoadUint64(&s.h.Generation) }

// Publish tells the workers of generation number. They have it mapped already.
func (s *State) Publish(number uint64) { atomic.StoreUint64(&s.h.Generation, number) }

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
