// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"weir/pipeline/generation"

	"weir/config"
)

// Preview is what would become of a running gateway under another configuration.
type Preview struct {
	Changes     []Change        `json:"changes"`
	RestartOnly []string        `json:"restart_only"`
	Sessions    generation.Fate `json:"sessions"`
	Affected    []Affected      `json:"affected"` // instances whose sessions do not all stay
	Faults      []config.Fault  `json:"faults"`
	Refused     string          `json:"refused,omitempty"` // why a reload would not, or not wholly, bring it into force
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

// Bounds of POST /api/v1/check.
const (
	maxCheck     = 64 << 20         // bytes of the body: a configuration and its encoding
	maxReading   = 4                // bodies at a time
	checkTimeout = 20 * time.Second // for a body to come
)

// checks bounds what checks take of the process.
type checks struct {
	reading chan struct{} // has room for the bodies that are held
	working chan struct{} // has room for one: it compiles
}

func newChecks() checks {
	return checks{make(chan struct{}, maxReading), make(chan struct{}, 1)}
}

// previewHandler answers POST /api/v1/check: the body is a JSON array of files, the answer a
// preview. It changes nothing, and ends when nobody waits for the answer.
func (c *control) previewHandler(w http.ResponseWriter, r *http.Request) {
	select {
	case c.checks.reading <- struct{}{}:
	default:
		refuse(w, http.StatusTooManyRequests, "too many checks at a time", "try again")
		return
	}
	defer func() { <-c.checks.reading }()
	files, err := readFiles(http.MaxBytesReader(w, r.Body, maxCheck))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error(), `expected a JSON array of {"Name": ..., "Data": ...}`)
		return
	}
	// Only whole bodies wait for their turn, so a slow client keeps nobody from it.
	select {
	case c.checks.working <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	defer func() { <-c.checks.working }()
	p, err := c.preview(r.Context(), files)
	if r.Context().Err() != nil {
		return
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error(), "")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(p)
}

// readFiles reads a JSON array of files one by one, within the bounds of a configuration.
func readFiles(body io.Reader) ([]config.File, error) {
	d := json.NewDecoder(body)
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New("the body is not a JSON array of files")
	}
	var files []config.File
	size := 0
	for d.More() {
		var f config.File
		if err := d.Decode(&f); err != nil {
			return nil, fmt.Errorf("the body is not a JSON array of files: %w", err)
		}
		size += len(f.Data)
		switch {
		case f.Name == "":
			return nil, errors.New("a file has no name")
		case len(files) == config.MaxFiles:
			return nil, fmt.Errorf("there are more than %d files", config.MaxFiles)
		case size > config.MaxSize:
			return nil, fmt.Errorf("the files are larger than %d MiB in total", config.MaxSize>>20)
		}
		files = append(files, f)
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("the body is not a JSON array of files: %w", err)
	}
	return files, nil
}

// preview says what would become of the running gateway under other files.
func (c *control) preview(ctx context.Context, files []config.File) (*Preview, error) {
	p := &Preview{Changes: []Change{}, RestartOnly: []string{}, Affected: []Affected{}, Faults: []config.Fault{}}
	cfg, _, err := new(config.Parser).ParseContext(ctx, files)
	if faults, ok := err.(config.Faults); ok {
		p.Faults = faults
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	var running comparison
	if err := c.do(ctx, func(c *control) { running = comparison{c.cfg, c.compiler.Clone()} }); err != nil {
		return nil, err
	}
	return p, p.compare(ctx, running, cfg)
}

// compare fills in what differs, and what the live sessions would see of it.
func (p *Preview) compare(ctx context.Context, running comparison, cfg *config.Config) error {
	changes := config.Changes(running.cfg, cfg)
	p.RestartOnly = append(p.RestartOnly, config.RestartOnly(running.cfg, cfg)...)
	for _, c := range changes {
		p.Changes = append(p.Changes, Change{What: c.Text})
	}
	if errors.As(p.admit(running.cfg, cfg), new(moved)) {
		return nil // a restart: no session stays
	}
	before, err := running.compiler.Preview(running.cfg)
	if err != nil {
		return err
	}
	defer before.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	after, err := running.compiler.Preview(cfg)
	if err != nil {
		return err
	}
	defer after.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
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

// admit notes why a reload would refuse cfg.
func (p *Preview) admit(running, cfg *config.Config) error {
	err := admit(running, cfg)
	if err != nil {
		p.Refused = err.Error()
	}
	return err
}

// Against compares the configuration at path with what is at target: another configuration, or the
// API socket of a running gateway.
func Against(path, target string, cfg *config.Config) (*Preview, error) {
	info, err := os.Stat(target)
	if err != nil {
		return nil, fmt.Errorf("--against: %w; expected a configuration, or the API socket of a running weir (%s)", err, config.DefaultConfig.API.Socket)
	}
	if info.Mode().Type() != os.ModeSocket {
		old, _, err := config.Load(target)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
		p := &Preview{RestartOnly: config.RestartOnly(old, cfg)}
		for _, line := range config.Diff(old, cfg) {
			p.Changes = append(p.Changes, Change{What: line})
		}
		p.admit(old, cfg)
		return p, nil
	}
	files, err := config.ReadFiles(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p := &Preview{known: true}
	if err := Ask(ctx, target, "/api/v1/check", files, p); err != nil {
		return nil, fmt.Errorf("--against %w", err)
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
