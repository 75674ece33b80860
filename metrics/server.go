// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"log/slog"
	"net/http"
	"time"

	"weir/pipeline/state"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes is how many scrapes are served at a time; further ones get 503.
const maxScrapes = 16

// NewServer returns the HTTP server of the control process: /metrics, /healthz (the process lives)
// and /readyz (packets can pass). ports are the names of the ports by index. Its limits are
// for a management network, not for the Internet.
func NewServer(state *state.State, ports []string, status *Status, log *slog.Logger) *http.Server {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{state, ports, status}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes,
		Timeout:             5 * time.Second,
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelError),
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", status.ready)
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
