// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"fmt"
	"maps"

	"weir/config"
	"weir/pipeline/session"
)

// Preview compiles cfg as the next generation would be, for questions about it. It touches neither the state nor the
// compiler, and may run beside the compiler's own goroutine when c is a Clone.
func (c *Compiler) Preview(cfg *config.Config) (*Generation, error) {
	scratch, err := NewState(StateConfig{Workers: 1, Instances: len(c.state.instances)/2 + 1})
	if err != nil {
		return nil, fmt.Errorf("preview: %w", err)
	}
	defer scratch.Segment.Close()
	p := NewCompiler(scratch, nil)
	p.number = c.number
	p.vpcs.known, p.vpcs.current, p.vpcs.next = maps.Clone(c.vpcs.known), c.vpcs.current, c.vpcs.next
	p.instances.known, p.instances.current, p.instances.next = maps.Clone(c.instances.known), c.instances.current, c.instances.next
	p.addresses = c.addresses
	p.addresses.known = maps.Clone(c.addresses.known)
	return p.Compile(cfg)
}

// Clone returns a copy for Preview in another goroutine.
func (c *Compiler) Clone() *Compiler {
	d := *c
	d.vpcs.known, d.vpcs.current = maps.Clone(c.vpcs.known), maps.Clone(c.vpcs.current)
	d.instances.known, d.instances.current = maps.Clone(c.instances.known), maps.Clone(c.instances.current)
	d.addresses.known, d.addresses.current = maps.Clone(c.addresses.known), maps.Clone(c.addresses.current)
	return &d
}

// Fate counts what becomes of sessions under another generation.
type Fate struct {
	Keep  int `json:"keep"`
	Drain int `json:"drain"`
	End   int `json:"end"`
}

// Fates walks the live sessions and counts, by "VPC/instance", what generation g would do with them. A session of an
// instance that the compiler does not know any more stands under "". The workers go on meanwhile.
func (s *State) Fates(c *Compiler, g *Generation) map[string]Fate {
	names := make(map[uint32]string, len(c.instances.known))
	for name, slot := range c.instances.known {
		names[slot] = name
	}
	fates := map[string]Fate{}
	for w := range s.Workers() {
		t := s.Table(w)
		for ref := range uint32(t.Capacity()) {
			e := t.At(ref)
			if session.StateOf(e.Load()) == session.Free {
				continue
			}
			copied := *e
			f := fates[names[e.Instance]]
			switch {
			case !g.recheck(&copied, 0):
				f.End++
			case copied.Flags&session.Draining != 0:
				f.Drain++
			default:
				f.Keep++
			}
			fates[names[e.Instance]] = f
		}
	}
	return fates
}
