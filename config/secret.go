// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
)

// Secret is a password or key. A configuration has the path of its file, never itself, so that it
// is in no text of a generation, no check that is posted, and no fault. In this process the value
// is behind Reveal: printed, logged or encoded in any way, and in whatever it is part of, a Secret
// is <secret>. Secrets with the same content are equal.
type Secret struct {
	id [sha256.Size]byte // of the content, by a key that only this process has; zero: none
}

const secretText = "<secret>"

// maxSecret is the longest that a secret's file may be, in bytes.
const maxSecret = 4 << 10

var secrets = struct {
	key    []byte
	values sync.Map // by id: content that no reflection finds in a Secret
}{key: []byte(rand.Text())}

// ReadSecret reads a secret's file: one line, or any bytes, without the line break at their end.
func ReadSecret(path string) (Secret, error) {
	fd, err := openAt(path)
	if err != nil {
		return Secret{}, fmt.Errorf("secret %s: %w", QuoteName(path), err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	value, err := secretIn(f)
	if err != nil {
		return Secret{}, fmt.Errorf("secret %s: %w", QuoteName(path), err)
	}
	return newSecret(value), nil
}

func secretIn(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("anybody may use it (mode %04o); expected 0600, or 0640", info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	if len(b) == 0 || len(b) > maxSecret {
		return nil, fmt.Errorf("it is empty or longer than %d bytes", maxSecret)
	}
	return b, nil
}

func newSecret(value []byte) Secret {
	mac := hmac.New(sha256.New, secrets.key)
	mac.Write(value)
	s := Secret{[sha256.Size]byte(mac.Sum(nil))}
	secrets.values.LoadOrStore(s.id, value)
	return s
}

// Reveal returns the secret itself, for the one place that needs it. It is not to be modified.
func (s Secret) Reveal() []byte {
	v, _ := secrets.values.Load(s.id)
	b, _ := v.([]byte)
	return b
}

// Format prints <secret> for every verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, secretText) }

func (Secret) String() string                 { return secretText }
func (Secret) GoString() string               { return secretText }
func (Secret) MarshalText() ([]byte, error)   { return []byte(secretText), nil }
func (Secret) MarshalBinary() ([]byte, error) { return []byte(secretText), nil }
func (Secret) MarshalYAML() (any, error)      { return secretText, nil }
func (Secret) LogValue() slog.Value           { return slog.StringValue(secretText) }
