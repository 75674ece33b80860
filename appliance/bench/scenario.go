// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"math/rand/v2"

	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/state"

	"weir/appliance/dataplane"
	"weir/pipeline"
	"weir/pipeline/inet"
	"weir/pipeline/tsc"
)

// population is what sessions a state is filled with before it is measured.
type population struct {
	name string
	sets []flows // equally many sessions of each
	wire string  // how frames come and go inside, a name in wires; empty: plain
}

var (
	floating4 = flows{family: inet.V4, first: firstFloating, instances: benchInstances}
	floating6 = flows{family: inet.V6, first: firstFloating, instances: benchInstances}
	snat4     = flows{family: inet.V4, snat: true, first: firstSNAT, instances: benchInstances}
	snat6     = flows{family: inet.V6, snat: true, first: firstSNAT, instances: benchInstances}
	snatTCP4  = flows{family: inet.V4, snat: true, tcp: true, first: firstSNAT, instances: benchInstances}
	narrow4   = flows{family: inet.V4, snat: true, first: firstNarrow, instances: benchInstances}
)

// scenario is one thing to measure.
type scenario struct {
	name  string
	of    population
	ports []int // by which bursts come, in turn: 0 inside, 1 outside
	from  traffic
	drops []drop.Reason // every packet is dropped for one of these; none: it is forwarded
	open  bool          // some are forwarded and some are not
	fill  int           // percent of their SNAT ranges that the flows fill before new ones begin
	begin bool          // every packet begins a session
	mixed bool          // every worker receives packets of all workers' sessions
}

// scenarios is the catalogue.
func scenarios() []scenario {
	var list []scenario
	for _, p := range []population{
		{"floating/v4", []flows{floating4}, ""}, {"floating/v6", []flows{floating6}, ""},
		{"snat/v4", []flows{snat4}, ""}, {"snat/v6", []flows{snat6}, ""}, {"snat-tcp/v4", []flows{snatTCP4}, ""},
	} {
		list = append(list,
			scenario{name: "established/" + p.name + "/out", of: p, ports: []int{0}, from: sendEstablished},
			scenario{name: "established/" + p.name + "/in", of: p, ports: []int{1}, from: sendEstablished})
	}
	floating, snat := population{"floating/v4", []flows{floating4}, ""}, population{"snat/v4", []flows{snat4}, ""}
	narrow := population{"narrow", []flows{narrow4}, ""}
	return append(list,
		scenario{name: "established/mixed", of: population{"mixed", []flows{floating4, snat4, floating6, snat6}, ""}, ports: []int{0, 1}, from: sendEstablished},
		scenario{name: "established/vlan/v4/out", of: onWire("vlan"), ports: []int{0}, from: sendEstablished},
		scenario{name: "established/vlan/v4/in", of: onWire("vlan"), ports: []int{1}, from: sendEstablished},
		scenario{name: "established/vxlan/v4/out", of: onWire("vxlan"), ports: []int{0}, from: sendEstablished},
		scenario{name: "established/vxlan/v4/in", of: onWire("vxlan"), ports: []int{1}, from: sendEstablished},
		scenario{name: "established/geneve/v4/out", of: onWire("geneve"), ports: []int{0}, from: sendEstablished},
		scenario{name: "established/geneve/v4/in", of: onWire("geneve"), ports: []int{1}, from: sendEstablished},
		scenario{name: "handoff/snat/v4/out", of: snat, ports: []int{0}, from: sendEstablished, mixed: true, open: true}, // a ring may be full
		scenario{name: "fragments/floating/v4/out", of: floating, ports: []int{0}, from: sendFragments},
		scenario{name: "unknown/floating/v4/in", of: floating, ports: []int{1}, from: sendUnknown},
		scenario{name: "unknown/snat/v4/in", of: snat, ports: []int{1}, from: sendUnknown, drops: []drop.Reason{drop.Unsolicited, drop.Filtered}},
		scenario{name: "new/floating/v4", of: floating, begin: true},
		scenario{name: "new/floating/v6", of: population{"floating/v6", []flows{floating6}, ""}, begin: true},
		scenario{name: "new/snat/v4", of: snat, begin: true},
		scenario{name: "new/snat/v6", of: population{"snat/v6", []flows{snat6}, ""}, begin: true},
		scenario{name: "new/snat-50/v4", of: narrow, begin: true, fill: 50},
		scenario{name: "new/snat-99/v4", of: narrow, begin: true, fill: 99, open: true}, // some find no port
	)
}

// onWire is the flows of floating addresses whose frames have a tag or an outer header inside.
func onWire(wire string) population {
	return population{name: wire + "/floating/v4", sets: []flows{floating4}, wire: wire}
}

// sendEstablished sends packets of sessions, in random order.
func sendEstablished(l *lane, b []byte, port, _ int) int {
	w := l.established()
	return l.sets[w.set].put(b, w, port, l.size(), tcpACK)
}

// sendUnknown sends what no session expects, from hosts that no flow goes to, to any port.
func sendUnknown(l *lane, b []byte, port, _ int) int {
	f, r := l.sets[0], l.random.Uint64()
	n := max(l.size()-crc, f.headerLen())
	src := plus(benchRemote[f.family], l.strange[int(uint32(r))%len(l.strange)])
	dst := plus(benchExternal[f.family], f.first+uint32(r>>20)&(f.instances-1))
	f.write(b[:n], port, src, dst, uint16(r>>32), uint16(r>>48), 0)
	return n
}

// sendFragments sends datagrams of established flows in two pieces each.
func sendFragments(l *lane, b []byte, port, j int) int {
	if j%2 == 0 {
		l.established()
		l.frame++ // names the datagram
	}
	w := l.order[l.next]
	n := l.sets[w.set].put(b, w, port, l.frames[0], 0)
	return fragment(b[:n], uint16(l.frame), j%2 == 1)
}

// rig is a gateway with its lanes.
type rig struct {
	state *state.State
	gen   *generation.Generation
	lanes []*lane
}

// newRig makes a gateway with room for sessions in all; every lane has the flows of s.
func (b *bench) newRig(s *scenario, sessions, workers int) (*rig, error) {
	st, gen, err := newGateway(sessions, workers, s.of.wire)
	if err != nil {
		return nil, err
	}
	r := &rig{state: st, gen: gen}
	c := pipeline.WorkerConfig{MACs: benchMACs}
	if workers > 1 {
		c.Handoff = pipeline.NewHandoff(workers)
	}
	key, queues := st.RSS()
	for w := range workers {
		pipe := pipeline.NewWorker(st, w, r.gen, c)
		l := &lane{
			worker: dataplane.Worker{Index: w, Pool: b.pool, State: st, Pipe: pipe}, pipe: pipe,
			counters: st.Counters(w), index: w, workers: workers,
			pool: b.pool, random: rand.NewPCG(rand.Uint64(), rand.Uint64()), clock: 1e9, epoch: tsc.Read(), nanos: 1e9 / b.hz, frames: []int{64}, wire: wires[s.of.wire].wrap,
		}
		for _, set := range s.of.sets {
			f := set
			n := benchRemotes
			if s.fill > 0 {
				n = max(1, sessions/workers/narrowPorts/benchInstances)
				f.instances = uint32(min(benchInstances, max(1, sessions/workers/narrowPorts)))
			}
			own := ownRemotes(key, queues, w, f.family, n+benchRemotes)
			f.remotes, l.strange = own[:n], own[n:]
			l.sets = append(l.sets, &f)
		}
		r.lanes = append(r.lanes, l)
	}
	return r, nil
}

// ownRemotes returns the first n hosts of the Internet's network that a worker owns, as a network
// card would find out.
func ownRemotes(key []byte, queues []uint16, w int, family inet.Family, n int) (hosts []uint32) {
	for host := uint32(1); len(hosts) < n; host++ {
		a := plus(benchRemote[family], host)
		b := make([]byte, 16)
		if a.Put16(b); family == inet.V4 {
			b = b[12:]
		}
		hash := uint32(0)
		for bit := range 8 * len(b) {
			if b[bit/8]>>(7-bit%8)&1 == 0 {
				continue
			}
			for i := range 32 {
				at := bit + i
				hash ^= uint32(key[at/8]>>(7-at%8)&1) << (31 - i)
			}
		}
		if int(queues[int(hash)%len(queues)]) == w {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// mix gives every lane a share of all lanes' flows.
func (r *rig) mix() {
	var sets []*flows
	orders := make([][]flow, len(r.lanes))
	for _, l := range r.lanes {
		for i, f := range l.order {
			f.set += uint8(len(sets))
			to := i % len(r.lanes)
			orders[to] = append(orders[to], f)
		}
		sets = append(sets, l.sets...)
	}
	for w, l := range r.lanes {
		l.sets, l.order = sets, orders[w]
		l.shuffle()
	}
}

// populate begins the sessions of a rig, on the lanes' own threads.
func (b *bench) populate(r *rig, s *scenario, sessions int) error {
	return b.each(len(r.lanes), func(w int) error {
		l := r.lanes[w]
		if s.fill > 0 {
			return l.crowd(int(l.sets[0].instances) * len(l.sets[0].remotes) * narrowPorts * s.fill / 100)
		}
		n := sessions / len(r.lanes) / len(l.sets)
		l.order = make([]flow, 0, n*len(l.sets))
		for set := range l.sets {
			if err := l.begin(set, 0, n); err != nil {
				return err
			}
		}
		l.shuffle()
		return nil
	})
}

func (r *rig) close(err error) error {
	for _, l := range r.lanes {
		l.close()
	}
	r.gen.Close()
	r.state.Close()
	return err
}

// sample is one measurement of one lane.
type sample struct {
	packets, counts uint64 // counts of the time stamp counter within the pipeline
	outside         uint64 // and outside of it: the generator's
	bursts          histogram
	created         uint64
	ended, ending   uint64 // sessions that ended afterwards, and the counts that took
	stages          *pipeline.StageCounts
	aside           state.Counters // of packets that are not measured
}

// fewestBursts are sent in however short a time: what happens once a measurement must not look like
// once a packet.
const (
	fewestBursts = 1000
	fewestNew    = 4096 // packets that begin a session
)

// measure sends bursts for so many counts.
func (l *lane) measure(s *scenario, burst int, counts uint64, out *sample) error {
	begin := tsc.Read()
	for turn := 0; ; turn++ {
		now := tsc.Read()
		if now-begin >= counts && turn >= fewestBursts {
			out.outside += now - begin - out.counts
			return nil
		}
		port := s.ports[turn%len(s.ports)]
		l.tick()
		if err := l.make(port, burst, s.from); err != nil {
			return err
		}
		took := l.process(port)
		out.packets += uint64(burst)
		out.counts += took
		out.bursts.add(took)
	}
}

// measureNew begins sessions for so many counts of the pipeline's own and ends them again, round by
// round. A round begins what there is room for; with ranges that are filled already, only a few of
// each, so that they stay as full as they are.
func (l *lane) measureNew(s *scenario, burst, sessions int, counts uint64, out *sample) error {
	const (
		minute    = int64(60e9)
		narrowFew = 64 // of a range's 16384 ports
	)
	f := l.sets[0]
	first, n := 0, sessions
	if s.fill > 0 {
		ranges := int(f.instances) * len(f.remotes)
		first, n = ranges*narrowPorts*s.fill/100, ranges*narrowFew
	}
	ended := l.counters.SessionsEnded
	for begin := tsc.Read(); out.packets < fewestNew || out.counts < counts && tsc.Read()-begin < 20*counts; {
		created, start := l.counters.SessionsCreated, tsc.Read()
		within := out.counts
		for at := first; at < first+n; at += burst {
			l.tick()
			if err := l.make(0, min(burst, first+n-at), func(_ *lane, b []byte, port, j int) int {
				return f.put(b, flow{number: uint32(at + j)}, port, l.size(), tcpSYN)
			}); err != nil {
				return err
			}
			took := l.process(0)
			out.counts += took
			out.bursts.add(took)
		}
		out.outside += tsc.Read() - start - (out.counts - within)
		out.packets += uint64(n)
		out.created += l.counters.SessionsCreated - created
		// The new ones end by time, five minutes; the earlier ones are kept alive.
		l.jump(3 * minute)
		if first > 0 {
			before := *l.counters
			for at := 0; at < len(l.order); at += burst {
				if err := l.make(0, min(burst, len(l.order)-at), func(_ *lane, b []byte, port, j int) int {
					return f.put(b, l.order[at+j], port, 64, 0)
				}); err != nil {
					return err
				}
				l.process(0)
			}
			out.aside.Forwarded += l.counters.Forwarded - before.Forwarded
			for r, n := range before.Dropped {
				out.aside.Dropped[r] += l.counters.Dropped[r] - n
			}
		}
		l.jump(3 * minute)
		start = tsc.Read()
		l.pipe.Expire(l.pipe.Capacity())
		out.ending += tsc.Read() - start
	}
	out.ended += l.counters.SessionsEnded - ended
	return nil
}

// check holds what became of a measurement's packets against what should.
func (s *scenario) check(r *rig, before, after state.Counters) error {
	a, b := after.Totals(), before.Totals()
	received, forwarded, held := a.Received-b.Received, a.Forwarded-b.Forwarded, after.Held
	if s.open || len(s.drops) == 0 && forwarded == received && held == 0 {
		return nil
	}
	for _, r := range s.drops {
		received -= after.Dropped[r] - before.Dropped[r]
	}
	if len(s.drops) > 0 && received == 0 {
		return nil
	}
	return fmt.Errorf("of %d packets, %d were forwarded and %d are held; dropped so far: %v", received, forwarded, held, drops(&after))
}

// total adds the lanes' counters up.
func (r *rig) total() (c state.Counters) {
	for _, l := range r.lanes {
		c.Add(l.counters)
	}
	return c
}
