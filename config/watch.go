// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Watch calls changed, on its own goroutine and one call at a time, whenever path holds something
// else than loaded returns, the Sum of what was read last, and held the same in two reads 200 ms
// apart. So what was changed and changed back is noticed if somebody has read it in between, and
// only then. It notices a file that is rewritten, renamed over, removed or restored, and the swap
// of any symbolic link on the way, and the same for a directory of files. It compares content,
// never time stamps: writing the same content again is not a change, and an unreadable path counts
// as content too, so that the next Load can say why. Where the kernel sends no notifications (a
// network file system), it looks every 10 s.
//
// Watch calls ready once, when no later change will be missed: load after that. It returns nil when
// ctx ends, and an error, without calling ready, if the kernel offers no notifications at all.
func Watch(ctx context.Context, path string, loaded func() Sum, ready, changed func()) error {
	return watcher{path, 200 * time.Millisecond, 10 * time.Second, loaded, changed}.start(ctx, ready)
}

type watcher struct {
	path    string
	quiet   time.Duration // between two reads that must agree
	poll    time.Duration
	loaded  func() Sum // of what was read last
	changed func()
}

// start watches until ctx ends. It calls ready when no later change will be missed.
func (w watcher) start(ctx context.Context, ready func()) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w; expected a free inotify instance (see fs.inotify.max_user_instances)", w.path, err)
	}
	defer notify.Close()
	watched := map[string]bool{}
	w.loop(ctx, notify, func() { w.follow(notify, watched) }, ready)
	return nil
}

// loop waits for notifications, or the poll, and looks for a change after each. follow renews what
// is watched.
func (w watcher) loop(ctx context.Context, notify *fsnotify.Watcher, follow, ready func()) {
	follow()
	ready()
	poll := time.NewTicker(w.poll)
	defer poll.Stop()
	settle := time.NewTimer(0)
	settle.Stop()
	settling := false // settle runs, and previous is what the last read gave
	var previous Sum

	for {
		look := false
		select {
		case <-ctx.Done():
			return
		case <-notify.Events:
			look = true
		case <-notify.Errors: // an overflow among them: events are lost
			look = true
		case <-poll.C:
			follow()
			look = Digest(w.path) != w.loaded()
		case <-settle.C:
			settling = false
			follow()
			now := Digest(w.path)
			switch {
			case now != previous: // still being written
				look = true
			case now != w.loaded():
				w.changed()
			}
		}
		if look && !settling {
			settling, previous = true, Digest(w.path)
			settle.Reset(w.quiet)
		}
	}
}

// Sum is a digest of what a path holds: its files, or the reason why they cannot be read.
type Sum [sha256.Size]byte

// Digest returns the Sum of the configuration at path without keeping its files in memory.
func Digest(path string) Sum {
	h := sha256.New()
	err := visit(path, func(f File) {
		sum := sha256.Sum256(f.Data)
		sumFile(h, f.Name, sum[:])
	})
	if err != nil {
		return DigestOf(nil, err)
	}
	return Sum(h.Sum(nil))
}

// DigestOf returns the Sum of what ReadFiles has returned.
func DigestOf(files []File, err error) Sum {
	if err != nil {
		return sha256.Sum256([]byte(err.Error()))
	}
	h := sha256.New()
	for _, f := range files {
		sum := sha256.Sum256(f.Data)
		sumFile(h, f.Name, sum[:])
	}
	return Sum(h.Sum(nil))
}

func sumFile(h hash.Hash, name string, sum []byte) {
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(name))))
	h.Write([]byte(name))
	h.Write(sum)
}

// follow watches every directory in which a change of an entry may change what the path holds, and
// no other. Directories, because a watch on a file stays with the old file when another one is
// renamed over it.
func (w watcher) follow(notify *fsnotify.Watcher, watched map[string]bool) {
	wanted := map[string]bool{}
	target := resolve(w.path, wanted)
	for _, dir := range includedBy(w.path) {
		dir = resolve(dir, wanted)
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			wanted[dir] = true
			names, _ := entriesOf(dir)
			for _, name := range names {
				resolve(filepath.Join(dir, name), wanted)
			}
		}
	}
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		wanted[target] = true
		names, _ := filesIn(target)
		for _, name := range names {
			resolve(name, wanted)
		}
	}
	for dir := range watched {
		if !wanted[dir] {
			notify.Remove(dir) // gone, or no longer needed
			delete(watched, dir)
		}
	}
	for dir := range wanted {
		// Added again each time: a directory created again under its old name has lost its watch.
		if notify.Add(dir) == nil {
			watched[dir] = true
		}
	}
}

// resolve follows path through its symbolic links, component by component. It adds the directory of
// each link and of the end to dirs, and returns the end.
func resolve(path string, dirs map[string]bool) string {
	const maxLinks = 40 // as the kernel
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	done, rest := "/", strings.TrimPrefix(path, "/")
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := filepath.Join(done, name)
		link, err := os.Readlink(next)
		if err != nil || links == maxLinks {
			if _, err := os.Lstat(next); err != nil {
				dirs[done] = true // the missing entry may come back here
				return next
			}
			if rest == "" {
				dirs[done] = true
			}
			done = next
			continue
		}
		links++
		dirs[done] = true
		rest = filepath.Join(link, rest)
		if filepath.IsAbs(link) {
			done = "/"
			rest = strings.TrimPrefix(rest, "/")
		}
	}
	return done
}
