// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"weir/appliance/link"
	"weir/config"
	"weir/metrics"
)

// The API has two doors. The Unix socket has all of it: whom the kernel lets in, the group of the
// socket file, may ask; only the owner, and root, may act. The TCP listener has health and metrics,
// which anybody who reaches it may read.

// An access says who may use a route of the socket.
type access int

const (
	readers access = iota // the group
	owner                 // the user that control runs as, and root
)

// A route is one thing that the socket serves.
type route struct {
	pattern string
	may     access
	handler http.HandlerFunc
}

func (c *control) routes() []route {
	return append(c.showRoutes(),
		route{"POST /api/v1/check", readers, c.previewHandler},
		route{"POST /api/v1/reload", owner, c.reloadHandler},
	)
}

// serve starts the HTTP servers that the configuration names, and returns what ends them.
func (c *control) serve() (func(), error) {
	var servers []*http.Server
	end := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for _, s := range servers {
			s.Shutdown(ctx)
		}
	}
	begin := func(l net.Listener, s *http.Server) {
		servers = append(servers, s)
		go func() {
			if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				c.log.Error("api", "error", err)
			}
		}()
	}
	if address := c.cfg.API.Listen; address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("api.listen: %w; choose another address", err)
		}
		s := metrics.NewServer(c.state, c.ports(), &c.status, c.log)
		s.Handler = publicDoor(config.Loopback(address), s.Handler)
		begin(l, s)
	}
	if path := c.cfg.API.Socket; path != "" {
		l, err := listenSocket(path)
		if err != nil {
			end()
			return nil, fmt.Errorf("api.socket: %w; choose another path, or \"\" for none", err)
		}
		s := metrics.NewServer(c.state, c.ports(), &c.status, c.log)
		s.Handler = socketDoor(c.routes(), s.Handler)
		s.ConnContext = withPeer
		s.ReadTimeout, s.WriteTimeout = checkTimeout, 2*checkTimeout
		begin(l, s)
	}
	return end, nil
}

// listenSocket binds the API's socket.
func listenSocket(path string) (l net.Listener, err error) {
	listening := func() bool {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	err = link.Bind(path, listening, func() error {
		l, err = net.Listen("unix", path)
		return err
	})
	if err == link.ErrInUse {
		return nil, fmt.Errorf("%s: another weir listens there", path)
	}
	return l, err
}

// peerKey is where a request's context has who asks.
type peerKey struct{}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ctx // nobody: may read what anybody in the group may
	}
	raw.Control(func(fd uintptr) {
		if peer, err := link.Peer(int(fd)); err == nil {
			ctx = context.WithValue(ctx, peerKey{}, int(peer.Uid))
		}
	})
	return ctx
}

// socketDoor serves the routes, and public for what is none of them.
func socketDoor(routes []route, public http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", public)
	for _, r := range routes {
		mux.HandleFunc(r.pattern, func(w http.ResponseWriter, q *http.Request) {
			uid, known := q.Context().Value(peerKey{}).(int)
			if r.may == owner && (!known || uid != 0 && uid != os.Geteuid()) {
				refuse(w, http.StatusForbidden, "only the owner of the socket may do this", "ask as root, or as the user that weir runs as")
				return
			}
			if kind, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); q.Method != http.MethodGet && (err != nil || kind != "application/json") {
				refuse(w, http.StatusUnsupportedMediaType, "the body is not said to be JSON", "send Content-Type: application/json")
				return
			}
			r.handler(w, q)
		})
	}
	return noBrowser(func(host string) bool { return host == "weir" || host == "localhost" }, mux)
}

// publicDoor serves a TCP listener. On loopback no browser's page may have itself resolved to it:
// only the host's own names are answered.
func publicDoor(loopback bool, h http.Handler) http.Handler {
	return noBrowser(func(host string) bool {
		_, err := netip.ParseAddr(host)
		return !loopback || err == nil || host == "localhost"
	}, h)
}

// noBrowser refuses what pages of other sites make a browser ask for: it has an Origin, or a Host
// that is not ours.
func noBrowser(ours func(host string) bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		switch {
		case r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") == "cross-site":
			refuse(w, http.StatusForbidden, "this is not for pages of browsers", "ask without Origin")
		case !ours(host):
			refuse(w, http.StatusMisdirectedRequest, "the host of the request is not this one", "ask by address, or as localhost")
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, what, hint string) {
	type detail struct {
		What string `json:"what"`
		Hint string `json:"hint,omitempty"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]detail{"error": {what, hint}})
}

func (c *control) ports() []string {
	names := make([]string, len(c.cfg.Ports))
	for i, p := range c.cfg.Ports {
		names[i] = p.Name
	}
	return names
}
