// SPDX-License-Identifier: Apache-2.0

package casetest

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"weir/pipeline/packettext"
	"weir/pipeline/state"
)

// Golden returns the files that are made of a case and its result, by their path in the case's
// folder.
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

// In returns the path of what a port receives in the case's folder; a port that receives nothing
// has no such file.
func (c *Case) In(port string) string { return filepath.Join("in", port+".pcap") }

func pcap(tb testing.TB, records []packettext.Record) []byte {
	var b bytes.Buffer
	if err := packettext.WritePcap(&b, records); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// counters returns what weir replay --json prints.
func (c *Case) counters(tb testing.TB, counters *state.Counters) []byte {
	b, err := json.MarshalIndent(counters.Summary(c.Config.Ports), "", "  ")
	if err != nil {
		tb.Fatal(err)
	}
	return append(b, '\n')
}
