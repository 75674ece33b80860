// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"time"

	"weir/pipeline/generation"
	"weir/pipeline/memory"

	"weir/appliance/link"
	"weir/config"
)

// takeOver takes over a data plane that forwards: its state, its generation, and the configuration
// that was compiled from. What is on disk is brought into force as by a reload.
func (c *control) takeOver(found *running, next *loaded, loadErr error) error {
	state, gen, err := found.segments()
	if err != nil {
		return err
	}
	fail := func(err error) error {
		gen.Close()
		state.Close()
		return err
	}
	files, err := unpack(gen.Source())
	if err != nil {
		return fail(fmt.Errorf("the running configuration cannot be read: %w", err))
	}
	cfg, _, err := c.parser.Parse(files)
	if err != nil {
		return fail(fmt.Errorf("this version does not accept the running configuration: %w", err))
	}
	cfg = ownCopy(cfg)
	if !putInto(cfg, &found.start) {
		return fail(errors.New("the running ports differ from those of the running configuration"))
	}
	if next != nil {
		cfg.API, cfg.Log = next.cfg.API, next.cfg.Log // a new control has its own
	}
	state.Place(memory.Nodes("/sys", cfg.Dataplane.Workers))
	compiler := generation.Resume(state, gen)
	if err := compiler.Settle(cfg); err != nil {
		return fail(err)
	}
	c.cfg, c.state, c.gen, c.compiler = cfg, state, gen, compiler
	c.status.Generation.Store(gen.Number)
	c.forwarding()
	c.log.Info("took over a data plane that forwards", "generation", gen.Number)
	if loadErr != nil {
		c.status.Reloaded(true, time.Unix(gen.Header.Made, 0))
		c.refused(loadErr)
		return nil
	}
	c.status.Reloaded(true, time.Now())
	if err := c.apply(next); err != nil {
		c.refused(err)
	}
	return nil
}

// putInto writes what the data plane was started with over what a configuration says of it.
func putInto(cfg *config.Config, s *link.StartConfig) bool {
	if len(s.Ports) != len(cfg.Ports) {
		return false
	}
	for i, p := range s.Ports {
		if cfg.Ports[i].Name != p.Name {
			return false
		}
		cfg.Ports[i].Device, cfg.Ports[i].MTU, cfg.Ports[i].MAC, cfg.Ports[i].VLAN = p.Device, p.MTU, p.MAC, p.VLAN
	}
	cfg.Dataplane = s.Dataplane
	return true
}
