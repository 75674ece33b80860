// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"weir/config"
	"weir/pipeline/drop"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/packettext"
)

// caseFrames returns the frames that come in in all cases.
func caseFrames(t testing.TB) (frames [][]byte) {
	t.Helper()
	files, err := filepath.Glob("testdata/cases/*/in/*.pcap")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d captures of cases: %v", len(files), err)
	}
	for _, file := range files {
		records, err := packettext.ReadPcapFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			frames = append(frames, r.Frame)
		}
	}
	return frames
}

// tuple is what a parser reads of a frame.
type tuple struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16 // of TCP and UDP
}

// opinion is what gopacket reads: ok if it finds addresses, and a whole transport header where that
// is TCP or UDP; cut if it has something to complain of, or weir has by policy. strange says why
// nobody is to compare.
func opinion(frame []byte) (u tuple, ok, cut bool, strange string) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	cut = p.Metadata().Truncated || p.ErrorLayer() != nil
	fragment, options := false, false
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.IPv4:
			if u.src.IsValid() {
				return u, ok, cut, strange // inside of a tunnel
			}
			u.src, _ = netip.AddrFromSlice(l.SrcIP.To4())
			u.dst, _ = netip.AddrFromSlice(l.DstIP.To4())
			u.proto, ok = uint8(l.Protocol), true
			if l.Version != 4 || l.Contents[2]|l.Contents[3] == 0 {
				strange = "a version that gopacket does not look at, or a length of 0 that it takes for a driver's"
			}
			for _, o := range l.Options {
				cut = cut || o.OptionType == 131 || o.OptionType == 137 // source routes are dropped
			}
			fragment = l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0
		case *layers.IPv6:
			if u.src.IsValid() {
				return u, ok, cut, strange
			}
			u.src, _ = netip.AddrFromSlice(l.SrcIP)
			u.dst, _ = netip.AddrFromSlice(l.DstIP)
			u.proto, ok = uint8(l.NextHeader), true
			if l.Length == 0 || l.Version != 6 {
				strange = "a version that gopacket does not look at, or a payload length of 0, which gopacket takes for a jumbogram"
			}
		case *layers.IPSecAH:
			if u.src.Is4() { // no transport is read behind it
				return u, ok, cut, strange
			}
			u.proto = uint8(l.NextHeader)
		case *layers.IPv6HopByHop:
			u.proto = uint8(l.NextHeader)
		case *layers.IPv6Destination:
			options = true
			u.proto = uint8(l.NextHeader)
		case *layers.IPv6Routing:
			u.proto = uint8(l.NextHeader)
		case *layers.IPv6Fragment:
			u.proto = uint8(l.NextHeader)
			fragment = fragment || l.FragmentOffset != 0 || l.MoreFragments
			if l.FragmentOffset == 0 && !l.MoreFragments {
				strange = "an atomic fragment, behind which gopacket does not look"
			}
		case *layers.TCP:
			u.sport, u.dport = uint16(l.SrcPort), uint16(l.DstPort)
			return u, ok, cut, strange
		case *layers.UDP:
			u.sport, u.dport = uint16(l.SrcPort), uint16(l.DstPort)
			if len(l.Contents) < 8 {
				return u, false, cut, strange
			}
			if l.Contents[4]|l.Contents[5] == 0 {
				strange = "a UDP length of 0, which gopacket takes for a jumbogram"
			}
			return u, ok, cut || l.Checksum == 0 && u.src.Is6(), strange // which RFC 8200 forbids
		case *layers.ICMPv4:
			return u, ok && (u.src.Is6() || len(l.Contents)+len(l.Payload) >= 8), cut, strange
		case *layers.ICMPv6:
			return u, ok && (u.src.Is4() || len(l.Contents)+len(l.Payload) >= 8), cut, strange
		}
	}
	if u.proto == header.ProtocolTCP || u.proto == header.ProtocolUDP || u.proto == header.ProtocolICMP && u.src.Is4() || u.proto == header.ProtocolICMPv6 && u.src.Is6() {
		ok = false // there is no such layer
	}
	if fragment {
		strange = "a fragment, in which gopacket does not look for ports"
	}
	cut = cut || u.proto == header.ProtocolDCCP || u.proto == header.ProtocolUDPLite // whose headers it does not read
	if u.src.Is6() && slices.Contains([]uint8{header.ProtocolMobility, header.ProtocolHIP, header.ProtocolShim6, header.ProtocolExperiment1, header.ProtocolExperiment2}, u.proto) {
		strange = "an extension header that gopacket does not know"
	}
	if (options || u.src.Is6() && u.proto == header.ProtocolAH) && p.ErrorLayer() != nil {
		strange = "options, or an AH, that only their receiver reads"
	}
	return u, ok, cut, strange
}

// FuzzParserAgrees holds weir's parser against gopacket's: what weir lets on has the addresses, the
// protocol and the ports that gopacket reads; and what gopacket reads without complaint weir drops
// only for reasons that gopacket does not know.
func FuzzParserAgrees(f *testing.F) {
	for _, frame := range caseFrames(f) {
		f.Add(frame)
	}
	for port, lines := range leakSeeds {
		for _, l := range lines {
			f.Add(parseLine(f, port, l))
		}
	}
	r := newRig(f, rigConfig, config.MAC{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if err := r.parserAgrees(frame); err != nil {
			t.Fatalf("%s: %v\n%x", packettext.Format(frame), err, frame)
		}
	})
}

func (r *rig) parserAgrees(frame []byte) error {
	frame = bytes.Clone(frame)
	mend(frame)
	want, ok, cut, strange := opinion(bytes.Clone(frame))
	if len(frame) > 14 { // to this port, from somebody
		copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 9})
	}
	p := Packet{Data: frame}
	v := r.parse(&p, true, r.macs[0])
	if strange != "" {
		return nil
	}
	switch v {
	case goesOn:
		got := tuple{src: p.local.Netip(), dst: p.remote.Netip(), proto: p.proto}
		if p.kind == kindTCP || p.kind == kindUDP {
			got.sport, got.dport = p.localPort, p.remotePort
		} else {
			want.sport, want.dport = 0, 0
		}
		want.src, want.dst = inet.FromNetip(want.src).Netip(), inet.FromNetip(want.dst).Netip() // "::" is no address to weir
		if !ok || got != want {
			return fmt.Errorf("weir reads %+v, gopacket %+v (%t)", got, want, ok)
		}
	case refuse(drop.ShortFrame), refuse(drop.BadIPHeader), refuse(drop.BadTransport):
		if ok && !cut {
			return fmt.Errorf("weir drops it as %v, gopacket reads %+v", v.reason(), want)
		}
	}
	return nil
}

// The seeds of FuzzParserAgrees, with every one of their first bytes turned.
func TestParserAgrees(t *testing.T) {
	r := newRig(t, rigConfig, config.MAC{})
	n := 0
	for _, frame := range caseFrames(t) {
		for at := -1; at < min(len(frame), 100); at++ {
			f := bytes.Clone(frame)
			if at >= 0 {
				f[at] ^= 0xff
			}
			if err := r.parserAgrees(f); err != nil {
				t.Errorf("%s: %v", packettext.Format(f), err)
				if n++; n > 20 {
					t.FailNow()
				}
			}
		}
	}
}
