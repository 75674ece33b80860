// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"testing"
)

// What comes through the door has been done when do returns, by the one goroutine that owns
// control; when there is nobody to do it, do says so.
func TestDo(t *testing.T) {
	c := newControl("")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.do(gone, func(*control) { t.Error("done without a loop") }); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody asks any more: %v, expected %v", err, context.Canceled)
	}

	const times, askers = 1000, 4
	stop := make(chan struct{})
	go func() {
		defer close(c.ended)
		for {
			select {
			case f := <-c.door:
				f(c)
			case <-stop:
				return
			}
		}
	}()
	sum := 0 // the loop's own
	asked := make(chan error, askers)
	for range askers {
		go func() {
			for range times {
				before := -1
				if err := c.do(t.Context(), func(*control) { before = sum; sum++ }); err != nil || before < 0 {
					asked <- errors.Join(err, errors.New("do returned before its function"))
					return
				}
			}
			asked <- nil
		}()
	}
	for range askers {
		if err := <-asked; err != nil {
			t.Fatal(err)
		}
	}
	if sum != times*askers {
		t.Errorf("%d were done, expected %d", sum, times*askers)
	}

	close(stop)
	<-c.ended
	if err := c.do(t.Context(), func(*control) { t.Error("done after the loop's end") }); err != errEnding {
		t.Errorf("after the end: %v, expected %v", err, errEnding)
	}
}
