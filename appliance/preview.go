// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"weir/config"
	"weir/pipeline/generation"
	"weir/pipeline/state"
)

// preview is what would become of a running gateway under another configuration.
type preview struct {
	Changes     []change        `json:"changes"`
	RestartOnly []string        `json:"restart_only"`
	Sessions    generation.Fate `json:"sessions"`
	Affected    []affected      `json:"affected"` // instances whose sessions do not all stay
	Faults      []config.Fault  `json:"faults"`
	known       bool            // the sessions were looked at
}

// change is one difference, and what becomes of the sessions that it concerns: nil where they were not looked at.
type change struct {
	What     string           `json:"what"`
	Sessions *generation.Fate `json:"sessions,omitempty"`
}

type affected struct {
	Instance string `json:"instance"` // VPC/name; empty: of an instance that is gone already
	generation.Fate
}

// comparison asks control's own goroutine for what a preview needs.
type comparison struct {
	cfg      *config.Config
	compiler *generation.Compiler
}

// maxCheck is the most that POST /api/v1/check reads: a configuration and its encoding.
const maxCheck = 64 << 20

// previewHandler answers POST /api/v1/check: the body is a JSON array of files, the answer a preview. It changes nothing.
func (c *control) previewHandler(w http.ResponseWriter, r *http.Request) {
	if !c.previewing.CompareAndSwap(false, true) {
		http.Error(w, "another check is under way", http.StatusTooManyRequests)
		return
	}
	defer c.previewing.Store(false)
	var files []config.File
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCheck)).Decode(&files); err != nil {
		http.Error(w, "the body is no JSON array of files: "+err.Error(), http.StatusBadRequest)
		return
	}
	p := preview{Changes: []change{}, RestartOnly: []string{}, Affected: []affected{}, Faults: []config.Fault{}}
	cfg, _, err := config.Parse(files)
	if faults, ok := err.(config.Faults); ok {
		p.Faults = faults
	} else {
		answer := make(chan comparison, 1)
		select {
		case c.compare <- answer:
		case <-r.Context().Done():
			return
		}
		if err := p.compare(<-answer, cfg, c.state); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(p)
}

// compare fills in what differs, and what the live sessions would see of it.
func (p *preview) compare(live comparison, cfg *config.Config, state *state.State) error {
	changes := config.Changes(live.cfg, cfg)
	p.RestartOnly = append(p.RestartOnly, config.RestartOnly(live.cfg, cfg)...)
	for _, c := range changes {
		p.Changes = append(p.Changes, change{What: c.Text})
	}
	if len(p.RestartOnly) > 0 && !keepRestartOnly(cfg, live.cfg) {
		return nil // a restart: no session stays
	}
	before, err := live.compiler.Preview(live.cfg)
	if err != nil {
		return err
	}
	defer before.Close()
	after, err := live.compiler.Preview(cfg)
	if err != nil {
		return err
	}
	defer after.Close()
	tally := generation.NewTally(live.cfg, cfg, before, after, changes)
	fates := live.compiler.Fates(after, before.InstanceNames(live.cfg), tally)
	for i := range p.Changes {
		p.Changes[i].Sessions = &tally.Fates[i]
	}
	for _, name := range slices.Sorted(maps.Keys(fates)) {
		f := fates[name]
		p.Sessions.Keep += f.Keep
		p.Sessions.Drain += f.Drain
		p.Sessions.End += f.End
		if f.Drain+f.End > 0 {
			p.Affected = append(p.Affected, affected{name, f})
		}
	}
	return nil
}

// against compares the configuration at path with what stands at target: another configuration, or the API address of a
// running gateway.
func against(path, target string, cfg *config.Config) (*preview, error) {
	if _, err := os.Stat(target); err == nil {
		old, _, err := config.Load(target)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
		p := &preview{RestartOnly: config.RestartOnly(old, cfg)}
		for _, line := range config.Diff(old, cfg) {
			p.Changes = append(p.Changes, change{What: line})
		}
		return p, nil
	}
	files, err := config.ReadFiles(path)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(files)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+target+"/api/v1/check", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("--against %s: neither a file nor an address: %w", target, err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("--against %s: no file of this name, and no weir answers there: %w", target, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<12))
		return nil, fmt.Errorf("--against %s: %s: %s", target, answer.Status, bytes.TrimSpace(text))
	}
	p := &preview{known: true}
	if err := json.NewDecoder(answer.Body).Decode(p); err != nil {
		return nil, fmt.Errorf("--against %s: the answer is not weir's: %w", target, err)
	}
	if len(p.Faults) > 0 {
		return nil, fmt.Errorf("--against %s: that weir, of another version, refuses the configuration: %s", target, p.Faults[0])
	}
	return p, nil
}

// print writes the preview in words.
func (p *preview) print(out io.Writer) {
	if len(p.Changes) == 0 {
		fmt.Fprintln(out, "no change of meaning: nothing would happen")
	}
	for _, c := range p.Changes {
		switch f := c.Sessions; {
		case f == nil:
			fmt.Fprintf(out, "change: %s\n", c.What)
		case *f == generation.Fate{}:
			fmt.Fprintf(out, "change: %s: concerns no session\n", c.What)
		default:
			fmt.Fprintf(out, "change: %s: of its sessions %d stay, %d drain, %d end\n", c.What, f.Keep, f.Drain, f.End)
		}
	}
	for _, key := range p.RestartOnly {
		fmt.Fprintf(out, "restart needed: %s\n", key)
	}
	if !p.known {
		return
	}
	fmt.Fprintf(out, "sessions: %d stay, %d drain, %d end\n", p.Sessions.Keep, p.Sessions.Drain, p.Sessions.End)
	for i, a := range p.Affected {
		if i == 20 {
			fmt.Fprintf(out, "sessions: ... of %d more instances\n", len(p.Affected)-i)
			break
		}
		name := a.Instance
		if name == "" {
			name = "an instance that is gone already"
		}
		fmt.Fprintf(out, "sessions of %s: %d stay, %d drain, %d end\n", name, a.Keep, a.Drain, a.End)
	}
}
