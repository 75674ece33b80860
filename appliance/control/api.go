// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"weir/metrics"
)

// serve starts the HTTP server, if the configuration names an address, and returns what ends it.
func (c *control) serve() (func(), error) {
	if c.cfg.API.Listen == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", c.cfg.API.Listen)
	if err != nil {
		return nil, fmt.Errorf("api.listen: %w; choose another address", err)
	}
	s := metrics.NewServer(c.state, c.ports(), &c.status, c.log)
	mux := http.NewServeMux()
	mux.Handle("/", s.Handler)
	mux.HandleFunc("POST /api/v1/check", c.previewHandler)
	s.Handler = mux
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("api", "error", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
	}, nil
}

func (c *control) ports() []string {
	names := make([]string, len(c.cfg.Ports))
	for i, p := range c.cfg.Ports {
		names[i] = p.Name
	}
	return names
}
