// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"weir/pipeline/drop"
	"weir/pipeline/state"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden page again")

// newState returns a state of two workers in which every number differs from every other. It stays
// mapped, because a scrape may still read it after its client has given up.
func newState(t *testing.T) (*state.State, *Status) {
	t.Helper()
	s, err := state.New(state.Sizes{Workers: 2, Sessions: 128, Seed: new([32]byte)})
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	next := func() uint64 { n++; return n }
	for w := range 2 {
		c := s.Counters(w)
		for p := range 2 {
			c.Received[p], c.ReceivedBytes[p], c.Transmitted[p], c.TransmittedBytes[p] = next(), 100*next(), next(), 100*next()
		}
		c.Forwarded, c.Punted, c.Originated, c.Fragmented, c.Held = next(), next(), next(), next(), next()
		for r := range c.Dropped {
			c.Dropped[r] = uint64(1000*(w+1) + r)
		}
		c.Stateless, c.SessionsCreated, c.SessionsEnded, c.Sessions = next(), next(), next(), next()
		c.Polls, c.EmptyPolls, c.BusyNanoseconds = next(), next(), 1e6*next()
	}
	for p := range 2 {
		d := s.Device(p)
		d.LinkUp = p == 0
		d.RxMissed, d.RxErrors, d.RxNoMbuf, d.TxErrors = next(), next(), next(), next()
	}
	s.Counters(0).Unsent, s.Counters(1).Unsent = 300, 400
	s.CountLost()
	s.Runtime().Collections, s.Runtime().HeapBytes = 0, 1<<20
	status := new(Status)
	status.Up.Store(true)
	status.Restarts.Store(next())
	status.Generation.Store(next())
	status.Reloaded(true, time.Unix(1_700_000_000, 0))
	status.SetHealth(&Health{NextHops: []NextHop{{"outside", "198.51.100.1", true}, {"outside", "2001:db8::1", false}}, Stalled: []bool{false, true}})
	status.Census.Store(&state.Census{Sessions: map[string]int{"blue": 7, "green": 0}, SNATPorts: map[string]int{"blue": 3, "green": 0}})
	return s, status
}

// start serves on a loopback port until the test ends, and returns the address.
func start(t *testing.T, s *state.State, status *Status) string {
	t.Helper()
	server := NewServer(s, []string{"inside", "outside"}, status, slog.New(slog.DiscardHandler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// The page is what dashboards and alerts are built on: a change of it shows in the golden file, and
// in review.
func TestPage(t *testing.T) {
	s, status := newState(t)
	code, page := get(t, "http://"+start(t, s, status)+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d", code)
	}
	var ours strings.Builder
	for line := range strings.Lines(page) {
		if name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "); strings.HasPrefix(name, "weir_") {
			ours.WriteString(line)
		}
	}
	const golden = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(ours.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), ours.String()); diff != "" {
		t.Errorf("the page differs from %s (go test ./metrics -update writes it again):\n%s", golden, diff)
	}

	// Naming and units as Prometheus wants them.
	lint := exec.Command("../deploy/project/make/promtool", "check", "metrics")
	lint.Stdin = strings.NewReader(ours.String())
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	// A reason that is missing here would hide drops from operators.
	for r := drop.Pass + 1; r < drop.NumReasons; r++ {
		if series := fmt.Sprintf("weir_dropped_packets_total{reason=%q} ", r); !strings.Contains(page, series) {
			t.Errorf("no series %s", series)
		}
	}
}

func TestHealth(t *testing.T) {
	s, status := newState(t)
	at := "http://" + start(t, s, status)
	for _, up := range []bool{false, true, false} {
		status.Up.Store(up)
		ready, gauge := http.StatusServiceUnavailable, "weir_dataplane_up 0\n"
		if up {
			ready, gauge = http.StatusOK, "weir_dataplane_up 1\n"
		}
		if code, body := get(t, at+"/readyz"); code != ready {
			t.Errorf("up %v: /readyz says %d %q, expected %d", up, code, body, ready)
		}
		if code, _ := get(t, at+"/healthz"); code != http.StatusOK {
			t.Errorf("up %v: /healthz says %d: the process lives", up, code)
		}
		if _, page := get(t, at+"/metrics"); !strings.Contains(page, gauge) {
			t.Errorf("up %v: no %q", up, gauge)
		}
	}
}

// What control finds is what /readyz says, and no longer than it is true.
func TestReady(t *testing.T) {
	s, status := newState(t)
	at := "http://" + start(t, s, status)
	expect := func(what string, want int, texts ...string) {
		t.Helper()
		code, body := get(t, at+"/readyz")
		for _, text := range texts {
			if !strings.Contains(body, text) {
				t.Errorf("%s: no %q in %q", what, text, body)
			}
		}
		gauge := fmt.Sprintf("weir_ready %d\n", map[bool]int{true: 1}[want == http.StatusOK])
		if _, page := get(t, at+"/metrics"); code != want || !strings.Contains(page, gauge) {
			t.Errorf("%s: %d, expected %d, and %q", what, code, want, gauge)
		}
	}
	status.SetHealth(&Health{Degraded: []string{"one hop is silent"}})
	expect("one hop", http.StatusOK, "ready\n", "degraded: one hop is silent\n")
	status.SetHealth(&Health{Faults: []string{"no hop answers"}, Degraded: []string{"one hop is silent"}})
	expect("no hop", http.StatusServiceUnavailable, "not ready: no hop answers\n", "degraded: one hop is silent\n")
	status.SetHealth(&Health{})
	expect("well again", http.StatusOK, "ready\n")
	status.Reloaded(false, time.Now())
	expect("a refused reload", http.StatusOK, "ready\n", "degraded: the configuration on disk is not in force")
	status.health.Store(&Health{at: time.Now().Add(-2 * oldest)})
	expect("nobody looks", http.StatusServiceUnavailable, "not ready: control has not looked for 10s\n")
}

func TestReloaded(t *testing.T) {
	s, status := newState(t)
	at := "http://" + start(t, s, status)
	status.Reloaded(false, time.Unix(1_800_000_000, 0))
	_, page := get(t, at+"/metrics")
	for _, want := range []string{"weir_config_last_reload_successful 0\n", "weir_config_last_reload_success_timestamp_seconds 1.7e+09\n"} {
		if !strings.Contains(page, want) {
			t.Errorf("after a failed reload the page has no %q", want)
		}
	}
}

func TestRefused(t *testing.T) {
	s, status := newState(t)
	at := "http://" + start(t, s, status)
	for _, c := range []struct {
		method, path string
		header       int // bytes
		want         int
	}{
		{http.MethodPost, "/metrics", 0, http.StatusMethodNotAllowed},
		{http.MethodDelete, "/readyz", 0, http.StatusMethodNotAllowed},
		{http.MethodPut, "/healthz", 0, http.StatusMethodNotAllowed},
		{http.MethodGet, "/", 0, http.StatusNotFound},
		{http.MethodGet, "/metrics/", 0, http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", 0, http.StatusNotFound},
		{http.MethodGet, "/metrics", 10 << 10, http.StatusOK},
		{http.MethodGet, "/metrics", 100 << 10, http.StatusRequestHeaderFieldsTooLarge},
	} {
		r, err := http.NewRequest(c.method, at+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Long", strings.Repeat("x", c.header))
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		answer.Body.Close()
		if answer.StatusCode != c.want {
			t.Errorf("%s %s with a header of %d bytes: %d, expected %d", c.method, c.path, c.header, answer.StatusCode, c.want)
		}
	}
}

// Of many scrapes at a time some get 503; each gets an answer, and afterwards scrapes work as
// before.
func TestConcurrentScrapes(t *testing.T) {
	s, status := newState(t)
	handler := NewServer(s, []string{"inside", "outside"}, status, slog.New(slog.DiscardHandler)).Handler
	scrape := func() int {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return w.Code
	}
	codes := map[int]int{}
	for round := 0; round < 100 && codes[http.StatusServiceUnavailable] == 0; round++ {
		begin, answers := make(chan struct{}), make(chan int)
		for range 8 * maxScrapes {
			go func() {
				<-begin
				answers <- scrape()
			}()
		}
		close(begin)
		for range 8 * maxScrapes {
			codes[<-answers]++
		}
	}
	if codes[http.StatusOK] < maxScrapes || codes[http.StatusServiceUnavailable] == 0 || len(codes) != 2 {
		t.Errorf("answers by status: %v; expected %d at the least, and %d for those beyond %d at a time",
			codes, http.StatusOK, http.StatusServiceUnavailable, maxScrapes)
	}
	if code := scrape(); code != http.StatusOK {
		t.Errorf("a scrape after the others: %d", code)
	}
}

// Clients that do not read their answers do not block others.
func TestSlowClients(t *testing.T) {
	s, status := newState(t)
	at := start(t, s, status)
	for range 2 * maxScrapes {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 100 { // more than the socket buffers take, and no byte is read
			if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: weir\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if code, _ := get(t, "http://"+at+"/metrics"); code != http.StatusOK && code != http.StatusServiceUnavailable {
		t.Errorf("/metrics beside clients that hang: %d", code)
	}
	if code, _ := get(t, "http://"+at+"/readyz"); code != http.StatusOK {
		t.Errorf("/readyz beside clients that hang: %d", code)
	}
}
