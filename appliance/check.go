// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"weir/appliance/command"
	"weir/appliance/control"
	"weir/config"
)

func checkCommand() *cobra.Command {
	var asJSON, strict bool
	var target string
	cmd := &cobra.Command{
		Use:   "check PATH",
		Short: "Check a configuration and print all faults and warnings, with file and line",
		Long:  "Check reads a configuration (a file, or a directory of files) as weir run does.\nIt exits with 0 if there are no faults and with 1 otherwise; --strict makes warnings fail too.\nWith --against, what a reload would refuse is a fault: more taken away than reload.max_shrink allows, keys that take a restart.",
		Args:  cobra.ExactArgs(1),
		RunE: command.Work(func(cmd *cobra.Command, args []string) error {
			return check(cmd.OutOrStdout(), args[0], target, asJSON, strict)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&target, "against", "", "also print what would change. `PATH` is the API socket of a running weir, whose live sessions are counted, or another configuration")
	cmd.Flags().BoolVar(&strict, "strict", false, "fail on warnings")
	return cmd
}

// printable writes what a terminal can show: all else, but the ends of lines, is escaped.
type printable struct {
	io.Writer
	escape func(line string) string
}

func (p printable) Write(b []byte) (int, error) {
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		lines[i] = p.escape(l)
	}
	if _, err := io.WriteString(p.Writer, strings.Join(lines, "\n")); err != nil {
		return 0, err
	}
	return len(b), nil
}

// escapeJSON is config.Printable for JSON, which has all that is not printable in strings, and
// means the same afterwards.
func escapeJSON(line string) string {
	var b strings.Builder
	for _, c := range line {
		if strconv.IsPrint(c) {
			b.WriteRune(c)
			continue
		}
		for _, unit := range utf16.Encode([]rune{c}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

func check(out io.Writer, path, target string, asJSON, strict bool) error {
	cfg, warnings, err := config.Load(path)
	var faults config.Faults
	if err != nil && !errors.As(err, &faults) {
		return err
	}
	var p *control.Preview
	if target != "" && err == nil {
		var failed error
		if p, failed = control.Against(path, target, cfg); failed != nil {
			return failed
		}
		if p.Refused != "" {
			faults = append(faults, config.Fault{File: path, Message: fmt.Sprintf("a reload of %s would refuse this: %s", target, p.Refused)})
			err = faults
		}
	}
	if asJSON {
		enc := json.NewEncoder(printable{out, escapeJSON})
		enc.SetIndent("", "  ")
		if err := enc.Encode(struct {
			OK       bool             `json:"ok"`
			Faults   []config.Fault   `json:"faults"`
			Warnings []config.Warning `json:"warnings"`
			Against  *control.Preview `json:"against,omitempty"`
		}{err == nil, append([]config.Fault{}, faults...), append([]config.Warning{}, warnings...), p}); err != nil {
			return err
		}
	} else {
		out := printable{out, config.Printable}
		for _, f := range faults {
			fmt.Fprintf(out, "fault: %s\n", f)
		}
		for _, w := range warnings {
			fmt.Fprintf(out, "warning: %s [%s:%s]\n", w, w.Name, w.Object)
		}
		if err == nil {
			instances := 0
			for _, v := range cfg.VPCs {
				instances += len(v.Instances)
			}
			fmt.Fprintf(out, "%s: good: %d ports, %d pools, %d gateways, %d VPCs, %d instances\n",
				config.QuoteName(path), len(cfg.Ports), len(cfg.Pools), len(cfg.Gateways), len(cfg.VPCs), instances)
		}
		if p != nil {
			p.Print(out)
		}
	}
	if err != nil || strict && len(warnings) > 0 {
		return command.Failed(nil) // said already
	}
	return nil
}
