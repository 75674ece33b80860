// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Dial connects from within the namespace, in a second at most.
func (n *Namespace) Dial(network, address string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = net.DialTimeout(network, address, time.Second)
		return err
	})
	return c, err
}

// Web is a client, within a namespace, of one HTTP server.
type Web struct {
	address string
	client  http.Client
}

// Web returns a client of the HTTP server at address, host and port; each answer takes at most
// timeout.
func (n *Namespace) Web(address string, timeout time.Duration) *Web {
	return &Web{address, http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) { return n.Dial(network, address) },
	}}}
}

// Get reads a page. A status but 200 is an error, with the page beside it.
func (w *Web) Get(path string) (string, error) {
	response, err := w.client.Get("http://" + w.address + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, response.Status)
	}
	return string(body), err
}

// Close closes the connections that are not in use.
func (w *Web) Close() { w.client.CloseIdleConnections() }
