// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weir/config"
	"weir/pipeline"
	"weir/pipeline/casetest"
	"weir/pipeline/generation"
	"weir/pipeline/packettext"
	"weir/pipeline/state"
)

var update = flag.Bool("update", false, "write the derived files of the cases")

// TestCases runs every case folder in memory and compares with what is committed. Reading case.txt
// against the result is the first half: -update cannot record what case.txt does not say.
func TestCases(t *testing.T) {
	for _, dir := range casetest.Dirs(t, "testdata/cases") {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c := casetest.Load(t, dir)
			golden := c.Golden(t, c.Run(t))
			if *update {
				write(t, dir, golden)
			}
			for name, want := range golden {
				got, err := os.ReadFile(filepath.Join(dir, name))
				switch {
				case err != nil:
					t.Errorf("%v; run go test ./pipeline -run Cases -update, and review", err)
				case bytes.Equal(got, want):
				case filepath.Ext(name) == ".pcap": // the listing shows it
					t.Errorf("%s is not what case.txt makes; run go test ./pipeline -run Cases -update, and review", name)
				default:
					t.Errorf("%s is not what case.txt makes; run go test ./pipeline -run Cases -update, and review. Now it is\n%s", name, want)
				}
			}
			for _, name := range derived(t, dir) {
				if golden[name] == nil {
					t.Errorf("%s/%s is made of nothing; remove it", dir, name)
				}
			}
		})
	}
}

// derived returns the files of a case that nobody wrote by hand.
func derived(t *testing.T, dir string) (files []string) {
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path != "case.txt" && filepath.Ext(path) != ".yaml" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func write(t *testing.T, dir string, golden map[string][]byte) {
	for _, name := range derived(t, dir) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range golden {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const toNobody = "a packet inside the VPC goes to an address that no instance has: nobody is asked through a tunnel"

// exempt are cases that have no twin of a kind, and why.
var exempt = map[string]map[string]string{
	"vlan": {
		"malformed-ethernet": "what is cut inside a tag is cut elsewhere",
		"spoofed-sources":    "a frame for a port that no VPC has comes with a tag that nobody has",
		"priority-tags":      "has tags itself",
		"vlan-attachments":   "has tags itself",
		"vlan-outside":       "has tags itself",
		"tunnels":            "has tunnels itself",
	},
	"geneve":     exemptFromTunnels,
	"vxlan-ipv6": exemptFromTunnels,
}

var exemptFromTunnels = map[string]string{
	"malformed-ethernet":         "an inner frame that is too short for Ethernet's header is none, and inner tags are refused by another name",
	"m20-random":                 "the same",
	"attached-public-subnet":     toNobody,
	"longer-prefix-beats-custom": toNobody,
	"reload-route-changed":       toNobody,
	"untranslatable":             toNobody,
	"vpc-internal-routes":        toNobody,
	"priority-tags":              "has tags itself",
	"vlan-attachments":           "has tags itself",
	"vlan-outside":               "has tags itself",
	"tunnels":                    "has tunnels itself",
	"truncated-by-the-driver":    "what the driver cuts is the outer packet, which is short_frame then",
}

// TestTwins runs every case once more with its VPCs on VLANs and behind tunnels: inside frames come
// and go so, and everything else is as the case says.
func TestTwins(t *testing.T) {
	for _, twin := range casetest.Twins() {
		missing := maps.Clone(exempt[twin.Name])
		for _, dir := range casetest.Dirs(t, "testdata/cases") {
			name := filepath.Base(dir)
			if _, ok := exempt[twin.Name][name]; ok {
				delete(missing, name)
				continue
			}
			t.Run(twin.Name+"/"+name, func(t *testing.T) { casetest.Load(t, dir).RunTwin(t, &twin) })
		}
		for name := range missing {
			t.Errorf("%s: %s is exempt, and no case", twin.Name, name)
		}
	}
}

const balanceConfig = `version: 1
ports:
  - {name: inside, side: inside, device: net_null0}
  - name: outside
    side: outside
    device: net_null1
    addresses: [198.51.100.2/24, "2001:db8::2/64"]
    next_hops: [198.51.100.1, "2001:db8::1"]
pools: [{name: p, ranges: [192.0.2.0/24, "2001:db8:1::/64"]}]
gateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]
sessions: {limits: {per_instance: 0}}
vpcs:
  - name: v
    attach: [{port: inside, addresses: [172.30.0.1/24, "fd00:1::1/64"]}]
    subnets: [172.30.0.0/24, "fd00:1::/64"]
    routes: [{to: 0.0.0.0/0, gateway: g}, {to: "::/0", gateway: g}]
    instances: [{name: web, addresses: [172.30.0.5, "fd00:1::5"], external: {floating: [FLOATING]}}]
`

// sources sends the first packet of each of n flows of one instance through a fresh worker, whose
// secrets come from seed and whose table holds sessions, and returns the source that each left by.
func sources(t *testing.T, floating string, v6 bool, n, sessions int, seed [32]byte) []netip.Addr {
	t.Helper()
	text := strings.Replace(balanceConfig, "FLOATING", floating, 1)
	cfg, _, err := config.Parse([]config.File{{Name: "balance.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	state, err := state.New(state.Sizes{Workers: 1, Sessions: sessions, Seed: &seed})
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	gen, err := generation.NewCompiler(state, &seed).Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer gen.Close()
	w := pipeline.NewWorker(state, 0, gen, pipeline.WorkerConfig{
		MACs: []config.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}, AssumeMAC: config.MAC{2, 0, 0, 0, 0, 3}, Seed: &seed})
	w.SetClock(1e9)

	line, ports, source, size := "udp 172.30.0.5:0 > 8.8.8.8:0", 34, 26, 4 // offsets in the frame, bytes of an address
	if v6 {
		line, ports, source, size = "udp [fd00:1::5]:0 > [2001:db8:f::8]:0", 54, 22, 16
	}
	frame, err := packettext.Parse("02:00:00:00:00:aa > 02:00:00:00:00:01 " + line)
	if err != nil {
		t.Fatal(err)
	}
	list := make([]netip.Addr, n)
	var burst pipeline.Burst
	buffer := make([]byte, len(frame))
	for i := range list {
		copy(buffer, frame)
		binary.BigEndian.PutUint16(buffer[ports:], uint16(10000+i%50000))
		binary.BigEndian.PutUint16(buffer[ports+2:], uint16(1+i/50000))
		burst.N, burst.Packets[0].Data, burst.Packets[0].Handle = 1, buffer, 1
		w.Process(&burst)
		q := &w.Out[1]
		if q.N != 1 {
			t.Fatalf("flow %d: %d packets left; dropped %v", i, q.N, state.Counters(0).Dropped)
		}
		list[i], _ = netip.AddrFromSlice(q.Frames[0][source : source+size])
		w.Sent(1, 1)
	}
	return list
}

// TestBalance: floating addresses share the flows evenly, and every worker, with whatever secrets
// and with or without room for sessions, chooses alike (design: a pure function of the flow and the
// eligible addresses).
func TestBalance(t *testing.T) {
	const flows = 100_000
	for _, v6 := range []bool{false, true} {
		address := "192.0.2.%d"
		if v6 {
			address = "2001:db8:1::%d"
		}
		var addresses []string // as the configuration has them
		for i := range 4 {
			addresses = append(addresses, fmt.Sprintf("%q", fmt.Sprintf(address, i+1)))
		}
		t.Run(strings.Trim(addresses[0], `"`), func(t *testing.T) {
			four := sources(t, strings.Join(addresses, ", "), v6, flows, flows, [32]byte{1})
			count := map[netip.Addr]int{}
			for _, a := range four {
				count[a]++
			}
			for a, n := range count {
				if share := float64(n) * 4 / flows; math.Abs(share-1) > 0.02 {
					t.Errorf("%v has %d of %d flows, expected a quarter within 2 %%", a, n, flows)
				}
			}
			if len(count) != 4 {
				t.Errorf("%d addresses are used, expected 4: %v", len(count), count)
			}
			again := sources(t, strings.Join(addresses, ", "), v6, flows, 64, [32]byte{2})
			if !slices.Equal(four, again) {
				t.Error("another worker without room for sessions chooses otherwise")
			}
			// Without one address its flows move, and no others.
			three := sources(t, strings.Join(addresses[1:], ", "), v6, flows, flows, [32]byte{1})
			gone := netip.MustParseAddr(strings.Trim(addresses[0], `"`))
			for i, a := range four {
				if (three[i] != a) != (a == gone) {
					t.Fatalf("flow %d left by %v; without %v it leaves by %v", i, a, gone, three[i])
				}
			}
		})
	}
}
