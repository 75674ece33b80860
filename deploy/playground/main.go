// SPDX-License-Identifier: Apache-2.0

// Playground is two tenants, an Internet and a weir between them, in network namespaces.
//
//	playground [-config FILE] [-weir PATH] [-duration 10s] [-verbose]
//	                         send traffic, print who saw what, then live counters
//	playground capture DIR   write the captures of `make replay`
//	playground remove        remove what a killed playground left
//
// The files: scenario.go says what must happen, topology.go makes the network, probe.go sends and
// answers, gateway.go runs weir, counters.go watches it, capture.go writes traffic for weir replay.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"weir/config"
	"weir/deploy/lab"
)

// prefix of all names that the playground gives to namespaces.
const prefix = "weirq-"

func main() {
	// The dangerous time for a Ctrl-C is between making and removing, so all of it runs under this
	// context.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "playground:", err)
		os.Exit(1)
	}
}

// options are the flags of a run.
type options struct {
	config   string
	weir     string
	duration time.Duration
	verbose  bool
}

func command(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("playground", flag.ContinueOnError)
	flags.StringVar(&o.config, "config", "deploy/playground/weir.yaml", "the configuration to play with")
	flags.StringVar(&o.weir, "weir", "bin/weir", "the weir program")
	flags.DurationVar(&o.duration, "duration", 0, "how long the live counters run; 0: until Ctrl-C")
	flags.BoolVar(&o.verbose, "verbose", false, "also print weir's own log")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch words := flags.Args(); {
	case len(words) == 2 && words[0] == "capture":
		return capture(words[1])
	case len(words) == 1 && words[0] == "remove":
		return exclusively(func() error { return lab.RemoveNamed(prefix) })
	case len(words) > 0:
		return fmt.Errorf("%q: expected no argument, `capture DIR` or `remove`", strings.Join(words, " "))
	}
	return exclusively(func() error { return run(ctx, o, out) })
}

// exclusively runs f as root and as the only playground of this machine.
func exclusively(f func() error) error {
	if os.Geteuid() != 0 {
		return errors.New("the playground makes network namespaces and so needs root; without root, `make replay` shows the same gateway on captured packets")
	}
	// An abstract socket is a lock that a crash cannot leave behind.
	lock, err := net.Listen("unix", "@weir-playground")
	if errors.Is(err, unix.EADDRINUSE) {
		return errors.New("another playground is running on this machine; end that one first")
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return f()
}

// run is one whole playground. It returns an error if anything was not as expected.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	cfg, _, err := config.Load(o.config)
	if err != nil {
		return err
	}
	if err := lab.RemoveNamed(prefix); err != nil {
		return fmt.Errorf("remove what an earlier run left behind: %w", err)
	}
	defer func() { err = errors.Join(err, lab.RemoveNamed(prefix)) }()

	fmt.Fprintf(out, "Building the playground of %s in network namespaces %s*\n", o.config, prefix)
	topology, err := build(prefix, cfg, destinations)
	if err != nil {
		return err
	}
	if topology.internet == nil {
		return fmt.Errorf("%s: the playground needs an outside port", o.config)
	}
	stage, err := newStage(topology)
	if err != nil {
		return err
	}
	defer stage.Close()
	gateway, err := startGateway(ctx, topology.weir, o, cfg.API.Listen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gateway.stop()) }()
	fmt.Fprintln(out, "weir is ready. Sending ping, UDP and TCP through it, IPv4 and IPv6 ...")

	outcomes := stage.play(scenario)
	unexpected := printTable(out, topology, scenario, outcomes)
	if unexpected > 0 {
		err = fmt.Errorf("%d of %d rows are not as expected; the end of weir's log:\n%s", unexpected, len(scenario), gateway.log)
		if ctx.Err() != nil {
			return errors.New("interrupted before the table was complete")
		}
	} else {
		fmt.Fprintf(out, "\nAll %d rows are as expected.\n", len(scenario))
	}
	return errors.Join(err, watch(ctx, out, stage, gateway, o.duration))
}

// printTable prints what became of the rows and returns how many are not as expected.
func printTable(out io.Writer, t *topology, rows []row, outcomes []outcome) (unexpected int) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nguest\t\tdestination\troute matched\tgateway\tsource address the Internet saw\texpected\tok")
	for i, r := range rows {
		route, gateway := "no route", ""
		if g := t.guests[r.guest]; g != nil {
			route, gateway = describeRoute(t.config, g.vpc, g.address(r.remote), r.remote)
		}
		destination := r.remote.String()
		if r.inbound != "" {
			destination = fmt.Sprintf("from %s to %s", r.remote, r.inbound)
			route, gateway = "(inbound)", ""
		}
		verdict := "ok"
		if !outcomes[i].ok {
			verdict = "NOT OK"
			unexpected++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			r.guest, r.protocol, destination, route, gateway, outcomes[i].saw, r.want, verdict)
	}
	w.Flush()
	return unexpected
}

func describeRoute(cfg *config.Config, vpc *config.VPC, source, destination netip.Addr) (route, gateway string) {
	r, ok := routeOf(vpc, source, destination)
	if !ok {
		return "no route", ""
	}
	class := "custom"
	if r.Class == config.System {
		class = "system"
	}
	route = fmt.Sprintf("%s %s", r.To, class)
	switch {
	case r.Target == config.TargetDrop:
		return route, "(drop)"
	case r.Target != config.TargetGateway:
		return route, "(inside the VPC)"
	case r.Gateway == config.UnnamedGateway:
		return route, "(unnamed)"
	}
	return route, cfg.Gateways[r.Gateway].Name
}

// absolute is for the paths that weir gets, which do not depend on where it runs.
func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(abs); err != nil {
		return "", fmt.Errorf("%w; `make build` makes the program", err)
	}
	return abs, nil
}
