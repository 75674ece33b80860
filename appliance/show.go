// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weir/appliance/command"
	"weir/appliance/control"
	"weir/config"
	"weir/metrics"
)

// showTime is how long an answer may take, and watchInterval how often --watch asks.
const (
	showTime      = 30 * time.Second
	watchInterval = 2 * time.Second
)

// kinds are what weir show can show, and how.
var kinds = map[string]func(showing) error{
	"sessions": table("VPC INSTANCE PROTO PRIVATE EXTERNAL REMOTE GATEWAY STATE AGE IDLE LEFT WORKER", func(s control.Session) []any {
		state := s.State
		if s.FromOutside {
			state += ",inbound"
		}
		if s.Draining {
			state += ",draining"
		}
		return []any{s.VPC, s.Instance, s.Protocol, s.Private, s.External, s.Remote, s.Gateway, state, span(s.Age), span(s.Idle), span(s.Remaining), s.Worker}
	}),
	"snat": table("VPC INSTANCE ADDRESS PORTS SIZE TCP UDP ICMP RESTING FREE-TCP FREE-UDP", func(s control.Share) []any {
		return []any{s.VPC, s.Instance, s.Address, s.Ports, s.Size, s.TCP.InUse, s.UDP.InUse, s.Echo.InUse, s.TCP.Resting + s.UDP.Resting + s.Echo.Resting, s.TCP.Free, s.UDP.Free}
	}),
	"neighbors": table("PORT TAG ADDRESS MAC STATE", func(n control.Neighbor) []any { return []any{n.Port, n.Tag, n.Address, n.MAC, n.State} }),
	"next-hops": table("PORT ADDRESS STATE", func(n metrics.NextHop) []any { return []any{n.Port, n.Address, upOrDown(n.Up)} }),
	"ports": table("PORT SIDE LINK MBIT/S RECEIVED SENT MISSED NO-BUFFER ERRORS MAC DEVICE", func(p control.Port) []any {
		return []any{p.Name, p.Side, p.Link, p.Speed, p.Received, p.Sent, p.Missed, p.NoBuffer, p.Errors, p.MAC, p.Device}
	}),
	"workers": table("WORKER CORE SESSIONS CAPACITY PRESSED BUSY-S POLLS EMPTY ADOPTED GENERATION LAST-TURN", func(w control.Worker) []any {
		return []any{w.Worker, w.Core, w.Sessions, w.Capacity, w.Pressed, strconv.FormatFloat(w.Busy, 'f', 1, 64), w.Polls, w.Empty, w.Adopted, w.Generation, fmt.Sprintf("%dms", w.LastTurn)}
	}),
	"drops": table("PACKETS CLASS REASON WHAT", func(d control.Drop) []any { return []any{d.Packets, d.Class, d.Reason, d.Help} }),
	"generation": table("GENERATION READY DATA-PLANE RESTARTS LAST-RELOAD VPCS INSTANCES GATEWAYS POOLS CONFIG", func(g control.Generation) []any {
		reload := "refused"
		if g.LastReload {
			reload = "good"
		}
		return []any{g.Number, g.Ready, upOrDown(g.Up), g.Restarts, reload, g.VPCs, g.Instances, g.Gateways, g.Pools, g.Config}
	}),
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// span is a number of seconds as people write it.
func span(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// showing is one question.
type showing struct {
	ctx    context.Context
	out    io.Writer
	api    string
	kind   string
	filter url.Values
	limit  int
	asJSON bool
}

// table returns what shows a kind: a line of titles, and a row for each item.
func table[T any](titles string, row func(T) []any) func(showing) error {
	return func(s showing) error {
		var items []T
		after, more := "", true
		for more && len(items) < s.limit {
			q := maps.Clone(s.filter)
			q.Set("limit", strconv.Itoa(min(s.limit-len(items), control.MostLimit)))
			if after != "" {
				q.Set("after", after)
			}
			var page control.Page[T]
			if err := control.Ask(s.ctx, s.api, "/api/v1/"+s.kind+"?"+q.Encode(), nil, &page); err != nil {
				return err
			}
			items = append(items, page.Items...)
			after, more = page.Next, page.Next != ""
		}
		if s.asJSON {
			enc := json.NewEncoder(printable{s.out, escapeJSON})
			enc.SetIndent("", "  ")
			return enc.Encode(control.Page[T]{Items: append([]T{}, items...), Next: after})
		}
		w := tabwriter.NewWriter(printable{s.out, config.Printable}, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, strings.ReplaceAll(titles, " ", "\t"))
		for _, item := range items {
			for i, field := range row(item) {
				text := strings.ReplaceAll(fmt.Sprint(field), "\t", " ")
				if text == "" {
					text = "-"
				}
				if i > 0 {
					fmt.Fprint(w, "\t")
				}
				fmt.Fprint(w, text)
			}
			fmt.Fprintln(w)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if more {
			fmt.Fprintf(s.out, "there are more: --limit shows them, a filter picks some\n")
		}
		return nil
	}
}

func showCommand() *cobra.Command {
	s := showing{}
	var watch bool
	filters := map[string]*string{}
	names := slices.Sorted(maps.Keys(kinds))
	cmd := &cobra.Command{
		Use:   "show " + strings.Join(names, "|"),
		Short: "Show what a running weir has: sessions, SNAT shares, neighbors, ports, workers, drops",
		Long: "Show asks the weir that listens at --api. No worker waits for it. Each filter is for the kinds that have it:\n" +
			filterHelp(),
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: names,
		RunE: command.Work(func(cmd *cobra.Command, args []string) error {
			s.kind, s.out, s.filter = args[0], cmd.OutOrStdout(), url.Values{}
			for name, value := range filters {
				if cmd.Flags().Changed(name) {
					s.filter.Set(name, *value)
				}
			}
			for {
				ctx, cancel := context.WithTimeout(cmd.Context(), showTime)
				s.ctx = ctx
				err := kinds[s.kind](s)
				cancel()
				if err != nil || !watch {
					return err
				}
				time.Sleep(watchInterval)
				fmt.Fprintln(s.out)
			}
		}),
	}
	cmd.Flags().StringVar(&s.api, "api", config.DefaultConfig.API.Socket, "the API `SOCKET` of the running weir")
	cmd.Flags().IntVar(&s.limit, "limit", 1000, "show at most so many")
	cmd.Flags().BoolVar(&s.asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every two seconds")
	for _, list := range control.Kinds {
		for _, name := range list {
			if filters[name] == nil {
				filters[name] = cmd.Flags().String(name, "", "pick those with this "+name)
			}
		}
	}
	return cmd
}

// filterHelp says which kinds have which filters.
func filterHelp() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(control.Kinds)) {
		if list := control.Kinds[kind]; len(list) > 0 {
			fmt.Fprintf(&b, "  %s: --%s\n", kind, strings.Join(list, " --"))
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}
