// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/appliance/command"
	"weir/appliance/control"
	"weir/appliance/link"
)

func runCommand() *cobra.Command {
	var o control.Options
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway: control in the foreground, and a data plane that it starts",
		Long: "Run reads the configuration, starts the data plane or takes over the one that listens on the socket, and serves\n" +
			"metrics. It reloads when the configuration on disk changes; SIGHUP makes it look at once. SIGTERM or SIGINT stops it,\n" +
			"the data plane too unless that is a separate service. If it crashes, the data plane goes on forwarding.\n" +
			"The data plane is the program weir-dataplane in the directory of this one, else in PATH.",
		Args: cobra.NoArgs,
		RunE: command.Work(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return control.Run(ctx, o)
		}),
	}
	cmd.Flags().StringVar(&o.Config, "config", "/etc/weir/weir.yaml", "configuration: a file, or a directory of files")
	cmd.Flags().StringVar(&o.Socket, "socket", link.DefaultSocket, "where the data plane listens")
	cmd.Flags().BoolVar(&o.Attach, "attach", false, "start no data plane: wait for the one that is a separate service")
	return cmd
}
