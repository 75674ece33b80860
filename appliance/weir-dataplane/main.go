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
	var socket string
	root := &cobra.Command{
		Use:   "weir-dataplane",
		Short: "Run weir's data plane; weir run commands it through a socket",
		Long: "weir-dataplane waits at a socket for weir run, which tells it what to do, and goes on forwarding when weir run goes\n" +
			"away, until the next one comes. weir run starts one by itself unless one is there; on a host it is a separate systemd unit.",
		Args: cobra.NoArgs,
		RunE: command.Work(func(*cobra.Command, []string) error { return dataplane.Run(socket) }),
	}
	root.Flags().StringVar(&socket, "socket", link.DefaultSocket, "where to listen")
	root.AddCommand(bench.Command(), bench.GeneratorCommand(), command.Version(version))
	command.Main(root)
}
