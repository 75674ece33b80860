// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/config"
)

// newDoors serves a control's API at a socket and on loopback, until the test ends.
func newDoors(t *testing.T) (c *control, socket string, client *http.Client) {
	t.Helper()
	c = newLoop(t)
	socket = filepath.Join(t.TempDir(), "run", "api.sock")
	c.cfg.API = config.API{Listen: "127.0.0.1:0", Socket: socket}
	end, err := c.serve()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.loop(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		end()
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
	client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	return c, socket, client
}

func post(t *testing.T, client *http.Client, host string, header map[string]string, body io.Reader) (int, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://"+host+"/api/v1/check", body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	a, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

var asJSON = map[string]string{"Content-Type": "application/json"}

func filesOf(t *testing.T, text string) io.Reader {
	t.Helper()
	b, err := json.Marshal([]config.File{{Name: "weir.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReader(string(b))
}

func TestCheckDoor(t *testing.T) {
	_, socket, client := newDoors(t)
	if info, err := os.Stat(socket); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket: %v, %v; expected mode 0660", info.Mode(), err)
	}
	browser := map[string]string{"Content-Type": "application/json", "Origin": "http://evil.example"}
	for _, c := range []struct {
		name, host string
		header     map[string]string
		body       string
		want       int
		text       string
	}{
		{"a change", "weir", asJSON, loopConfig + "log: {level: debug}\n", 200, "log changed"},
		{"a fault", "localhost", asJSON, "version: 2\n", 200, "is not a version"},
		{"another site's page", "weir", browser, loopConfig, 403, "not for pages"},
		{"another site's name", "evil.example", asJSON, loopConfig, 421, "host"},
		{"a form", "weir", map[string]string{"Content-Type": "text/plain"}, loopConfig, 415, "JSON"},
		{"no type", "weir", nil, loopConfig, 415, "JSON"},
	} {
		if code, got := post(t, client, c.host, c.header, filesOf(t, c.body)); code != c.want || !strings.Contains(got, c.text) {
			t.Errorf("%s: %d %s, expected %d and %q", c.name, code, got, c.want, c.text)
		}
	}
	a, err := client.Get("http://weir/metrics")
	if err != nil {
		t.Fatal(err)
	}
	a.Body.Close()
	if a.StatusCode != http.StatusOK {
		t.Errorf("/metrics at the socket: %d", a.StatusCode)
	}
}

// Bodies that are no configuration cost little, however many files they claim.
func TestCheckBounds(t *testing.T) {
	names := strings.Repeat(`{"Name":"a.yaml"},`, 400_000)
	for name, body := range map[string]string{
		"files without a name": "[" + strings.Repeat("{},", 2_500_000) + "{}]",
		"too many files":       "[" + names + `{"Name":"b"}]`,
		"no end":               "[" + names[:1000],
		"not a list":           `{"Name":"a.yaml"}`,
		"deep":                 strings.Repeat("[", 5_000_000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := readFiles(strings.NewReader(body))
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 256<<20 {
			t.Errorf("%s: %d MiB were allocated, expected at most 256", name, used>>20)
		}
	}
}

// A client that does not send its body keeps nobody from a check.
func TestSlowCheck(t *testing.T) {
	_, socket, client := newDoors(t)
	for range maxReading - 1 {
		slow, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		fmt.Fprintf(slow, "POST /api/v1/check HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n[")
	}
	if code, text := post(t, client, "weir", asJSON, filesOf(t, loopConfig)); code != http.StatusOK {
		t.Errorf("beside slow clients a check gets %d %s", code, text)
	}
}

// A check whose client has gone ends.
func TestCheckEnds(t *testing.T) {
	c, socket, _ := newDoors(t)
	c.checks.working <- struct{}{} // another one works
	client, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(filesOf(t, loopConfig))
	fmt.Fprintf(client, "POST /api/v1/check HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	holding := func(n int, what string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); len(c.checks.reading) != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d checks are held, expected %d", what, len(c.checks.reading), n)
			}
		}
	}
	holding(1, "it waits")
	client.Close()
	holding(0, "its client has gone")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.preview(ctx, []config.File{{Name: "weir.yaml", Data: []byte(loopConfig)}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a check that nobody waits for: %v, expected %v", err, context.Canceled)
	}
}

// On loopback TCP no page of another site has itself resolved to weir, and nothing but health and
// metrics is there.
func TestPublicDoor(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) })
	for _, c := range []struct {
		loopback     bool
		host, origin string
		want         int
	}{
		{true, "127.0.0.1:9474", "", 200}, {true, "localhost:9474", "", 200}, {true, "[::1]:9474", "", 200}, {true, "192.0.2.1", "", 200},
		{true, "evil.example:9474", "", 421}, {true, "127.0.0.1.evil.example", "", 421}, {true, "127.0.0.1:9474", "http://evil.example", 403},
		{false, "gw-1.example:9474", "", 200}, {false, "gw-1.example:9474", "http://evil.example", 403},
	} {
		r, err := http.NewRequest(http.MethodGet, "http://"+c.host+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := &recorder{header: http.Header{}}
		if publicDoor(c.loopback, ok).ServeHTTP(w, r); w.code != c.want {
			t.Errorf("loopback %v, host %s, origin %q: %d, expected %d", c.loopback, c.host, c.origin, w.code, c.want)
		}
	}
}

type recorder struct {
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(c int)   { r.code = c }
func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return len(b), nil
}

// Whoever the group lets in may read; only the owner and root act. The others of this test are real
// processes of another user.
func TestOwnerActs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test is two users: run it as root")
	}
	socket := filepath.Join(t.TempDir(), "run", "api.sock")
	l, err := listenSocket(socket)
	if err != nil {
		t.Fatal(err)
	}
	said := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "done") }
	s := &http.Server{ConnContext: withPeer, Handler: socketDoor([]route{{"GET /read", readers, said}, {"GET /act", owner, said}}, http.NotFoundHandler())}
	go s.Serve(l)
	defer s.Close()
	const group = 4242
	for dir := socket; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if dir != socket {
			os.Chmod(dir, 0o755)
		}
	}
	if err := os.Chown(socket, 0, group); err != nil {
		t.Fatal(err)
	}
	ask := func(uid, gid uint32, path string) string {
		cmd := exec.Command("curl", "-s", "-m", "10", "--unix-socket", socket, "http://weir"+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
		out, err := cmd.Output()
		if err != nil {
			return "no connection"
		}
		return strings.TrimSpace(string(out))
	}
	for _, c := range []struct {
		who      string
		uid, gid uint32
		path     string
		want     string
	}{
		{"root", 0, 0, "/read", "done"}, {"root", 0, 0, "/act", "done"},
		{"the group", 4243, group, "/read", "done"}, {"the group", 4243, group, "/act", "only the owner"},
		{"a stranger", 4244, 4244, "/read", "no connection"}, {"a stranger", 4244, 4244, "/act", "no connection"},
	} {
		if got := ask(c.uid, c.gid, c.path); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s: %q, expected %q", c.who, c.path, got, c.want)
		}
	}
}

// A socket is never made where others could put another one in its place.
func TestSocketDirectory(t *testing.T) {
	for mode, good := range map[os.FileMode]bool{0o755: true, 0o750: true, 0o775: false, 0o777: false, 0o777 | os.ModeSticky: false} {
		dir := filepath.Join(t.TempDir(), "run")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
		l, err := listenSocket(filepath.Join(dir, "api.sock"))
		if (err == nil) != good {
			t.Errorf("in a directory of mode %v: %v", mode, err)
		}
		if err == nil {
			l.Close()
		}
	}
}
