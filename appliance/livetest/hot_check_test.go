// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a change would do is said for each change, with the sessions that it concerns; and nothing
// is done.
func TestHotCheckAgainst(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	socket := filepath.Join(t.TempDir(), "api.sock")
	config := replace(t, baseConfig, `socket: ""`, `socket: `+socket)
	w := startWeir(t, n, config)
	for _, from := range []struct {
		host     netip.Addr
		sessions int
	}{{batch4, 6}, {web4, 3}, {web6, 2}} {
		to := remote4
		if from.host.Is6() {
			to = remote6
		}
		// The kernel may choose a port twice, which is one session.
		for seen := map[netip.AddrPort]bool{}; len(seen) < from.sessions; {
			source, err := echoUDP(n.guest, from.host, to)
			if err != nil {
				t.Fatal(err)
			}
			seen[source] = true
		}
	}
	candidate := replace(t, config, "floating: [192.0.2.5, ", "floating: [192.0.2.6, ")
	candidate = replace(t, candidate, "ports: 1024-17407}\n            - {address: \"2001", "ports: 1024-17408}\n            - {address: \"2001")
	candidate = replace(t, candidate, "routes:\n", "routes:\n      - {to: 100.64.0.0/16, drop: true}\n")
	path := filepath.Join(w.dir, "candidate.yaml")
	if err := os.WriteFile(path, []byte(candidate), 0o644); err != nil {
		t.Fatal(err)
	}
	p := spawn(t, n.gateway, w.env(), "check", path, "--against", socket)
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("weir check exits with %d, expected 0", code)
	}
	_, got, _ := strings.Cut(p.log(), "change: ")
	const want = `route to 100.64.0.0/16 of vpc "blue" added: affects no session
change: instance "batch" of vpc "blue" changed: of its sessions 6 stay, 0 drain, 0 end
change: instance "web" of vpc "blue" changed: of its sessions 2 stay, 0 drain, 3 end
sessions: 8 stay, 0 drain, 3 end
sessions of blue/web: 2 stay, 0 drain, 3 end
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	w.expectGeneration(t, 1, true)
	w.expectBalance(t)
	w.stop(t)
}
