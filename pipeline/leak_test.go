// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"weir/config"
	"weir/pipeline/header"
	"weir/pipeline/packettext"
)

// leakWatch knows which sources may leave by an outside port, from the configuration alone.
type leakWatch struct {
	model
	addresses map[netip.Addr]bool
	attached  []netip.Prefix

	eth layers.Ethernet
	ip4 layers.IPv4
	ip6 layers.IPv6
}

func newLeakWatch(cfg *config.Config) *leakWatch {
	w := &leakWatch{model: model{cfg}, addresses: map[netip.Addr]bool{}}
	for _, v := range cfg.VPCs {
		for _, in := range v.Instances {
			for _, a := range append(append([]netip.Addr{}, in.Floating...), in.Ephemeral...) {
				w.addresses[a] = true
			}
			for _, s := range in.SNAT {
				w.addresses[s.Address] = true
			}
			w.attached = append(w.attached, in.Attached...)
		}
	}
	return w
}

// known reports whether an instance's private address may be seen by a remote one: a route leads
// there without translation.
func (w *leakWatch) known(private, remote netip.Addr) bool {
	v, in := w.privateOwner(private)
	return in != nil && w.partner(v, in, remote) && !w.ours(remote)
}

// destination reads the destination of a frame that source has read.
func (w *leakWatch) destination(frame []byte) netip.Addr {
	if frame[12] == 0x08 {
		return header.IPv4(frame[header.EthernetSize:]).Dst()
	}
	return header.IPv6(frame[header.EthernetSize:]).Dst()
}

// source reads the source address of a frame with a parser that is not weir's.
func (w *leakWatch) source(frame []byte) (netip.Addr, error) {
	if len(frame) == 54 && frame[12] == 0x86 && frame[13] == 0xdd { // an empty packet, which gopacket takes for a jumbogram
		return netip.AddrFrom16([16]byte(frame[22:38])), nil
	}
	// Layer by layer: a tunnel's inner header is not the source that counts.
	err := w.eth.DecodeFromBytes(frame, gopacket.NilDecodeFeedback)
	switch {
	case err != nil:
	case w.eth.EthernetType == layers.EthernetTypeIPv4:
		if err = w.ip4.DecodeFromBytes(w.eth.Payload, gopacket.NilDecodeFeedback); err == nil {
			a, _ := netip.AddrFromSlice(w.ip4.SrcIP.To4())
			return a, nil
		}
	case w.eth.EthernetType == layers.EthernetTypeIPv6:
		if err = w.ip6.DecodeFromBytes(w.eth.Payload, gopacket.NilDecodeFeedback); err == nil {
			a, _ := netip.AddrFromSlice(w.ip6.SrcIP)
			return a, nil
		}
	}
	return netip.Addr{}, err
}

// quotedDestination returns where the packet was going that an ICMP error is about, which no one
// outside may know by a private address; the zero Addr if frame is none.
func quotedDestination(frame []byte) netip.Addr {
	if frame[12] == 0x08 {
		ip := header.IPv4(frame[header.EthernetSize:])
		if m := header.ICMPv4(ip.Payload()); ip.Protocol() == header.ProtocolICMP && len(m) >= header.ICMPSize+header.IPv4Size && m.IsError() {
			return header.IPv4(m.Payload()).Dst()
		}
		return netip.Addr{}
	}
	ip := header.IPv6(frame[header.EthernetSize:])
	if chain, fault := ip.Walk(); fault == header.ChainOK && chain.Protocol == header.ProtocolICMPv6 && !chain.IsFragment() {
		if m := header.ICMPv6(ip[chain.Offset:]); len(m) >= header.ICMPSize+header.IPv6Size && m.IsError() {
			return header.IPv6(m.Payload()).Dst()
		}
	}
	return netip.Addr{}
}

// check takes a burst through the worker: nothing leaves by the outside port that the configuration
// does not allow, and the counters add up.
func (w *leakWatch) check(t testing.TB, r *rig, b *Burst) {
	was := make([][]byte, 0, MaxBurst)
	for i := range b.N {
		was = append(was, append([]byte(nil), b.Packets[i].Data...))
	}
	r.Process(b)
	for p := range r.Out {
		if p >= len(r.cfg.Ports) && r.Out[p].N > 0 {
			t.Fatalf("a frame leaves by port %d, which there is not", p)
		}
		for i := range r.Out[p].N {
			fault := packettext.Fault(r.Out[p].Frames[i])
			if fault != "" && !slices.ContainsFunc(was, func(in []byte) bool { return packettext.Fault(in) == fault }) {
				t.Fatalf("leaves with a fault that nothing came with: %s: %s\nburst %x", packettext.Format(r.Out[p].Frames[i]), fault, was)
			}
		}
		if p < len(r.cfg.Ports) && r.cfg.Ports[p].Side == config.Inside {
			continue
		}
		for i := range r.Out[p].N {
			out := r.Out[p].Frames[i]
			src, err := w.source(out)
			if err == nil && w.known(src, w.destination(out)) {
				continue
			}
			if err != nil || !w.addresses[src] && !within(w.attached, src) {
				t.Fatalf("%v leaves by the outside port (%v):\nout %x\nburst %x", src, err, out, was)
			}
			if about := quotedDestination(out); about.IsValid() && !w.addresses[about] && !within(w.attached, about) && !within(w.attached, src) {
				t.Fatalf("an ICMP error about a packet to %v leaves by the outside port:\nout %x\nburst %x", about, out, was)
			}
		}
	}
	r.drain()
	r.balanced()
	r.punts.Reset()
	if r.holding > maxHeld/2 || r.pieces.waiting() > maxWaiting {
		r.Abandon()
		r.Done = r.Done[:0]
	}
}

// leakConfig is the rig's with partners that know its addresses, and a forward.
var leakConfig = strings.NewReplacer("routes: [", `routes: [{to: 198.18.0.0/16, gateway: g, translate: false}, {to: "2001:db8:9::/48", gateway: g, translate: false}, `,
	"ports: 1024-65535}, ", "ports: 1024-65535, forward: [{protocol: udp, port: 5353, to_port: 53}]}, ").Replace(rigConfig)

// leakSeeds are packets of every kind, by the port that they come in by.
var leakSeeds = [2][]string{
	{
		"udp 10.0.0.5:1000 > 8.8.8.8:53 len=12", "udp 10.0.0.6:1000 > 8.8.8.8:53 len=12", "tcp 10.0.0.6:1001 > 8.8.8.8:443 SYN mss=1460",
		"tcp 10.0.0.7:1002 > 8.8.8.8:443 ACK len=5", "icmp echo-request 10.0.0.6 > 8.8.8.8 id=7 len=8", "icmp echo-reply 10.0.0.5 > 8.8.8.8 id=7",
		"icmp unreachable 3 10.0.0.5 > 8.8.8.8 quote(udp 8.8.8.8:53 > 10.0.0.5:1000 len=8)", "ip proto=47 10.0.0.5 > 8.8.8.8 len=20",
		"ip proto=33 10.0.0.7 > 9.9.9.9 len=20", "udp 10.0.0.8:1 > 9.9.9.9:2 ipopt=01010101", "udp 10.0.0.9:1 > 9.9.9.9:2", "udp 10.0.0.5:1 > 10.0.0.6:2",
		"udp 203.0.113.17:5 > 9.9.9.9:6", "udp 10.9.0.3:5 > 10.0.0.6:6", "udp 10.9.0.3:5 > 9.9.9.9:6", "udp 10.0.0.5:1 > 192.0.2.20:2",
		"udp 10.0.0.5:1 > 8.8.8.8:2 frag=9:0:more len=16", "icmp echo-request 10.0.0.5 > 10.0.0.1 id=1", "arp who-has 10.0.0.1 tell 10.0.0.5",
		"udp [fd00::5]:1 > [2001:4860::8]:2 len=4", "udp [fd00::6]:1 > [2001:4860::8]:2 len=4", "tcp [fd00::7]:1 > [2001:4860::8]:2 SYN",
		"icmp6 echo-request fd00::6 > 2001:4860::8 id=3 len=8", "tcp [2001:db8:2::9]:1 > [2001:4860::8]:2 SYN", "ip proto=47 fd00::7 > 2001:4860::8 len=9",
		"udp [fd00::5]:1 > [2001:4860::8]:2 ext=hop:00010400000000 ext=dst:00010400000000", "udp [fd00::5]:1 > [2001:4860::8]:2 frag=9:0:more len=16",
		"ip proto=17 10.0.0.5 > 8.8.8.8 frag=9:24:more len=16", "ip proto=17 10.0.0.5 > 8.8.8.8 frag=9:40 len=7", "ip proto=17 fd00::5 > 2001:4860::8 frag=9:24 len=16",
		"ip proto=17 10.0.0.6 > 192.0.2.5 frag=9:24 len=16", "udp 10.0.0.6:1 > 192.0.2.5:2 frag=9:0:more len=16",
		"nd solicit fd00::5 > fd00::1 target=fd00::1 slla=02:00:00:00:01:09", "icmp6 too-big fd00::5 > 2001:4860::8 mtu=1300 quote(udp [2001:4860::8]:2 > [fd00::5]:1 len=4)",
		"udp 10.0.0.9:1000 > 198.18.0.9:53 len=12", "tcp 10.0.0.6:1001 > 198.18.0.9:443 SYN", "ip proto=17 10.0.0.5 > 198.18.0.9 frag=9:24 len=16", "udp 10.9.0.3:5 > 198.18.0.9:6",
		"icmp unreachable 3 10.0.0.6 > 198.18.0.9 quote(udp 198.18.0.9:53 > 10.0.0.6:1000 len=8)", "udp [fd00::9]:1 > [2001:db8:9::9]:2 len=4", "udp 10.0.0.6:53 > 8.8.8.8:7",
	},
	{
		"udp 8.8.8.8:53 > 192.0.2.5:1000 len=12", "udp 8.8.8.8:53 > 192.0.2.6:1000 len=12", "tcp 8.8.8.8:443 > 192.0.2.20:1002 SYN,ACK",
		"tcp 9.9.9.9:443 > 192.0.2.21:22 SYN", "icmp echo-request 8.8.8.8 > 192.0.2.22 id=7 len=8", "icmp echo-reply 8.8.8.8 > 192.0.2.6 id=7",
		"icmp time-exceeded 0 7.7.7.7 > 192.0.2.5 quote(udp 192.0.2.5:1000 > 8.8.8.8:53 len=8)", "ip proto=47 8.8.8.8 > 192.0.2.30 len=20",
		"udp 8.8.8.8:53 > 203.0.113.17:5 len=3", "udp 10.0.0.5:53 > 192.0.2.5:5", "udp 192.0.2.6:53 > 192.0.2.5:5", "arp who-has 198.51.100.2 tell 198.51.100.1",
		"udp [2001:4860::8]:2 > [2001:db8:1::5]:1 len=4", "udp [2001:4860::8]:2 > [2001:db8:1::6]:1 len=4", "tcp [2001:4860::8]:2 > [2001:db8:1::20]:1 SYN",
		"icmp6 echo-request 2001:4860::8 > 2001:db8:1::21 id=3 len=8", "tcp [2001:4860::8]:2 > [2001:db8:2::9]:1 RST",
		"ip proto=17 8.8.8.8 > 192.0.2.5 frag=9:24 len=16", "udp 8.8.8.8:53 > 192.0.2.5:1000 frag=9:0:more len=16",
		"nd solicit 2001:db8::1 > 2001:db8::2 target=2001:db8::2 slla=02:00:00:00:01:09", "icmp6 echo-request 2001:db8::1 > 2001:db8::2 id=1",
		"udp 198.18.0.9:53 > 10.0.0.9:1000 len=12", "tcp 198.18.0.9:53 > 192.0.2.5:80 SYN", "udp 8.8.8.8:53 > 10.0.0.9:1000 len=12", "udp [2001:db8:9::9]:2 > [fd00::9]:1 len=4",
		"icmp time-exceeded 0 7.7.7.7 > 10.0.0.9 quote(udp 10.0.0.9:1000 > 198.18.0.9:53 len=8)", "udp 7.7.7.7:7 > 192.0.2.6:5353 len=3",
	},
}

// Frames of a million, each a valid one with some bits changed, and half of them with the header
// checksum mended.
func TestMutations(t *testing.T) {
	frames := 1_000_000
	if testing.Short() {
		frames = 50_000
	}
	r := newRig(t, leakConfig, config.MAC{})
	watch := newLeakWatch(r.cfg)
	rnd := rand.New(rand.NewPCG(4, 4))
	var seeds [2][][]byte
	for port, lines := range leakSeeds {
		for _, l := range lines {
			seeds[port] = append(seeds[port], parseLine(t, port, l))
		}
	}
	var b Burst
	for n := 0; n < frames; n += 32 {
		b.Port, b.N = rnd.IntN(2), 32
		for i := range b.N {
			seed := seeds[b.Port][rnd.IntN(len(seeds[b.Port]))]
			f := append([]byte(nil), seed...) // a buffer of its own: fragments wait in theirs
			for range rnd.IntN(5) {
				at := rnd.IntN(len(f))
				if at < 12 && rnd.IntN(8) > 0 {
					at += 12 // mostly behind the Ethernet addresses
				}
				switch rnd.IntN(3) {
				case 0:
					f[at] ^= 1 << rnd.IntN(8)
				case 1:
					f[at] = byte(rnd.Uint32())
				case 2:
					f[at] = []byte{0, 1, 4, 6, 10, 17, 58, 0x7f, 0x80, 0xff}[rnd.IntN(10)]
				}
			}
			if rnd.IntN(16) == 0 {
				f = f[:rnd.IntN(len(f)+1)]
			}
			if rnd.IntN(2) == 0 {
				mend(f)
			}
			b.Packets[i].Data, b.Packets[i].Handle = f, uintptr(i+1)
		}
		r.after(3 * time.Millisecond)
		watch.check(t, r, &b)
		r.Release()
		r.drain()
		r.Expire(64)
	}
	if c := r.counters; c.Forwarded < uint64(frames/5) || c.SessionsCreated < uint64(frames/1000) {
		t.Errorf("of %d frames only %d were forwarded, and %d sessions made: the property says little", frames, c.Forwarded, c.SessionsCreated)
	}
	if err := r.sessions.Check(); err != nil {
		t.Error(err)
	}
}

// mend makes the IPv4 header checksum of a frame right, if it has a whole header, and those of an
// ICMP error and its quote.
func mend(f []byte) {
	if len(f) < 34 || f[12] != 8 || f[13] != 0 || f[14]&15 < 5 {
		return
	}
	size := min(len(f), 14+int(f[14]&15)*4)
	end := min(len(f), 14+int(binary.BigEndian.Uint16(f[16:])))
	if f[23] == header.ProtocolICMP && end >= size+28 {
		m := f[size:end]
		mendSum(m[8:min(len(m), 8+max(20, int(m[8]&15)*4))], 10)
		mendSum(m, 2)
	}
	mendSum(f[14:size], 10)
}

// mendSum makes the checksum at an offset of b right.
func mendSum(b []byte, at int) {
	b[at], b[at+1] = 0, 0
	binary.BigEndian.PutUint16(b[at:], ^onesComplement(b))
}

// FuzzProcess takes arbitrary frames into both ports, one after the other and then both in one
// burst.
func FuzzProcess(f *testing.F) {
	for _, lines := range leakSeeds {
		for i, l := range lines {
			f.Add(parseLine(f, 0, l), parseLine(f, 1, leakSeeds[1][i%len(leakSeeds[1])]), uint16(i))
			f.Add(parseLine(f, 0, l), parseLine(f, 0, leakSeeds[0][len(leakSeeds[0])-1-i]), uint16(i))
		}
	}
	r := newRig(f, leakConfig, config.MAC{})
	watch := newLeakWatch(r.cfg)
	f.Fuzz(func(t *testing.T, first, second []byte, seconds uint16) {
		r.t = t
		r.forget()
		var b Burst
		for port := range 2 {
			for _, frames := range [][][]byte{{first}, {second}, {first, second, first}} {
				b.Port, b.N = port, len(frames)
				for i, data := range frames {
					data = append([]byte(nil), data...)
					mend(data)
					b.Packets[i].Data, b.Packets[i].Handle = data, uintptr(i+1)
				}
				watch.check(t, r, &b)
				r.after(time.Second)
				r.Release()
				r.drain()
			}
			r.after(time.Duration(seconds) * time.Second)
			r.Expire(r.Capacity())
		}
		if err := r.sessions.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
