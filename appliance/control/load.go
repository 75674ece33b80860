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

// watch calls changed for every change of the configuration on disk from its own return on.
func (c *control) watch(ctx context.Context, changed func()) {
	watching := make(chan struct{})
	ready := sync.OnceFunc(func() { close(watching) })
	go func() {
		defer ready()
		if err := config.Watch(ctx, c.path, ready, changed); err != nil {
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

// load reads what is on disk, twice, until two readings agree: a file that is being written is
// none.
func (c *control) load() (*loaded, error) {
	begin := time.Now()
	var files []config.File
	var err error
	for try := 0; ; try++ {
		if files, err = config.ReadFiles(c.path); config.DigestOf(files, err) == config.Digest(c.path) {
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
	cfg, warnings, err := c.parser.Parse(files)
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
