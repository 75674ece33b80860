// SPDX-License-Identifier: Apache-2.0

package livetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a change would do is said for each change, with the sessions that it concerns; and nothing is done.
func TestHotCheckAgainst(t *testing.T) {
	n := newNetwork(t)
	serveEcho(t, n.internet, remote4, remote6)
	w := startWeir(t, n, baseConfig)
	for i := range 3 { // web: two families, so 3 and 2 sessions
		for range 2 {
			if _, err := echoUDP(n.guest, batch4, remote4); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := echoUDP(n.guest, web4, remote4); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			break
		}
		if _, err := echoUDP(n.guest, web6, remote6); err != nil {
			t.Fatal(err)
		}
	}
	candidate := replace(t, baseConfig, "floating: [192.0.2.5, ", "floating: [192.0.2.6, ")
	candidate = replace(t, candidate, "ports: 1024-17407}\n            - {address: \"2001", "ports: 1024-17408}\n            - {address: \"2001")
	candidate = replace(t, candidate, "routes:\n", "routes:\n      - {to: 100.64.0.0/16, drop: true}\n")
	path := filepath.Join(w.dir, "candidate.yaml")
	if err := os.WriteFile(path, []byte(candidate), 0o644); err != nil {
		t.Fatal(err)
	}
	p := spawn(t, n.gateway, w.env(), "check", path, "--against", "127.0.0.1:9474")
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("weir check exits with %d, expected 0", code)
	}
	_, got, _ := strings.Cut(p.log(), "change: ")
	const want = `route to 100.64.0.0/16 of vpc "blue" added: concerns no session
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
