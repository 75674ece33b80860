// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/appliance/command"
	"weir/appliance/link"
)

// benchCommand becomes weir-dataplane bench, which says itself what is wrong with its flags.
func benchCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "bench",
		Short:              "Measure what a packet costs on this machine (weir-dataplane bench)",
		DisableFlagParsing: true,
		RunE: command.Work(func(_ *cobra.Command, args []string) error {
			program, err := link.DataplaneProgram()
			if err != nil {
				return err
			}
			err = unix.Exec(program, append([]string{program, "bench"}, args...), os.Environ())
			return fmt.Errorf("%s: %w", program, err)
		}),
	}
}
