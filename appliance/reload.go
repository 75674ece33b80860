// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"weir/appliance/command"
	"weir/appliance/control"
	"weir/config"
)

// reloadTime is how long a reload may take.
const reloadTime = time.Minute

func reloadCommand() *cobra.Command {
	var api string
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have a running weir read its configuration again, and wait until that is in force",
		Long:  "Reload makes the weir that listens at --api read what is on disk now.\nIt exits with 0 when every worker uses it, and with 1, and the reason, when it was refused in whole or in part.",
		Args:  cobra.NoArgs,
		RunE: command.Work(func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), reloadTime)
			defer cancel()
			var r control.Reloaded
			if err := control.Ask(ctx, api, "/api/v1/reload", struct{}{}, &r); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "generation %d is in force\n", r.Generation)
			return err
		}),
	}
	cmd.Flags().StringVar(&api, "api", config.DefaultConfig.API.Socket, "the API `SOCKET` of the running weir")
	return cmd
}
