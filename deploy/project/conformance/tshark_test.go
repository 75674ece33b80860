// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weir/pipeline/packettext"
)

// tsharkProtocols are dissected; what is above them is payload to weir, and mostly no protocol in
// the cases.
var tsharkProtocols = []string{"frame", "eth", "ethertype", "vlan", "ieee8021ad", "arp", "ip", "ipv6", "ipv6.hopopts", "ipv6.dstopts", "ipv6.routing", "ipv6.fraghdr",
	"tcp", "udp", "udplite", "dccp", "icmp", "icmpv6", "data"}

// frameOf is a frame of a case's captures.
type frameOf struct {
	file string
	packettext.Record
}

// captures returns the frames of all cases, in and out.
func captures(t *testing.T) (frames []frameOf) {
	files, err := filepath.Glob(filepath.Join(root, "pipeline/testdata/cases/*/*/*.pcap"))
	if err != nil || len(files) < 100 {
		t.Fatalf("%d captures of cases (%v), expected a hundred at least", len(files), err)
	}
	for _, file := range files {
		records, err := packettext.ReadPcapFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			frames = append(frames, frameOf{strings.TrimPrefix(file, filepath.Join(root, "pipeline/testdata/cases")+"/"), r})
		}
	}
	return frames
}

// tshark runs tshark, with its configuration in a folder, and returns what it prints.
func tshark(t *testing.T, config string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("tshark", args...)
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+config)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v (it is in the Debian package tshark): %s", cmd.Args, err, &stderr)
	}
	return string(out)
}

// Wireshark's dissectors are a second opinion beside our own verifier's: in what leaves weir in any
// case they find a wrong checksum, or a malformed packet, only where the verifier finds a fault
// too, which the packet then came with; and they see every wrong checksum that the verifier sees.
func TestTshark(t *testing.T) {
	frames := captures(t)
	for _, f := range frames { // and with the last bit turned
		f.file, f.Frame = "turned", bytes.Clone(f.Frame)
		if n := len(f.Frame); n > 0 && packettext.Verify(f.Frame) == nil {
			f.Frame[n-1] ^= 1
			frames = append(frames, f)
		}
	}
	var records []packettext.Record
	for _, f := range frames {
		records = append(records, f.Record)
	}
	var capture bytes.Buffer
	if err := packettext.WritePcap(&capture, records); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "all.pcap")
	if err := os.WriteFile(file, capture.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	fields := []string{"ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status", "icmpv6.checksum.status", "dccp.checksum.status", "icmp.ext.checksum.status"}
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "occurrence=a", "-e", "frame.number", "-e", "_ws.malformed"}
	for _, p := range []string{"ip", "tcp", "udp", "udplite", "dccp"} {
		args = append(args, "-o", p+".check_checksum:TRUE")
	}
	args = append(args, "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE")
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	disabled := ""
	for line := range strings.Lines(tshark(t, "", "-G", "protocols")) {
		if columns := strings.Split(strings.TrimSpace(line), "\t"); len(columns) > 2 && !slices.Contains(tsharkProtocols, columns[2]) {
			disabled += columns[2] + "\n"
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "disabled_protos"), []byte(disabled), 0o644); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(tshark(t, filepath.Dir(file), args...), "\n"), "\n")
	if len(lines) != len(frames) {
		t.Fatalf("tshark tells of %d frames of %d", len(lines), len(frames))
	}
	good, wrong := map[string]int{}, 0
	for i, line := range lines {
		columns := strings.Split(line, "\t")
		if n, err := strconv.Atoi(columns[0]); err != nil || n != i+1 {
			t.Fatalf("line %d: %q", i+1, line)
		}
		var bad []string
		if columns[1] != "" {
			bad = append(bad, "malformed")
		}
		for k, field := range fields {
			for s := range strings.SplitSeq(columns[2+k], ",") {
				switch s {
				case "0":
					bad = append(bad, field)
				case "1":
					good[field]++
				}
			}
		}
		fault, text := packettext.Fault(frames[i].Frame), packettext.Format(frames[i].Frame)
		if strings.Contains(text, " cut=") { // of a quoted packet that is cut short tshark sums up what there is
			bad = slices.DeleteFunc(bad, func(f string) bool { return f == "tcp.checksum.status" || f == "udp.checksum.status" })
		}
		if strings.Contains(text, " ip proto=") && !strings.Contains(text, " frag=") { // bytes that are none of the protocol's
			continue
		}
		if fault == "" { // without a length field tshark guesses at extensions
			bad = slices.DeleteFunc(bad, func(f string) bool { return f == "icmp.ext.checksum.status" })
		}
		if len(bad) > 0 && fault == "" && strings.Contains(frames[i].file, "/out/") {
			t.Errorf("%s: tshark finds %v in\n%s", frames[i].file, bad, text)
		}
		if strings.Contains(fault, "checksum N: all sums to") && !strings.Contains(text, "ext=ah") { // which tshark is not to look behind
			wrong++
			if len(bad) == 0 {
				t.Errorf("%s: tshark does not find: %s in\n%s", frames[i].file, fault, text)
			}
		}
	}
	if wrong < 500 {
		t.Errorf("%d frames with a wrong checksum: the test does not show that tshark sees any", wrong)
	}
	for _, f := range fields[:5] {
		if good[f] < 20 {
			t.Errorf("tshark verified %s %d times only: the test says little", f, good[f])
		}
	}
}
