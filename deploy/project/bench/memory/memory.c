// SPDX-License-Identifier: Apache-2.0

// memory measures what memory alone costs for a lookup in a table of sessions: one cache line of a
// bucket, then two of a session, of which the first is written to, in random order, prefetched as
// far ahead of their use as is best. It prints objects in the form of weir bench --json.
//
//	cc -O2 -o memory memory.c && ./memory 65536 1048576

#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { session = 128, bucket = 64, runs = 5, packets = 4000000, ahead = 12 };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static uint64_t state = 88172645463325252ull;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

// measure fills ns with what a packet takes in each run.
static int measure(size_t sessions, double *ns)
{
	size_t rows = sessions + sessions / 4 + 64, buckets = rows * 5 / 8 + 1;
	size_t size = rows * session + buckets * bucket;
	char *table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	uint32_t *order = malloc(sessions * sizeof *order), *place = malloc(sessions * sizeof *place);
	if (table == MAP_FAILED || !order || !place)
		return -1;
	char *index = table + rows * session;
	memset(table, 1, size);
	for (size_t i = 0; i < sessions; i++) {
		order[i] = i;
		place[i] = next() % buckets;
	}
	for (size_t i = sessions - 1; i > 0; i--) {
		size_t j = next() % (i + 1);
		uint32_t t = order[i];
		order[i] = order[j], order[j] = t;
	}
	volatile uint64_t sink = 0;
	for (int run = 0; run < runs; run++) {
		size_t use = 0, match = ahead % sessions, hash = 2 * ahead % sessions;
		uint64_t sum = 0;
		double start = now();
		for (size_t i = 0; i < packets; i++) {
			__builtin_prefetch(index + (size_t)bucket * place[hash]);
			sum += *(uint32_t *)(index + (size_t)bucket * place[match]);
			char *s = table + (size_t)session * order[match];
			__builtin_prefetch(s);
			__builtin_prefetch(s + 64);
			s = table + (size_t)session * order[use];
			sum += *(uint64_t *)s + *(uint64_t *)(s + 64);
			*(uint32_t *)(s + 60) = i;
			if (++use == sessions)
				use = 0;
			if (++match == sessions)
				match = 0;
			if (++hash == sessions)
				hash = 0;
		}
		ns[run] = (now() - start) / packets;
		sink += sum;
	}
	qsort(ns, runs, sizeof *ns, compare);
	munmap(table, size);
	free(order);
	free(place);
	return 0;
}

int main(int argc, char **argv)
{
	cpu_set_t last;
	CPU_ZERO(&last);
	for (int core = CPU_SETSIZE - 1; core >= 0; core--) {
		CPU_SET(core, &last);
		if (sched_setaffinity(0, sizeof last, &last) == 0)
			break;
		CPU_CLR(core, &last);
	}
	printf("[");
	for (int i = 1; i < argc; i++) {
		double ns[runs];
		if (measure(strtoul(argv[i], NULL, 10), ns) != 0) {
			fprintf(stderr, "memory: no room for %s sessions: free memory, or ask for fewer\n", argv[i]);
			return 1;
		}
		printf("%s\n  {\"name\": \"memory\", \"sessions\": %s, \"workers\": 1, \"burst\": 32, \"frame\": 64, \"runs\": %d, \"ns_per_packet\": %.2f, "
		       "\"ns_per_packet_min\": %.2f, \"ns_per_packet_max\": %.2f}",
		       i > 1 ? "," : "", argv[i], runs, ns[runs / 2], ns[0], ns[runs - 1]);
	}
	printf("\n]\n");
	return 0;
}
