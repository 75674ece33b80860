// SPDX-License-Identifier: Apache-2.0

package control

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

	"weir/pipeline/generation"
	"weir/pipeline/state"

	"weir/config"
)

// Preview is what would become of a running gateway under another configuration.
type Preview struct {
	Changes     []Change        `json:"changes"`
	RestartOnly []string        `json:"restart_only"`
	Sessions    generation.Fate `json:"sessions"`
	Affected    []Affected      `json:"affected"` // instances whose sessions do not all stay
	Faults      []config.Fault  `json:"faults"`
	known       bool            // the sessions were looked at
}

// Change is one difference, and what becomes of the sessions that it concerns: nil where they were
// not looked at.
type Change struct {
	What     string           `json:"what"`
	Sessions *generation.Fate `json:"sessions,omitempty"`
}

// Affected is an instance whose sessions do not all stay.
type Affected struct {
	Instance string `json:"instance"` // VPC/name; empty: of an instance that is gone already
	generation.Fate
}

// comparison is what a preview needs of the loop's.
type comparison struct {
	cfg      *config.Config
	compiler *generation.Compiler
}

// maxCheck is the most that POST /api/v1/check reads: a configuration and its encoding.
const maxCheck = 64 << 20

// previewHandler answers POST /api/v1/check: the body is a JSON array of files, the answer a
// preview. It changes nothing.
func (c *control) previewHandler(w http.ResponseWriter, r *http.Request) {
	if !c.previewing.CompareAndSwap(false, true) {
		http.Error(w, "another check is running; try again", http.StatusTooManyRequests)
		return
	}
	defer c.previewing.Store(false)
	var files []config.File
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCheck)).Decode(&files); err != nil {
		http.Error(w, "the body is not a JSON array of files: "+err.Error(), http.StatusBadRequest)
		return
	}
	p := Preview{Changes: []Change{}, RestartOnly: []string{}, Affected: []Affected{}, Faults: []config.Fault{}}
	cfg, _, err := config.Parse(files)
	if faults, ok := err.(config.Faults); ok {
		p.Faults = faults
	} else {
		var running comparison
		if err := c.do(r.Context(), func(c *control) { running = comparison{c.cfg, c.compiler.Clone()} }); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if err := p.compare(running, cfg, c.state); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(p)
}

// compare fills in what differs, and what the live sessions would see of it.
func (p *Preview) compare(running comparison, cfg *config.Config, state *state.State) error {
	changes := config.Changes(running.cfg, cfg)
	p.RestartOnly = append(p.RestartOnly, config.RestartOnly(running.cfg, cfg)...)
	for _, c := range changes {
		p.Changes = append(p.Changes, Change{What: c.Text})
	}
	if len(p.RestartOnly) > 0 && !KeepRestartOnly(cfg, running.cfg) {
		return nil // a restart: no session stays
	}
	before, err := running.compiler.Preview(running.cfg)
	if err != nil {
		return err
	}
	defer before.Close()
	after, err := running.compiler.Preview(cfg)
	if err != nil {
		return err
	}
	defer after.Close()
	tally := generation.NewTally(running.cfg, cfg, before, after, changes)
	fates := running.compiler.Fates(after, before.InstanceNames(running.cfg), tally)
	for i := range p.Changes {
		p.Changes[i].Sessions = &tally.Fates[i]
	}
	for _, name := range slices.Sorted(maps.Keys(fates)) {
		f := fates[name]
		p.Sessions.Keep += f.Keep
		p.Sessions.Drain += f.Drain
		p.Sessions.End += f.End
		if f.Drain+f.End > 0 {
			p.Affected = append(p.Affected, Affected{name, f})
		}
	}
	return nil
}

// Against compares the configuration at path with what is at target: another configuration, or the
// API address of a running gateway.
func Against(path, target string, cfg *config.Config) (*Preview, error) {
	if _, err := os.Stat(target); err == nil {
		old, _, err := config.Load(target)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
		p := &Preview{RestartOnly: config.RestartOnly(old, cfg)}
		for _, line := range config.Diff(old, cfg) {
			p.Changes = append(p.Changes, Change{What: line})
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
		return nil, fmt.Errorf("--against %s: is neither a file nor an address: %w", target, err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("--against %s: no file has this name, and no weir answers at this address: %w", target, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<12))
		return nil, fmt.Errorf("--against %s: %s: %s", target, answer.Status, bytes.TrimSpace(text))
	}
	p := &Preview{known: true}
	if err := json.NewDecoder(answer.Body).Decode(p); err != nil {
		return nil, fmt.Errorf("--against %s: the answer does not come from weir: %w", target, err)
	}
	if len(p.Faults) > 0 {
		return nil, fmt.Errorf("--against %s: the running weir has another version and refuses the configuration: %s", target, p.Faults[0])
	}
	return p, nil
}

// Print writes the preview in words.
func (p *Preview) Print(out io.Writer) {
	if len(p.Changes) == 0 {
		fmt.Fprintln(out, "the meaning does not change: a reload would do nothing")
	}
	for _, c := range p.Changes {
		switch f := c.Sessions; {
		case f == nil:
			fmt.Fprintf(out, "change: %s\n", c.What)
		case *f == generation.Fate{}:
			fmt.Fprintf(out, "change: %s: affects no session\n", c.What)
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
			fmt.Fprintf(out, "sessions: ... and those of %d more instances\n", len(p.Affected)-i)
			break
		}
		name := a.Instance
		if name == "" {
			name = "an instance that no longer exists"
		}
		fmt.Fprintf(out, "sessions of %s: %d stay, %d drain, %d end\n", name, a.Keep, a.Drain, a.End)
	}
}
