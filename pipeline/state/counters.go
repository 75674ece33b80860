// SPDX-License-Identifier: Apache-2.0

package state

import (
	"weir/config"
	"weir/pipeline/drop"
)

// MaxPorts is the most ports of one configuration: a set of ports is one word.
const MaxPorts = 32

// Counters are one worker's counts since the shared state was made. The worker alone writes them,
// with plain stores of whole words; anybody may read them. At any time
//
//	received    = forwarded + punted + dropped (all reasons) + held + handed - adopted
//	              + what the worker has in hand
//	transmitted = forwarded + fragmented + originated
type Counters struct {
	Received, ReceivedBytes       [MaxPorts]uint64
	Transmitted, TransmittedBytes [MaxPorts]uint64

	Forwarded  uint64 // packets handed to a port
	Punted     uint64 // frames handed to control: ARP, ND, what is addressed to weir itself
	Originated uint64 // frames that weir itself sent
	Fragmented uint64 // extra pieces of fragmented packets
	Held       uint64 // packets that wait for a neighbor now, or for the first fragment of their datagram
	Handed     uint64 // packets that went to the worker that owns them
	Adopted    uint64 // packets that came from other workers
	Dropped    [drop.NumReasons]uint64

	Stateless       uint64 // 1:1 packets translated by the function, without a session; a link may drop them still
	SessionsCreated uint64
	SessionsEnded   uint64
	Sessions        uint64 // live now

	Polls, EmptyPolls uint64 // receive calls, and those that brought nothing
	BusyNanoseconds   uint64 // spent in turns that found work
	Generation        uint64 // the generation the worker last saw
	Tick              uint64 // the millisecond at which the worker's last turn began

	// Turns counts the loop's turns by how long each took until the next began, deliberate sleeps
	// left out: Turns[i] those of less than 2^i nanoseconds and not less than 2^(i-1). What is far
	// to the right is the worker's absence from its queues.
	Turns            [TurnBuckets]uint64
	TurnsNanoseconds uint64 // of all of them
	Pressed          uint64 // 1: the session table is nearly full, and what has not been answered ends early
	Unsent           uint64 // frames of control's that found no buffer, or no room at the port
	_                [2]uint64
}

// TurnBuckets is enough for turns of two seconds; longer ones stand in the last bucket.
const TurnBuckets = 32

// Totals are the sums over all ports and reasons.
type Totals struct {
	Received, Transmitted, Forwarded, Punted, Originated, Fragmented, Held, Dropped uint64
}

// Summary is a worker's counts in the words of weir replay --json. Reasons that dropped nothing are
// left out.
type Summary struct {
	Received   uint64                 `json:"received"`
	Forwarded  uint64                 `json:"forwarded"`
	Punted     uint64                 `json:"punted"`
	Originated uint64                 `json:"originated"`
	Fragmented uint64                 `json:"fragmented"`
	Held       uint64                 `json:"held"`
	Dropped    map[string]uint64      `json:"dropped"`
	Ports      map[string]PortSummary `json:"ports"`
}

// PortSummary is one port's part of a Summary.
type PortSummary struct {
	Received    uint64 `json:"received"`
	Transmitted uint64 `json:"transmitted"`
}

// Summary sums c up under the names of the ports.
func (c *Counters) Summary(ports []config.Port) Summary {
	t := c.Totals()
	s := Summary{t.Received, t.Forwarded, t.Punted, t.Originated, t.Fragmented, t.Held, map[string]uint64{}, map[string]PortSummary{}}
	for r, n := range c.Dropped {
		if n != 0 {
			s.Dropped[drop.Reason(r).String()] = n
		}
	}
	for i, p := range ports {
		s.Ports[p.Name] = PortSummary{c.Received[i], c.Transmitted[i]}
	}
	return s
}

// Totals adds up c, the counts of one worker alone or of all.
func (c *Counters) Totals() (t Totals) {
	for p := range c.Received {
		t.Received += c.Received[p]
		t.Transmitted += c.Transmitted[p]
	}
	for _, n := range c.Dropped {
		t.Dropped += n
	}
	t.Forwarded, t.Punted, t.Originated, t.Fragmented = c.Forwarded, c.Punted, c.Originated, c.Fragmented
	t.Held = c.Held + c.Handed - c.Adopted // between workers is held too
	return t
}

// Sum returns what all workers have counted, for whoever is none of them.
func (s *State) Sum() (sum Counters) {
	for w := range s.Workers() {
		k := s.Counts(w)
		sum.Add(&k)
	}
	return sum
}

// settle books what a dead worker had in hand or held under Restart, so that the sums agree again.
func (c *Counters) settle() {
	c.Held = 0
	var transmitted uint64
	for _, n := range c.Transmitted {
		transmitted += n
	}
	switch counted := c.Forwarded + c.Originated + c.Fragmented; { // it may have died between the two stores of
	case transmitted > counted: // Sent
		c.Forwarded += transmitted - counted
	case transmitted < counted: // Originated
		c.Originated -= counted - transmitted
	}
	t := c.Totals() // held: nothing but what went to other workers, less what came from them
	switch lost := int64(t.Received - t.Forwarded - t.Punted - t.Dropped - t.Held); {
	case lost > 0:
		c.Dropped[drop.Restart] += uint64(lost)
	case lost < 0: // some of those that Sent did not come to count were further pieces
		c.Forwarded -= uint64(-lost)
		c.Fragmented += uint64(-lost)
	}
}

// settleRings books what was on its way between workers that died under Restart: the last of them
// has taken it.
func settleRings(workers []*Counters) {
	lost := int64(0)
	for _, c := range workers {
		lost += int64(c.Handed - c.Adopted)
	}
	if lost > 0 {
		c := workers[len(workers)-1]
		c.Adopted += uint64(lost)
		c.Dropped[drop.Restart] += uint64(lost)
	}
}

// Add adds another worker's counts to c.
func (c *Counters) Add(o *Counters) {
	for i := range c.Received {
		c.Received[i] += o.Received[i]
		c.ReceivedBytes[i] += o.ReceivedBytes[i]
		c.Transmitted[i] += o.Transmitted[i]
		c.TransmittedBytes[i] += o.TransmittedBytes[i]
	}
	for i := range c.Dropped {
		c.Dropped[i] += o.Dropped[i]
	}
	c.Forwarded += o.Forwarded
	c.Punted += o.Punted
	c.Originated += o.Originated
	c.Fragmented += o.Fragmented
	c.Held += o.Held
	c.Handed += o.Handed
	c.Adopted += o.Adopted
	c.Stateless += o.Stateless
	c.Unsent += o.Unsent
	c.SessionsCreated += o.SessionsCreated
	c.SessionsEnded += o.SessionsEnded
	c.Sessions += o.Sessions
}
