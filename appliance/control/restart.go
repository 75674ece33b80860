// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"time"

	"weir/appliance/link"
)

// What a data plane dies of may be in the memory that the next one goes on with. After so many in a
// row that died within so long, the next one begins without sessions.
const (
	mostDeaths = 3
	earlyDeath = 30 * time.Second
)

// restart brings up a data plane after the last one died. The sessions are in the state, and stay.
func (c *control) restart(ctx context.Context) error {
	c.status.Up.Store(false)
	c.status.Restarts.Add(1)
	if time.Since(c.began) > earlyDeath {
		c.deaths = 0
	}
	c.deaths++
	for try := 0; ; try++ {
		c.alive()
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
		if err := c.startAgain(); err != nil {
			if errors.As(err, new(link.Lost)) { // else it says what it lacks, such as a device
				c.deaths++
			}
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

// startAgain is start with what a dead data plane has left. It may have damaged what it could write
// to, and memory may be bad: nothing is taken for good that control can make anew.
func (c *control) startAgain() error {
	c.state.Restore()
	if err := c.gen.Whole(); err != nil {
		c.log.Error("the compiled configuration: it is compiled again", "error", err)
		gen, err := c.compiler.Compile(c.cfg)
		if err != nil {
			return err
		}
		c.compiler.Retire()
		c.gen.Close()
		c.gen = gen
		c.status.Generation.Store(gen.Number)
	}
	empty := c.deaths >= mostDeaths
	if empty {
		c.log.Error("data planes have died one after the other, soon after they began: the next one begins without sessions", "died", c.deaths)
	}
	if err := c.start(empty); err != nil {
		return err
	}
	if empty {
		c.deaths = 0
	}
	return nil
}
