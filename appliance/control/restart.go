// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"time"

	"weir/appliance/link"
)

// restart brings up a data plane after the last one died. The sessions are in the state, and stay.
func (c *control) restart(ctx context.Context) error {
	c.status.Up.Store(false)
	c.status.Restarts.Add(1)
	for try := 0; ; try++ {
		err := c.reconnect(ctx)
		if err == nil {
			c.log.Info("forwarding again", "generation", c.gen.Number)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		wait := min(100*time.Millisecond<<min(try, 6), 5*time.Second)
		c.log.Error("the data plane does not start", "error", err, "again_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// reconnect begins with a fresh data plane, or goes on with one that has our state and only lost
// the connection.
func (c *control) reconnect(ctx context.Context) error {
	found, err := c.plane.connect(ctx)
	if err != nil {
		return err
	}
	if found == nil {
		if err := c.start(); err != nil {
			return err
		}
	} else {
		if !found.isOurs(c.state) {
			return errors.New("the data plane that came back forwards for another weir run")
		}
		if found.number != c.gen.Number {
			if err := c.plane.conn.Ask(link.Publish, c.gen.Number, nil, c.gen.FD()); err != nil {
				return err
			}
		}
		c.status.Up.Store(true)
	}
	c.inForce()
	return nil
}
