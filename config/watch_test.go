// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// patience ends a test that would hang; no test depends on how long anything takes.
const patience = 30 * time.Second

// watched is a path under watch and what has been seen there.
type watched struct {
	t    *testing.T
	path string
	seen chan string // what the path held at each reading
	last atomic.Pointer[Sum]
}

func newWatched(t *testing.T, path string) *watched {
	w := &watched{t: t, path: path, seen: make(chan string, 1000)}
	w.read()
	<-w.seen
	return w
}

// read reads the path, as who is told of a change does.
func (w *watched) read() {
	files, err := ReadFiles(w.path)
	sum := DigestOf(files, err)
	w.last.Store(&sum)
	all := ""
	for _, f := range files {
		all += string(f.Data)
	}
	if err != nil {
		all = "unreadable"
	}
	w.seen <- all
}

func (w *watched) lastRead() Sum { return *w.last.Load() }

// watch starts to watch path and returns once it does.
func watch(t *testing.T, path string, poll time.Duration) *watched {
	t.Helper()
	w := newWatched(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	started := make(chan struct{})
	go func() {
		done <- watcher{path, 10 * time.Millisecond, poll, w.lastRead, w.read}.start(ctx, func() { close(started) })
	}()
	<-started
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// becomes waits for a reading at which the path held want.
func (w *watched) becomes(want string) {
	w.t.Helper()
	for {
		select {
		case got := <-w.seen:
			if got == want {
				return
			}
			w.t.Logf("saw %q on the way to %q", got, want)
		case <-time.After(patience):
			w.t.Fatalf("never saw %q", want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// Each way of changing what a path holds, more than once: a watch that stays with the first file
// fails.
func TestWatch(t *testing.T) {
	const never = time.Hour // without the poll, notifications have to do
	t.Run("rewritten in place", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "weir.yaml")
		write(t, path, "0")
		w := watch(t, path, never)
		for i := 1; i < 4; i++ {
			write(t, path, fmt.Sprint(i))
			w.becomes(fmt.Sprint(i))
		}
	})
	t.Run("renamed over", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "weir.yaml")
		write(t, path, "0")
		w := watch(t, path, never)
		for i := 1; i < 4; i++ {
			write(t, filepath.Join(dir, "new"), fmt.Sprint(i))
			rename(t, filepath.Join(dir, "new"), path)
			w.becomes(fmt.Sprint(i))
		}
	})
	t.Run("symbolic link swapped", func(t *testing.T) {
		// As Kubernetes does it: weir.yaml -> ..data/weir.yaml, ..data -> a directory per version.
		dir := t.TempDir()
		path := filepath.Join(dir, "weir.yaml")
		write(t, filepath.Join(mkdir(t, filepath.Join(dir, "..0")), "weir.yaml"), "0")
		symlink(t, "..0", filepath.Join(dir, "..data"))
		symlink(t, "..data/weir.yaml", path)
		w := watch(t, path, never)
		for i := 1; i < 4; i++ {
			version := fmt.Sprintf("..%d", i)
			write(t, filepath.Join(mkdir(t, filepath.Join(dir, version)), "weir.yaml"), fmt.Sprint(i))
			symlink(t, version, filepath.Join(dir, "..new"))
			rename(t, filepath.Join(dir, "..new"), filepath.Join(dir, "..data"))
			remove(t, filepath.Join(dir, fmt.Sprintf("..%d", i-1)))
			w.becomes(fmt.Sprint(i))
		}
		write(t, filepath.Join(dir, "..3", "weir.yaml"), "in place")
		w.becomes("in place")
	})
	t.Run("link to another directory", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(mkdir(t, filepath.Join(dir, "etc")), "weir.yaml")
		for _, name := range []string{"a", "b"} {
			write(t, filepath.Join(mkdir(t, filepath.Join(dir, name)), "file"), name)
		}
		symlink(t, filepath.Join(dir, "a", "file"), path)
		w := watch(t, path, never)
		write(t, filepath.Join(dir, "a", "file"), "a2")
		w.becomes("a2")
		remove(t, path)
		symlink(t, "../b/file", path)
		w.becomes("b")
		write(t, filepath.Join(dir, "b", "file"), "b2")
		w.becomes("b2")
	})
	t.Run("directory of files", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a.yaml"), "a")
		w := watch(t, dir, never)
		write(t, filepath.Join(dir, "b.yaml"), "b")
		w.becomes("ab")
		write(t, filepath.Join(dir, "c.txt"), "no configuration")
		rename(t, filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml"))
		w.becomes("ba")
		remove(t, filepath.Join(dir, "b.yaml"))
		w.becomes("a")
	})
	t.Run("removed and back", func(t *testing.T) {
		dir := mkdir(t, filepath.Join(t.TempDir(), "etc"))
		path := filepath.Join(dir, "weir.yaml")
		write(t, path, "0")
		w := watch(t, path, never)
		remove(t, path)
		w.becomes("unreadable")
		write(t, path, "1")
		w.becomes("1")
		remove(t, dir)
		w.becomes("unreadable")
		write(t, filepath.Join(mkdir(t, dir), "weir.yaml"), "2")
		w.becomes("2")
	})
	t.Run("not there at first", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "weir.yaml")
		w := watch(t, path, never)
		write(t, path, "1")
		w.becomes("1")
	})
}

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Watch(ctx, t.TempDir(), func() Sum { return Sum{} }, func() {}, func() { t.Error("called without a change") }); err != nil {
		t.Error(err)
	}
}

// Where the kernel tells of nothing, the poll finds the change.
func TestWatchPoll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "weir.yaml")
	write(t, path, "0")
	w := newWatched(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(done)
		silent := &fsnotify.Watcher{} // without channels: it never tells
		watcher{path, time.Millisecond, time.Millisecond, w.lastRead, w.read}.
			loop(ctx, silent, func() {}, func() { close(started) })
	}()
	defer func() { cancel(); <-done }()
	<-started
	for i := 1; i < 4; i++ {
		write(t, path+".new", fmt.Sprint(i))
		rename(t, path+".new", path)
		w.becomes(fmt.Sprint(i))
	}

	// A file of the same size and time, written in place, still counts as a change, and so does one
	// from the future.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, when := range []time.Time{before.ModTime(), before.ModTime(), time.Now().Add(24 * 365 * time.Hour), time.Unix(0, 0)} {
		write(t, path, fmt.Sprint(4+i))
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
		w.becomes(fmt.Sprint(4 + i))
	}
}

// When the kernel has lost notifications, it says so, and what they were about is looked for.
func TestWatchOverflow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weir.yaml")
	write(t, path, "0")
	w := newWatched(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	started := make(chan struct{})
	overflowing := &fsnotify.Watcher{Errors: make(chan error)}
	go func() {
		defer close(done)
		watcher{path, time.Millisecond, time.Hour, w.lastRead, w.read}.
			loop(ctx, overflowing, func() {}, func() { close(started) })
	}()
	defer func() { cancel(); <-done }()
	<-started
	for i := 1; i < 4; i++ {
		write(t, path, fmt.Sprint(i))
		overflowing.Errors <- fsnotify.ErrEventOverflow
		w.becomes(fmt.Sprint(i))
	}
}

// A storm of writes leads to what it ends with.
func TestWatchStorm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weir.yaml")
	write(t, path, "0")
	w := watch(t, path, time.Hour)
	for i := range 2000 {
		write(t, path, fmt.Sprint(i))
	}
	write(t, path, "last")
	w.becomes("last")
}

// Writing the same content again is not a change.
func TestWatchSameContent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "weir.yaml")
	write(t, path, "0")
	w := watch(t, path, time.Millisecond)
	for range 20 {
		write(t, path+".new", "0")
		rename(t, path+".new", path)
		os.Chtimes(path, time.Now(), time.Now().Add(time.Hour))
	}
	write(t, path+".new", "1")
	rename(t, path+".new", path)
	w.becomes("1")
	if n := len(w.seen); n > 0 {
		t.Errorf("%d more calls", n)
	}
}

// Somebody else has read what came after the last change that was told, and then it was changed
// back: that is a change to who has read, though not to who was told.
func TestWatchChangedBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weir.yaml")
	write(t, path, "0")
	w := watch(t, path, time.Hour)
	for i := range 20 {
		write(t, path, "1")
		w.becomes("1")
		write(t, path, "0")
		w.read() // at once, as SIGHUP does
		w.becomes("0")
		write(t, path, "1") // often before the watcher has looked
		w.becomes("1")
		write(t, path, fmt.Sprint("again ", i))
		w.becomes(fmt.Sprint("again ", i))
	}
}
