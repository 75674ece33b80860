// SPDX-License-Identifier: Apache-2.0

// The weir command: an Internet gateway for a cloud's edge. See docs/architecture.md.
package main

import (
	"github.com/spf13/cobra"

	"weir/appliance/command"
)

// version is set by the build: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	root := &cobra.Command{
		Use:   "weir",
		Short: "An Internet gateway for bare-metal hosts, on DPDK",
	}
	root.AddCommand(runCommand(), reloadCommand(), showCommand(), checkCommand(), replayCommand(), benchCommand(), command.Version(version))
	command.Main(root)
}
