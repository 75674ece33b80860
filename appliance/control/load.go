// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"weir/config"
)

// watch calls changed, from its own return on, when there is something else on disk than was read
// last.
func (c *control) watch(ctx context.Context, changed func()) {
	watching := make(chan struct{})
	ready := sync.OnceFunc(func() { close(watching) })
	go func() {
		defer ready()
		if err := config.Watch(ctx, c.path, func() config.Sum { return *c.lastRead.Load() }, ready, changed); err != nil {
			c.log.Error("the configuration is not watched; SIGHUP still reloads", "error", err)
		}
	}()
	<-watching
}

// loaded is a configuration and the files it was read from.
type loaded struct {
	cfg                *config.Config
	files              []config.File
	warnings           []config.Warning
	read, parse, check time.Duration
}

// reading is a load's end.
type reading struct {
	next *loaded
	err  error
}

// beginLoad loads what is on disk beside the loop, which goes on answering: a file may be large,
// hostile, or on a disk that does not answer. One load runs at a time; what is asked for meanwhile
// is another one after it.
func (c *control) beginLoad(ctx context.Context) {
	if c.loading {
		c.loadAgain = true
		return
	}
	c.loading, c.loadAgain = true, false
	go func() {
		next, err := c.load(ctx)
		c.read <- reading{next, err} // has room
	}()
}

// awaitLoad is beginLoad, and tells done how a load ended that began afterwards.
func (c *control) awaitLoad(ctx context.Context, done chan<- error) {
	after := 0
	if c.loading {
		after = 1
	}
	c.waiting[after] = append(c.waiting[after], done)
	c.beginLoad(ctx)
}

// endLoad brings what was loaded into force.
func (c *control) endLoad(ctx context.Context, r reading) {
	c.loading = false
	err := c.reload(r.next, r.err)
	for _, w := range c.waiting[0] {
		w <- err // has room
	}
	c.waiting = [2][]chan<- error{c.waiting[1], nil}
	if c.loadAgain {
		c.beginLoad(ctx)
	}
}

// firstLoad waits for a load until ctx ends.
func (c *control) firstLoad(ctx context.Context) (*loaded, error) {
	c.beginLoad(ctx)
	select {
	case r := <-c.read:
		c.loading = false
		return r.next, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// loadFiles reads what is on disk, twice, until two readings agree: a file that is being written is
// none.
func (c *control) loadFiles(ctx context.Context) (*loaded, error) {
	begin := time.Now()
	var files []config.File
	var err error
	for try := 0; ; try++ {
		files, err = config.ReadFiles(c.path)
		if sum := config.DigestOf(files, err); sum == config.Digest(c.path) {
			c.lastRead.Store(&sum)
			break
		}
		if try == 20 {
			return nil, fmt.Errorf("%s: it keeps changing; expected two equal reads in a row", c.path)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	read := time.Since(begin)
	cfg, warnings, err := c.parser.ParseContext(ctx, files)
	if err != nil {
		return nil, err
	}
	return &loaded{ownCopy(cfg), files, warnings, read, c.parser.Read, c.parser.Check}, nil
}

// ownCopy returns a copy that what only a restart changes may be put back into.
func ownCopy(cfg *config.Config) *config.Config {
	c := *cfg
	c.Ports = slices.Clone(cfg.Ports)
	return &c
}
