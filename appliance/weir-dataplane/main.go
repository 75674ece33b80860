// SPDX-License-Identifier: Apache-2.0

// The weir-dataplane command: the process that moves packets, and the benchmark of it. It is the
// only program that binds DPDK. See docs/architecture.md.
package main

import (
	"github.com/spf13/cobra"

	"weir/appliance/bench"
	"weir/appliance/command"
	"weir/appliance/dataplane"
	"weir/appliance/link"
)

// version is set by the build: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	var o dataplane.Options
	root := &cobra.Command{
		Use:   "weir-dataplane",
		Short: "Run weir's data plane; weir run commands it through a socket",
		Long: "weir-dataplane waits at a socket for weir run, which tells it what to do, and goes on forwarding when weir run goes\n" +
			"away, until the next one comes. weir run starts one by itself unless one is there; on a host it is a separate systemd unit.",
		Args: cobra.NoArgs,
		RunE: command.Work(func(*cobra.Command, []string) error { return dataplane.Run(o) }),
	}
	root.Flags().StringVar(&o.Socket, "socket", link.DefaultSocket, "where to listen")
	root.Flags().StringVar(&o.Control, "control", "", "the `USER` that weir run runs as, who may command beside root and this one's own user")
	root.Flags().StringArrayVar(&o.Devices, "device", nil, "open only devices that begin with `PREFIX`, such as 0000:3b:00. or net_af_packet0,iface=eth1, (again for more; default any)")
	root.Flags().StringArrayVar(&o.EALArgs, "eal-arg", nil, "a further `ARGUMENT` for DPDK's EAL, such as --log-level=8 (again for more)")
	root.AddCommand(bench.Command(), bench.GeneratorCommand(), command.Version(version))
	command.Main(root)
}
