// SPDX-License-Identifier: Apache-2.0

// Absence reads the clock in a loop on one core and counts by length how long each turn took, in
// powers of two of nanoseconds: what a loop that does nothing else is kept from, by the kernel, the
// hypervisor and other processes. It is what weir_worker_turn_seconds is held against.
//
//	absence CORE SECONDS

#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	uint64_t turns[64] = {0}, begin, before, end;
	cpu_set_t cpus;
	int i;

	if (argc != 3) {
		fprintf(stderr, "usage: absence CORE SECONDS\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) != 0) {
		perror("sched_setaffinity");
		return 1;
	}
	begin = before = now();
	end = begin + strtoull(argv[2], NULL, 10) * 1000000000;
	while (before < end) {
		uint64_t at = now();

		turns[at == before ? 0 : 64 - __builtin_clzll(at - before)]++;
		before = at;
	}
	for (i = 0; i < 64; i++)
		printf("%.9g %llu\n", (double)(1ULL << i) / 1e9, (unsigned long long)turns[i]);
	return 0;
}
