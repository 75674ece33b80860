// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// benchConfig has one instance with a floating address, one with an SNAT range, both families.
const benchConfig = `
version: 1
dataplane: {sessions: 1310720} # the last eighth is not for 1:1 flows
ports:
  - {name: in, device: "net_null0", side: inside}
  - {name: out, device: "net_null1", side: outside, addresses: [198.51.100.2/24, "2001:db8::2/64"],
     next_hops: [{address: 198.51.100.1, mac: "02:00:00:00:02:01"}, {address: "2001:db8::1", mac: "02:00:00:00:02:01"}]}
pools:
  - {name: p, ranges: [192.0.2.0/24, "2001:db8:1::/64"]}
gateways:
  - {name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}
sessions: {limits: {per_instance: 0}}
vpcs:
  - name: v
    attach: [{port: in, addresses: [10.0.0.1/16, "fd00::1/64"]}]
    subnets: [10.0.0.0/16, "fd00::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}]
    instances:
      - {name: one, addresses: [10.0.0.5, "fd00::5"], mac: "02:00:00:00:01:05", external: {floating: [192.0.2.5, "2001:db8:1::5"]}}
      - {name: shared, addresses: [10.0.0.6, "fd00::6"], mac: "02:00:00:00:01:06", external: {snat: [{address: 192.0.2.6, ports: 1024-65535}, {address: "2001:db8:1::6", ports: 1024-65535}]}}
`

// testSeed makes every choice in tests repeatable.
var testSeed = [32]byte{1, 2, 3}

// newTestWorker compiles text and returns a worker on it that lets instances send from any MAC.
func newTestWorker(t testing.TB, text string) *Worker {
	t.Helper()
	w := newSourceWorker(t, text)
	anySource(w.gen)
	return w
}

// newSourceWorker compiles text and returns a worker on it.
func newSourceWorker(t testing.TB, text string) *Worker {
	t.Helper()
	cfg, _, err := config.Parse([]config.File{{Name: "test.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.New(state.Sizes{Workers: 1, Sessions: cfg.Dataplane.Sessions, Huge: true, Seed: &testSeed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	g, err := generation.NewCompiler(s, &testSeed).Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	w := NewWorker(s, 0, g, WorkerConfig{MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, Seed: &testSeed})
	w.SetClock(1e9)
	return w
}

// udpFrame builds a 60-byte (IPv6: 62-byte) UDP frame to MAC 02:00:00:00:00:<port>.
func udpFrame(b []byte, mac byte, src, dst []byte, sport, dport uint16) []byte {
	b = append(b[:0], 2, 0, 0, 0, 0, mac, 2, 0, 0, 0, 1, 9)
	if len(src) == 4 {
		b = append(b, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0)
		b = append(append(b, src...), dst...)
		binary.BigEndian.PutUint16(b[24:], ^header.Checksum(b[14:34], 0))
		b = append(b, byte(sport>>8), byte(sport), byte(dport>>8), byte(dport), 0, 26, 0, 0)
		b = append(b, make([]byte, 18)...)
		u := b[34:]
		binary.BigEndian.PutUint16(u[6:], ^header.Checksum(u, header.PseudoHeader(src, dst, 17, len(u))))
		return b
	}
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64)
	b = append(append(b, src...), dst...)
	b = append(b, byte(sport>>8), byte(sport), byte(dport>>8), byte(dport), 0, 8, 0, 0)
	u := b[54:]
	binary.BigEndian.PutUint16(u[6:], ^header.Checksum(u, header.PseudoHeader(src, dst, 17, len(u))))
	return b
}

func bytes4(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func bytes6(hi, lo uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)
}

// flows generates the packets of many flows of one instance towards 64 remote hosts, from a
// template a host, so that making a packet costs a copy and two stores. (Transport checksums are
// not right; the pipeline never looks.)
type flows struct {
	templates [64][]byte
	ports     int  // offset of the ports
	flags     byte // TCP
	seq       uint32
}

func newFlows(v6 bool, host byte) *flows {
	f := &flows{ports: 34}
	for r := range f.templates {
		if v6 {
			f.ports = 54
			f.templates[r] = udpFrame(nil, 1, bytes6(0xfd00<<48, uint64(host)), bytes6(0x20010db800020000, uint64(1+r)), 0, 0)
		} else {
			f.templates[r] = udpFrame(nil, 1, []byte{10, 0, 0, host}, bytes4(0xcb007100+uint32(r)), 0, 0)
		}
	}
	return f
}

// put writes the packet of flow i to b.
func (f *flows) put(b []byte, i int) []byte {
	b = b[:copy(b, f.templates[i&63])]
	binary.BigEndian.PutUint32(b[f.ports:], uint32(1024+i>>6&0x7fff)<<16|uint32(1+i>>21))
	if f.flags != 0 {
		b[f.ports+13] = f.flags
		f.seq++
		binary.BigEndian.PutUint32(b[f.ports+4:], f.seq)
		binary.BigEndian.PutUint32(b[f.ports+8:], f.seq)
	}
	return b
}

// makeTCP turns the flows, of IPv4, into TCP: SYNs at first.
func (f *flows) makeTCP() {
	for _, b := range f.templates {
		b[23] = header.ProtocolTCP
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], ^header.Checksum(b[14:34], 0))
		b[34+12] = 5 << 4
	}
	f.flags = tcpSYN
}

// establish makes all TCP sessions established.
func (w *Worker) establish() {
	for ref := range uint32(w.sessions.Capacity()) {
		if s := w.sessions.At(ref); s.State() == session.TCPOpening {
			s.SetState(session.TCPOpen)
			s.Flags = s.Flags&^session.Asked | session.SeenOutside
		}
	}
}

func (w *Worker) drain() {
	for p := range w.Out {
		w.Sent(p, w.Out[p].N)
	}
	w.Done = w.Done[:0]
}

// BenchmarkEstablished is the pipeline without I/O: bursts of 32 frames of 60 bytes, each of a
// random session. Making the frames is measured apart and taken off.
func BenchmarkEstablished(b *testing.B) {
	for _, c := range []struct {
		name string
		host byte
		v6   bool
		tcp  bool
	}{{"floating/v4", 5, false, false}, {"snat/v4", 6, false, false}, {"floating/v6", 5, true, false}, {"floating/tcp", 5, false, true}} {
		for _, n := range []int{1000, 65536, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				w := newTestWorker(b, benchConfig)
				f := newFlows(c.v6, c.host)
				if c.tcp {
					f.makeTCP()
				}
				var burst Burst
				// A buffer for each of many packets, as a receive ring has; the order is random
				// over all sessions.
				const buffers = 1024
				var data [buffers][128]byte
				for i := range n {
					burst.N = 1
					burst.Packets[0].Data = f.put(data[0][:], i)
					w.Process(&burst)
					w.drain()
				}
				if c.tcp {
					w.establish()
					f.flags = tcpACK
				}
				if got := w.sessions.Len(); got != n {
					b.Fatalf("%d sessions, expected %d: %v", got, n, w.counters.Dropped)
				}
				r := uint64(1)
				at := 0
				fill := func() {
					for j := range burst.N {
						r = r*6364136223846793005 + 1442695040888963407
						burst.Packets[j].Data = f.put(data[at][:], int((r>>33)%uint64(n)))
						at = (at + 1) % buffers
					}
				}
				burst.N = 32
				const generated = 20000
				start := time.Now()
				for range generated {
					fill()
				}
				generator := float64(time.Since(start).Nanoseconds()) / generated / 32
				for b.Loop() {
					fill()
					w.Process(&burst)
					w.drain()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/32-generator, "ns/packet")
				b.ReportMetric(generator, "ns/generated")
				if d := w.counters.Totals().Dropped; d != 0 {
					b.Fatalf("%d dropped: %v", d, w.counters.Dropped)
				}
			})
		}
	}
}

// BenchmarkSweep is what a start after a crash takes for each session that stays.
func BenchmarkSweep(b *testing.B) {
	for _, c := range []struct {
		name string
		host byte
	}{{"floating", 5}, {"snat", 6}} {
		b.Run(c.name, func(b *testing.B) {
			w := newTestWorker(b, benchConfig)
			f := newFlows(false, c.host)
			var burst Burst
			var data [128]byte
			const n = 1 << 20
			for i := range n {
				burst.N = 1
				burst.Packets[0].Data = f.put(data[:], i)
				w.Process(&burst)
				w.drain()
			}
			for b.Loop() {
				Sweep(w.state, w.gen, w.nanos)
			}
			if got := w.state.Table(0).Len(); got != n {
				b.Fatalf("%d sessions stay, of %d", got, n)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/session")
		})
	}
}
