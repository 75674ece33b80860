// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"weir/pipeline/generation"
	"weir/pipeline/respond"
	"weir/pipeline/state"

	"weir/appliance/link"
	"weir/config"
	"weir/pipeline/memory"
)

// begin starts the data plane with what was loaded, or takes over one that forwards.
func (c *control) begin(ctx context.Context, found *running, next *loaded, loadErr error) error {
	if found != nil {
		err := c.takeOver(found, next, loadErr)
		if err == nil {
			return nil
		}
		if loadErr != nil {
			return errors.Join(err, loadErr)
		}
		c.log.Warn("cannot take over the running data plane: restarting it, its sessions are lost", "reason", err)
		c.plane.halt()
		if _, err := c.plane.connect(ctx); err != nil {
			return err
		}
	} else if loadErr != nil {
		return loadErr
	}
	if err := c.prepare(next); err != nil {
		return err
	}
	return c.start(false)
}

// prepare makes the shared state and compiles the first generation.
func (c *control) prepare(next *loaded) error {
	c.cfg = next.cfg
	c.warn(next.warnings)
	var err error
	c.state, err = state.New(state.Sizes{
		Workers: len(c.cfg.Dataplane.Workers), Sessions: c.cfg.Dataplane.Sessions, Nodes: memory.Nodes("/sys", c.cfg.Dataplane.Workers), Huge: true,
	})
	if err != nil {
		return err
	}
	if why := c.state.PlacementRefused(); why != nil {
		c.log.Warn("workers' tables may be on other NUMA nodes than their cores: packets cost more there", "reason", why)
	}
	if !c.state.Segment.Huge() {
		c.log.Warn("no huge pages for the session table: lookups in a large table cost more; reserve some in /proc/sys/vm/nr_hugepages",
			"mebibytes", c.state.Segment.Size()>>20)
	}
	c.compiler = generation.NewCompiler(c.state, nil)
	c.compiler.Source = source(next.files)
	if c.gen, err = c.compiler.Compile(c.cfg); err != nil {
		return err
	}
	c.status.Generation.Store(c.gen.Number)
	c.status.Reloaded(true, time.Now())
	return nil
}

// start hands the segments to a fresh data plane; empty: which is not to go on with the sessions.
func (c *control) start(empty bool) error {
	s := link.StartConfig{Log: c.cfg.Log, Dataplane: c.cfg.Dataplane, Supervised: c.plane.supervised, Empty: empty}
	for i := range c.cfg.Ports {
		p := &c.cfg.Ports[i]
		s.Ports = append(s.Ports, link.StartPort{Name: p.Name, Device: p.Device, MTU: p.MTU, MAC: p.MAC, VLAN: p.VLAN, Inside: p.Side == config.Inside})
	}
	if err := c.plane.conn.Ask(link.Start, 0, s, c.state.Segment.FD(), c.gen.FD(), c.state.GrowingFD()); err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	c.forwarding()
	c.respond.AnnounceAll()
	return nil
}

// forwarding begins control's part beside a data plane that forwards.
func (c *control) forwarding() {
	macs := make([]config.MAC, len(c.cfg.Ports))
	for i := range macs {
		macs[i] = c.state.Device(i).MAC
	}
	c.respond = respond.New(c.state, macs)
	c.respond.Configure(c.cfg, c.gen)
	c.watchHealth()
	c.status.Up.Store(true)
	c.began = time.Now()
}
