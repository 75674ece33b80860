// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Ask asks a running weir at its API socket: to GET what path names, or, with a body, to do it. The
// answer is decoded into to.
func Ask(ctx context.Context, socket, path string, body, to any) error {
	method, reader := http.MethodGet, io.Reader(nil)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, reader = http.MethodPost, bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, method, "http://weir"+path, reader)
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	answer, err := client.Do(q)
	if err != nil {
		return fmt.Errorf("%s: no weir answers: %w", socket, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
		var refusal struct {
			Error struct{ What, Hint string }
		}
		switch err := json.Unmarshal(text, &refusal); {
		case err != nil || refusal.Error.What == "":
			return fmt.Errorf("%s: %s: %s", socket, answer.Status, bytes.TrimSpace(text))
		case refusal.Error.Hint == "":
			return fmt.Errorf("%s: %s", socket, refusal.Error.What)
		}
		return fmt.Errorf("%s: %s; %s", socket, refusal.Error.What, refusal.Error.Hint)
	}
	if err := json.NewDecoder(answer.Body).Decode(to); err != nil {
		return fmt.Errorf("%s: the answer does not come from weir: %w", socket, err)
	}
	return nil
}
