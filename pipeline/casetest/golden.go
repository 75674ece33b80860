// SPDX-License-Identifier: Apache-2.0

package casetest

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"weir/pipeline"
	"weir/pipeline/packettext"
)

// Golden returns the files that are made of a case and its result, by their path in the case's folder.
func (c *Case) Golden(tb testing.TB, r *Result) map[string][]byte {
	tb.Helper()
	files := map[string][]byte{"listing.txt": r.Listing, "counters.json": c.counters(tb, r.Counters)}
	for i, p := range c.Config.Ports {
		if len(r.In[i]) > 0 {
			files[c.In(p.Name)] = pcap(tb, r.In[i])
		}
		files[filepath.Join("out", p.Name+".pcap")] = pcap(tb, r.Out[i])
	}
	return files
}

// In returns the path of what a port receives in the case's folder; a port that receives nothing has no such file.
func (c *Case) In(port string) string { return filepath.Join("in", port+".pcap") }

func pcap(tb testing.TB, records []packettext.Record) []byte {
	var b bytes.Buffer
	if err := packettext.WritePcap(&b, records); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// counters returns what weir replay --json prints.
func (c *Case) counters(tb testing.TB, counters *pipeline.Counters) []byte {
	type port struct {
		Received    uint64 `json:"received"`
		Transmitted uint64 `json:"transmitted"`
	}
	t := counters.Totals()
	s := struct {
		Received   uint64            `json:"received"`
		Forwarded  uint64            `json:"forwarded"`
		Punted     uint64            `json:"punted"`
		Originated uint64            `json:"originated"`
		Fragmented uint64            `json:"fragmented"`
		Held       uint64            `json:"held"`
		Dropped    map[string]uint64 `json:"dropped"`
		Ports      map[string]port   `json:"ports"`
	}{t.Received, t.Forwarded, t.Punted, t.Originated, t.Fragmented, t.Held, map[string]uint64{}, map[string]port{}}
	for reason, n := range counters.Dropped {
		if n != 0 {
			s.Dropped[pipeline.Reason(reason).String()] = n
		}
	}
	for i, p := range c.Config.Ports {
		s.Ports[p.Name] = port{counters.Received[i], counters.Transmitted[i]}
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		tb.Fatal(err)
	}
	return append(b, '\n')
}
