// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"weir/appliance/link"
	"weir/config"
)

// reload brings what was loaded into force, all of it or nothing.
func (c *control) reload(next *loaded, err error) error {
	if err == nil {
		err = c.apply(next)
	}
	if err != nil {
		c.refused(err)
		return err
	}
	c.status.Reloaded(true, time.Now())
	return nil
}

// Reloaded is what POST /api/v1/reload answers when what is on disk is in force.
type Reloaded struct {
	Generation uint64 `json:"generation"`
}

// reloadHandler reads what is on disk now, and answers when it is in force, or why it is not.
func (c *control) reloadHandler(w http.ResponseWriter, r *http.Request) {
	done := make(chan error, 1)
	if err := c.do(r.Context(), func(c *control) { c.awaitLoad(c.ctx, done) }); err != nil {
		refuse(w, http.StatusServiceUnavailable, err.Error(), "")
		return
	}
	select {
	case err := <-done:
		if err != nil {
			refuse(w, http.StatusConflict, "reload refused: "+err.Error(), "")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(Reloaded{c.status.Generation.Load()})
	case <-c.ended:
		refuse(w, http.StatusServiceUnavailable, errEnding.Error(), "")
	case <-r.Context().Done():
	}
}

// refused says why what is on disk is not, or not wholly, in force.
func (c *control) refused(err error) {
	c.status.Reloaded(false, time.Now())
	var faults config.Faults
	if errors.As(err, &faults) {
		for _, f := range faults[:min(len(faults), maxLines)] {
			c.log.Error("reload refused", "fault", f.String())
		}
		if more := len(faults) - maxLines; more > 0 {
			c.log.Error("reload refused: weir check prints the other faults", "more", more)
		}
	} else {
		c.log.Error("reload refused", "error", err)
	}
	if !errors.As(err, new(partly)) {
		c.log.Warn("the running configuration stays", "generation", c.gen.Number)
	}
}

// partly is an error about what is not in force of a configuration that otherwise is.
type partly struct{ error }

// moved is an error about ports that are not those that run, so that no session could stay.
type moved struct{ error }

// apply brings a loaded configuration into force. Without a change of meaning nothing happens.
func (c *control) apply(next *loaded) error {
	cfg := next.cfg
	begin := time.Now()
	changes := config.Changes(c.cfg, cfg)
	if len(changes) == 0 {
		return nil
	}
	refused := admit(c.cfg, cfg)
	if refused != nil {
		if !errors.As(refused, new(partly)) {
			return refused
		}
		if changes = config.Changes(c.cfg, cfg); len(changes) == 0 {
			return refused
		}
	}
	c.warn(next.warnings)
	c.compiler.Source = source(next.files)
	gen, err := c.compiler.Follow(c.gen, c.cfg, cfg)
	if err != nil {
		return err
	}
	err = c.plane.conn.Ask(link.Publish, gen.Number, nil, gen.FD())
	var gone link.Lost
	if err != nil && !errors.As(err, &gone) {
		c.compiler.Discard()
		gen.Close()
		return fmt.Errorf("data plane: %w", err)
	}
	before := c.cfg
	c.old, c.cfg, c.gen = c.gen, cfg, gen
	c.respond.Configure(cfg, gen)
	c.respond.AnnounceNew(before)
	c.watchHealth()
	c.status.Generation.Store(gen.Number)
	if err != nil {
		c.plane.died() // the next one starts with the new generation; until it is known which one runs, both stay
	} else {
		c.inForce()
	}
	for _, change := range changes[:min(len(changes), maxLines)] {
		c.log.Info("changed", "what", change.Text)
	}
	if more := len(changes) - maxLines; more > 0 {
		c.log.Info("changed", "more", more)
	}
	micro := func(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
	c.log.Info("reloaded", "generation", gen.Number, "read", micro(next.read), "parse", micro(next.parse), "check", micro(next.check), "apply", micro(time.Since(begin)))
	return refused
}

// admit says what keeps a running gateway from taking cfg over: nothing of it is in force then, or,
// if the error is a partly, all but what it names; cfg has afterwards what would be in force. A
// reload asks it, and so does weir check --against.
func admit(running, cfg *config.Config) error {
	var refused error
	if keys := config.RestartOnly(running, cfg); len(keys) > 0 {
		if !KeepRestartOnly(cfg, running) {
			return moved{fmt.Errorf("%v changed, which needs a restart of weir; nothing was applied", keys)}
		}
		refused = partly{fmt.Errorf("%v changed, which needs a restart of weir; the rest was applied", keys)}
	}
	if percent := shrunk(running, cfg); percent > running.Reload.MaxShrink {
		return fmt.Errorf("the change removes %d %% of the instances or of the external addresses, more than reload.max_shrink allows (%d %%); "+
			"if this is intended, raise max_shrink first", percent, running.Reload.MaxShrink)
	}
	return refused
}

// KeepRestartOnly puts what only a restart changes back to what runs, and reports whether that was
// possible: a port that comes or goes moves all others.
func KeepRestartOnly(cfg, running *config.Config) bool {
	if len(cfg.Ports) != len(running.Ports) {
		return false
	}
	for i := range cfg.Ports {
		p, r := &cfg.Ports[i], &running.Ports[i]
		if p.Name != r.Name || p.Side != r.Side {
			return false
		}
		p.Device, p.MTU, p.MAC, p.VLAN = r.Device, r.MTU, r.MAC, r.VLAN
	}
	cfg.API, cfg.Log, cfg.Dataplane = running.API, running.Log, running.Dataplane
	return true
}

// shrunk returns by how much b has fewer instances, or fewer external addresses, than a: the larger
// of the two, in percent.
func shrunk(a, b *config.Config) int {
	count := func(c *config.Config) (instances, external int) {
		for _, v := range c.VPCs {
			instances += len(v.Instances)
			for i := range v.Instances {
				in := &v.Instances[i]
				external += len(in.Floating) + len(in.Ephemeral) + len(in.SNAT) + len(in.Attached)
			}
		}
		return
	}
	percent := func(before, after int) int {
		if before == 0 {
			return 0
		}
		return (before - after) * 100 / before
	}
	i, e := count(a)
	j, f := count(b)
	return max(percent(i, j), percent(e, f))
}

// inForce lets go of what came before the current generation: every worker is past it.
func (c *control) inForce() {
	c.compiler.Retire()
	if c.old != nil {
		c.compiler.Release(c.old)
		c.old = nil
	}
}

// maxLines bounds what one reload logs of a kind: weir check prints all of it.
const maxLines = 20

func (c *control) warn(warnings []config.Warning) {
	for _, w := range warnings[:min(len(warnings), maxLines)] {
		c.log.Warn("configuration", "warning", w.String())
	}
	if more := len(warnings) - maxLines; more > 0 {
		c.log.Warn("configuration: weir check prints the other warnings", "more", more)
	}
}
