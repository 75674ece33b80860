// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE // fopencookie
#include "dpdk.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_epoll.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_prefetch.h>
#include <rte_spinlock.h>

// DPDK returns a negative error number from some functions, -1 and rte_errno from others.
static int failed(void)
{
	return rte_errno > 0 ? -rte_errno : -1;
}

// Log

#define LOG_LINE 1024

static FILE *log_stream;
static int log_fd = -1;
static __thread char captured[4096];
static __thread size_t captured_len;
static __thread bool log_muted; // what is logged is the answer to a question, and only kept

// log_write sends one message, its level in front, to the Go side, and keeps it for the error of
// the call that this thread is in. It must not wait and must not call Go: workers log too, from
// inside calls declared nocallback.
static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	char line[1 + LOG_LINE];
	size_t n = RTE_MIN(len, (size_t)LOG_LINE);
	size_t keep = RTE_MIN(len, sizeof(captured) - captured_len);
	int level = rte_log_cur_msg_loglevel();

	(void)cookie;
	memcpy(captured + captured_len, text, keep);
	captured_len += keep;

	if (log_muted)
		return len;
	line[0] = '0' + (level < 0 ? 0 : level);
	memcpy(line + 1, text, n);
	send(log_fd, line, 1 + n, MSG_DONTWAIT | MSG_NOSIGNAL); // a full socket loses the line, never a worker's time
	return len;
}

int weir_log_open(int fd)
{
	cookie_io_functions_t io = {.write = log_write};

	log_stream = fopencookie(NULL, "w", io);
	if (log_stream == NULL)
		return -ENOMEM;
	log_fd = fd;
	return rte_openlog_stream(log_stream);
}

void weir_log_close(void)
{
	rte_openlog_stream(NULL);
	fclose(log_stream);
}

void weir_log_begin(void)
{
	captured_len = 0;
}

const char *weir_log_captured(size_t *len)
{
	*len = captured_len;
	return captured;
}

// EAL

int weir_eal_init(int argc, char **argv)
{
	rte_errno = 0;
	return rte_eal_init(argc, argv) < 0 ? failed() : 0;
}

int weir_thread_register(void)
{
	return rte_thread_register() < 0 ? failed() : 0;
}

int weir_pool_create(const char *name, unsigned int n, unsigned int cache, uint16_t data_room, int socket,
	struct rte_mempool **pool)
{
	*pool = rte_pktmbuf_pool_create(name, n, cache, 0, data_room, socket);
	return *pool == NULL ? failed() : 0;
}

// Ports

int weir_port_probe(const char *device)
{
	return rte_dev_probe(device);
}

// weir_port_find returns how many ports the device of that name has; *port is the last of them.
int weir_port_find(const char *device, uint16_t *port)
{
	struct rte_eth_dev_info dev;
	uint16_t p;
	int n = 0;

	RTE_ETH_FOREACH_DEV(p) {
		if (rte_eth_dev_info_get(p, &dev) == 0 && strcmp(rte_dev_name(dev.device), device) == 0) {
			*port = p;
			n++;
		}
	}
	return n;
}

int weir_port_info(uint16_t port, struct weir_port_info *info)
{
	struct rte_eth_dev_info dev;
	int rc = rte_eth_dev_info_get(port, &dev);

	if (rc < 0)
		return rc;
	memset(info, 0, sizeof(*info));
	snprintf(info->driver, sizeof(info->driver), "%s", dev.driver_name);
	info->virtual_device = strcmp(rte_bus_name(rte_dev_bus(dev.device)), "vdev") == 0;
	info->if_index = dev.if_index;
	info->socket = rte_eth_dev_socket_id(port);
	info->max_rx_queues = dev.max_rx_queues;
	info->max_tx_queues = dev.max_tx_queues;
	info->rx_ring = dev.default_rxportconf.ring_size;
	info->tx_ring = dev.default_txportconf.ring_size;
	if (dev.flow_type_rss_offloads & RTE_ETH_RSS_IP) {
		info->rss_dst = (dev.flow_type_rss_offloads & RTE_ETH_RSS_L3_DST_ONLY) != 0;
		info->rss_src = (dev.flow_type_rss_offloads & RTE_ETH_RSS_L3_SRC_ONLY) != 0;
	}
	info->rss_key_size = dev.hash_key_size;
	info->rss_table_size = dev.reta_size;
	return rte_eth_dev_get_mtu(port, &info->mtu);
}

int weir_port_configure(uint16_t port, uint16_t rx_queues, uint16_t tx_queues, uint16_t *rx_descs, uint16_t *tx_descs,
	bool rx_interrupts, bool rss, bool rss_dst, uint8_t *key, uint8_t key_len)
{
	struct rte_eth_dev_info dev;
	struct rte_eth_conf conf;
	int rc = rte_eth_dev_info_get(port, &dev);

	if (rc < 0)
		return rc;
	memset(&conf, 0, sizeof(conf));
	conf.intr_conf.rxq = rx_interrupts;
	if (rss) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf = (dev.flow_type_rss_offloads & RTE_ETH_RSS_IP) |
			(rss_dst ? RTE_ETH_RSS_L3_DST_ONLY : RTE_ETH_RSS_L3_SRC_ONLY);
		conf.rx_adv_conf.rss_conf.rss_key = key;
		conf.rx_adv_conf.rss_conf.rss_key_len = key_len;
	}
	rc = rte_eth_dev_configure(port, rx_queues, tx_queues, &conf);
	if (rc < 0)
		return rc;
	return rte_eth_dev_adjust_nb_rx_tx_desc(port, rx_descs, tx_descs);
}

// weir_port_rss_table repeats table over the device's size entries.
int weir_port_rss_table(uint16_t port, const uint16_t *table, uint16_t n, uint16_t size)
{
	struct rte_eth_rss_reta_entry64 reta[RTE_ETH_RSS_RETA_SIZE_512 / RTE_ETH_RETA_GROUP_SIZE];
	uint16_t i;

	if (size > RTE_ETH_RSS_RETA_SIZE_512)
		return -E2BIG;
	memset(reta, 0, sizeof(reta));
	for (i = 0; i < size; i++) {
		reta[i / RTE_ETH_RETA_GROUP_SIZE].mask |= UINT64_C(1) << (i % RTE_ETH_RETA_GROUP_SIZE);
		reta[i / RTE_ETH_RETA_GROUP_SIZE].reta[i % RTE_ETH_RETA_GROUP_SIZE] = table[i % n];
	}
	return rte_eth_dev_rss_reta_update(port, reta, size);
}

int weir_port_set_mac(uint16_t port, const uint8_t *mac)
{
	struct rte_ether_addr addr;

	memcpy(addr.addr_bytes, mac, sizeof(addr.addr_bytes));
	return rte_eth_dev_default_mac_addr_set(port, &addr);
}

int weir_port_mac(uint16_t port, uint8_t *mac)
{
	struct rte_ether_addr addr;
	int rc = rte_eth_macaddr_get(port, &addr);

	memcpy(mac, addr.addr_bytes, sizeof(addr.addr_bytes));
	return rc;
}

// weir_port_close closes the port and unplugs its device. The device is looked up first: a closed
// port has none.
int weir_port_close(uint16_t port)
{
	struct rte_eth_dev_info dev;
	int rc = rte_eth_dev_info_get(port, &dev);

	if (rc < 0)
		return rc;
	rc = rte_eth_dev_close(port);
	if (rc < 0)
		return rc;
	return rte_dev_remove(dev.device);
}

int weir_link(uint16_t port, uint32_t *mbps)
{
	struct rte_eth_link link;

	if (rte_eth_link_get_nowait(port, &link) < 0)
		return 0;
	*mbps = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
	return link.link_status == RTE_ETH_LINK_UP;
}

int weir_stats(uint16_t port, struct weir_stats *stats)
{
	struct rte_eth_stats s;
	int rc = rte_eth_stats_get(port, &s);

	if (rc < 0)
		return rc;
	stats->rx_packets = s.ipackets;
	stats->tx_packets = s.opackets;
	stats->rx_bytes = s.ibytes;
	stats->tx_bytes = s.obytes;
	stats->rx_missed = s.imissed;
	stats->rx_errors = s.ierrors;
	stats->tx_errors = s.oerrors;
	stats->rx_no_mbuf = s.rx_nombuf;
	return 0;
}

// weir_xstats returns how many there are; more than n: none was written.
int weir_xstats(uint16_t port, struct weir_xstat *xstats, unsigned int n)
{
	RTE_BUILD_BUG_ON(sizeof(struct weir_xstat) != sizeof(struct rte_eth_xstat));
	return rte_eth_xstats_get(port, (struct rte_eth_xstat *)xstats, n);
}

int weir_xstat_name(uint16_t port, uint64_t id, char *name, size_t size)
{
	struct rte_eth_xstat_name n;
	int rc = rte_eth_xstats_get_names_by_id(port, &n, 1, &id);

	if (rc < 0)
		return rc;
	snprintf(name, size, "%s", n.name);
	return 0;
}

// Interrupts

// Drivers switch the interrupts of all queues of a port by one register, and leave the lock to the
// application.
static rte_spinlock_t interrupt_locks[RTE_MAX_ETHPORTS];

static int switch_interrupt(uint16_t port, uint16_t queue, bool on)
{
	int rc;

	rte_spinlock_lock(&interrupt_locks[port]);
	rc = on ? rte_eth_dev_rx_intr_enable(port, queue) : rte_eth_dev_rx_intr_disable(port, queue);
	rte_spinlock_unlock(&interrupt_locks[port]);
	return rc;
}

// weir_port_rx_interrupts tells whether a started port's queues have interrupts: 1, they do and are
// off now; 0, they do and are always on (net_tap: the queue is a descriptor, and a wait for it ends
// when a packet comes).
int weir_port_rx_interrupts(uint16_t port, uint16_t queues)
{
	int always_on = 0, rc = 0;
	uint16_t q;

	log_muted = true;
	for (q = 0; q < queues && rc == 0; q++) {
		if (rte_eth_dev_rx_intr_ctl_q_get_fd(port, q) < 0) {
			rc = -ENOTSUP;
			break;
		}
		rc = switch_interrupt(port, q, true);
		if (rc == 0) {
			switch_interrupt(port, q, false); // mlx5 calls it a failure when no interrupt had come
		} else if (rc == -ENOTSUP) {
			always_on = 1;
			rc = 0;
		}
	}
	log_muted = false;
	return rc < 0 ? rc : !always_on;
}

void weir_rx_interrupts(struct weir_queue *queues, unsigned int n, bool on)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		switch_interrupt(queues[i].port, queues[i].queue, on);
}

// weir_wait waits until an interrupt comes, the time is over, or a signal. rte_epoll_wait alone
// counts milliseconds, which is longer than a worker may sleep; it still reads the events, because
// a driver's must be taken out of their descriptors.
bool weir_wait(int epfd, int64_t nanos)
{
	struct pollfd p = {.fd = epfd, .events = POLLIN};
	struct timespec ts = {.tv_sec = nanos / 1000000000, .tv_nsec = nanos % 1000000000};
	struct rte_epoll_event events[16];

	return ppoll(&p, 1, &ts, NULL) > 0 && rte_epoll_wait(epfd, events, RTE_DIM(events), 0) > 0;
}

// Bursts

// weir_receive reads each mbuf here, while the driver's writes are in cache, so that Go meets plain
// arrays, and prefetches the first line of every packet so that the parser does not wait for it.
void weir_receive(uint16_t port, uint16_t queue, struct weir_rx_burst *burst, uint16_t max)
{
	uint16_t n = rte_eth_rx_burst(port, queue, (struct rte_mbuf **)burst->mbufs, max);
	uint16_t i;

	burst->n = n;
	for (i = 0; i < n; i++) {
		const struct rte_mbuf *m = (const struct rte_mbuf *)burst->mbufs[i];
		char *data = rte_pktmbuf_mtod(m, char *);

		rte_prefetch0(data);
		burst->data[i] = (uintptr_t)data;
		burst->len[i] = m->data_len;
		burst->segs[i] = m->nb_segs;
		burst->pkt_len[i] = m->pkt_len;
	}
}

uint16_t weir_transmit(uint16_t port, uint16_t queue, uintptr_t *mbufs, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, (struct rte_mbuf **)mbufs, n);
}

void weir_free(uintptr_t *mbufs, unsigned int n)
{
	rte_pktmbuf_free_bulk((struct rte_mbuf **)mbufs, n);
}

int weir_alloc(struct rte_mempool *pool, uintptr_t *mbufs, unsigned int n)
{
	return rte_pktmbuf_alloc_bulk(pool, (struct rte_mbuf **)mbufs, n);
}
