// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// flood takes n packets through the worker in whole bursts, a burst every 10 µs; number(i, frame)
// makes frame the i-th. What leaves of each eighth is looked at, and the other tenant's flows a
// hundred times meanwhile. It returns how many of the others were to be answered by ICMP errors.
func (a *arena) flood(port, n int, frame []byte, number func(i int, frame []byte)) (errors int) {
	a.t.Helper()
	var b Burst
	var data [MaxBurst][256]byte
	often := max(n/MaxBurst/100, 1)
	for i := 0; i < n; i += MaxBurst {
		b.Port, b.N = port, min(MaxBurst, n-i)
		for k := range b.N {
			f := data[k][:copy(data[k][:], frame)]
			number(i+k, f)
			b.Packets[k].Data, b.Packets[k].Handle = f, uintptr(k+1)
		}
		a.after(10 * time.Microsecond)
		if i/MaxBurst%8 == 0 {
			a.watch.check(a.t, a.rig, &b)
		} else {
			a.Process(&b)
			a.drain()
			a.balanced()
			errors += a.punted(state.PuntError)
		}
		if i/MaxBurst%often == 0 {
			a.after(time.Millisecond)
			a.Expire(a.Capacity() / 8)
			a.rule(-1)
		}
	}
	return errors
}

// pass lets time pass in which the other tenant goes on.
func (a *arena) pass(d time.Duration) {
	a.t.Helper()
	for step := 30 * time.Second; d > 0; d -= step {
		a.after(min(d, step))
		a.Expire(a.Capacity())
		a.rule(-1)
	}
}

// renumber sets the source port of an IPv4 frame.
func renumber(i int, frame []byte) { binary.BigEndian.PutUint16(frame[34:], uint16(1024+i%60000)) }

// redirect sets the last three bytes of the destination of an IPv4 frame, and its header checksum.
func redirect(i int, frame []byte) {
	frame[31], frame[32], frame[33] = byte(i>>16), byte(i>>8), byte(i)
	mend(frame)
}

// one tenant asks for sixty thousand connections on a block of 64 ports: 64 of them, and what
// is live goes on; nobody else is refused anything.
func TestX01PortBlock(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	for _, mapping := range []string{"endpoint-independent", "address-and-port-dependent"} {
		t.Run(mapping, func(t *testing.T) { portBlock(t, mapping, n) })
	}
}

func portBlock(t *testing.T, mapping string, n int) {
	a := newArenaOn(t, strings.Replace(attackConfig, "1024-32767", "1024-1087", 1)+"sessions: {mapping: "+mapping+"}\n")
	line := "tcp 10.0.0.6:%d > 9.9.9.9:443 SYN"
	if errors := a.flood(0, n, parseLine(t, 0, fmt.Sprintf(line, 1024)), renumber); errors > errorVPCBurst+errorsPerVPC {
		t.Errorf("%d ICMP errors for one VPC in less than a second", errors)
	}
	live := a.sessions.Len() - len(calmFlows)
	if live != 64 {
		t.Fatalf("%d sessions on 64 ports", live)
	}
	if got := a.counters.Dropped[drop.PortsExhausted]; got < uint64(n*9/10) {
		t.Errorf("%d of %d are dropped as %v", got, n, drop.PortsExhausted)
	}
	// The 64 go on to be used: their next segments pass, on the ports they had.
	used := map[uint16]bool{}
	for i := range 60000 {
		if f := a.process(0, parseLine(t, 0, fmt.Sprintf("tcp 10.0.0.6:%d > 9.9.9.9:443 ACK", 1024+i)))[0]; f.port == 1 {
			used[portOf(f.frame)] = true
		}
		if i > 2000 && len(used) == 64 {
			break
		}
	}
	if len(used) != 64 {
		t.Errorf("%d of the 64 connections go on", len(used))
	}
	a.rule(64)
}

// punted empties the ring to control and returns how many messages of a kind were in it.
func (a *arena) punted(kind state.MessageKind) (n int) {
	for m := a.punts.Peek(); m != nil; m = a.punts.Peek() {
		if m.Kind == kind {
			n++
		}
		a.punts.Pop()
	}
	return n
}

// a million SYNs from inside to as many destinations fill the table. What was established
// stays, the half-open ones are gone after their time, and then there is room again.
func TestX02SYNFloodFromInside(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 20_000
	}
	a := newArenaOn(t, attackConfig+"sessions: {limits: {per_instance: 0}}\n")
	line := "tcp 10.0.0.6:1000 > 8.8.8.8:443 "
	reply := mirror(t, a.through(0, 1, parseLine(t, 0, line+"SYN seq=1")))
	a.through(1, 0, reply)
	data := parseLine(t, 0, line+"ACK seq=2 ack=2 df ipid=7 \"established\"")
	left := a.through(0, 1, data)
	for _, source := range []string{"10.0.0.6", "10.0.0.5"} {
		a.flood(0, n/2, parseLine(t, 0, "tcp "+source+":1000 > 9.0.0.0:443 SYN"), redirect)
		if got := a.through(0, 1, data); !bytes.Equal(got, left) {
			t.Fatalf("the established connection leaves as %s", packettext.Format(got))
		}
	}
	if a.counters.Dropped[drop.FairShare] == 0 {
		t.Errorf("%d SYNs never filled %d sessions", n, a.Capacity())
	}
	a.punts.Reset()
	a.pass(4*time.Minute + 30*time.Second)
	a.rule(1)
	if got := a.through(0, 1, data); !bytes.Equal(got, left) {
		t.Fatalf("after the flood the established connection leaves as %s", packettext.Format(got))
	}
	if got := a.throwLine(0, "tcp 10.0.0.6:2000 > 9.9.9.9:443 SYN"); strings.HasPrefix(got, "drop") {
		t.Errorf("after the flood a new connection: %s", got)
	}
	a.rule(2)
}

// a million SYNs from outside to one's floating addresses make a quarter of that instance's
// sessions at the most, all of them unconfirmed, and none after 30 s.
func TestX03SYNFloodFromOutside(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 20_000
	}
	a := newArenaOn(t, attackConfig+"sessions: {limits: {per_instance: 1000}}\n")
	frame := parseLine(t, 1, "tcp 9.0.0.0:443 > 192.0.2.20:22 SYN")
	a.flood(1, n, frame, func(i int, f []byte) {
		f[27], f[28], f[29] = byte(i>>16), byte(i>>8), byte(i)
		mend(f)
	})
	unconfirmed := 0
	for ref := range uint32(a.sessions.Capacity()) {
		switch s := a.sessions.At(ref); s.State() {
		case session.Unconfirmed:
			unconfirmed++
		}
	}
	if unconfirmed == 0 || unconfirmed > 250 || a.sessions.Len() != unconfirmed+len(calmFlows) {
		t.Errorf("%d sessions, %d unconfirmed, of an instance that may have 1000; want a quarter at the most", a.sessions.Len()-len(calmFlows), unconfirmed)
	}
	if c := a.counters; c.Forwarded < uint64(n) {
		t.Errorf("%d of %d SYNs to a floating address arrive", c.Forwarded, n)
	}
	a.after(31 * time.Second)
	a.Expire(a.Capacity())
	a.rule(0)
}

// a flood of one-packet UDP flows stays within its VPC's limit, is refused with few ICMP
// errors, and is over five minutes later.
func TestX04OnePacketFlows(t *testing.T) {
	n := 200_000
	if testing.Short() {
		n = 20_000
	}
	a := newArenaOn(t, strings.Replace(attackConfig, "  - name: v\n", "  - name: v\n    limits: {per_vpc: 500}\n", 1))
	a.flood(0, n, parseLine(t, 0, "udp 10.0.0.6:1000 > 9.0.0.0:4500 len=30"), redirect)
	if a.counters.Dropped[drop.LimitVPC] < uint64(n-2000) {
		t.Errorf("of %d flows %d are over the VPC's limit", n, a.counters.Dropped[drop.LimitVPC])
	}
	a.punts.Reset()
	a.rule(500)
	a.pass(4*time.Minute + 30*time.Second)
	a.rule(500)
	a.pass(time.Minute)
	a.rule(0)
}

// ten thousand packets whose TTL ends here, in a second: few are answered, and the answers are
// fair.
func TestX06TTLFlood(t *testing.T) {
	a := newArena(t)
	for _, line := range []string{"udp 10.0.0.5:1000 > 8.8.8.8:53 ttl=1", "udp [fd00::5]:1000 > [2001:4860::8]:53 ttl=0"} {
		a.after(10 * time.Second)
		errors := 0
		for range 10_000 {
			a.after(100 * time.Microsecond)
			a.refused(0, parseLine(t, 0, line), drop.TTLExceeded)
			errors += a.punted(state.PuntError)
		}
		if most := errorVPCBurst + errorsPerVPC; errors > most || errors < errorsPerVPC {
			t.Errorf("%s: %d errors in a second, want at most %d", line, errors, most)
		}
		a.throwLine(2, strings.Replace(line, "8.8.8.8", "8.8.4.4", 1))
		if a.punted(state.PuntError) != 1 {
			t.Error("the other tenant's packet is not answered")
		}
	}
	a.rule(0)
}

// a scan of 65,536 neighbors that are not there: few packets are held, few questions asked,
// and all buffers come back.
func TestX07NeighborScan(t *testing.T) {
	a := newArena(t)
	for _, line := range []string{"udp 10.0.0.5:1000 > 10.0.0.0:53", "udp [fd00::5]:1000 > [fd00::]:53"} {
		frame := parseLine(t, 0, line)
		asked := 0
		var b Burst
		var data [MaxBurst][64]byte
		for i := 256; i < 65536; i += MaxBurst { // behind the instances
			b.Port, b.N = 0, MaxBurst
			for k := range b.N {
				f := data[k][:copy(data[k][:], frame)]
				if f[12] == 0x08 {
					redirect(i+k, f)
				} else {
					binary.BigEndian.PutUint16(f[52:], uint16(i+k))
				}
				b.Packets[k].Data, b.Packets[k].Handle = f, uintptr(k+1)
			}
			before := a.counters.Dropped[drop.NeighborUnresolved] + uint64(a.holding)
			a.Process(&b)
			if n := a.counters.Dropped[drop.NeighborUnresolved] + uint64(a.holding) - before; n != MaxBurst {
				t.Fatalf("neighbors %d and up: %d of %d packets are held or given up", i, n, MaxBurst)
			}
			if a.holding > maxHeld {
				t.Fatalf("%d packets are held", a.holding)
			}
			a.drain()
			a.balanced()
			asked += a.punted(state.PuntResolve)
			if i%64 == 0 { // 64,000 neighbors in a second
				a.after(time.Millisecond)
				a.Release()
				a.drain()
			}
		}
		if asked > 2000 {
			t.Errorf("%d questions in a second", asked)
		}
		a.rule(0)
	}
	if a.counters.Dropped[drop.NeighborUnresolved] == 0 {
		t.Error("nothing is given up")
	}
}

// a transmit queue that takes nothing, or half of each burst: what it refuses is counted and
// given back.
func TestX12FullQueue(t *testing.T) {
	a := newArena(t)
	line := "udp 10.0.0.5:%d > 8.8.8.8:53"
	for takes := range MaxBurst + 1 {
		var b Burst
		b.Port, b.N = 0, MaxBurst
		for i := range b.N {
			b.Packets[i].Data, b.Packets[i].Handle = parseLine(t, 0, fmt.Sprintf(line, 1000+i)), uintptr(i+1)
		}
		a.Process(&b)
		full, sent := a.counters.Dropped[drop.TxFull], a.counters.Forwarded
		if n := a.Out[1].N; n != MaxBurst {
			t.Fatalf("%d of %d packets in the queue", n, MaxBurst)
		}
		a.Sent(1, takes)
		if n := len(a.Done); n != MaxBurst-takes {
			t.Fatalf("the queue takes %d of %d, and %d buffers come back", takes, MaxBurst, n)
		}
		if a.counters.Dropped[drop.TxFull] != full+uint64(MaxBurst-takes) || a.counters.Forwarded != sent+uint64(takes) {
			t.Fatalf("the queue takes %d: %d refused and %d forwarded are counted", takes, a.counters.Dropped[drop.TxFull]-full, a.counters.Forwarded-sent)
		}
		a.drain()
	}
	a.rule(MaxBurst)
}
