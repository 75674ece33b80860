// SPDX-License-Identifier: Apache-2.0

// Scale writes a large configuration: many VPCs, instances, external addresses and gateways, spread
// evenly. It is what the figures for large reloads are measured with.
//
//	go run ./deploy/project/scale --instances 100000 --vpcs 10000 --gateways 1000 --files 100 DIR
//
// DIR then holds weir.yaml and the instances in separate files: a directory that weir run and
// weir check read. The devices are net_ring ones: it runs anywhere.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

func main() {
	var c scale
	flag.IntVar(&c.instances, "instances", 100_000, "instances in all, two external addresses each")
	flag.IntVar(&c.vpcs, "vpcs", 10_000, "VPCs")
	flag.IntVar(&c.gateways, "gateways", 1_000, "gateways, each with its own pool")
	flag.IntVar(&c.files, "files", 100, "files that the instances are spread over")
	flag.Parse()
	if flag.NArg() != 1 || c.instances < 1 || c.vpcs < 1 || c.vpcs > c.instances || c.gateways < 1 || c.gateways > c.vpcs || c.files < 1 {
		fmt.Fprintln(os.Stderr, "usage: scale [flags] DIR, with 1 <= gateways <= vpcs <= instances")
		os.Exit(2)
	}
	if err := c.write(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

type scale struct{ instances, vpcs, gateways, files int }

// external returns external address i: pools lie side by side in 100.64.0.0/10, one range of
// addresses a gateway.
func external(i int) netip.Addr { return add(netip.MustParseAddr("100.64.0.0"), i) }

func add(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (c *scale) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	perPool := (2*c.instances + c.gateways - 1) / c.gateways
	perPool += 2 * ((c.instances+c.vpcs-1)/c.vpcs + 1) // a VPC's instances never straddle two pools
	err := file(filepath.Join(dir, "weir.yaml"), func(w *bufio.Writer) {
		fmt.Fprintf(w, "version: 1\napi: {listen: \"127.0.0.1:9474\", socket: \"\"}\ndataplane: {memory: 256MiB, sessions: 1048576}\nports:\n"+
			"  - {name: out, device: net_ring0, side: outside, addresses: [198.51.100.2/24], next_hops: [{address: 198.51.100.1, mac: \"02:00:00:00:00:fe\"}]}\n"+
			"  - {name: in, device: net_ring1, side: inside}\npools:\n")
		for g := range c.gateways {
			fmt.Fprintf(w, "  - {name: pool-%d, ranges: [%s-%s]}\n", g, external(g*perPool), external(g*perPool+perPool-1))
		}
		fmt.Fprintf(w, "gateways:\n")
		for g := range c.gateways {
			fmt.Fprintf(w, "  - {name: gw-%d, id: 00000000-0000-4000-8000-%012x, pools: [pool-%d]}\n", g, g+1, g)
		}
		fmt.Fprintf(w, "vpcs:\n")
		for v := range c.vpcs {
			// One VPC is attached to the one inside port; the others are complete but for a way in.
			attach := ""
			if v == 0 {
				attach = "attach: [{port: in, addresses: [10.0.0.1/16]}], "
			}
			fmt.Fprintf(w, "  - {name: vpc-%d, %ssubnets: [10.0.0.0/16], routes: [{to: 0.0.0.0/0, gateway: gw-%d}, {to: 192.0.2.0/24, gateway: gw-%d}]}\n",
				v, attach, v%c.gateways, (v+1)%c.gateways)
		}
	})
	next := make([]int, c.gateways) // the next free address of each pool
	errs := []error{err}
	for f := range c.files {
		errs = append(errs, file(filepath.Join(dir, fmt.Sprintf("instances-%04d.yaml", f)), func(w *bufio.Writer) {
			fmt.Fprintf(w, "version: 1\ninstances:\n")
			for i := f * c.instances / c.files; i < (f+1)*c.instances/c.files; i++ {
				v := i % c.vpcs
				g := v % c.gateways
				n := i / c.vpcs
				fmt.Fprintf(w, "  - {vpc: vpc-%d, name: i-%d, addresses: [10.0.%d.%d], mac: \"02:01:00:%02x:%02x:%02x\", external: {floating: [%s, %s]}}\n",
					v, n, (n+2)>>8, (n+2)&255, i>>16&255, i>>8&255, i&255, external(g*perPool+next[g]), external(g*perPool+next[g]+1))
				next[g] += 2
			}
		}))
	}
	return errors.Join(errs...)
}

func file(name string, write func(*bufio.Writer)) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	write(w)
	return errors.Join(w.Flush(), f.Close())
}
