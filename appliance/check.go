// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
		Long:  "Check reads a configuration (a file, or a directory of files) as weir run does.\nIt exits with 0 if there are no faults and with 1 otherwise; --strict makes warnings fail too.",
		Args:  cobra.ExactArgs(1),
		RunE: command.Work(func(cmd *cobra.Command, args []string) error {
			return check(cmd.OutOrStdout(), args[0], target, asJSON, strict)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&target, "against", "", "also print what would change. `ADDR|PATH` is the API address of a running weir, whose live sessions are counted, or the path of another configuration")
	cmd.Flags().BoolVar(&strict, "strict", false, "fail on warnings")
	return cmd
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
	}
	if asJSON {
		enc := json.NewEncoder(out)
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
		for _, f := range faults {
			fmt.Fprintf(out, "fault: %s\n", f)
		}
		for _, w := range warnings {
			fmt.Fprintf(out, "warning: %s\n", w)
		}
		if err == nil {
			instances := 0
			for _, v := range cfg.VPCs {
				instances += len(v.Instances)
			}
			fmt.Fprintf(out, "%s: good: %d ports, %d pools, %d gateways, %d VPCs, %d instances\n",
				path, len(cfg.Ports), len(cfg.Pools), len(cfg.Gateways), len(cfg.VPCs), instances)
			if p != nil {
				p.Print(out)
			}
		}
	}
	if err != nil || strict && len(warnings) > 0 {
		return command.Failed(nil) // said already
	}
	return nil
}
