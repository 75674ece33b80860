// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"weir/config"
	"weir/deploy/lab"
)

// The Internet's destinations. 198.18.0.0/15 is set aside for tests (RFC 2544), 2001:db8::/32 for
// documentation.
var (
	web     = netip.MustParseAddr("198.18.0.10") // reached by the default route
	partner = netip.MustParseAddr("198.18.1.10") // reached by the gateway `partner`
	shunned = netip.MustParseAddr("198.18.4.10") // not to be reached
	twice   = netip.MustParseAddr("198.18.5.10") // two equally long routes

	web6     = netip.MustParseAddr("2001:db8:100::10")
	partner6 = netip.MustParseAddr("2001:db8:101::10")
	shunned6 = netip.MustParseAddr("2001:db8:104::10")

	destinations = []netip.Addr{web, partner, shunned, twice, web6, partner6, shunned6}
)

// spreadFlows is how many flows show the sharing among two floating addresses: that all of them
// take one by chance happens once in 2^23 runs.
const spreadFlows = 24

// row is one line of the table: who talks to whom, and what the gateway must make of it.
type row struct {
	guest    string // VPC/instance
	protocol string // udp, tcp, ping
	remote   netip.Addr
	flows    int    // 0: one
	inbound  string // not empty: the Internet calls this external address of the guest, not the guest the Internet
	want     sources
}

// sources are the public addresses that the Internet may see, all of which it must see when there
// are several flows. The empty sources is a packet that must not get through.
type sources struct {
	addresses   []netip.Addr
	first, last uint16 // SNAT: the port is one of these
}

func from(addresses ...string) sources {
	var s sources
	for _, a := range addresses {
		s.addresses = append(s.addresses, netip.MustParseAddr(a))
	}
	return s
}

func shared(address string, first, last uint16) sources {
	s := from(address)
	s.first, s.last = first, last
	return s
}

var dropped = sources{}

func (s sources) String() string {
	switch {
	case len(s.addresses) == 0:
		return "dropped"
	case s.last != 0:
		return fmt.Sprintf("%s ports %d-%d", s.addresses[0], s.first, s.last)
	}
	var texts []string
	for _, a := range s.addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

func (s sources) allow(seen netip.AddrPort) bool {
	return slices.Contains(s.addresses, seen.Addr()) && (s.last == 0 || s.first <= seen.Port() && seen.Port() <= s.last)
}

// scenario is what weir.yaml beside this file must lead to.
var scenario = []row{
	// The default route's gateway takes web-1's ephemeral address, whatever floating one it has in
	// another pool.
	{guest: "blue/web-1", protocol: "ping", remote: web, want: from("192.0.2.1")},
	{guest: "blue/web-1", protocol: "udp", remote: web, want: from("192.0.2.1")},
	{guest: "blue/web-1", protocol: "tcp", remote: web, want: from("192.0.2.1")},
	{guest: "blue/web-1", protocol: "ping", remote: web6, want: from("2001:db8:1::1")},
	{guest: "blue/web-1", protocol: "udp", remote: web6, want: from("2001:db8:1::1")},
	{guest: "blue/web-1", protocol: "tcp", remote: web6, want: from("2001:db8:1::1")},
	// A route to another gateway: the floating address of that gateway's pool.
	{guest: "blue/web-1", protocol: "ping", remote: partner, want: from("203.0.113.20")},
	{guest: "blue/web-1", protocol: "udp", remote: partner, want: from("203.0.113.20")},
	{guest: "blue/web-1", protocol: "tcp", remote: partner, want: from("203.0.113.20")},
	{guest: "blue/web-1", protocol: "udp", remote: partner6, want: from("2001:db8:2::5")},
	{guest: "blue/web-1", protocol: "tcp", remote: partner6, want: from("2001:db8:2::5")},
	// Equally long routes: custom beats system.
	{guest: "blue/web-1", protocol: "udp", remote: twice, want: from("203.0.113.20")},
	// Drop routes.
	{guest: "blue/web-1", protocol: "udp", remote: shunned, want: dropped},
	{guest: "blue/web-1", protocol: "udp", remote: shunned6, want: dropped},
	// Two floating addresses share the flows.
	{guest: "blue/web-2", protocol: "udp", remote: web, flows: spreadFlows, want: from("192.0.2.2", "192.0.2.3")},
	{guest: "blue/web-2", protocol: "tcp", remote: web, flows: spreadFlows, want: from("192.0.2.2", "192.0.2.3")},
	{guest: "blue/web-2", protocol: "udp", remote: web6, flows: spreadFlows, want: from("2001:db8:1::2", "2001:db8:1::3")},
	// No address of the gateway's pools: no way out, and no other address instead.
	{guest: "blue/web-2", protocol: "udp", remote: partner, want: dropped},
	{guest: "blue/web-2", protocol: "tcp", remote: partner, want: dropped},
	{guest: "blue/web-2", protocol: "udp", remote: partner6, want: dropped},
	// Two guests share one address, each with its own ports.
	{guest: "blue/batch-1", protocol: "ping", remote: web, want: shared("192.0.2.14", 1024, 17407)},
	{guest: "blue/batch-1", protocol: "udp", remote: web, want: shared("192.0.2.14", 1024, 17407)},
	{guest: "blue/batch-1", protocol: "tcp", remote: web, want: shared("192.0.2.14", 1024, 17407)},
	{guest: "blue/batch-2", protocol: "udp", remote: web, want: shared("192.0.2.14", 17408, 33791)},
	{guest: "blue/batch-2", protocol: "tcp", remote: web, want: shared("192.0.2.14", 17408, 33791)},
	// SNAT has no IPv6 address here.
	{guest: "blue/batch-1", protocol: "udp", remote: web6, want: dropped},
	// The other tenant: the same private addresses as web-1, its own public ones, its own routes.
	{guest: "green/db-1", protocol: "ping", remote: web, want: from("192.0.2.4")},
	{guest: "green/db-1", protocol: "udp", remote: web, want: from("192.0.2.4")},
	{guest: "green/db-1", protocol: "tcp", remote: web, want: from("192.0.2.4")},
	{guest: "green/db-1", protocol: "tcp", remote: web6, want: from("2001:db8:1::4")},
	{guest: "green/db-1", protocol: "udp", remote: partner, want: from("192.0.2.4")},
	// The Internet calls. The answer comes from the address that was called, though the route back
	// names the gateway `default`, which would take another one.
	{guest: "blue/web-1", protocol: "ping", remote: web, inbound: "203.0.113.20", want: from("203.0.113.20")},
	{guest: "blue/web-1", protocol: "udp", remote: web, inbound: "203.0.113.20", want: from("203.0.113.20")},
	{guest: "blue/web-1", protocol: "tcp", remote: web, inbound: "203.0.113.20", want: from("203.0.113.20")},
	{guest: "blue/web-1", protocol: "tcp", remote: web6, inbound: "2001:db8:2::5", want: from("2001:db8:2::5")},
	{guest: "green/db-1", protocol: "tcp", remote: web, inbound: "192.0.2.4", want: from("192.0.2.4")},
	// Nobody can call a shared address.
	{guest: "blue/batch-1", protocol: "udp", remote: web, inbound: "192.0.2.14", want: dropped},
}

// outcome is what became of a row.
type outcome struct {
	saw string // the public sources seen, or what went wrong
	ok  bool
}

// stage is the topology with everybody listening.
type stage struct {
	*topology
	internet *journal
	guests   map[string]*journal
	tokens   atomic.Uint64
}

func newStage(t *topology) (*stage, error) {
	s := &stage{topology: t, guests: map[string]*journal{}}
	var err error
	if s.internet, err = listen(t.internet, destinations...); err != nil {
		return nil, err
	}
	for name, g := range t.guests {
		var own []netip.Addr
		for _, a := range []netip.Addr{g.instance.Address4, g.instance.Address6} {
			if a.IsValid() {
				own = append(own, a)
			}
		}
		if s.guests[name], err = listen(g.Namespace, own...); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) Close() {
	s.internet.Close()
	for _, j := range s.guests {
		if j != nil { // the one that could not be made
			j.Close()
		}
	}
}

// play runs all rows at the same time; outcomes[i] belongs to rows[i].
func (s *stage) play(rows []row) []outcome {
	outcomes := make([]outcome, len(rows))
	var all sync.WaitGroup
	for i, r := range rows {
		all.Go(func() { outcomes[i] = s.playRow(r) })
	}
	all.Wait()
	return outcomes
}

// flow is one flow of a row: the public source that was seen, if any, and what else happened.
type flow struct {
	seen netip.AddrPort
	err  error // why there was no right answer; lab.ErrNoAnswer for none at all
}

func (s *stage) playRow(r row) outcome {
	guest := s.topology.guests[r.guest]
	if guest == nil || !guest.address(r.remote).IsValid() {
		return outcome{saw: "the configuration has no such guest, or it has no address of this family"}
	}
	flows := make([]flow, max(r.flows, 1))
	var all sync.WaitGroup
	for i := range flows {
		all.Go(func() {
			token := fmt.Sprintf("probe-%d", s.tokens.Add(1))
			if r.inbound != "" {
				flows[i] = s.call(r, token)
			} else {
				flows[i] = s.goOut(r, guest, token)
			}
		})
	}
	all.Wait()
	return r.judge(flows)
}

// goOut is a flow from the guest to the Internet; what counts is the source that the Internet saw.
func (s *stage) goOut(r row, guest *guest, token string) flow {
	_, err := probe(guest.Namespace, r.protocol, token, guest.address(r.remote), r.remote)
	seen, _ := s.internet.take(token)
	return flow{seen, err}
}

// call is a flow from the Internet to an external address of the guest; what counts is the source
// of the answer. The guest must have seen the remote end as it is.
func (s *stage) call(r row, token string) flow {
	answer, err := probe(s.topology.internet, r.protocol, token, r.remote, netip.MustParseAddr(r.inbound))
	seen, arrived := s.guests[r.guest].take(token)
	switch {
	case err != nil && arrived:
		err = fmt.Errorf("reached the guest, but: %v", err)
	case err == nil && seen.Addr() != r.remote:
		err = fmt.Errorf("the guest saw %v instead of %v", seen.Addr(), r.remote)
	}
	return flow{netip.AddrPortFrom(answer.from, 0), err}
}

// judge compares what happened with what the row wants. A row that wants its packets dropped also
// wants the Internet to have seen none of them.
func (r row) judge(flows []flow) outcome {
	var seen []netip.AddrPort
	counts := map[netip.Addr]int{}
	unanswered := 0
	var failed error
	for _, f := range flows {
		if f.seen.Addr().IsValid() {
			seen = append(seen, f.seen)
			counts[f.seen.Addr()]++
		}
		if errors.Is(f.err, lab.ErrNoAnswer) {
			unanswered++
		} else if f.err != nil {
			failed = f.err
		}
	}
	text := describe(seen, counts, r.want.last != 0)
	switch {
	case failed != nil:
		return outcome{strings.TrimPrefix(text+"; "+failed.Error(), "; "), false}
	case unanswered == len(flows) && len(seen) == 0:
		return outcome{"dropped", len(r.want.addresses) == 0}
	case unanswered > 0:
		return outcome{fmt.Sprintf("%s; %d of %d without an answer", text, unanswered, len(flows)), false}
	}
	for _, a := range seen {
		if !r.want.allow(a) {
			return outcome{text, false}
		}
	}
	return outcome{text, len(flows) == 1 || len(counts) == len(r.want.addresses)}
}

// describe says which sources were seen; of a shared address also the port.
func describe(seen []netip.AddrPort, counts map[netip.Addr]int, shared bool) string {
	switch {
	case len(seen) == 1 && shared:
		return seen[0].String()
	case len(seen) == 1:
		return seen[0].Addr().String()
	}
	var texts []string
	for _, a := range slices.SortedFunc(maps.Keys(counts), netip.Addr.Compare) {
		texts = append(texts, fmt.Sprintf("%s (%d)", a, counts[a]))
	}
	return strings.Join(texts, ", ")
}

// routeOf is the route that the configuration has for a packet of the VPC: longest prefix first, at
// equal length custom before system, then the longest `from`. It is the reader's own way to look it
// up, not weir's.
func routeOf(vpc *config.VPC, source, destination netip.Addr) (config.Route, bool) {
	var best config.Route
	found := false
	for _, r := range vpc.Routes {
		if !r.To.Contains(destination) || r.From.IsValid() && !r.From.Contains(source) {
			continue
		}
		if !found || slices.Compare(rank(r), rank(best)) > 0 {
			best, found = r, true
		}
	}
	return best, found
}

func rank(r config.Route) []int {
	return []int{r.To.Bits(), int(r.Class), r.From.Bits()} // an absent From has -1 bits
}
