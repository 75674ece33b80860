// SPDX-License-Identifier: Apache-2.0

package generation

import (
	"fmt"

	"weir/config"
	"weir/pipeline/session"
	"weir/pipeline/state"
)

// Preview compiles cfg as the next generation would be, for questions about it. It touches neither
// the state nor the compiler, and may run beside the compiler's own goroutine when c is a Clone.
func (c *Compiler) Preview(cfg *config.Config) (*Generation, error) {
	scratch, err := state.New(state.Sizes{Workers: 1})
	if err != nil {
		return nil, fmt.Errorf("preview: %w", err)
	}
	defer scratch.Close()
	p := NewCompiler(scratch, nil)
	p.Number, p.attachments = c.Number, c.attachments
	p.VPCs, p.Instances, p.Addresses, p.scratch = c.VPCs.clone(), c.Instances.clone(), c.Addresses.clone(), true
	return p.Compile(cfg)
}

// Clone returns a copy for Preview in another goroutine.
func (c *Compiler) Clone() *Compiler {
	d := *c
	d.VPCs, d.Instances, d.Addresses = c.VPCs.clone(), c.Instances.clone(), c.Addresses.clone()
	return &d
}

// Fate counts what becomes of sessions under another generation.
type Fate struct {
	Keep  int `json:"keep"`
	Drain int `json:"drain"`
	End   int `json:"end"`
}

// Add adds the counts of another Fate.
func (f *Fate) Add(o Fate) { f.Keep, f.Drain, f.End = f.Keep+o.Keep, f.Drain+o.Drain, f.End+o.End }

// Fates walks the live sessions and counts, by the names of their instances, what generation g
// would do with them. A session of an instance that names has not, because it is gone, stands under
// "". The workers go on meanwhile. Of a session that some of the changes concerns, t, unless nil,
// takes note.
func (c *Compiler) Fates(g *Generation, names map[uint32]string, t *Tally) map[string]Fate {
	s := c.state
	fates := map[string]Fate{}
	for w := range s.Workers() {
		table := s.Table(w)
		for ref := range uint32(table.Capacity()) {
			e, live := table.Read(ref)
			if !live {
				continue
			}
			copied := e
			var one Fate
			switch {
			case !g.Recheck(&copied, 0):
				one.End = 1
			case copied.Flags&session.Draining != 0:
				one.Drain = 1
			default:
				one.Keep = 1
			}
			f := fates[names[e.Instance]]
			f.Add(one)
			fates[names[e.Instance]] = f
			if t != nil {
				copied = e
				t.count(&copied, one)
			}
		}
	}
	return fates
}
