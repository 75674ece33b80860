// SPDX-License-Identifier: Apache-2.0

// Package command is what the two programs' command lines have in common: exit codes, messages, the
// version.
package command

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"weir/config"
)

// Exit codes.
const (
	exitFault = 1 // the work failed
	exitUsage = 2 // the command line is wrong
)

// Main runs a program and ends it.
func Main(root *cobra.Command) {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	err := root.Execute()
	if err == nil {
		return
	}
	var failed failure
	if errors.As(err, &failed) {
		if failed.err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s\n", root.Name(), printable(failed.err))
		}
		os.Exit(exitFault)
	}
	fmt.Fprintf(os.Stderr, "%s: %s\nRun '%s --help' for usage.\n", root.Name(), printable(err), root.Name())
	os.Exit(exitUsage)
}

// printable is an error's text, of which a terminal acts on nothing but the ends of lines.
func printable(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = config.Printable(l)
	}
	return strings.Join(lines, "\n")
}

// failure is an error of the work, not of the command line. With no error in it everything has been
// said.
type failure struct{ err error }

func (f failure) Error() string { return fmt.Sprint(f.err) }
func (f failure) Unwrap() error { return f.err }

// Failed makes an error one of the work; nil: everything has been said.
func Failed(err error) error { return failure{err} }

// Work makes a command's function report its errors as those of the work.
func Work(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		if err == nil || errors.As(err, new(failure)) {
			return err
		}
		return failure{err}
	}
}

// Version is a program's version command.
func Version(version string) *cobra.Command {
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
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s%s %s/%s %s\n", cmd.Root().Name(), version, revision, runtime.GOOS, runtime.GOARCH, runtime.Version())
			return err
		},
	}
}
