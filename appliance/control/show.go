// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/appliance/link"
	"weir/config"
	"weir/metrics"
	"weir/pipeline/attach"
	"weir/pipeline/drop"
	"weir/pipeline/generation"
	"weir/pipeline/header"
	"weir/pipeline/inet"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// What can be shown is read from shared memory beside the workers and stops none: a record is read
// whole or not at all. Lists are pages: at most limit items, and where the next page begins.

// A Page is what GET /api/v1/KIND answers.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"` // for after; empty: this is the last page
}

// Session is a session as it is shown.
type Session struct {
	VPC         string  `json:"vpc"`
	Instance    string  `json:"instance"` // empty: it is no more
	Protocol    string  `json:"protocol"`
	Private     string  `json:"private"`
	External    string  `json:"external"`
	Remote      string  `json:"remote"`
	Gateway     string  `json:"gateway,omitempty"` // that its route names now
	State       string  `json:"state"`
	FromOutside bool    `json:"from_outside"` // it began there
	Draining    bool    `json:"draining,omitempty"`
	Age         float64 `json:"age_seconds"`
	Idle        float64 `json:"idle_seconds"`
	Remaining   float64 `json:"remaining_seconds"` // until it ends, if no packet refreshes it
	Worker      int     `json:"worker"`
}

// Share is the ports of an SNAT address that an instance has, and their use by TCP, UDP and echo.
type Share struct {
	VPC      string  `json:"vpc"`
	Instance string  `json:"instance"`
	Address  string  `json:"address"`
	Ports    string  `json:"ports"`
	Size     int     `json:"size"`
	TCP      PortUse `json:"tcp"`
	UDP      PortUse `json:"udp"`
	Echo     PortUse `json:"icmp"` // identifiers of pings
}

// PortUse is what becomes of the ports of a share.
type PortUse struct {
	InUse   int `json:"in_use"`
	Resting int `json:"resting"` // until another endpoint may have them
	Free    int `json:"free"`
}

// Neighbor is an entry of the table of link-layer addresses.
type Neighbor struct {
	Port    string `json:"port"`
	Tag     string `json:"tag,omitempty"`
	Address string `json:"address"`
	MAC     string `json:"mac,omitempty"`
	State   string `json:"state"`
}

// Port is a port and its device.
type Port struct {
	Name          string `json:"name"`
	Side          string `json:"side"`
	Device        string `json:"device"`
	MAC           string `json:"mac"`
	Link          string `json:"link"`
	Speed         uint32 `json:"speed_mbit,omitempty"`
	Received      uint64 `json:"received_packets"`
	ReceivedBytes uint64 `json:"received_bytes"`
	Sent          uint64 `json:"transmitted_packets"`
	SentBytes     uint64 `json:"transmitted_bytes"`
	Missed        uint64 `json:"missed"`
	NoBuffer      uint64 `json:"no_buffer"`
	Errors        uint64 `json:"errors"`
}

// Worker is a worker and what it does.
type Worker struct {
	Worker     int     `json:"worker"`
	Core       int     `json:"core"`
	Sessions   uint64  `json:"sessions"`
	Capacity   int     `json:"capacity"`
	Pressed    bool    `json:"pressed"`
	Polls      uint64  `json:"polls"`
	Empty      uint64  `json:"empty_polls"`
	Busy       float64 `json:"busy_seconds"`
	Adopted    uint64  `json:"adopted_packets"`
	Generation uint64  `json:"generation"`
	LastTurn   uint32  `json:"last_turn_ms"` // ago
}

// Drop is a reason and how often it was one.
type Drop struct {
	Reason  string `json:"reason"`
	Class   string `json:"class"`
	Packets uint64 `json:"packets"`
	Help    string `json:"help"`
}

// NextHop is a next hop of an outside port.
type NextHop = metrics.NextHop

// Generation is what runs.
type Generation struct {
	Number     uint64 `json:"generation"`
	Config     string `json:"config"`
	Ports      int    `json:"ports"`
	Pools      int    `json:"pools"`
	Gateways   int    `json:"gateways"`
	VPCs       int    `json:"vpcs"`
	Instances  int    `json:"instances"`
	Bytes      uint64 `json:"bytes"`
	StateBytes uint64 `json:"state_bytes"`
	Ready      bool   `json:"ready"`
	Up         bool   `json:"dataplane_up"`
	Restarts   uint64 `json:"dataplane_restarts"`
	LastReload bool   `json:"last_reload_successful"`
}

// Kinds are what can be shown, and which filters each has.
var Kinds = map[string][]string{
	"sessions":   {"vpc", "instance", "address", "remote", "port", "state", "protocol", "gateway"},
	"snat":       {"vpc", "instance", "address"},
	"neighbors":  {"address", "state"},
	"next-hops":  nil,
	"ports":      nil,
	"workers":    nil,
	"drops":      nil,
	"generation": nil,
}

// Bounds of a page.
const (
	defaultLimit = 1000
	MostLimit    = 10_000
	mostShowing  = 4 // pages that are made at a time; further ones wait
)

// question is what a request asks for.
type question struct {
	filter map[string]string
	limit  int
	after  uint64
}

// errQuestion is an error of who asks.
type errQuestion struct{ error }

func wrong(format string, args ...any) error { return errQuestion{fmt.Errorf(format, args...)} }

func ask(kind string, r *http.Request) (q question, err error) {
	q = question{filter: map[string]string{}, limit: defaultLimit}
	for name, values := range r.URL.Query() {
		value := values[len(values)-1]
		switch {
		case name == "limit":
			if q.limit, err = strconv.Atoi(value); err != nil || q.limit < 1 || q.limit > MostLimit {
				return q, wrong("limit %q: expected 1 to %d", value, MostLimit)
			}
		case name == "after":
			if q.after, err = strconv.ParseUint(value, 10, 64); err != nil {
				return q, wrong("after %q: expected what next was", value)
			}
		case slices.Contains(Kinds[kind], name):
			q.filter[name] = value
		default:
			return q, wrong("%s have no filter %q; expected limit, after %s", kind, name, strings.Join(Kinds[kind], ", "))
		}
	}
	return q, nil
}

// prefix returns the addresses that a filter names: one, or a prefix; zero: it is not set.
func (q question) prefix(name string) (netip.Prefix, error) {
	text, asked := q.filter[name]
	if !asked {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, wrong("%s %q: expected an address or a prefix", name, text)
	}
	return p, nil
}

// show serves a kind: f answers a question.
func show[T any](c *control, kind string, f func(context.Context, *control, question) (Page[T], error)) route {
	return route{"GET /api/v1/" + kind, readers, func(w http.ResponseWriter, r *http.Request) {
		q, err := ask(kind, r)
		var page Page[T]
		if err == nil {
			select {
			case c.showing <- struct{}{}:
				page, err = f(r.Context(), c, q)
				<-c.showing
			case <-r.Context().Done():
				return
			}
		}
		switch {
		case errors.As(err, new(errQuestion)):
			refuse(w, http.StatusBadRequest, err.Error(), "")
		case err != nil:
			refuse(w, http.StatusServiceUnavailable, err.Error(), "")
		default:
			w.Header().Set("Content-Type", "application/json")
			if page.Items == nil {
				page.Items = []T{}
			}
			json.NewEncoder(w).Encode(page)
		}
	}}
}

func (c *control) showRoutes() []route {
	return []route{
		show(c, "sessions", showSessions), show(c, "snat", showShares), show(c, "neighbors", showNeighbors), show(c, "next-hops", showNextHops),
		show(c, "ports", showPorts), show(c, "workers", showWorkers), show(c, "drops", showDrops), show(c, "generation", showGeneration),
	}
}

// names are those of a generation by slot.
type names struct {
	number         uint64
	vpcs, instance map[uint32]string
}

// namesNow returns the names of the running generation. Only the loop calls it; nobody changes what
// it returns.
func (c *control) namesNow() *names {
	if n := c.names; n != nil && n.number == c.gen.Number {
		return n
	}
	c.names = &names{c.gen.Number, c.gen.VPCNames(c.cfg), c.gen.InstanceNames(c.cfg)}
	return c.names
}

// nameOf returns the part of an instance's full name behind its VPC's.
func nameOf(full string) string {
	_, name, _ := strings.Cut(full, "/")
	return name
}

func protocolName(proto uint8) string {
	switch proto {
	case header.ProtocolICMP:
		return "icmp"
	case header.ProtocolTCP:
		return "tcp"
	case header.ProtocolUDP:
		return "udp"
	case header.ProtocolICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(proto))
}

func endpoint(a inet.Addr, port uint16) string { return netip.AddrPortFrom(a.Netip(), port).String() }

// found is a session that was read, and where.
type found struct {
	session.Session
	worker int
	place  uint64
}

func showSessions(ctx context.Context, c *control, q question) (p Page[Session], err error) {
	var n *names
	var gateways []config.Gateway
	if err := c.do(ctx, func(c *control) { n, gateways = c.namesNow(), c.cfg.Gateways }); err != nil {
		return p, err
	}
	keep, err := sessionFilter(n, gateways, q)
	if err != nil {
		return p, err
	}
	const together = 1000 // between two questions to the loop
	for at, more := q.after, true; more; {
		var list []found
		if list, at, more = c.readSessions(ctx, at, together); ctx.Err() != nil {
			return p, ctx.Err()
		}
		items, err := c.describe(ctx, n, list)
		if err != nil {
			return p, err
		}
		for i := range items {
			if !keep(&list[i].Session, &items[i]) {
				continue
			}
			if len(p.Items) == q.limit {
				p.Next = strconv.FormatUint(list[i].place, 10)
				return p, nil
			}
			p.Items = append(p.Items, items[i])
		}
	}
	return p, nil
}

// describe says of sessions what can be said.
func (c *control) describe(ctx context.Context, n *names, list []found) (items []Session, err error) {
	now := uint32(uint64(link.Monotonic()) / 1e6)
	err = c.do(ctx, func(c *control) { // routes and times are the generation's
		for i := range list {
			s := &list[i]
			var item Session
			if g, ok := c.gen.GatewayOf(&s.Session); ok && g == config.UnnamedGateway {
				item.Gateway = "unnamed"
			} else if ok {
				item.Gateway = c.cfg.Gateways[g].Name
			}
			pressed := c.state.Pressed(s.worker)
			item.Remaining = float64(max(0, int64(c.gen.IdleLimit(&s.Session, pressed))-int64(max(0, int32(now-s.Last))))) / 1e3
			items = append(items, item)
		}
	})
	for i := range items {
		item, s := &items[i], &list[i]
		item.VPC, item.Instance, item.Protocol = n.vpcs[s.VPC], nameOf(n.instance[s.Instance]), protocolName(s.Proto())
		item.Private, item.External, item.Remote = endpoint(s.Private, s.PrivatePort()), endpoint(s.External, s.ExternalPort()), endpoint(s.Remote, s.RemotePort())
		item.State, item.FromOutside, item.Draining = s.State().String(), s.Flags&session.FromOutside != 0, s.Flags&session.Draining != 0
		item.Age, item.Idle, item.Worker = seconds(now-s.Created), seconds(now-s.Last), s.worker
		if item.Draining {
			item.Remaining = min(item.Remaining, seconds(s.Drain-now))
		}
	}
	return items, err
}

// readSessions copies the next live sessions, up to n, from a place on: the workers' tables one
// after the other. more: there may be others from next on.
func (c *control) readSessions(ctx context.Context, from uint64, n int) (list []found, next uint64, more bool) {
	first := uint64(0) // place of the table's first
	for w := range c.state.Workers() {
		t := c.state.Table(w)
		end := first + uint64(t.Capacity())
		for at := max(from, first); at < end; at++ {
			if len(list) == n || at%65536 == 0 && ctx.Err() != nil {
				return list, at, true
			}
			if s, live := t.Read(uint32(at - first)); live && s.State() < session.NumStates {
				list = append(list, found{s, w, at})
			}
		}
		first = end
	}
	return list, 0, false
}

// seconds is a difference of two ticks, of which the second may have been taken a moment before the
// first.
func seconds(ms uint32) float64 { return float64(max(int32(ms), 0)) / 1e3 }

// sessionFilter returns what picks the sessions that are asked for.
func sessionFilter(n *names, gateways []config.Gateway, q question) (func(*session.Session, *Session) bool, error) {
	var tests []func(*session.Session, *Session) bool
	for name, value := range q.filter {
		var test func(*session.Session, *Session) bool
		switch name {
		case "vpc":
			if !slices.Contains(values(n.vpcs), value) {
				return nil, wrong("there is no VPC %q", value)
			}
			test = func(_ *session.Session, i *Session) bool { return i.VPC == value }
		case "instance":
			if !slices.ContainsFunc(values(n.instance), func(full string) bool { return nameOf(full) == value }) {
				return nil, wrong("there is no instance %q", value)
			}
			test = func(_ *session.Session, i *Session) bool { return i.Instance == value }
		case "gateway":
			if value != "unnamed" && !slices.ContainsFunc(gateways, func(g config.Gateway) bool { return g.Name == value }) {
				return nil, wrong("there is no gateway %q", value)
			}
			test = func(_ *session.Session, i *Session) bool { return i.Gateway == value }
		case "address", "remote":
			in, err := q.prefix(name)
			if err != nil {
				return nil, err
			}
			if name == "remote" {
				test = func(s *session.Session, _ *Session) bool { return in.Contains(s.Remote.Netip()) }
			} else {
				test = func(s *session.Session, _ *Session) bool {
					return in.Contains(s.Private.Netip()) || in.Contains(s.External.Netip())
				}
			}
		case "port":
			port, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return nil, wrong("port %q: expected 0 to 65535", value)
			}
			test = func(s *session.Session, _ *Session) bool {
				return uint16(port) == s.PrivatePort() || uint16(port) == s.ExternalPort() || uint16(port) == s.RemotePort()
			}
		case "state":
			test = func(_ *session.Session, i *Session) bool {
				return i.State == value || value == "draining" && i.Draining
			}
		case "protocol":
			test = func(_ *session.Session, i *Session) bool { return i.Protocol == value }
		}
		tests = append(tests, test)
	}
	return func(s *session.Session, i *Session) bool {
		for _, test := range tests {
			if !test(s, i) {
				return false
			}
		}
		return true
	}, nil
}

func values(m map[uint32]string) (list []string) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// share is an SNAT entry of an instance.
type share struct {
	in   *config.Instance
	vpc  string
	snat *config.SNAT
	slot uint32
}

func showShares(ctx context.Context, c *control, q question) (p Page[Share], err error) {
	var list []share
	address, err := q.prefix("address")
	if err != nil {
		return p, err
	}
	if err := c.do(ctx, func(c *control) {
		at := uint64(0)
		for i := range c.cfg.VPCs {
			v := &c.cfg.VPCs[i]
			if name, asked := q.filter["vpc"]; asked && name != v.Name {
				continue
			}
			for j := range v.Instances {
				in := &v.Instances[j]
				if name, asked := q.filter["instance"]; asked && name != in.Name {
					continue
				}
				for k := range in.SNAT {
					x := &in.SNAT[k]
					if address.IsValid() && !address.Contains(x.Address) {
						continue
					}
					if at++; at <= q.after || len(list) > q.limit {
						continue
					}
					if h := c.gen.Host(0, inet.FromNetip(x.Address)); h != nil && h.Kind == generation.HostSNAT {
						list = append(list, share{in, v.Name, x, h.Slot})
					}
				}
			}
		}
	}); err != nil {
		return p, err
	}
	if len(list) > q.limit {
		list, p.Next = list[:q.limit], strconv.FormatUint(q.after+uint64(q.limit), 10)
	}
	m := c.state.Mappings()
	for _, s := range list {
		r := session.PortRange{First: s.snat.First, Last: s.snat.Last}
		item := Share{VPC: s.vpc, Instance: s.in.Name, Address: s.snat.Address.String(), Ports: fmt.Sprintf("%d-%d", r.First, r.Last), Size: int(r.Last-r.First) + 1}
		for space, use := range []*PortUse{&item.TCP, &item.UDP, &item.Echo} {
			taken, resting := m.PortUse(s.slot, session.PortSpace(space), r)
			*use = PortUse{InUse: taken - resting, Resting: resting, Free: item.Size - taken}
		}
		p.Items = append(p.Items, item)
	}
	return p, nil
}

func showNeighbors(_ context.Context, c *control, q question) (p Page[Neighbor], err error) {
	in, err := q.prefix("address")
	if err != nil {
		return p, err
	}
	wanted, asked := q.filter["state"]
	if known := []string{state.NeighborIncomplete.String(), state.NeighborReachable.String(), state.NeighborStatic.String()}; asked && !slices.Contains(known, wanted) {
		return p, wrong("state %q: expected one of %s", wanted, strings.Join(known, ", "))
	}
	table := c.state.Neighbors
	for slot := q.after; slot < uint64(table.Len()); slot++ {
		is, mac := table.Get(uint32(slot))
		if is == state.NeighborNone {
			continue
		}
		at, a := table.At(uint32(slot))
		n := Neighbor{Port: c.portName(at.Port()), Tag: tagName(at), Address: a.Netip().String(), State: is.String()}
		if is >= state.NeighborReachable {
			n.MAC = mac.String()
		}
		if in.IsValid() && !in.Contains(a.Netip()) || asked && wanted != n.State {
			continue
		}
		if len(p.Items) == q.limit {
			p.Next = strconv.FormatUint(slot, 10)
			break
		}
		p.Items = append(p.Items, n)
	}
	return p, nil
}

// portName and what follows read of the configuration what no reload changes.
func (c *control) portName(i int) string {
	if w := c.health.what.Load(); w != nil && i < len(w.ports) {
		return w.ports[i].Name
	}
	return strconv.Itoa(i)
}

func tagName(at attach.Word) string {
	switch at.Kind() {
	case attach.VLAN:
		return fmt.Sprintf("vlan %d", at.Tag())
	case attach.QinQ:
		return fmt.Sprintf("vlan %d.%d", at.Outer(), at.Inner())
	case attach.VXLAN:
		return fmt.Sprintf("vxlan %d", at.Tag())
	case attach.Geneve:
		return fmt.Sprintf("geneve %d", at.Tag())
	}
	return ""
}

func showNextHops(_ context.Context, c *control, _ question) (p Page[NextHop], err error) {
	if w := c.health.what.Load(); w != nil {
		p.Items = c.look(w, link.Monotonic()).NextHops
	}
	return p, nil
}

func showPorts(_ context.Context, c *control, _ question) (p Page[Port], err error) {
	w := c.health.what.Load()
	if w == nil {
		return p, errors.New("weir has just begun")
	}
	sum := c.state.Sum()
	for i, port := range w.ports {
		d := c.state.Device(i)
		up, side := "down", "outside"
		if d.LinkUp {
			up = "up"
		}
		if port.Side == config.Inside {
			side = "inside"
		}
		p.Items = append(p.Items, Port{
			Name: port.Name, Side: side, Device: port.Device, MAC: d.MAC.String(), Link: up, Speed: d.Speed,
			Received: sum.Received[i], ReceivedBytes: sum.ReceivedBytes[i], Sent: sum.Transmitted[i], SentBytes: sum.TransmittedBytes[i],
			Missed: d.RxMissed, NoBuffer: d.RxNoMbuf, Errors: d.RxErrors + d.TxErrors,
		})
	}
	return p, nil
}

func showWorkers(ctx context.Context, c *control, _ question) (p Page[Worker], err error) {
	var cores []int
	if err := c.do(ctx, func(c *control) { cores = c.cfg.Dataplane.Workers }); err != nil {
		return p, err
	}
	now := uint32(uint64(link.Monotonic()) / 1e6)
	for i := range c.state.Workers() {
		k := c.state.Counts(i)
		p.Items = append(p.Items, Worker{
			Worker: i, Core: cores[i], Sessions: k.Sessions, Capacity: c.state.Table(i).Capacity(), Pressed: k.Pressed != 0,
			Polls: k.Polls, Empty: k.EmptyPolls, Busy: float64(k.BusyNanoseconds) / 1e9, Adopted: k.Adopted, Generation: k.Generation, LastTurn: c.state.Idle(i, now),
		})
	}
	return p, nil
}

func showDrops(_ context.Context, c *control, _ question) (p Page[Drop], err error) {
	sum := c.state.Sum()
	for r := drop.Pass + 1; r < drop.NumReasons; r++ {
		if n := sum.Dropped[r]; n > 0 {
			p.Items = append(p.Items, Drop{r.String(), r.Class().String(), n, r.Help()})
		}
	}
	slices.SortStableFunc(p.Items, func(a, b Drop) int { return cmp.Compare(b.Packets, a.Packets) })
	return p, nil
}

func showGeneration(ctx context.Context, c *control, _ question) (p Page[Generation], err error) {
	g := Generation{Config: c.path, Up: c.status.Up.Load(), Restarts: c.status.Restarts.Load(), Ready: c.status.Ready(), LastReload: c.status.LastReload()}
	if err := c.do(ctx, func(c *control) {
		g.Number, g.Bytes, g.StateBytes = c.gen.Number, c.gen.Size(), c.state.Taken()
		g.Ports, g.Pools, g.Gateways, g.VPCs = len(c.cfg.Ports), len(c.cfg.Pools), len(c.cfg.Gateways), len(c.cfg.VPCs)
		for i := range c.cfg.VPCs {
			g.Instances += len(c.cfg.VPCs[i].Instances)
		}
	}); err != nil {
		return p, err
	}
	p.Items = []Generation{g}
	return p, nil
}
