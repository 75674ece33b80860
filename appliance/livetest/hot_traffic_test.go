// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/deploy/lab"
)

// iperf is iperf3 between an address of the guest and a server on the Internet side: TCP as fast as
// it goes, with a window that no queue on the way overflows from.
type iperf struct {
	from   netip.Addr
	client *tool
}

// startIperf runs for so long.
func startIperf(t *testing.T, n *network, port int, from, remote netip.Addr, length time.Duration) *iperf {
	t.Helper()
	at := fmt.Sprint(port)
	server := startTool(t, n.internet, "iperf3", "--server", "--one-off", "--bind", remote.String(), "--port", at, "--forceflush")
	eventually(t, patience, "the server of iperf3 listens", func() error {
		if !strings.Contains(server.output(), "listening") {
			return fmt.Errorf("it says %q", server.output())
		}
		return nil
	})
	return &iperf{from, startTool(t, n.guest, "iperf3", "--client", remote.String(), "--bind", from.String(), "--port", at,
		"--window", "64K", "--time", fmt.Sprint(int(length.Seconds())), "--json")}
}

// end waits for the end of the run and fails the test if it was not a whole one.
func (p *iperf) end(t *testing.T) {
	t.Helper()
	code := p.client.wait(t, 3*patience)
	var report struct {
		Error string
		End   struct {
			Sent     struct{ Retransmits int } `json:"sum_sent"`
			Received struct{ Bytes float64 }   `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(p.client.output()), &report); err != nil || code != 0 || report.Error != "" {
		t.Errorf("iperf3 from %v exits with %d: %v %s", p.from, code, err, report.Error)
		return
	}
	if report.End.Received.Bytes == 0 {
		t.Errorf("iperf3 from %v: no bytes arrive", p.from)
	}
	t.Logf("iperf3 from %v: %.0f MB, %d segments sent again", p.from, report.End.Received.Bytes/1e6, report.End.Sent.Retransmits)
}

// wires counts frames on the ways between the three machines: what the kernels sent to weir, and it
// received or its rings had no room for; what it sent and the kernels received.
type wires struct{ sent, received, dropped, transmitted, arrived float64 }

func (n *network) wires(t *testing.T, w *weir) (c wires) {
	t.Helper()
	for _, end := range []*namespace{n.guest, n.internet} {
		s := end.link(t, "eth0").Attrs().Statistics
		c.sent, c.arrived = c.sent+float64(s.TxPackets), c.arrived+float64(s.RxPackets)
	}
	c.dropped = float64(n.guest.losses.explain(t).ring)
	s := w.scrape(t)
	c.received, c.transmitted = s.sum("weir_received_packets_total"), s.sum("weir_transmitted_packets_total")
	return c
}

// expectNothingLost fails the test if frames have been lost on any way since before, except those
// that the kernel counts as dropped. Nobody may send meanwhile.
func (n *network) expectNothingLost(t *testing.T, w *weir, before wires) {
	t.Helper()
	eventually(t, patience, "every frame arrives", func() error {
		now := n.wires(t, w)
		received, dropped := now.received-before.received, now.dropped-before.dropped
		if now.sent-before.sent != received+dropped || now.transmitted-before.transmitted != now.arrived-before.arrived {
			return fmt.Errorf("to weir %v were sent, %v received and %v dropped by the kernel, from weir %v and %v",
				now.sent-before.sent, received, dropped, now.transmitted-before.transmitted, now.arrived-before.arrived)
		}
		return nil
	})
}

// tool is a run of a program of the system.
type tool struct {
	*lab.Process
	mu  sync.Mutex
	out bytes.Buffer
}

func (p *tool) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *tool) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// startTool starts a program in a namespace. It ends with the test.
func startTool(t *testing.T, n *namespace, name string, args ...string) *tool {
	t.Helper()
	p := new(tool)
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = p, p
	var err error
	if p.Process, err = n.Start(cmd); err != nil {
		t.Fatalf("%v; it is one of the Makefile's TEST_PACKAGES", err)
	}
	t.Cleanup(func() {
		p.Cmd.Process.Kill()
		<-p.Ended
	})
	return p
}

func (p *tool) wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.Ended:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%s has not ended after %v", p.Cmd.Path, limit)
		return 0
	}
}

// pings is one echo request each interval, all with one identifier.
type pings struct {
	c        *net.IPConn
	sent     int
	answered map[uint16]bool // by sequence number
	mu       sync.Mutex
	stop     chan struct{}
	done     sync.WaitGroup
	over     sync.WaitGroup // sending is
}

func startPings(t *testing.T, n *namespace, from, remote netip.Addr, interval time.Duration) *pings {
	t.Helper()
	network, reply := "ip4:icmp", byte(0)
	if from.Is6() {
		network, reply = "ip6:ipv6-icmp", 129
	}
	p := &pings{answered: map[uint16]bool{}, stop: make(chan struct{})}
	err := n.Do(func() (err error) {
		p.c, err = net.DialIP(network, &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: remote.AsSlice()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.c.SetReadBuffer(1 << 20)
	id := uint16(rand.Uint32())
	p.over.Go(func() {
		for tick := time.NewTicker(interval); ; {
			select {
			case <-p.stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			p.mu.Lock()
			seq := uint16(p.sent)
			p.sent++
			p.mu.Unlock()
			p.c.Write(lab.EchoRequest(id, seq, nil, from.Is4()))
		}
	})
	p.done.Go(func() {
		for buf := make([]byte, 256); ; {
			k, _, err := p.c.ReadFrom(buf) // unlike Read, without the IPv4 header
			if err != nil {
				return
			}
			if k >= 8 && buf[0] == reply && binary.BigEndian.Uint16(buf[4:]) == id {
				p.mu.Lock()
				p.answered[binary.BigEndian.Uint16(buf[6:])] = true
				p.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { p.end() })
	return p
}

// end waits a while for late answers and returns how many pings have none.
func (p *pings) end() (lost, sent int) {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.over.Wait()
	for range 200 {
		p.mu.Lock()
		lost, sent = p.sent-len(p.answered), p.sent
		p.mu.Unlock()
		if lost == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.c.SetReadDeadline(time.Now())
	p.done.Wait()
	p.c.Close()
	return lost, sent
}

// expectDrops fails the test if packets were dropped for other reasons than those.
func (s samples) expectDrops(t *testing.T, reasons ...string) {
	t.Helper()
	for series, v := range s {
		name, ok := strings.CutPrefix(series, `weir_dropped_packets_total{reason="`)
		if !ok || v == 0 {
			continue
		}
		expected := false
		for _, r := range reasons {
			expected = expected || name == r+`"}`
		}
		if !expected {
			t.Errorf("%v packets dropped: %s, expected none", v, strings.TrimSuffix(name, `"}`))
		}
	}
}

// A hundred reloads in about twenty seconds, under iperf3, and a datagram and a ping each
// millisecond, through 1:1 and SNAT, both families: nothing is lost, and no session changes.
func TestHotHundredReloads(t *testing.T) {
	const reloads, interval = 100, 200 * time.Millisecond
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	// On a busy machine the worker may be kept away for long: queues of a second or two, so that
	// whatever is lost is lost by a reload.
	base := strings.ReplaceAll(baseConfig, "framecnt=4096", "framecnt=16384")
	w := startWeir(t, n, base)
	flows := [][2]netip.Addr{{web4, remote4}, {web6, remote6}, {batch4, remote4}, {batch6, remote6}}
	for _, f := range flows {
		if _, err := echoUDP(n.guest, f[0], f[1]); err != nil {
			t.Fatal(err)
		}
	}
	before := n.wires(t, w)
	n.expectNothingLost(t, w, before) // no frame is under way
	dropped := n.guest.losses.explain(t)
	var streams []*stream
	var tests []*iperf
	var pinging []*pings
	for i, f := range flows {
		s := startStream(t, n.guest, f[0], f[1], time.Millisecond)
		s.c.SetReadBuffer(1 << 20)
		streams = append(streams, s)
		pinging = append(pinging, startPings(t, n.guest, f[0], f[1], time.Millisecond))
		if i%2 == 0 {
			tests = append(tests, startIperf(t, n, 5201+i, f[0], f[1], reloads*interval+5*time.Second))
		}
	}
	eventually(t, patience, "the streams flow", func() error {
		for _, s := range streams {
			if err := atLeast(s.echoed(), 100); err != nil {
				return err
			}
		}
		return nil
	})
	// Of each flow the first question, the stream and the pings; of each iperf3 its control
	// connection and its data.
	sessions := float64(3*len(flows) + 2*len(tests))
	eventually(t, patience, "all sessions have begun", func() error {
		if got := w.scrape(t).get(t, "weir_sessions_created_total"); got != sessions {
			return fmt.Errorf("%v have, expected %v", got, sessions)
		}
		return nil
	})

	// Of what changes, no session of the flows is concerned: an instance comes and goes, its
	// addresses and its routes.
	start := time.Now()
	for i := range reloads {
		text := base
		if i%2 == 0 {
			text += fmt.Sprintf("      - {name: late, addresses: [172.30.0.9], external: {floating: [192.0.2.%d]}}\n", 100+i)
			text = replace(t, text, "routes:\n", fmt.Sprintf("routes:\n      - {to: 100.64.%d.0/24, drop: true}\n", i))
		}
		w.write(t, text)
		w.signal(t, syscall.SIGHUP)
		w.expectGeneration(t, float64(2+i), true)
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * interval)))
	}
	took := time.Since(start)
	for _, p := range tests {
		p.end(t)
	}
	endAll(streams)
	datagrams, echoes := 0, 0
	for i, p := range pinging {
		lost, sent := p.end()
		echoes += sent
		n.guest.losses.judge(t, dropped, lost, fmt.Sprintf("%v: %d of %d pings", flows[i][0], lost, sent))
	}
	for _, s := range streams {
		_, sent := s.lost()
		datagrams += sent
		s.expectWhole(t)
		if list := s.sources(); len(list) != 1 {
			t.Errorf("%v: came from %v, expected one address and port", s.c.LocalAddr(), list)
		}
	}
	n.expectNothingLost(t, w, before)
	s := w.expectBalance(t)
	s.expectDrops(t, "not_our_mac", "martian") // the kernels' own multicast, and what they send from link-local addresses
	if made := s.get(t, "weir_sessions_created_total"); made != sessions {
		t.Errorf("%v sessions have begun, expected %v as before the reloads: sessions were lost", made, sessions)
	}
	t.Logf("%d reloads in %v, %d datagrams, %d pings", reloads, took.Round(time.Millisecond), datagrams, echoes)
	w.expectTables(t)
	w.stop(t)
}
