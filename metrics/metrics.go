// SPDX-License-Identifier: Apache-2.0

// Package metrics serves Prometheus metrics, read from the shared state at scrape time, and the
// health of the process. The packet path does not know of it.
package metrics

import (
	"strconv"
	"sync/atomic"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/state"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is what control knows and the shared state does not. Any goroutine may read and write it
// at any time.
type Status struct {
	Up         atomic.Bool // the data plane forwards
	Restarts   atomic.Uint64
	Generation atomic.Uint64
	Census     atomic.Pointer[state.Census] // nil until the first

	health     atomic.Pointer[Health] // nil until the first
	reloadOK   atomic.Bool
	reloadTime atomic.Int64 // of the last success, Unix seconds
}

// Reloaded notes how the last load of the configuration ended.
func (s *Status) Reloaded(ok bool, at time.Time) {
	s.reloadOK.Store(ok)
	if ok {
		s.reloadTime.Store(at.Unix())
	}
}

var (
	port   = []string{"port"}
	worker = []string{"worker"}
	vpc    = []string{"vpc"}

	rxPackets   = desc("received_packets_total", "Packets that workers received from a port.", port)
	rxBytes     = desc("received_bytes_total", "Bytes received from a port, without the frame check sequence.", port)
	txPackets   = desc("transmitted_packets_total", "Packets handed to a port.", port)
	txBytes     = desc("transmitted_bytes_total", "Bytes handed to a port, without the frame check sequence.", port)
	forwarded   = desc("forwarded_packets_total", "Packets forwarded.", nil)
	punted      = desc("punted_packets_total", "Frames for weir itself: ARP, neighbor discovery, pings to its addresses.", nil)
	originated  = desc("originated_packets_total", "Frames that weir itself sent.", nil)
	unsent      = desc("unsent_packets_total", "Frames of weir itself that could not be sent: the ring to the worker was full, there was no packet buffer, or the port took no more.", nil)
	fragmented  = desc("fragmented_packets_total", "Extra pieces of fragmented packets.", nil)
	dropped     = desc("dropped_packets_total", "Packets dropped, by reason.", []string{"reason"})
	held        = desc("held_packets", "Packets that wait for a neighbor, a fragment or a worker.", nil)
	handed      = desc("handed_packets_total", "Packets passed from the worker that received them to the worker that owns their flow.", nil)
	stateless   = desc("stateless_packets_total", "1:1 packets translated without a session.", nil)
	sessions    = desc("sessions", "Live sessions of a VPC.", vpc)
	created     = desc("sessions_created_total", "Sessions created.", nil)
	ended       = desc("sessions_ended_total", "Sessions ended, for any reason.", nil)
	adopted     = desc("worker_adopted_packets_total", "Packets of flows that this worker owns and other workers received. They cross a ring where no NIC steers them to their owner.", worker)
	capacity    = desc("sessions_capacity", "Sessions that the session table can hold.", nil)
	live        = desc("sessions_live", "Live sessions of a worker.", worker)
	pressed     = desc("sessions_pressed", "Whether a worker's table is nearly full, so that unanswered sessions end early.", worker)
	snatPorts   = desc("snat_ports_in_use", "Distinct external ports that a VPC's SNAT sessions use, and those that rest, over all addresses and protocols.", vpc)
	generation  = desc("generation", "Number of the running configuration, from 1.", nil)
	reloadOK    = desc("config_last_reload_successful", "Whether the last load of the configuration succeeded.", nil)
	reloadTime  = desc("config_last_reload_success_timestamp_seconds", "When the configuration was last loaded successfully.", nil)
	polls       = desc("worker_polls_total", "Receive calls of a worker.", worker)
	emptyPolls  = desc("worker_empty_polls_total", "Receive calls that returned no packets.", worker)
	busy        = desc("worker_busy_seconds_total", "Time that a worker spent in turns that found work.", worker)
	turns       = desc("worker_turn_seconds", "Durations of a worker's turns, without sleeps. In long turns it did not poll its queues.", worker)
	up          = desc("dataplane_up", "Whether the data plane forwards.", nil)
	restarts    = desc("dataplane_restarts_total", "Restarts of the data plane after it died.", nil)
	collections = desc("dataplane_collections", "Runs of Go's garbage collector in the data plane since its start. Expected: 0.", nil)
	heap        = desc("dataplane_heap_bytes", "Bytes of heap objects in the data plane. Expected: constant.", nil)
	ready       = desc("ready", "Whether packets can pass, as /readyz says.", nil)
	nextHopUp   = desc("next_hop_up", "Whether a next hop answers ARP or ND, or has a configured MAC.", []string{"port", "address"})
	stalled     = desc("worker_stalled", "Whether a worker has not begun a turn for two seconds.", worker)
	linkUp      = desc("port_link_up", "Whether the port's link is up, as its driver says.", port)
	missed      = desc("port_receive_missed_total", "Packets lost because the device had no free receive descriptor.", port)
	rxErrors    = desc("port_receive_errors_total", "Packets that the device received with errors.", port)
	noMbuf      = desc("port_receive_no_buffer_total", "Packets lost because no packet buffer was free.", port)
	txErrors    = desc("port_transmit_errors_total", "Packets that the device accepted but could not send.", port)
)

func desc(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("weir_"+name, help, labels, nil)
}

// collector reads the shared state.
type collector struct {
	state  *state.State
	ports  []string
	status *Status
}

// Describe sends nothing: the set of series depends on the configuration.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends all metrics as they are now.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	var sum state.Counters
	for w := range c.state.Workers() {
		k := c.state.Counts(w)
		sum.Add(&k)
		name := strconv.Itoa(w)
		count(polls, k.Polls, name)
		count(emptyPolls, k.EmptyPolls, name)
		ch <- prometheus.MustNewConstMetric(busy, prometheus.CounterValue, float64(k.BusyNanoseconds)/1e9, name)
		gauge(live, float64(k.Sessions), name)
		count(adopted, k.Adopted, name)
		gauge(pressed, float64(k.Pressed), name)
		ch <- turnHistogram(&k, name)
	}
	for i, name := range c.ports {
		count(rxPackets, sum.Received[i], name)
		count(rxBytes, sum.ReceivedBytes[i], name)
		count(txPackets, sum.Transmitted[i], name)
		count(txBytes, sum.TransmittedBytes[i], name)
		d := c.state.Device(i)
		gauge(linkUp, truth(d.LinkUp), name)
		count(missed, d.RxMissed, name)
		count(rxErrors, d.RxErrors, name)
		count(noMbuf, d.RxNoMbuf, name)
		count(txErrors, d.TxErrors, name)
	}
	count(forwarded, sum.Forwarded)
	count(punted, sum.Punted)
	count(originated, sum.Originated)
	count(unsent, sum.Unsent+c.state.Lost())
	count(fragmented, sum.Fragmented)
	for r := drop.Pass + 1; r < drop.NumReasons; r++ {
		count(dropped, sum.Dropped[r], r.String())
	}
	gauge(held, float64(max(0, int64(sum.Held+sum.Handed-sum.Adopted)))) // workers keep counting between the two reads
	count(handed, sum.Handed)
	count(stateless, sum.Stateless)
	count(created, sum.SessionsCreated)
	count(ended, sum.SessionsEnded)
	gauge(capacity, float64(c.state.SessionCapacity()))
	if census := c.status.Census.Load(); census != nil {
		for name, n := range census.Sessions {
			gauge(sessions, float64(n), name)
		}
		for name, n := range census.SNATPorts {
			gauge(snatPorts, float64(n), name)
		}
	}
	gauge(generation, float64(c.status.Generation.Load()))
	gauge(reloadOK, truth(c.status.reloadOK.Load()))
	gauge(reloadTime, float64(c.status.reloadTime.Load()))
	gauge(up, truth(c.status.Up.Load()))
	count(restarts, c.status.Restarts.Load())
	faults, _ := c.status.faults()
	gauge(ready, truth(len(faults) == 0))
	if h := c.status.health.Load(); h != nil {
		for _, n := range h.NextHops {
			gauge(nextHopUp, truth(n.Up), n.Port, n.Address)
		}
		for w, is := range h.Stalled {
			gauge(stalled, truth(is), strconv.Itoa(w))
		}
	}
	r := c.state.Runtime()
	gauge(collections, float64(r.Collections))
	gauge(heap, float64(r.HeapBytes))
}

// turnHistogram returns a Prometheus histogram with buckets of powers of two nanoseconds, from 1 us
// to 67 ms.
func turnHistogram(k *state.Counters, worker string) prometheus.Metric {
	const first, last = 10, 26
	buckets := make(map[float64]uint64, last-first+1)
	var n uint64
	for i, c := range k.Turns {
		n += c
		if i >= first && i <= last {
			buckets[float64(uint64(1)<<i)/1e9] = n
		}
	}
	return prometheus.MustNewConstHistogram(turns, n, float64(k.TurnsNanoseconds)/1e9, buckets, worker)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
