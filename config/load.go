// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxFileSize is the size, in bytes, beyond which a file is refused unread, MaxSize that of all
// files together, and MaxFiles their number.
const (
	MaxFileSize = 16 << 20
	MaxSize     = 256 << 20
	MaxFiles    = 1 << 16
)

// File is one file of a configuration.
type File struct {
	Name string // as faults name it
	Data []byte
}

// Load reads the configuration at path: a file, or a directory whose *.yaml and *.yml files are
// merged in the order of their names (hidden files and subdirectories are left out). The error is a
// Faults; warnings come only with a Config.
func Load(path string) (*Config, []Warning, error) {
	files, err := ReadFiles(path)
	if err != nil {
		return nil, nil, err
	}
	return Parse(files)
}

// Parse checks files as one configuration. It keeps none of their bytes. The error is a Faults;
// warnings come only with a Config.
func Parse(files []File) (*Config, []Warning, error) { return new(Parser).Parse(files) }

// ReadFiles returns the files that make up the configuration at path, in the order of their names.
// The error is a Faults with a fault for each file that cannot be read.
func ReadFiles(path string) ([]File, error) {
	names, err := namesAt(path)
	if err != nil {
		return nil, err
	}
	if len(names) > MaxFiles {
		return nil, tooManyFiles(path, len(names))
	}
	var files []File
	var faults Faults
	size := 0
	for _, name := range names {
		data, err := readFile(name)
		if err != nil {
			faults = append(faults, unreadable(name, err))
			continue
		}
		if size += len(data); size > MaxSize {
			return nil, tooMuch(path)
		}
		files = append(files, File{name, data})
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return files, nil
}

// namesAt returns the files that make up the configuration at path.
func namesAt(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, Faults{unreadable(path, err)}
	}
	if info.IsDir() {
		return filesIn(path)
	}
	return []string{path}, nil
}

// filesIn returns the configuration files in a directory, sorted.
func filesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, Faults{unreadable(dir, err)}
	}
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	if len(names) == 0 {
		return nil, Faults{{File: dir, Message: "has no configuration; expected at least one *.yaml or *.yml file"}}
	}
	return names, nil
}

// readFile reads a regular file of at most MaxFileSize bytes.
func readFile(name string) ([]byte, error) {
	var b bytes.Buffer
	_, err := readInto(&b, name)
	return b.Bytes(), err
}

// readInto reads like readFile, and returns the file's size. It judges what it has opened, not what
// has the name a moment before or after. Opening a pipe or a device so does not wait.
func readInto(w io.Writer, name string) (int, error) {
	fd, err := openAt(name)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return 0, err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, errors.New("it is not a regular file; expected a YAML file")
	}
	if info.Size > MaxFileSize {
		return 0, errTooLarge
	}
	if b, ok := w.(*bytes.Buffer); ok {
		b.Grow(int(info.Size) + bytes.MinRead)
	}
	n, err := io.Copy(w, io.LimitReader(f, MaxFileSize+1))
	if err == nil && n > MaxFileSize {
		err = errTooLarge
	}
	return int(n), err
}

// openAt opens a file for reading. A pipe that nobody writes, a terminal, or a device is opened
// without waiting and without becoming this process's.
func openAt(name string) (int, error) {
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

var errTooLarge = fmt.Errorf("it is larger than %d MiB; expected it split into a directory of files", MaxFileSize>>20)

// tooMuch is about files that are larger than MaxSize together.
func tooMuch(path string) Faults {
	return Faults{{File: path, Message: fmt.Sprintf("cannot be read: its files are larger than %d MiB in total", MaxSize>>20)}}
}

// tooManyFiles is about more than MaxFiles files.
func tooManyFiles(path string, n int) Faults {
	return Faults{{File: path, Message: fmt.Sprintf("cannot be read: it has %d files; expected at most %d", n, MaxFiles)}}
}

func unreadable(name string, err error) Fault {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err // the name is in the fault already
	}
	return Fault{File: name, Message: "cannot be read: " + err.Error()}
}
