// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// piece is a frame as a file of some link type has it, and the whole length it claims.
type piece struct {
	link   layers.LinkType
	data   []byte
	length int
}

// TestCapture reads the same packet from files of every kind and link type.
func TestCapture(t *testing.T) {
	const packet = "udp 172.30.0.5:1000 > 8.8.8.8:53 \"x\""
	eth, err := Parse("02:00:00:00:00:aa > 02:00:00:00:00:01 " + packet)
	if err != nil {
		t.Fatal(err)
	}
	six, err := Parse("02:00:00:00:00:aa > 02:00:00:00:00:01 udp [fd00:1::5]:1000 > [2001:db8::8]:53 \"x\"")
	if err != nil {
		t.Fatal(err)
	}
	from := func(mac, frame string) string { return mac + " > 02:00:00:00:00:00 " + frame }
	sll := func(protocol uint16) []byte {
		b := append([]byte{0, 4, 0, 1, 0, 6, 2, 0, 0, 0, 0, 0xaa, 0, 0}, byte(protocol>>8), byte(protocol))
		return append(b, eth[14:]...)
	}
	sll2 := append([]byte{8, 0, 0, 0, 0, 0, 0, 3, 0, 1, 4, 6, 2, 0, 0, 0, 0, 0xaa, 0, 0}, eth[14:]...)
	known := "02:00:00:00:00:aa"
	for _, c := range []struct {
		name            string
		pieces          []piece
		want            []string // with the addresses
		sliced, foreign int
		pcapngOnly      bool
	}{
		{name: "ethernet", pieces: []piece{{layers.LinkTypeEthernet, eth, 0}}, want: []string{"02:00:00:00:00:aa > 02:00:00:00:00:01 " + packet}},
		{name: "cooked", pieces: []piece{{layers.LinkTypeLinuxSLL, sll(0x800), 0}}, want: []string{from(known, packet)}},
		{name: "cooked 2", pieces: []piece{{layers.LinkTypeLinuxSLL2, sll2, 0}}, want: []string{from(known, packet)}},
		{name: "cooked without Ethernet's protocol", pieces: []piece{{layers.LinkTypeLinuxSLL, sll(4), 0}}, foreign: 1},
		{name: "cooked and cut", pieces: []piece{{layers.LinkTypeLinuxSLL2, sll2[:19], 0}}, foreign: 1},
		{name: "raw", pieces: []piece{{layers.LinkTypeRaw, eth[14:], 0}, {layers.LinkTypeRaw, six[14:], 0}, {layers.LinkTypeRaw, []byte{0x10}, 0}},
			want: []string{from("02:00:00:00:00:00", packet), from("02:00:00:00:00:00", "udp [fd00:1::5]:1000 > [2001:db8::8]:53 \"x\"")}, foreign: 1},
		{name: "IPv4", pieces: []piece{{layers.LinkTypeIPv4, eth[14:], 0}}, want: []string{from("02:00:00:00:00:00", packet)}},
		{name: "another link", pieces: []piece{{layers.LinkTypeNull, eth, 0}}, foreign: 1},
		{name: "sliced", pieces: []piece{{layers.LinkTypeEthernet, eth[:20], len(eth)}, {layers.LinkTypeEthernet, eth, 0}},
			want: []string{"02:00:00:00:00:aa > 02:00:00:00:00:01 " + packet}, sliced: 1},
		{name: "mixed", pieces: []piece{{layers.LinkTypeRaw, eth[14:], 0}, {layers.LinkTypeEthernet, eth, 0}}, pcapngOnly: true,
			want: []string{from("02:00:00:00:00:00", packet), "02:00:00:00:00:aa > 02:00:00:00:00:01 " + packet}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string][]byte{"a.pcapng": pcapng(t, c.pieces)}
			if !c.pcapngOnly {
				files["a.pcap"] = pcap(t, c.pieces)
				files["a.pcap.gz"] = compressed(t, files["a.pcap"])
			}
			files["a.pcapng.gz"] = compressed(t, files["a.pcapng"])
			for name, data := range files {
				path := filepath.Join(t.TempDir(), name)
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
				got, err := ReadCaptureFile(path)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				var text []string
				for i, r := range got.Records {
					text = append(text, Format(r.Frame))
					if want := captureTime.Add(time.Duration(i+c.sliced) * time.Millisecond); r.Time != time.Duration(want.UnixNano()) {
						t.Errorf("%s: frame %d is of %v, expected %v", name, i, r.Time, want)
					}
				}
				if strings.Join(text, "\n") != strings.Join(c.want, "\n") || got.Sliced != c.sliced || got.Foreign != c.foreign {
					t.Errorf("%s: %d sliced, %d foreign, and\n%s\nexpected %d, %d, and\n%s", name, got.Sliced, got.Foreign,
						strings.Join(text, "\n"), c.sliced, c.foreign, strings.Join(c.want, "\n"))
				}
			}
		})
	}
}

// A file that ends before its last frame does is refused, and so is one that is no capture.
func TestCaptureCut(t *testing.T) {
	whole := pcapng(t, []piece{{layers.LinkTypeEthernet, make([]byte, 60), 0}})
	zipped := compressed(t, pcap(t, []piece{{layers.LinkTypeEthernet, make([]byte, 60), 0}}))
	for name, data := range map[string][]byte{"pcapng": whole[:len(whole)-20], "gzip": zipped[:len(zipped)-12], "text": []byte("no capture\n"), "empty": nil} {
		if c, err := readCapture(bytes.NewReader(data)); err == nil {
			t.Errorf("%s: read %+v, expected an error", name, c)
		}
	}
}

var captureTime = time.Unix(1700000000, 0)

func (p piece) info(i int) gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: captureTime.Add(time.Duration(i) * time.Millisecond), CaptureLength: len(p.data), Length: max(p.length, len(p.data))}
}

func pcap(t *testing.T, pieces []piece) []byte {
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(maxFrame, pieces[0].link); err != nil {
		t.Fatal(err)
	}
	for i, p := range pieces {
		if err := w.WritePacket(p.info(i), p.data); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func pcapng(t *testing.T, pieces []piece) []byte {
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, pieces[0].link)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range pieces {
		info := p.info(i)
		if p.link != pieces[0].link {
			if info.InterfaceIndex, err = w.AddInterface(pcapgo.NgInterface{Name: "other", LinkType: p.link, TimestampResolution: 9}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WritePacket(info, p.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressed(t *testing.T, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
