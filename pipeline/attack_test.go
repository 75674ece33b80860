// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/packettext"
	"weir/pipeline/session"
)

// The tests TestM01... to TestX12... are the catalogue of attacks and faults: malformed packets,
// spoofing and leaks, exhaustion. After each, whatever it was, arena.rule must hold.

// attackConfig is rigConfig, whose instances attack, and beside them a second tenant with the very
// same private addresses, on port 2, who shares the SNAT address.
var attackConfig = strings.NewReplacer("pools:\n", "  - {name: quiet, device: net_null2, side: inside}\npools:\n",
	"1024-65535", "1024-32767").Replace(rigConfig) + `
  - name: w
    attach: [{port: quiet, addresses: [10.0.0.1/16, "fd00::1/64"]}]
    subnets: [10.0.0.0/16, "fd00::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}]
    instances:
      - {name: one, addresses: [10.0.0.5, "fd00::5"], mac: "02:00:00:00:03:05", external: {floating: [192.0.2.40, "2001:db8:1::40"]}}
      - {name: shared, addresses: [10.0.0.6, "fd00::6"], mac: "02:00:00:00:03:06",
         external: {snat: [{address: 192.0.2.6, ports: 32768-65535}, {address: "2001:db8:1::6", ports: 32768-65535}]}}
`

// arena is a rig in which one tenant and the Internet do what they like, and another tenant must
// not feel it.
type arena struct {
	*rig
	watch  *leakWatch
	golden []goldenFlow
}

// goldenFlow is a flow of the other tenant: a packet each way, before and after the pipeline.
type goldenFlow struct{ request, left, reply, arrived []byte }

// calmFlows are the other tenant's: 1:1 and SNAT, both families. ID, for a packet that fragments
// never touch, is its sender's.
var calmFlows = []string{
	"udp 10.0.0.5:1000 > 8.8.8.8:4500 df ipid=7 \"golden\"", "udp 10.0.0.6:1000 > 8.8.8.8:4500 df ipid=7 \"golden\"",
	"tcp 10.0.0.5:1000 > 8.8.8.8:443 SYN df seq=1", "tcp 10.0.0.6:1000 > 8.8.8.8:443 SYN df seq=1",
	"icmp echo-request 10.0.0.5 > 8.8.8.8 df id=7 \"golden\"", "icmp echo-request 10.0.0.6 > 8.8.8.8 df id=7 \"golden\"",
	"udp [fd00::5]:1000 > [2001:4860::8]:4500 \"golden\"", "udp [fd00::6]:1000 > [2001:4860::8]:4500 \"golden\"",
	"tcp [fd00::5]:1000 > [2001:4860::8]:443 SYN seq=1", "tcp [fd00::6]:1000 > [2001:4860::8]:443 SYN seq=1",
	"icmp6 echo-request fd00::5 > 2001:4860::8 id=7 \"golden\"", "icmp6 echo-request fd00::6 > 2001:4860::8 id=7 \"golden\"",
}

func newArena(t testing.TB) *arena { return newArenaOn(t, attackConfig) }

// newArenaOn starts an arena on a configuration that has what attackConfig has of the other tenant.
func newArenaOn(t testing.TB, text string) *arena {
	r := newRig(t, text, config.MAC{})
	a := &arena{rig: r, watch: newLeakWatch(r.cfg)}
	golden := func(line string) (g goldenFlow) {
		g.request = parseLine(t, 2, line)
		g.left = a.through(2, 1, g.request)
		g.reply = mirror(t, g.left)
		g.arrived = a.through(1, 2, g.reply)
		return g
	}
	for _, line := range calmFlows {
		g := golden(line)
		if strings.HasPrefix(line, "tcp") { // what follows the handshake is what the attack must not touch
			g = golden(strings.Replace(line, "SYN df seq=1", "ACK df seq=2 ack=2", 1) + ` "golden"`)
		}
		a.golden = append(a.golden, g)
	}
	a.rule(0)
	return a
}

// through takes a copy of a frame in by one port and returns what leaves by the other.
func (a *arena) through(in, out int, frame []byte) []byte {
	a.t.Helper()
	f := a.process(in, bytes.Clone(frame))[0]
	if f.port != out {
		a.t.Fatalf("%s into port %d does not leave by port %d: %+v", packettext.Format(frame), in, out, f)
	}
	return bytes.Clone(f.frame)
}

// mirror is the reply that the remote gives to a frame that left by port 1. To a SYN it says
// SYN,ACK from 1 on; other segments it repeats.
func mirror(t testing.TB, frame []byte) []byte {
	t.Helper()
	words := strings.Fields(bare(frame))
	at := slices.Index(words, ">")
	words[at-1], words[at+1] = words[at+1], words[at-1]
	line := strings.Replace(strings.Join(words, " "), "echo-request", "echo-reply", 1)
	if words[0] == "tcp" {
		seq, ack := "0", "0"
		line = ""
		for _, w := range words {
			if n, ok := strings.CutPrefix(w, "seq="); ok {
				seq = n
			} else if n, ok := strings.CutPrefix(w, "ack="); ok {
				ack = n
			} else {
				line += w + " "
			}
		}
		if strings.Contains(line, " SYN ") {
			n, err := strconv.ParseUint(seq, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			seq, ack = fmt.Sprint(uint32(n+1)), "1"
			line = strings.Replace(line, " SYN ", " SYN,ACK ", 1)
		}
		line = strings.Replace(line, "ACK ", "ACK seq="+ack+" ack="+seq+" ", 1)
	}
	return parseLine(t, 1, line)
}

// throw takes a copy of a frame through the worker, as frameFate, and looks at what leaves. A frame
// that is lost, or leaves by an outside port with a source that the configuration does not allow,
// ends the test.
func (a *arena) throw(port int, frame []byte) string {
	a.t.Helper()
	dropped, punted := a.counters.Dropped, a.counters.Punted
	f := a.process(port, bytes.Clone(frame))[0]
	switch {
	case f.held:
		return "held"
	case f.port >= 0:
		if a.cfg.Ports[f.port].Side == config.Outside {
			if src, err := a.watch.source(f.frame); err != nil || !a.watch.addresses[src] && !within(a.watch.attached, src) {
				a.t.Fatalf("%s\nleaves by port %d as\n%s (%v)", packettext.Format(frame), f.port, packettext.Format(f.frame), err)
			}
		}
		return bare(f.frame)
	case a.counters.Punted > punted:
		return "punt"
	}
	for reason, n := range a.counters.Dropped {
		if n > dropped[reason] {
			return "drop " + drop.Reason(reason).String()
		}
	}
	a.t.Fatalf("%s is neither sent nor dropped under a reason", packettext.Format(frame))
	return ""
}

// throwLine throws a line.
func (a *arena) throwLine(port int, line string) string {
	a.t.Helper()
	return a.throw(port, parseLine(a.t, port, line))
}

// refused throws a frame that must not get past weir, for one of the reasons.
func (a *arena) refused(port int, frame []byte, reasons ...drop.Reason) {
	a.t.Helper()
	got := a.throw(port, frame)
	for _, r := range reasons {
		if got == "drop "+r.String() {
			return
		}
	}
	a.t.Fatalf("%s into port %d:\n  got  %s\n  want a drop as %v", packettext.Format(frame), port, got, reasons)
}

// rule is what has to hold after every attack: all buffers are back, received = sent + dropped
// under names, sessions, mappings and limits agree, there are as many sessions of the attackers as
// there should be (-1: any number), and the other tenant's flows go on, byte for byte.
func (a *arena) rule(sessions int) {
	a.t.Helper()
	for second := 0; a.counters.Held > 0; second++ { // whatever it waits for, it does not wait for ever
		if second == 60 {
			a.t.Fatalf("%d packets are held for ever", a.counters.Held)
		}
		a.after(time.Second)
		a.Expire(a.Capacity())
		a.Release()
		a.drain()
		a.flush()
	}
	a.balanced()
	if err := a.state.Check(); err != nil {
		a.t.Fatal(err)
	}
	if n := a.sessions.Len() - len(calmFlows); sessions >= 0 && n != sessions {
		a.t.Fatalf("%d sessions beside the other tenant's, want %d", n, sessions)
	}
	for _, g := range a.golden {
		if got := a.through(2, 1, g.request); !bytes.Equal(got, g.left) {
			a.t.Fatalf("the other tenant's packet leaves as\n%s, before the attack as\n%s", packettext.Format(got), packettext.Format(g.left))
		}
		if got := a.through(1, 2, g.reply); !bytes.Equal(got, g.arrived) {
			a.t.Fatalf("the other tenant's reply arrives as\n%s, before the attack as\n%s", packettext.Format(got), packettext.Format(g.arrived))
		}
	}
}

// restart ends the sessions of everybody but the other tenant.
func (a *arena) restart() {
	calm := a.gen.VPCs[a.gen.Attachments[a.gen.Ports[2].Own.Index].VPC].Slot
	for ref := range uint32(a.sessions.Capacity()) {
		if s := a.sessions.At(ref); s.State() != session.Free && s.VPC != calm {
			a.end(ref)
		}
	}
	a.flush()
}

// ether is a frame for port with any Ethernet type and any bytes behind it.
func ether(port int, kind uint16, payload []byte) []byte {
	f := []byte{2, 0, 0, 0, 0, byte(1 + port), 2, 0, 0, 0, 1, 9}
	return append(binary.BigEndian.AppendUint16(f, kind), payload...)
}

// truncations are the first bytes of a frame, from none to all but one.
func truncations(frame []byte) (list [][]byte) {
	for n := range frame {
		list = append(list, frame[:n])
	}
	return list
}

// The arena itself sees what it is there to see.
func TestArena(t *testing.T) {
	a := newArena(t)
	if got := a.throwLine(0, "udp 10.0.0.5:1 > 9.9.9.9:2"); got != "udp 192.0.2.5:1 > 9.9.9.9:2" {
		t.Error(got)
	}
	a.rule(1)
	for _, f := range []func(){
		func() { a.rule(0) },
		func() { a.counters.Dropped[drop.Martian]++; a.rule(-1) },
		func() { a.golden[0].left[20]++; a.rule(-1) },
		func() { a.golden[3].arrived[20]++; a.rule(-1) },
		func() { a.refused(0, parseLine(t, 0, "udp 10.0.0.5:1 > 9.9.9.9:2"), drop.Martian) },
	} {
		before, golden := a.counters.Dropped, a.golden
		a.golden = nil
		for _, g := range golden {
			a.golden = append(a.golden, goldenFlow{g.request, bytes.Clone(g.left), g.reply, bytes.Clone(g.arrived)})
		}
		fails := &failing{TB: t}
		a.t = fails
		done := make(chan bool)
		go func() { defer close(done); f() }()
		<-done
		if !fails.failed {
			t.Error("the rule is broken and holds")
		}
		a.t, a.counters.Dropped, a.golden = t, before, golden
	}
	a.rule(1)
}

// Every reason has a name that counters and logs can bear, and an explanation.
func TestReasonNames(t *testing.T) {
	seen := map[string]bool{}
	for r := drop.Pass; r < drop.NumReasons; r++ {
		name := r.String()
		if name == "" || r.Help() == "" || seen[name] || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("reason %d is named %q and explained %q", r, name, r.Help())
		}
		seen[name] = true
	}
}

// failing notes that a test would have ended.
type failing struct {
	testing.TB
	failed bool
}

func (f *failing) Fatalf(string, ...any) { f.end() }
func (f *failing) Fatal(...any)          { f.end() }
func (f *failing) end()                  { f.failed = true; runtime.Goexit() }
