// SPDX-License-Identifier: Apache-2.0

// Package pipeline is what happens to a packet between receive and transmit. It takes plain memory
// and gives verdicts; it knows nothing of DPDK.
//
// The stages, in the order of a packet's way. Each is a method of Worker in the file of its name:
//
//	classify    is it whole and ours to handle, and where are its headers
//	steer       to the worker that owns the flow, if that is another one
//	lookup      the sessions of the burst's packets
//	reassemble  bursts with fragments only: later ones get the ports of the first, and follow it
//	short       what is in the middle of its session goes from it to a queue in one step
//	apply       other packets that have a session get its rewriting
//	route       from inside: longest prefix match; on inside the VPC, or tagged with a gateway
//	select      the external address for that tag, and a session; no eligible address, no packet
//	deliver     from outside: which instance the packet is for, and a session
//	egress      the port and next hop, and whether the packet fits
//	rewrite     addresses, ports, TTL, checksums
//	transmit    the neighbor's MAC; one queue per port
//	hairpin     what goes to an external address of weir comes back to lookup, as if from outside
//	follow      the fragments whose first one has just gone this way go it too
//	flush       what was counted goes to the shared counters
//
// The other files serve them:
//
//	pipeline    the worker, and the order of the stages
//	burst       a burst, its packets, the queues
//	out         verdicts, and the one way out for packets that are not sent
//	account     what the driver tells of: frames sent and refused, turns
//	plain       classify for the short way
//	wrap        tags and outer headers: off in classify, on again in transmit
//	tunnel      VXLAN and Geneve, for wrap
//	source      whose a packet from inside is, and whether it comes from there
//	create      the begin and the end of sessions
//	fair        a VPC's share of a worker's table
//	lifetime    whether a session still lives, and the walk that ends those that do not
//	inbound     deliver: 1:1 addresses and SNAT mappings
//	ports       select: a port that other sessions use too
//	icmp        errors, which are translated by what they quote
//	tcp         a connection's state
//	mss         rewrite: the segment size that a SYN offers
//	identify    rewrite: IPv4 identifications through SNAT
//	options     rewrite: addresses that IPv4 options have recorded
//	datagram    reassemble: what is known of datagrams in pieces
//	addresses   addresses that nobody may have on the Internet's side
//	hops        egress: next hops, and whether a neighbor is resolved
//	hold        transmit: packets that wait for a neighbor
//	split       transmit: IPv4 packets that are longer than their link takes
//	punt        frames and questions for control
//	own         answers to what asks for weir itself
//	limit       token buckets
//	handoff     steer: lanes between workers
//	timed       what each stage takes
//	sweep       what a dead data plane has left is made valid again
//	clock       for replays: time that passes between frames
//
// The first three take a few packets at a time, so that what look-ups ask of memory comes
// meanwhile. The others are one loop each over the packets that still go on: those of the burst, or
// those between two that went the short way. A packet ends in a queue, by queue, or with a verdict,
// by out: there are no others.
package pipeline

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
	"unsafe"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// Worker is one worker's pipeline. One goroutine uses it. Where there are several, each has the
// sessions of the remote addresses that it owns.
type Worker struct {
	index     int
	handoff   *Handoff // nil: the only worker
	toeplitz  *state.Toeplitz
	adopted   Burst // what another worker handed over
	frames    [MaxBurst]unsafe.Pointer
	alternate uint64 // a bit for each other worker: what was taken from it last had turned back
	state     *state.State
	gen       *generation.Generation
	sessions  *session.Table
	mappings  *session.Mappings
	counters  *state.Counters
	neighbors *state.Neighbors
	punts     state.Ring
	rand      *rand.ChaCha8
	noise     *rand.ChaCha8          // for the limits of ICMP errors
	macs      [state.MaxPorts]uint64 // our MAC per port
	timeouts  *[session.NumStates]uint32
	anyMAC    bool   // accept frames to any station: replay
	assumed   uint64 // replay: MAC word of neighbors that nobody resolves; 0: resolve

	nanos     int64  // the clock, read once a turn
	quiet     int64  // nanoseconds: after the first reading of the clock no reset is asked for
	resetFrom int64  // nanoseconds: until then
	tick      uint32 // the same in milliseconds

	pressed int // 1: the table is nearly full, and what has not been answered ends early

	batch   session.Batch
	created bool        // a session began in this burst, after its look-up
	hops    [2]liveHops // per family: the next hops that are resolved, of this burst
	dropped [drop.NumReasons]uint64
	counts  struct {
		punted, stateless uint64
		dropped           bool // something is in dropped
	}

	puntRates  [puntSets][numClasses]bucket
	errorRate  bucket
	errorRates []bucket // per VPC slot

	exhausted [1 << exhaustedBits]exhaustion
	failed    [256]failures // by slot of the instance

	level       *state.Level // of the session table
	weighed     int          // how many VPCs of the generation count with the weights that it says
	expireAt    uint32
	unconfirmed []state.UnconfirmedList // by slot of the instance

	held    [maxHeld]heldPacket
	holding int // how many of held are in use
	pieces  virtualReassembly
	ids     identifications

	// Out is what is to be sent, per port; Done what is to be freed. The driver empties both after
	// every call, and fills Spare.
	Out   [state.MaxPorts]Queue
	Done  []uintptr
	Spare Spare

	Timed *StageCounts // not nil: count what each stage takes
}

// WorkerConfig says how a Worker differs from the default.
type WorkerConfig struct {
	MACs      []config.MAC  // our address on each port
	AnyMAC    bool          // accept frames to any station
	AssumeMAC config.MAC    // not zero: every neighbor without a configured MAC has this one
	Seed      *[32]byte     // nil: random
	Handoff   *Handoff      // the rings between several workers
	Quiet     time.Duration // how long after the first SetClock no reset answers what is unknown
}

// NewWorker returns worker w of a state. It starts with generation g.
func NewWorker(s *state.State, w int, g *generation.Generation, c WorkerConfig) *Worker {
	k := &Worker{
		index:       w,
		handoff:     c.Handoff,
		toeplitz:    state.NewToeplitz(&s.Ownership().Key),
		state:       s,
		gen:         g,
		sessions:    s.Table(w),
		mappings:    s.Mappings(),
		unconfirmed: s.Unconfirmed(w),
		counters:    s.Counters(w),
		neighbors:   s.Neighbors,
		punts:       s.Punt(w),
		rand:        state.NewRandom(c.Seed),
		noise:       state.NewRandom(c.Seed),
		anyMAC:      c.AnyMAC,
		assumed:     state.MACWord(c.AssumeMAC),
		quiet:       c.Quiet.Nanoseconds(),
		errorRates:  make([]bucket, state.VPCSlots),
		Done:        make([]uintptr, 0, 2*queueSize),
	}
	for i, m := range c.MACs {
		k.macs[i] = state.MACWord(m)
	}
	k.level = newLevel(s.Shares(w), k.sessions, g)
	k.SetGeneration(g)
	k.pieces.init(state.NewRandom(c.Seed))
	k.ids.init(state.NewRandom(c.Seed))
	return k
}

// SetGeneration makes the worker use g from its next burst on.
func (w *Worker) SetGeneration(g *generation.Generation) {
	w.gen = g
	w.timeouts, w.weighed = &g.Header.Timeouts[w.pressed], 0
	atomic.StoreUint64(&w.counters.Generation, g.Number)
}

// SetClock tells the time, in nanoseconds of a monotonic clock. A time before the last one is not
// believed: sessions are older than that, and idle times would come out at 49 days.
func (w *Worker) SetClock(nanos int64) {
	if w.nanos == 0 {
		w.resetFrom = nanos + w.quiet
	} else if nanos-w.nanos < 0 {
		return
	}
	w.nanos = nanos
	if tick := uint32(uint64(nanos) / 1e6); tick != w.tick { // both wrap together
		w.tick = tick
		atomic.StoreUint64(&w.counters.Tick, uint64(tick))
	}
}

// step is how many packets go through the first stages together: few enough that what they ask of
// memory comes while the next ones are worked on (a core waits for about twenty lines at a time,
// and then for one of them), and enough that a call weighs little. ahead is how long before their
// use sessions are asked for.
const (
	step  = 4
	ahead = 4 * step
)

// Process takes a burst all its way. Afterwards every packet is in Out, in Done, or held.
func (w *Worker) Process(b *Burst) {
	w.Timed.begin()
	w.received(b)
	w.counters.ReceivedBytes[b.Port] += w.intake(b, w.handoff != nil)
	w.finish(b)
}

// received counts the burst at once, so that what a dying process had in hand can be told.
func (w *Worker) received(b *Burst) {
	w.counters.Received[b.Port] += uint64(b.N)
	b.begin(w.gen.Ports[b.Port].Side == uint8(config.Inside))
}

// intake takes the packets of a burst as far as their look-up can be begun, some at a time, and
// returns how many bytes they have.
func (w *Worker) intake(b *Burst, steer bool) (bytes uint64) {
	w.batch.Reset()
	for from := 0; from < b.N; from += step {
		first := len(b.live)
		bytes += w.classify(b, from, min(from+step, b.N))
		if steer {
			w.steer(b, first)
		}
		w.lookup(b, first)
	}
	w.Timed.end(stageClassify)
	if b.fragments {
		w.reassemble(b)
		w.Timed.end(stageReassemble)
		w.lookupAll(b)
	}
	return bytes
}

// finish takes the packets that are left the rest of their way.
func (w *Worker) finish(b *Burst) {
	w.forward(b)
	w.hairpin(b)
	w.follow(b)
	w.flush()
	w.Timed.end(stageFlush)
}

// flush adds what was counted in this turn to the shared counters.
func (w *Worker) flush() {
	c := w.counters
	if w.counts.dropped {
		w.counts.dropped = false
		for r, n := range w.dropped {
			if n != 0 {
				c.Dropped[r] += n
				w.dropped[r] = 0
			}
		}
	}
	c.Punted += w.counts.punted
	c.Stateless += w.counts.stateless
	w.counts.punted, w.counts.stateless = 0, 0
	c.Held = uint64(w.holding + w.pieces.waiting())
	c.Sessions = uint64(w.sessions.Len())
}

// lookupAll looks up all packets of a burst again.
func (w *Worker) lookupAll(b *Burst) {
	w.batch.Reset()
	w.lookup(b, 0)
}

// forward takes packets that have been looked up, all from one side, from their session to a queue.
// Where some can go the short way, those between them go the long one first, run by run: everything
// leaves in the order in which it came.
func (w *Worker) forward(b *Burst) {
	w.created = false
	w.hops[inet.V4].known, w.hops[inet.V6].known = false, false
	all, done := b.live, 0
	long := longFlags(b.inside)
	for k, i := range all {
		if k%step == 0 {
			w.sessions.Match(&w.batch, k+ahead)
		}
		p := &b.Packets[i]
		if !p.plain {
			continue
		}
		ref := w.sessions.Found(&w.batch, k)
		if ref == session.None || !w.settled(ref, long) {
			continue
		}
		if done < k {
			w.longWay(b, all[done:k], done)
			done = k
			// The long way may have ended the session, or changed it.
			if ref = w.sessions.Found(&w.batch, k); ref == session.None || !w.settled(ref, long) {
				continue
			}
		}
		if w.short(b.inside, w.sessions.At(ref), p, w.batch.Hashes[k]) {
			done = k + 1
		}
	}
	w.longWay(b, all[done:], done)
	w.Timed.end(stageShort)
}

// longWay takes packets that lie side by side in a burst through the stages. The first is the
// first-th of the look-up.
func (w *Worker) longWay(b *Burst, live []uint8, first int) {
	if len(live) == 0 {
		return
	}
	w.Timed.end(stageShort)
	b.live = live
	w.apply(b, first)
	w.Timed.end(stageApply)
	if b.inside {
		w.route(b)
	} else {
		w.deliver(b)
	}
	w.Timed.end(stageRoute)
	w.egress(b)
	w.Timed.end(stageEgress)
	w.rewrite(b)
	w.Timed.end(stageRewrite)
	w.transmit(b)
	w.Timed.end(stageTransmit)
}

// Capacity returns how many sessions the worker can hold.
func (w *Worker) Capacity() int { return w.sessions.Capacity() }
