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
// merged in the order of their names (hidden files and subdirectories are left out), and the
// folders that these include. The error is a Faults; warnings come only with a Config.
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
	var files []File
	if err := visit(path, func(f File) { files = append(files, f) }); err != nil {
		return nil, err
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
	entries, err := entriesOf(dir)
	if err != nil {
		return nil, Faults{unreadable(dir, err)}
	}
	var names []string
	for _, e := range entries {
		names = append(names, filepath.Join(dir, e))
	}
	if len(names) == 0 {
		return nil, Faults{{File: dir, Message: "has no configuration; expected at least one *.yaml or *.yml file"}}
	}
	return names, nil
}

// readFile reads a regular file of at most MaxFileSize bytes.
func readFile(name string) ([]byte, error) {
	fd, err := openAt(name)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return readAll(f)
}

// readAll reads a regular file of at most MaxFileSize bytes. It judges what was opened, not what
// has the name a moment before or after.
func readAll(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file; expected a YAML file")
	}
	if info.Size() > MaxFileSize {
		return nil, errTooLarge
	}
	var b bytes.Buffer
	b.Grow(int(info.Size()) + bytes.MinRead)
	n, err := io.Copy(&b, io.LimitReader(f, MaxFileSize+1))
	if err == nil && n > MaxFileSize {
		err = errTooLarge
	}
	return b.Bytes(), err
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
func tooManyFiles(path string) Faults {
	return Faults{{File: path, Message: fmt.Sprintf("cannot be read: it has more than %d files", MaxFiles)}}
}

func unreadable(name string, err error) Fault {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err // the name is in the fault already
	}
	return Fault{File: name, Message: "cannot be read: " + err.Error()}
}
