// SPDX-License-Identifier: Apache-2.0

// The weir command: an Internet gateway for a cloud's edge. See docs/architecture.md.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFault = 1 // the work failed
	exitUsage = 2 // the command line is wrong
)

// version is set by the build: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	cmd := newCommand()
	if err := cmd.Execute(); err != nil {
		var failed failure
		if errors.As(err, &failed) {
			if failed.err != nil {
				fmt.Fprintln(os.Stderr, "weir:", failed.err)
			}
			os.Exit(exitFault)
		}
		fmt.Fprintf(os.Stderr, "weir: %v\nRun 'weir --help' for usage.\n", err)
		os.Exit(exitUsage)
	}
}

// failure is an error of the work, not of the command line. With no error in it everything has been said.
type failure struct{ err error }

func (f failure) Error() string { return fmt.Sprint(f.err) }
func (f failure) Unwrap() error { return f.err }

// work makes a command's function report its errors as failures.
func work(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		if err == nil || errors.As(err, new(failure)) {
			return err
		}
		return failure{err}
	}
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "weir",
		Short:         "An Internet gateway for bare-metal hosts, on DPDK",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(), dataplaneCommand(), checkCommand(), replayCommand(), benchCommand(), generatorCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			revision := ""
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = " " + s.Value
					}
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "weir %s%s %s/%s %s\n", version, revision, runtime.GOOS, runtime.GOARCH, runtime.Version())
			return nil
		},
	}
}
