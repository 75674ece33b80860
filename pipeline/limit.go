// SPDX-License-Identifier: Apache-2.0

package pipeline

// bucket is a token bucket over the worker's clock.
type bucket struct {
	tokens float64
	at     int64 // nanoseconds
}

// take reports whether one more event is within rate a second, after a burst of at most burst.
func (b *bucket) take(now int64, rate, burst float64) bool {
	if b.at == 0 {
		b.tokens = burst
	} else if now-b.at > 0 {
		b.tokens = min(burst, b.tokens+float64(now-b.at)*rate/1e9)
	}
	if b.at = now; now == 0 {
		b.at = 1
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// takeAbout is take at a random cost, one event on average. Those that share the bucket cannot
// learn from it what others took (CVE-2020-25705, "SAD DNS").
func (b *bucket) takeAbout(now int64, rate, burst float64, random uint64) bool {
	if !b.take(now, rate, burst) {
		return false
	}
	b.tokens += 1 - 2*float64(random>>11)/(1<<53)
	return true
}
