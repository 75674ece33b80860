// SPDX-License-Identifier: Apache-2.0

// The C half of the package: DPDK's static inline functions as real ones, and the steps that take
// unions and bit fields, which Go cannot spell. Every int is 0 (or a count) when good, a negative
// error number otherwise.
#ifndef WEIR_DPDK_H
#define WEIR_DPDK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rte_mbuf_core.h>

// What Go reads and writes of an mbuf without calling C.
enum {
	WEIR_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),
	WEIR_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off),
	WEIR_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),
	WEIR_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len),
	WEIR_MBUF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),
	WEIR_HEADROOM = RTE_PKTMBUF_HEADROOM,
	WEIR_MAX_LCORE = RTE_MAX_LCORE,
};

// Addresses are uintptr_t throughout: cgo scans what it takes for Go pointers at ten times the cost
// of the call.

#define WEIR_MAX_BURST 64

struct weir_rx_burst { // RxBurst in Go
	int64_t n;
	uintptr_t mbufs[WEIR_MAX_BURST];
	uintptr_t data[WEIR_MAX_BURST];
	uint16_t len[WEIR_MAX_BURST];
	uint16_t segs[WEIR_MAX_BURST];
	uint32_t pkt_len[WEIR_MAX_BURST];
};

struct weir_port_info {
	char driver[32];
	bool virtual_device; // on the vdev bus
	uint32_t if_index;   // of the kernel interface below it; 0: none
	int socket;          // -1: unknown
	uint16_t mtu;
	uint16_t max_rx_queues, max_tx_queues;
	uint16_t rx_ring, tx_ring; // the driver's preference; 0: none
	bool rss_dst, rss_src;     // hashes IP by destination or by source alone
	uint8_t rss_key_size;      // 0: the driver does not say
	uint16_t rss_table_size;
};

struct weir_queue { // of a port, by its number
	uint16_t port, queue;
};

struct weir_stats { // Stats in Go
	uint64_t rx_packets, tx_packets, rx_bytes, tx_bytes, rx_missed, rx_errors, tx_errors, rx_no_mbuf;
};

struct weir_xstat {
	uint64_t id, value;
};

struct rte_mempool;

int weir_log_open(int fd);
void weir_log_close(void);
void weir_log_begin(void);
const char *weir_log_captured(size_t *len);

int weir_eal_init(int argc, char **argv);
int weir_thread_register(void);

int weir_pool_create(const char *name, unsigned int n, unsigned int cache, uint16_t data_room, int socket,
	struct rte_mempool **pool);

int weir_port_probe(const char *device);
int weir_port_find(const char *device, uint16_t *port);
int weir_port_info(uint16_t port, struct weir_port_info *info);
int weir_port_configure(uint16_t port, uint16_t rx_queues, uint16_t tx_queues, uint16_t *rx_descs, uint16_t *tx_descs,
	bool rx_interrupts, bool rss, bool rss_dst, uint8_t *key, uint8_t key_len);
int weir_port_rss_table(uint16_t port, const uint16_t *table, uint16_t n, uint16_t size);
int weir_port_set_mac(uint16_t port, const uint8_t *mac);
int weir_port_mac(uint16_t port, uint8_t *mac);
int weir_port_rx_interrupts(uint16_t port, uint16_t queues);
int weir_port_close(uint16_t port);
int weir_link(uint16_t port, uint32_t *mbps);
int weir_stats(uint16_t port, struct weir_stats *stats);
int weir_xstats(uint16_t port, struct weir_xstat *xstats, unsigned int n);
int weir_xstat_name(uint16_t port, uint64_t id, char *name, size_t size);

void weir_receive(uint16_t port, uint16_t queue, struct weir_rx_burst *burst, uint16_t max);
void weir_rx_interrupts(struct weir_queue *queues, unsigned int n, bool on);
bool weir_wait(int epfd, int64_t nanos);

uint16_t weir_transmit(uint16_t port, uint16_t queue, uintptr_t *mbufs, uint16_t n);
void weir_free(uintptr_t *mbufs, unsigned int n);
int weir_alloc(struct rte_mempool *pool, uintptr_t *mbufs, unsigned int n);

#endif
