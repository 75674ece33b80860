// SPDX-License-Identifier: Apache-2.0

package link

import (
	"log/slog"
	"os"

	"weir/config"
)

// NewLogger writes to standard error as the configuration says.
func NewLogger(c config.Log) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(c.Level)) // config has checked it; else info
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
