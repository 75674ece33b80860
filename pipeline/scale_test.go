// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/state"
)

// largeConfig has the shape of what deploy/project/scale writes, without the text: instances spread
// over VPCs, two floating addresses each, two gateways a VPC.
func largeConfig(instances, vpcs, gateways int) *config.Config {
	cfg := config.DefaultConfig
	cfg.Ports = []config.Port{
		{Name: "in", Device: "net_null1", Side: config.Inside, MTU: 1500},
		{Name: "out", Device: "net_null0", Side: config.Outside, MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.2/24")}},
	}
	at := func(base string, n int) netip.Addr {
		b := netip.MustParseAddr(base).As4()
		v := uint32(b[0])<<24 + uint32(b[1])<<16 + uint32(b[2])<<8 + uint32(b[3]) + uint32(n)
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	perPool := 2 * (instances/vpcs + 1) * (vpcs/gateways + 1)
	for g := range gateways {
		cfg.Pools = append(cfg.Pools, config.Pool{Name: fmt.Sprintf("p%06d", g), Ranges: []config.Range{{From: at("100.64.0.0", g*perPool), To: at("100.64.0.0", (g+1)*perPool-1)}}})
		cfg.Gateways = append(cfg.Gateways, config.Gateway{Name: fmt.Sprint("g", g), ID: config.ID{15: byte(g), 14: byte(g >> 8), 0: 1}, Pools: []int{g}, VPC: -1})
	}
	next := make([]int, gateways)
	for v := range vpcs {
		g := v % gateways
		vpc := config.VPC{Name: fmt.Sprintf("v%06d", v), Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Routes: []config.Route{
			{To: netip.MustParsePrefix("0.0.0.0/0"), Class: config.Custom, Target: config.TargetGateway, Gateway: g},
			{To: netip.MustParsePrefix("192.0.2.0/24"), Class: config.Custom, Target: config.TargetGateway, Gateway: (g + 1) % gateways}}}
		vpc.Attach = []config.Attachment{{Port: 0, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/16")}}}
		for n := range instances / vpcs {
			e := at("100.64.0.0", g*perPool+next[g])
			next[g] += 2
			vpc.Instances = append(vpc.Instances, config.Instance{Name: fmt.Sprintf("i%06d", n), Address4: at("10.0.0.2", n), MAC: config.MAC{2, 1},
				Floating: []netip.Addr{e, e.Next()}})
		}
		cfg.VPCs = append(cfg.VPCs, vpc)
	}
	return &cfg
}

// A session takes 256 bytes at the most, with its mapping and its part of every table: what a state
// of twice the sessions is larger by.
func TestMemoryPerSession(t *testing.T) {
	const sessions = 1 << 17
	var size [2]uint64
	for i := range size {
		s, err := state.New(state.Sizes{Workers: 2, Sessions: (i + 1) * sessions, Seed: &testSeed})
		if err != nil {
			t.Fatal(err)
		}
		size[i] = s.Taken()
		s.Close()
	}
	perSession := float64(size[1]-size[0]) / sessions
	t.Logf("%.1f bytes a session", perSession)
	if perSession > 256 {
		t.Errorf("%.1f bytes a session, expected 256 at the most", perSession)
	}
}

// BenchmarkCompile is a reload after parsing, up to the generation that the data plane maps:
// 100,000 instances, 200,000 external addresses, 1,000 gateways, 10,000 VPCs. (All VPCs share one
// port here, which config would refuse: instances must have neighbors.)
func BenchmarkCompile(b *testing.B) {
	cfg := largeConfig(100_000, 10_000, 1_000)
	s, err := state.New(state.Sizes{Workers: 1, Sessions: 1024})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := generation.NewCompiler(s, &testSeed)
	var size uint64
	for b.Loop() {
		g, err := c.Compile(cfg)
		if err != nil {
			b.Fatal(err)
		}
		size = g.Size()
		g.Close()
	}
	b.ReportMetric(float64(size)/(1<<20), "MiB")
}

// BenchmarkFollow is the compilation of a change of one instance among 100,000.
func BenchmarkFollow(b *testing.B) {
	cfg := [2]*config.Config{largeConfig(100_000, 10_000, 1_000), nil}
	other := *cfg[0]
	other.VPCs = slices.Clone(other.VPCs)
	other.VPCs[0].Instances = slices.Clone(other.VPCs[0].Instances)
	other.VPCs[0].Instances[0].MAC[5]++
	cfg[1] = &other
	s, err := state.New(state.Sizes{Workers: 1, Sessions: 1024})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := generation.NewCompiler(s, &[32]byte{1, 2, 3})
	running, err := c.Compile(cfg[0])
	if err != nil {
		b.Fatal(err)
	}
	c.Retire()
	for i := 1; b.Loop(); i++ {
		g, err := c.Follow(running, cfg[(i+1)%2], cfg[i%2])
		if err != nil {
			b.Fatal(err)
		}
		c.Retire()
		c.Release(running)
		running = g
	}
	running.Close()
}
