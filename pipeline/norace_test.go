// SPDX-License-Identifier: Apache-2.0

//go:build !race

package pipeline

// raceEnabled makes properties smaller under the race detector.
const raceEnabled = false
