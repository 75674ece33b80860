// SPDX-License-Identifier: Apache-2.0

// Package metrics is what operators see: Prometheus metrics read from the shared state at scrape time, and the
// health of the process. The packet path never hears of it.
package metrics

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"weir/pipeline/drop"
	"weir/pipeline/state"
)

// Status is what control knows and the shared state does not. All of it may be read and written at any time.
type Status struct {
	Up         atomic.Bool // the data plane forwards
	Restarts   atomic.Uint64
	Generation atomic.Uint64
	Census     atomic.Pointer[state.Census] // nil until the first

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

	rxPackets   = desc("received_packets_total", "Packets received by the worker from a port.", port)
	rxBytes     = desc("received_bytes_total", "Bytes received from a port, without the frame check sequence.", port)
	txPackets   = desc("transmitted_packets_total", "Packets handed to a port.", port)
	txBytes     = desc("transmitted_bytes_total", "Bytes handed to a port, without the frame check sequence.", port)
	forwarded   = desc("forwarded_packets_total", "Packets forwarded.", nil)
	punted      = desc("punted_packets_total", "Frames for weir itself: ARP, neighbor discovery, pings to its addresses.", nil)
	originated  = desc("originated_packets_total", "Frames that weir itself sent.", nil)
	unsent      = desc("unsent_packets_total", "Frames of weir itself that could not be sent: the ring to the worker was full, there was no packet buffer, or the port took no more.", nil)
	fragmented  = desc("fragmented_packets_total", "Extra pieces of fragmented packets.", nil)
	dropped     = desc("dropped_packets_total", "Packets dropped, by reason.", []string{"reason"})
	held        = desc("held_packets", "Packets that wait for a neighbor, a fragment or a worker now.", nil)
	handed      = desc("handed_packets_total", "Packets that went from the worker that received them to the one that owns their flow.", nil)
	stateless   = desc("stateless_packets_total", "1:1 packets translated without a session.", nil)
	sessions    = desc("sessions", "Live sessions of a VPC.", vpc)
	created     = desc("sessions_created_total", "Sessions begun.", nil)
	ended       = desc("sessions_ended_total", "Sessions ended, for whatever reason.", nil)
	adopted     = desc("worker_adopted_packets_total", "Packets that other workers received and this one owns: its share of the remote addresses, where no card spreads them.", worker)
	capacity    = desc("sessions_capacity", "Sessions that the table can hold.", nil)
	live        = desc("sessions_live", "Live sessions of a worker.", worker)
	pressed     = desc("sessions_pressed", "Whether a worker's table is nearly full, so that what has not been answered ends early.", worker)
	snatPorts   = desc("snat_ports_in_use", "Different external ports that a VPC's SNAT sessions use, over its addresses and protocols.", vpc)
	generation  = desc("generation", "Number of the configuration in force, from 1.", nil)
	reloadOK    = desc("config_last_reload_successful", "Whether the last load of the configuration succeeded.", nil)
	reloadTime  = desc("config_last_reload_success_timestamp_seconds", "When the configuration was last loaded with success.", nil)
	polls       = desc("worker_polls_total", "Receive calls of a worker.", worker)
	emptyPolls  = desc("worker_empty_polls_total", "Receive calls that brought nothing.", worker)
	busy        = desc("worker_busy_seconds_total", "Time a worker spent in turns that found work.", worker)
	turns       = desc("worker_turn_seconds", "How long the worker's turns took, sleeps left out: the long ones are its absences from its queues.", worker)
	up          = desc("dataplane_up", "Whether the data plane forwards.", nil)
	restarts    = desc("dataplane_restarts_total", "Data planes started after one died.", nil)
	collections = desc("dataplane_collections", "Runs of Go's garbage collector in the data plane since its start; expected 0.", nil)
	heap        = desc("dataplane_heap_bytes", "Heap objects of the data plane; expected constant.", nil)
	linkUp      = desc("port_link_up", "Whether the port's link is up, as its driver says.", port)
	missed      = desc("port_receive_missed_total", "Packets the device lost for want of a free descriptor.", port)
	rxErrors    = desc("port_receive_errors_total", "Packets the device received broken.", port)
	noMbuf      = desc("port_receive_no_buffer_total", "Packets lost for want of a packet buffer.", port)
	txErrors    = desc("port_transmit_errors_total", "Packets the device took and could not send.", port)
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

// Describe sends nothing: which series there are depends on the configuration.
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
		k := c.state.Counters(w)
		sum.Add(k)
		name := strconv.Itoa(w)
		count(polls, k.Polls, name)
		count(emptyPolls, k.EmptyPolls, name)
		ch <- prometheus.MustNewConstMetric(busy, prometheus.CounterValue, float64(k.BusyNanoseconds)/1e9, name)
		gauge(live, float64(k.Sessions), name)
		count(adopted, k.Adopted, name)
		gauge(pressed, float64(k.Pressed), name)
		ch <- turnHistogram(k, name)
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
	gauge(held, float64(max(0, int64(sum.Held+sum.Handed-sum.Adopted)))) // the workers go on between the two readings
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
	r := c.state.Runtime()
	gauge(collections, float64(r.Collections))
	gauge(heap, float64(r.HeapBytes))
}

// turnHistogram makes powers of two of nanoseconds from 1 us to 67 ms into a Prometheus histogram.
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
