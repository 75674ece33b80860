// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"net/http"
	"time"
)

// Health is what control has found when it last looked. Nobody changes it afterwards.
type Health struct {
	Faults   []string // why no packet may pass
	Degraded []string // what passes less than it could
	NextHops []NextHop
	Stalled  []bool // by worker: it does not turn

	at time.Time
}

// NextHop is a next hop of an outside port.
type NextHop struct {
	Port, Address string
	Up            bool // its MAC is known
}

// oldest is how old what control has found may be.
const oldest = 5 * time.Second

// SetHealth notes what control has found just now.
func (s *Status) SetHealth(h *Health) {
	h.at = time.Now()
	s.health.Store(h)
}

// faults returns why packets may not pass, and what is amiss beside that.
func (s *Status) faults() (faults, degraded []string) {
	h := s.health.Load()
	switch {
	case !s.Up.Load():
		return []string{"the data plane does not forward"}, nil
	case h == nil:
		return []string{"weir has just begun"}, nil
	}
	faults = h.Faults
	if age := time.Since(h.at); age > oldest {
		faults = append(faults[:len(faults):len(faults)], fmt.Sprintf("control has not looked for %v", age.Round(time.Second)))
	}
	if !s.reloadOK.Load() {
		degraded = append(degraded, "the configuration on disk is not in force, or not wholly")
	}
	return faults, append(degraded, h.Degraded...)
}

// Ready reports whether packets can pass.
func (s *Status) Ready() bool {
	faults, _ := s.faults()
	return len(faults) == 0
}

// LastReload reports whether the last load of the configuration succeeded.
func (s *Status) LastReload() bool { return s.reloadOK.Load() }

// ready serves /readyz: 503 and the reasons when no packet may pass, else 200, and what is amiss.
func (s *Status) ready(w http.ResponseWriter, _ *http.Request) {
	faults, degraded := s.faults()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(faults) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, f := range faults {
			fmt.Fprintf(w, "not ready: %s\n", f)
		}
	} else {
		fmt.Fprintln(w, "ready")
	}
	for _, d := range degraded {
		fmt.Fprintf(w, "degraded: %s\n", d)
	}
}
