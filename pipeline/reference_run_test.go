// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// How long the two NATs are compared; and which world alone, to look into a failure.
var (
	refEvents = flag.Int("reference.events", 1_000_000, "events of TestAgreesWithReference, all worlds together")
	refSeed   = flag.Int64("reference.seed", -1, "the only world that TestAgreesWithReference plays")
)

// Sizes of the session table: full at times; and never, where what is over is not missed at once.
const (
	refTable     = 64
	refLazyTable = 1024
)

// refNeighbor is every neighbor.
var refNeighbor = config.MAC{2, 0, 0, 0, 9, 9}

// run is the fast NAT and the slow one side by side.
type run struct {
	*rig
	slow *reference
	// Nothing is ended at once: what is over by time or by a reload stays where it is until a
	// packet or the walk meets it.
	lazy    bool
	changed bool      // a reload may still have to be noticed
	workers []*Worker // of which the rig has the first; several only where it is lazy

	slots  map[string]uint32 // of instances, by identity, also of those that are gone
	frames map[string][]byte
	fates  map[string]int
	events int
}

// fault is the end of a run that failed.
type fault string

// faultTB lets a rig fail as a run does. Its cleanups are the run's.
type faultTB struct {
	testing.TB
	cleanups []func()
}

func (t *faultTB) Fatal(args ...any)            { panic(fault(fmt.Sprint(args...))) }
func (t *faultTB) Fatalf(f string, args ...any) { panic(fault(fmt.Sprintf(f, args...))) }
func (t *faultTB) Cleanup(f func())             { t.cleanups = append(t.cleanups, f) }

// scene is what a run begins with.
type scene struct {
	text    string
	start   int64 // nanoseconds
	lazy    bool
	workers int
}

// play runs the events that next gives until it gives none, and returns what the two disagree
// about, if anything.
func play(t testing.TB, at scene, fates map[string]int, next func(*reference) (event, bool)) (err error) {
	soft := &faultTB{TB: t}
	defer func() {
		for _, f := range slices.Backward(soft.cleanups) {
			f()
		}
		if f := recover(); f != nil {
			text, ok := f.(fault)
			if !ok {
				panic(f)
			}
			err = fmt.Errorf("%s", text)
		}
	}()
	size := refTable
	if at.lazy {
		size = refLazyTable
	}
	r := &run{rig: newRigFor(soft, at.text, refNeighbor, size*at.workers, at.workers), lazy: at.lazy, slots: map[string]uint32{}, frames: map[string][]byte{}, fates: fates}
	r.hire()
	r.clock(at.start)
	r.label()
	r.slow = &reference{model: model{r.cfg}, now: at.start / 1e6, capacity: size, refused: map[string]int64{}, lazy: at.lazy}
	r.slow.regained = func(s *refSession) bool {
		f := r.sessionOf(s)
		return f != nil && f.External == inet.FromNetip(s.external) && f.ExternalPort() == s.externalPort
	}
	for {
		e, more := next(r.slow)
		if !more {
			for what, n := range map[string]int{"replaced": r.slow.replaced, "given": r.slow.given, "again": r.slow.again, "reused": r.slow.reused, "taken over": r.slow.takenOver} {
				fates[what] += n
			}
			return r.state.Check()
		}
		if err := r.happen(e); err != nil {
			return err
		}
	}
}

// happen lets an event happen to both.
func (r *run) happen(e event) error {
	exact := true
	switch {
	case e.wait != 0:
		if r.changed {
			r.walk() // when a session begins to drain, and a port to rest, is when the reload is noticed
		}
		r.clock(r.nanos + e.wait.Nanoseconds())
		r.slow.wait(e.wait.Milliseconds())
		if exact = !r.lazy; exact {
			r.walk()
		}
	case e.reload != "":
		if r.lazy {
			r.walk()
		}
		r.reload(e.reload)
		for _, w := range r.workers {
			w.SetGeneration(r.gens[len(r.gens)-1])
		}
		for _, g := range r.gens[:len(r.gens)-1] {
			g.Close()
		}
		r.gens = r.gens[len(r.gens)-1:]
		r.slow.reload(r.cfg)
		r.label()
		if r.changed, exact = r.lazy, !r.lazy; exact {
			r.walk()
		}
		if err := r.state.Check(); err != nil {
			return err
		}
	case e.restart:
		r.restart()
		exact = !r.lazy
	case e.walk:
		r.slow.rested() // a mapping that rested once, and was held again by a connection that has closed, does so no longer
		r.walk()
	default:
		exact = !r.lazy
		if err := r.arrive(e); err != nil {
			return err
		}
	}
	if r.events++; r.events%16 == 0 {
		if err := r.sessions.Check(); err != nil {
			return err
		}
	}
	return r.compare(exact)
}

// hire makes the workers, the first of which the rig has.
func (r *run) hire() {
	macs, handoff := r.Worker.macs, NewHandoff(r.state.Workers())
	r.workers = nil
	for w := range r.state.Workers() {
		seed := testSeed
		seed[0] += byte(w)
		k := NewWorker(r.state, w, r.gens[len(r.gens)-1], WorkerConfig{AssumeMAC: refNeighbor, Seed: &seed, Handoff: handoff})
		k.macs = macs
		r.workers = append(r.workers, k)
	}
	r.Worker = r.workers[0]
}

func (r *run) clock(nanos int64) {
	for _, w := range r.workers {
		w.SetClock(nanos)
	}
}

// sum is what all workers count.
func (r *run) sum() (sum state.Counters) {
	for w := range r.workers {
		sum.Add(r.state.Counters(w))
	}
	return sum
}

// process takes bursts that arrive by a port through the workers until nothing is on its way, and
// returns what became of each packet. It checks what holds whatever that is.
func (r *run) process(port int, bursts ...[][]byte) []fate {
	var fates []fate
	for _, burst := range bursts {
		fates = append(fates, make([]fate, len(burst))...)
	}
	handle, done := 0, 0
	empty := func(w *Worker) {
		for p := range w.Out {
			q := &w.Out[p]
			for i := range q.N {
				fates[q.Handles[i]-1] = fate{port: p, frame: q.Frames[i]}
				if err := packettext.Verify(q.Frames[i]); err != nil {
					r.t.Fatalf("out: %s\n%v", packettext.Format(q.Frames[i]), err)
				}
			}
			done += q.N
			w.Sent(p, q.N)
		}
		for _, h := range w.Done {
			fates[h-1] = fate{port: -1}
		}
		done += len(w.Done)
		w.Done = w.Done[:0]
	}
	for _, frames := range bursts {
		b := new(Burst)
		b.Port, b.N = port, len(frames)
		for i, f := range frames {
			handle++
			b.Packets[i].Data, b.Packets[i].Handle = f, uintptr(handle)
		}
		first := r.workers[(r.events+handle)%len(r.workers)]
		first.Process(b)
		empty(first)
		for busy := true; busy; {
			busy = false
			for to, w := range r.workers {
				for from := range r.workers {
					if from != to && w.Adopt(from) > 0 {
						busy = true
						empty(w)
					}
				}
			}
		}
	}
	sum := r.sum()
	if t := sum.Totals(); done != handle || t.Received != t.Forwarded+t.Punted+t.Dropped || t.Transmitted != t.Forwarded {
		r.t.Fatalf("of %d packets %d are accounted for: %+v", handle, done, t)
	}
	return fates
}

// restart is the death of the data plane and another one's start. Of unconfirmed sessions that
// began in one millisecond, it may think any the oldest.
func (r *run) restart() {
	Sweep(r.state, r.gen, r.nanos)
	now := r.nanos
	r.hire()
	r.clock(now)
	r.slow.refused, r.slow.pressed, r.slow.spent = map[string]int64{}, false, 0
	place := map[*session.Session]int{}
	for _, w := range r.workers {
		for _, list := range w.unconfirmed[:r.state.Room().Instances] { // the others have no memory
			for ref := list.Oldest; ref != session.None; ref = w.sessions.At(ref).Next {
				place[w.sessions.At(ref)] = len(place)
			}
		}
	}
	age := func(s *refSession) [2]int { // all others before the unconfirmed ones, which stand in their order
		if f := r.sessionOf(s); f != nil && s.state == session.Unconfirmed {
			return [2]int{int(s.last), place[f]}
		}
		return [2]int{}
	}
	slices.SortStableFunc(r.slow.sessions, func(a, b *refSession) int {
		x, y := age(a), age(b)
		return slices.Compare(x[:], y[:])
	})
}

// walk ends all that is over, and lets every worker begin another turn.
func (r *run) walk() {
	r.changed = false
	for _, w := range r.workers[1:] {
		w.Expire(w.Capacity())
	}
	r.Expire(r.Capacity())
	r.mappings.Reap(0, r.tick, 0, r.tick+1)
	// Which of those that may give way does is the fast one's to choose.
	for _, s := range slices.Clone(r.slow.sessions) {
		if r.slow.gives(s) && r.sessionOf(s) == nil {
			r.slow.end(s)
			r.fates["gave way"]++
		}
	}
	r.slow.crowding = nil
}

// frame parses a line once.
func (r *run) frame(line string) []byte {
	f, ok := r.frames[line]
	if !ok {
		f = parseLine(r.t, 0, line)
		r.frames[line] = f
	}
	return f
}

// arrive takes a burst through the fast one, and then packet for packet through the slow one.
func (r *run) arrive(e event) error {
	burst, port := e.burst, e.burst[0].port
	frames := make([][]byte, len(burst))
	for i, q := range burst {
		frames[i] = bytes.Clone(r.frame(q.line()))
		frames[i][5] = byte(1 + port)
	}
	bursts := [][][]byte{frames}
	if e.pieces != nil {
		bursts = r.cut(frames[0], e)
	}
	for _, w := range r.workers {
		w.punts.Reset()
		w.puntRates = [puntSets][numClasses]bucket{}
	}
	was := r.sum()
	fates := r.process(port, bursts...)
	drops := map[string]int{}
	now := r.sum()
	for reason, n := range now.Dropped {
		if n > was.Dropped[reason] {
			drops["drop "+drop.Reason(reason).String()] = int(n - was.Dropped[reason])
		}
	}
	if n := now.Punted - was.Punted; n > 0 {
		drops["punt"] = int(n)
	}
	wanted := map[string]int{}
	for i, q := range burst {
		var o outcome
		if r.slow.Ports[port].Side == config.Outside {
			o = r.slow.fromOutside(q, outside)
		} else if o = r.slow.fromInside(q); o.may != nil {
			if err := r.learn(&o, drops, wanted); err != nil {
				return err
			}
		}
		if o.begins != nil {
			r.slow.add(o.begins)
		}
		if o.turns {
			early := 0 // pieces that turn untranslated before the first, which alone names a port
			if o.fate == "plain" {
				early = max(0, slices.Index(e.pieces, 0))
			}
			r.notice(&o, drops, wanted)
			b := o.back(q)
			if o = r.slow.fromOutside(b, turned); o.begins != nil {
				r.slow.add(o.begins)
			}
			if o.quoted == nil {
				o.quoted = b.quoted
			}
			if early > 0 && o.fate == "drop "+drop.Filtered.String() {
				wanted[o.fate] -= early
				wanted["drop "+drop.Unsolicited.String()] += early
			}
			r.fates["turned"]++
		}
		if held := "drop " + drop.Filtered.String(); r.lazy && o.fate == "drop "+drop.Unsolicited.String() && drops[held] > wanted[held] {
			o = refused(drop.Filtered) // by a mapping that is over, without having been missed yet
		}
		r.notice(&o, drops, wanted)
		r.fates[o.fate]++
		f := fates[i]
		if e.pieces != nil {
			var err error
			if f, err = r.joined(fates, o); err != nil {
				return err
			}
			r.slow.stateless = now.Stateless // of a datagram, it counts pieces
		}
		if f.port < 0 {
			wanted[o.fate] += max(1, len(e.pieces))
			continue
		}
		if err := r.left(q, o, f); err != nil {
			return err
		}
	}
	if own := wanted["punt"] + wanted["drop "+drop.NoService.String()]; own > 0 && e.pieces != nil {
		return nil // pings in pieces to weir itself are not answered
	}
	if !maps.Equal(drops, wanted) {
		return fmt.Errorf("stayed: %v, expected %v", drops, wanted)
	}
	return nil
}

// notice takes over what the fast one thinks of a segment that may be the connection's or not.
func (r *run) notice(o *outcome, drops, wanted map[string]int) {
	if o.of == nil || !o.uncertain {
		return
	}
	if reset := "drop " + drop.TCPReset.String(); o.mayDrop && drops[reset] > wanted[reset] {
		o.forecast, o.turns = droppedAs(drop.TCPReset), false
	}
	if f := r.sessionOf(o.of); f != nil {
		if o.of.mapping != nil && f.Flags&session.Given != 0 {
			r.slow.give(o.of)
		}
		if o.of.state = f.State(); f.Last == uint32(o.last) {
			o.of.last = o.last
		} else if f.Last == uint32(r.slow.now) {
			o.of.last = r.slow.now
		}
	}
}

// cut makes pieces of a frame in the event's order and bursts.
func (r *run) cut(frame []byte, e event) (bursts [][][]byte) {
	pieces := cut(frame, uint32(r.events+1), 24, 56)
	for _, i := range e.pieces {
		if e.apart || bursts == nil {
			bursts = append(bursts, nil)
		}
		bursts[len(bursts)-1] = append(bursts[len(bursts)-1], pieces[i])
	}
	return bursts
}

// joined is what the receiver of the pieces makes of them. All of them leave, or none; by one port,
// unless they are not translated.
func (r *run) joined(fates []fate, o outcome) (fate, error) {
	var frames [][]byte
	for _, f := range fates {
		if other := f.port != fates[0].port; other && (o.fate != "plain" || !slices.Contains(o.ports, f.port)) {
			return fate{}, fmt.Errorf("of one datagram pieces left by ports %d and %d", fates[0].port, f.port)
		}
		if f.port >= 0 && fates[0].port >= 0 {
			copy(f.frame[:12], fates[0].frame) // for another next hop, perhaps
		}
		frames = append(frames, f.frame)
	}
	if fates[0].port < 0 {
		return fates[0], nil
	}
	return fate{port: fates[0].port, frame: join(r.t, frames)}, nil
}

// learn takes over the external port that the fast one drew.
func (r *run) learn(o *outcome, drops, wanted map[string]int) error {
	s := o.begins
	more := func(reason drop.Reason) bool { return drops["drop "+reason.String()] > wanted["drop "+reason.String()] }
	if o.orExhausted && more(drop.PortsExhausted) {
		*o = refused(drop.PortsExhausted)
		return nil
	}
	if r.lazy && o.mapped && more(drop.PortsExhausted) { // ports that are over, and rest, without having been missed yet
		*o = refused(drop.PortsExhausted)
		return nil
	}
	for port, reason := range o.vain {
		if !more(reason) {
			continue
		}
		if s.externalPort = port; !o.mapped || r.holds(s) {
			if o.mapped {
				r.slow.hold(s, true)
				s.mapping.rests, s.mapping.released = true, r.slow.now
			}
			*o = refused(reason)
			return nil
		}
	}
	f := r.sessionOf(s)
	if f == nil {
		return fmt.Errorf("no session begins, expected one of %s", s.instance)
	}
	s.externalPort = f.ExternalPort()
	if _, vain := o.vain[s.externalPort]; vain && !o.perhaps[s.externalPort] || !slices.Contains(o.may, s.externalPort) {
		return fmt.Errorf("external port %d, expected one of %v but %v", s.externalPort, o.may, o.vain)
	}
	if o.sport = s.externalPort; o.mapped {
		r.slow.hold(s, true)
	}
	return nil
}

// label notes the slots of the instances.
func (r *run) label() {
	for i := range r.cfg.VPCs {
		v := &r.cfg.VPCs[i]
		for j := range v.Instances {
			in := &v.Instances[j]
			r.slots[identityOf(v, in)] = r.compiler.Instances.Current[generation.IdentityOf(r.compiler.VPCs.Current[v.Name], in)]
		}
	}
}

// holds reports whether the fast one has a mapping of the internal to the external endpoint of s.
func (r *run) holds(s *refSession) bool {
	space := session.EchoIdentifiers
	switch s.proto {
	case 6:
		space = session.TCPPorts
	case 17:
		space = session.UDPPorts
	}
	ref := r.mappings.Hold(r.compiler.VPCs.Known[s.vpc], inet.FromNetip(s.private), s.privatePort, space, r.compiler.Addresses.Known[s.external],
		[]session.PortRange{{First: s.externalPort, Last: s.externalPort}})
	if ref == session.None {
		return false
	}
	r.mappings.Release(ref, r.tick)
	return true
}

// left holds a frame against what was to leave.
func (r *run) left(q question, o outcome, f fate) error {
	if o.ports == nil || strings.HasPrefix(o.fate, "drop") {
		return fmt.Errorf("left as %s, expected %s", bare(f.frame), o.fate)
	}
	if !slices.Contains(o.ports, f.port) {
		return fmt.Errorf("left by port %d, expected one of %v", f.port, o.ports)
	}
	if r.slow.Ports[f.port].Side == config.Outside && !r.slow.ours(o.src) && !o.untranslated {
		return fmt.Errorf("left by an outside port as %s, whose source is not public", bare(f.frame))
	}
	w := q
	w.src, w.dst, w.sport, w.dport = o.src, o.dst, o.sport, o.dport
	if a := q.about(); q.proto == "error" && o.quoted == nil { // what it quotes stays as it was
		w.quoted = &a
	} else {
		w.quoted = o.quoted
	}
	want := r.frame(w.text() + " ttl=63")
	if !bytes.Equal(f.frame[header.EthernetSize:], want[header.EthernetSize:]) {
		if got, want := bare(f.frame), bare(want); got != want {
			return fmt.Errorf("left as %s, expected %s", got, want)
		}
	}
	return nil
}

// compare holds the fast one's sessions and counters against the reference's. Unless it is exact,
// the fast one may have more that is over.
func (r *run) compare(exact bool) error {
	n, c := r.slow, r.sum()
	live := 0
	for _, w := range r.workers {
		live += w.sessions.Len()
	}
	if want := len(n.sessions); live < want || exact && live != want {
		return fmt.Errorf("%d sessions live, expected %d", live, want)
	}
	if got, want := r.mappings.Len(), len(n.mappings); got < want || exact && !r.lazy && got != want+n.spent {
		return fmt.Errorf("%d mappings, expected %d", got, want)
	}
	if c.SessionsCreated != n.created || c.SessionsEnded > n.ended || exact && c.SessionsEnded != n.ended || c.Stateless != n.stateless {
		return fmt.Errorf("%d sessions created, %d ended, %d packets without; expected %d, %d, %d",
			c.SessionsCreated, c.SessionsEnded, c.Stateless, n.created, n.ended, n.stateless)
	}
	for _, s := range n.sessions {
		f := r.sessionOf(s)
		if f == nil {
			return fmt.Errorf("there is no session %v", s)
		}
		if f.External != inet.FromNetip(s.external) || f.ExternalPort() != s.externalPort || f.State() != s.state || f.Last != uint32(s.last) ||
			f.Flags&session.SNAT != 0 != s.snat || f.Flags&session.Forward != 0 != s.forward || f.Flags&session.FromOutside != 0 != s.fromOutside || f.Flags&session.Hairpin != 0 != s.hairpin || f.Mapping != session.None != (s.mapping != nil) || f.Instance != r.slots[s.instance] ||
			f.Generation == uint32(r.gen.Number) && (f.Flags&session.Draining != 0 != (s.drain != 0) || s.drain != 0 && f.Drain != uint32(s.drain)) {
			return fmt.Errorf("session %v = %v, %v, last %d, drain %d, flags %#x, slot %d; expected %v, last %d, drain %d", f.Private.Netip(),
				netip.AddrPortFrom(f.External.Netip(), f.ExternalPort()), f.State(), f.Last, f.Drain, f.Flags, f.Instance, s, uint32(s.last), uint32(s.drain))
		}
	}
	return nil
}

// sessionOf returns the fast one's session for the inside of s.
func (r *run) sessionOf(s *refSession) *session.Session {
	k := session.InsideKey(r.compiler.VPCs.Known[s.vpc], inet.FromNetip(s.private), inet.FromNetip(s.remote), s.privatePort, s.remotePort, s.proto)
	for _, w := range r.workers {
		if ref := w.sessions.Find(&k); ref != session.None {
			return w.sessions.At(ref)
		}
	}
	return nil
}

// smallest leaves out events for as long as the rest fails too, and says how.
func smallest(t testing.TB, at scene, events []event) ([]event, error) {
	fails := func(events []event) error {
		i := 0
		return play(t, at, map[string]int{}, func(*reference) (event, bool) {
			i++
			if i > len(events) {
				return event{}, false
			}
			return events[i-1], true
		})
	}
	err := fails(events)
	deadline := time.Now().Add(5 * time.Second) // bounds the search, whose result is right at any time
	for size := len(events) / 2; size > 0 && err != nil; {
		shorter := false
		for i := 0; i < len(events) && time.Now().Before(deadline); {
			rest := slices.Delete(slices.Clone(events), i, min(i+size, len(events)))
			if e := fails(rest); e != nil {
				events, err, shorter = rest, e, true
			} else {
				i += size
			}
		}
		if !shorter || size > 1 {
			size /= 2
		}
	}
	return events, err
}

// story is a list of events as text: configurations as the lines in which each differs from the one
// before.
func story(text string, events []event) string {
	var b strings.Builder
	b.WriteString(text)
	lines := strings.Split(text, "\n")
	for _, e := range events {
		fmt.Fprintln(&b, e)
		if e.reload == "" {
			continue
		}
		now := strings.Split(e.reload, "\n")
		for _, l := range lines {
			if !slices.Contains(now, l) {
				fmt.Fprintln(&b, " -", l)
			}
		}
		for _, l := range now {
			if !slices.Contains(lines, l) {
				fmt.Fprintln(&b, " +", l)
			}
		}
		lines = now
	}
	return b.String()
}

// The fast NAT and the slow one agree over a million random events: packets in both directions,
// time, and configurations.
func TestAgreesWithReference(t *testing.T) {
	total := *refEvents
	if testing.Short() {
		total = min(total, 40_000)
	}
	const perWorld, parts = 5_000, 8
	if *refSeed >= 0 {
		playWorld(t, uint64(*refSeed), perWorld, map[string]int{})
		return
	}
	worlds := max(1, total/perWorld/parts)
	results := make([]map[string]int, parts)
	t.Run("worlds", func(t *testing.T) {
		for part := range parts {
			results[part] = map[string]int{}
			t.Run(fmt.Sprint(part), func(t *testing.T) {
				t.Parallel()
				for i := range worlds {
					if !playWorld(t, uint64(part*worlds+i), perWorld, results[part]) {
						return
					}
				}
			})
		}
	})
	fates := map[string]int{}
	for _, part := range results {
		for fate, n := range part {
			fates[fate] += n
		}
	}
	t.Log(fates)
	if total < 200_000 {
		return // too few worlds to have seen everything
	}
	for fate, least := range map[string]int{"out": 100, "in": 100, "snat": 10, "plain": 10, "punt": 0, "replaced": 0, "turned": 1, "given": 0, "again": 0, "reused": 0, "taken over": 0} {
		if fates[fate] <= least*total/1000 {
			t.Errorf("only %d of %d packets went %s", fates[fate], total, fate)
		}
	}
	for _, reason := range []drop.Reason{drop.AntiSpoof, drop.Martian, drop.NoRoute, drop.RouteDrop, drop.NoEligible, drop.PublicSource, drop.PrivateDestination, drop.SNATProtocol, drop.NoSession, drop.TTLExceeded, drop.ICMPUnrelated, drop.TCPReset,
		drop.OwnSource, drop.NoPartner, drop.UnknownDestination, drop.Unsolicited, drop.Filtered, drop.NoNextHop, drop.LimitInstance, drop.LimitVPC, drop.FairShare, drop.TableFull, drop.PortsExhausted} {
		if fates["drop "+reason.String()] == 0 {
			t.Errorf("no packet was dropped for %v: the property says nothing about it", reason)
		}
	}
}

func playWorld(t *testing.T, seed uint64, events int, fates map[string]int) bool {
	w := newWorld(seed)
	at := scene{w.text(), 1e9, w.lazy, 1}
	if w.lazy {
		at.workers += w.IntN(3)
	}
	if w.some(0.2) { // the milliseconds of the clock start again from 0 on the way
		at.start = (1<<32 - w.Int64N(3_600_000)) * 1e6
	}
	var past []event
	err := play(t, at, fates, func(n *reference) (event, bool) {
		if len(past) == events {
			return event{}, false
		}
		e := w.next(n)
		past = append(past, e)
		return e, true
	})
	if err == nil {
		return true
	}
	few, shorter := smallest(t, at, past)
	t.Errorf("seed %d, event %d: %v\nThe last ones:\n%v\n\n%d of them are enough for: %v\n%s", seed, len(past), err,
		past[max(0, len(past)-10):], len(few), shorter, story(at.text, few))
	return false
}
