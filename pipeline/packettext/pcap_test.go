// SPDX-License-Identifier: Apache-2.0

package packettext

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pcapFile writes the format by hand: header, then one record per frame at 1.000002 or 1.000000002
// seconds.
func pcapFile(order binary.AppendByteOrder, magic, linkType, missing uint32, frames ...[]byte) []byte {
	words := func(b []byte, v ...uint32) []byte {
		for _, w := range v {
			b = order.AppendUint32(b, w)
		}
		return b
	}
	b := order.AppendUint16(order.AppendUint16(words(nil, magic), 2), 4)
	b = words(b, 0, 0, 65535, linkType)
	for _, f := range frames {
		b = append(words(b, 1, 2, uint32(len(f)), uint32(len(f))+missing), f...)
	}
	return b
}

func TestReadPcap(t *testing.T) {
	const micro, nano = 0xa1b2c3d4, 0xa1b23c4d
	frame := []byte("frame")
	for _, c := range []struct {
		name string
		file []byte
		time time.Duration
		err  string
	}{
		{"little-endian microseconds", pcapFile(binary.LittleEndian, micro, 1, 0, frame), time.Second + 2*time.Microsecond, ""},
		{"big-endian microseconds", pcapFile(binary.BigEndian, micro, 1, 0, frame), time.Second + 2*time.Microsecond, ""},
		{"little-endian nanoseconds", pcapFile(binary.LittleEndian, nano, 1, 0, frame), time.Second + 2, ""},
		{"big-endian nanoseconds", pcapFile(binary.BigEndian, nano, 1, 0, frame), time.Second + 2, ""},
		{"not Ethernet", pcapFile(binary.LittleEndian, nano, 101, 0, frame), 0, "link type 101"},
		{"cut by the snap length", pcapFile(binary.LittleEndian, nano, 1, 9, frame), 0, "record 0: holds 5 of 14 bytes"},
		{"ends inside a record", pcapFile(binary.LittleEndian, nano, 1, 0, frame)[:43], 0, "record 0: unexpected EOF"},
		{"no pcap", []byte("0123456789012345678901234567890"), 0, "pcap header"},
		{"empty", nil, 0, "pcap header"},
	} {
		got, err := ReadPcap(bytes.NewReader(c.file))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if diff := cmp.Diff([]Record{{c.time, frame}}, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", c.name, err, diff)
		}
	}
}

func TestWritePcap(t *testing.T) {
	want := []Record{{0, []byte("a")}, {1, []byte{}}, {1_700_000_000*time.Second + 999_999_999, make([]byte, 65536)}}
	var file bytes.Buffer
	if err := WritePcap(&file, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadPcap(&file)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	for _, c := range []struct {
		record Record
		want   string
	}{
		{Record{-1, nil}, "record 1: time -1ns"},
		{Record{1 << 32 * time.Second, nil}, "record 1: time"},
		{Record{0, make([]byte, maxFrame+1)}, "record 1: 262145 bytes"},
	} {
		if err := WritePcap(&file, []Record{{}, c.record}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func TestReadPcapFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "short.pcap")
	if err := os.WriteFile(name, []byte("no pcap"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{name, name + ".missing"} {
		if _, err := ReadPcapFile(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v; expected an error that names %s", err, name)
		}
	}
}
