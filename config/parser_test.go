// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// scribe writes configurations of several files, most of them good. Each file is made of a seed, so
// that one can change alone.
type scribe struct{ *rand.Rand }

func (s scribe) any(list ...string) string { return list[s.IntN(len(list))] }

// shares are external addresses that instances ask for, in ways that sometimes collide.
func (s scribe) external(vpc, i int) string {
	one := vpc*20 + i*2
	if s.IntN(60) == 0 {
		one = s.IntN(80)
	}
	switch s.IntN(6) {
	case 0:
		return fmt.Sprintf("{floating: [192.0.2.%d, 192.0.2.%d]}", one, one+1)
	case 1:
		return fmt.Sprintf("{ephemeral: [192.0.2.%d]}", one)
	case 2:
		return fmt.Sprintf("{snat: [{address: 192.0.2.%d, ports: %d-%d}]}", 200+s.IntN(2), 1024+one*500, 1024+one*500+s.IntN(500))
	case 3:
		if s.IntN(6) == 0 {
			return fmt.Sprintf("{attached: [203.0.113.%d/32]}", one)
		}
		return "{}"
	case 4:
		return fmt.Sprintf("{floating: [203.0.113.%d]}", one)
	}
	return fmt.Sprintf("{snat: [{address: 192.0.2.%d, ports: %d-%d}]}", 210+vpc, 1024+i*1000, 1024+i*1000+999)
}

func (s scribe) instance(vpc, i int) string {
	address := 10 + i
	if s.IntN(100) == 0 {
		address = s.IntN(20)
	}
	return fmt.Sprintf("name: i%d, addresses: [10.0.0.%d], mac: \"02:00:00:00:00:%02x\", external: %s}\n", i, address, s.IntN(256), s.external(vpc, i))
}

const scribeVPCs = 6

// file writes file n: 0 has what is global, 1 and 2 VPCs with instances in them, the others
// instances of all VPCs.
func (s scribe) file(n int) string {
	var b strings.Builder
	b.WriteString("version: 1\n")
	for range s.IntN(3) {
		b.WriteString("# moves what follows down\n")
	}
	switch n {
	case 0:
		fmt.Fprintf(&b, "sessions: {on_move: %s, filtering: %s}\nports:\n", s.any("keep", "drain"), s.any("address-dependent", "endpoint-independent"))
		for v := range scribeVPCs {
			fmt.Fprintf(&b, "  - {name: in%d, device: net_ring%d, side: inside}\n", v, v)
		}
		b.WriteString("  - {name: out, device: net_ring9, side: outside, addresses: [192.0.2.254/24], next_hops: [192.0.2.253]}\n")
		fmt.Fprintf(&b, "pools: [{name: p, ranges: [192.0.2.0/24]}, {name: q, ranges: [203.0.113.0/24]}]\ngateways:\n"+
			"  - {name: g, id: 00000000-0000-4000-8000-000000000001, pools: %s}\n  - {name: h, id: 00000000-0000-4000-8000-000000000002, pools: [q]}\n", s.any("[p]", "[p, q]", "[]"))
	case 1, 2:
		b.WriteString("vpcs:\n")
		for v := n - 1; v < scribeVPCs; v += 2 {
			port := v
			if s.IntN(50) == 0 {
				port = s.IntN(scribeVPCs)
			}
			attach := fmt.Sprintf("[{port: in%d, addresses: [10.0.0.1/24]}]", port)
			if s.IntN(5) == 0 {
				attach = "[]"
			}
			fmt.Fprintf(&b, "  - name: v%d\n    attach: %s\n    subnets: [10.0.0.0/24]\n    routes: [{to: 0.0.0.0/0, gateway: %s}, {to: 10.1.0.0/16, drop: true}%s]\n",
				v, attach, s.any("g", "h", "unnamed", "g", "g", "h", "h"), s.any("", ", {to: 8.8.8.0/24, gateway: h}")+map[bool]string{true: ", {to: 100.64.0.0/10, gateway: g, translate: false}"}[s.IntN(20) == 0])
			if s.IntN(3) > 0 {
				b.WriteString("    instances:\n")
				for i := range s.IntN(3) + 1 {
					b.WriteString("      - {" + s.instance(v, i))
				}
			}
		}
		if s.IntN(40) == 0 {
			b.WriteString("  - {name: late}\n")
		}
	default:
		b.WriteString("instances:\n")
		for v := range scribeVPCs {
			for i := range 2 {
				if s.IntN(3) > 0 {
					fmt.Fprintf(&b, "  - {vpc: v%d, %s", v, s.instance(v, (n-2)*3+i))
				}
			}
		}
		b.WriteString("  - {vpc: v0, name: last" + fmt.Sprint(n) + ", addresses: [10.0.0.2" + fmt.Sprint(n) + "0]}\n")
		if s.IntN(60) == 0 {
			b.WriteString("  - {vpc: nobody, name: x, addresses: [10.0.0.9]}\n")
		}
	}
	if s.IntN(80) == 0 {
		b.WriteString("typo: 1\n")
	}
	if s.IntN(80) == 0 {
		return b.String()[:b.Len()-3] + "["
	}
	return b.String()
}

// A Parser that has followed a configuration through changes says of each step what a whole reading
// says: the same Config, the same warnings, or the same faults.
func TestParserFollows(t *testing.T) {
	const files, rounds = 5, 60
	followed, refused, warned := 0, 0, 0
	seeds := uint64(40)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		s := scribe{rand.New(rand.NewPCG(seed, 3))}
		var texts []File
		for i := range files {
			texts = append(texts, File{fmt.Sprintf("%d.yaml", i), []byte(s.file(i))})
		}
		var p Parser
		var before *Config
		for round := range rounds {
			got, gotWarnings, gotErr := p.Parse(texts)
			want, wantWarnings, wantErr := Parse(texts)
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Fatalf("seed %d, round %d:\n%v\nwant:\n%v", seed, round, gotErr, wantErr)
			}
			if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotWarnings, wantWarnings) {
				t.Fatalf("seed %d, round %d:\n%+v\n%v\nwant:\n%+v\n%v", seed, round, got, gotWarnings, want, wantWarnings)
			}
			if got != nil {
				checkGuarantees(t, got)
				if before != nil && shared(got.Pools, before.Pools) {
					followed++
				}
				if before != nil && !reflect.DeepEqual(Changes(before, got), Changes(before, want)) {
					t.Fatalf("seed %d, round %d: %v, want %v", seed, round, Diff(before, got), Diff(before, want))
				}
				warned += min(len(gotWarnings), 1)
			} else {
				refused++
			}
			before = got
			i := s.IntN(files)
			if i == 0 {
				i = s.IntN(files)
			}
			texts = append([]File{}, texts...)
			texts[i].Data = []byte(s.file(i))
			if s.IntN(3) == 0 {
				i = 1 + s.IntN(files-1)
				texts[i].Data = []byte(s.file(i))
			}
		}
	}
	t.Logf("%d followed, %d refused, %d with warnings", followed, refused, warned)
	if least := int(5 * seeds); followed < least || refused < least || warned < least {
		t.Error("the changes are too easy, or too hard")
	}
}

// The unchanged files' VPCs keep their lists, and so does what a changed file says again.
func TestParserShares(t *testing.T) {
	text := func(mac int) []File {
		return []File{
			{"a.yaml", []byte("version: 1\nvpcs: [{name: v, subnets: [10.0.0.0/24]}, {name: w, subnets: [10.0.0.0/24]}, {name: x, subnets: [10.0.0.0/24]}]\n")},
			{"b.yaml", fmt.Appendf(nil, "version: 1\ninstances:\n  - {vpc: v, name: a, addresses: [10.0.0.1], mac: \"02:00:00:00:00:%02x\"}\n  - {vpc: w, name: a, addresses: [10.0.0.1]}\n", mac)},
			{"c.yaml", []byte("version: 1\ninstances: [{vpc: x, name: a, addresses: [10.0.0.1]}]\n")},
		}
	}
	var p Parser
	a, _, err := p.Parse(text(1))
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := p.Parse(text(2))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true} {
		if got := shared(a.VPCs[i].Instances, b.VPCs[i].Instances); got != want {
			t.Errorf("VPC %s: shared: %t, want %t", a.VPCs[i].Name, got, want)
		}
	}
	if a.VPCs[0].Instances[0].MAC[5] != 1 || b.VPCs[0].Instances[0].MAC[5] != 2 {
		t.Error("the first Config was written to")
	}
}

// BenchmarkParser is the check of 100,000 instances in 100 files after a change of one.
func BenchmarkParser(b *testing.B) {
	files := [2][]File{spread(100000, 10000, 100, 1), spread(100000, 10000, 100, 2)}
	var p Parser
	if _, _, err := p.Parse(files[0]); err != nil {
		b.Fatal(err)
	}
	for i := 1; b.Loop(); i++ {
		if _, _, err := p.Parse(files[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}

// spread returns instances of many VPCs over files of their own, as deploy/project/scale does; mac
// is that of the first.
func spread(instances, vpcs, files, mac int) []File {
	var b strings.Builder
	b.WriteString("version: 1\npools: [{name: p, ranges: [100.64.0.0/10]}]\ngateways: [{name: g, id: 00000000-0000-4000-8000-000000000001, pools: [p]}]\n" +
		"ports: [{name: in, device: net_ring0, side: inside}, {name: out, device: net_ring1, side: outside, addresses: [198.51.100.2/24]}]\nvpcs:\n")
	for v := range vpcs {
		fmt.Fprintf(&b, "  - {name: v%d, subnets: [10.0.0.0/16], routes: [{to: 0.0.0.0/0, gateway: g}]}\n", v)
	}
	all := []File{{"0.yaml", []byte(b.String())}}
	for f := range files {
		b.Reset()
		b.WriteString("version: 1\ninstances:\n")
		for i := f * instances / files; i < (f+1)*instances/files; i++ {
			m, n, e := i&0xffff, i/vpcs, 2*i
			if i == 0 {
				m = mac << 8
			}
			fmt.Fprintf(&b, "  - {vpc: v%d, name: i%d, addresses: [10.0.%d.%d], mac: \"02:00:00:00:%02x:%02x\", external: {floating: [100.%d.%d.%d, 100.%d.%d.%d]}}\n",
				i%vpcs, n, n>>8, n&255+1, m>>8, m&255, 64+e>>16, e>>8&255, e&255, 64+e>>16, e>>8&255, e&255+1)
		}
		all = append(all, File{fmt.Sprintf("i%03d.yaml", f), []byte(b.String())})
	}
	return all
}
