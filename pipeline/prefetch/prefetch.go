// SPDX-License-Identifier: Apache-2.0

// Package prefetch asks the processor to load cache lines that will be read soon. It changes no
// result: on processors without an implementation here the functions do nothing.
//
// A prefetch of one address costs a Go call, which is as much as a cache hit; so these take a whole
// burst.
package prefetch
