/* The WAN between the regions of a lab: carries IPv4 packets from one to another, late, narrowed and lossy as ordered.
 *
 *     carrier CONTROL SEED PORT=ADDRESS...
 *
 * Every argument but SEED and the addresses is an open descriptor that the starting process has passed on. A PORT gives
 * and takes one packet a read and a write (a TUN interface, or a datagram socket); a packet goes to the port that has
 * its destination. CONTROL is a SOCK_SEQPACKET socket; each message on it is answered by one, and its end ends the
 * carrier. Ports are counted from 0:
 *
 *     set FROM TO DELAY_NS JITTER_NS LOSS BYTES_PER_SECOND QUEUE_BYTES CUT
 *         answers "ok"; LOSS is a share of 2^32, CUT 0 or 1
 *     count
 *         answers a line "FROM TO PACKETS BYTES LOST DROPPED" for each way: what has arrived, what was lost on the way
 *         (by chance, or as it was cut), and what found the queue full
 *
 * Both directions between two ports are ways of their own, and first in is first out on each, whatever the jitter.
 * carrier.py beside this file does the same, more slowly; one suite of tests holds them to it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_PORTS = 16,
    MOST_PACKET = 65536,
    MOST_ANSWER = 32768,
    BURST = 64,           /* packets read from one port before the others have their turn */
    GRAIN_NS = 50 * 1000, /* nothing wakes us more often than that */
    HEADER = 20,          /* of IPv4 */
    DESTINATION = 16,     /* in it */
    TIMER = MOST_PORTS,   /* beside the ports, in epoll's data */
    CONTROL,
};

#define SECOND_NS UINT64_C(1000000000)

struct packet {
    struct packet *next;
    uint64_t arrives_ns;
    size_t size;
    unsigned char content[];
};

struct way {
    uint64_t delay_ns, jitter_ns, loss, bytes_per_second, queue_bytes;
    bool cut;
    uint64_t chance;            /* state of its own, so that nobody else's packets change what this way loses */
    uint64_t free_ns;           /* when the line has sent all that it was given */
    uint64_t last_ns;           /* when the last packet arrives */
    struct packet *first, *last; /* under way, in order */
    uint64_t packets, bytes, lost, dropped;
};

struct port {
    int descriptor;
    uint32_t address; /* in network order */
};

static struct way ways[MOST_PORTS][MOST_PORTS];
static struct port ports[MOST_PORTS];
static int port_count;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* splitmix64; the upper half: 0 to 2^32 - 1. */
static uint64_t draw(struct way *way)
{
    uint64_t z = way->chance += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (z ^ (z >> 31)) >> 32;
}

static void take(struct way *way, const unsigned char *content, size_t size, uint64_t now)
{
    if (way->cut) {
        way->lost++;
        return;
    }
    uint64_t starts = way->free_ns > now ? way->free_ns : now;
    uint64_t waiting_bytes = (uint64_t)((__uint128_t)(starts - now) * way->bytes_per_second / SECOND_NS);
    if (waiting_bytes + size > way->queue_bytes) {
        way->dropped++;
        return;
    }
    way->free_ns = starts + size * SECOND_NS / way->bytes_per_second;
    if (draw(way) < way->loss) { /* on the line: it has taken its time there */
        way->lost++;
        return;
    }
    uint64_t arrives = way->free_ns + way->delay_ns;
    if (way->jitter_ns)
        arrives += (uint64_t)((__uint128_t)draw(way) * way->jitter_ns >> 32);
    if (arrives < way->last_ns)
        arrives = way->last_ns;
    struct packet *packet = malloc(sizeof *packet + size);
    if (!packet)
        fail("no memory for a packet");
    *packet = (struct packet){.arrives_ns = way->last_ns = arrives, .size = size};
    memcpy(packet->content, content, size);
    if (way->first)
        way->last->next = packet;
    else
        way->first = packet;
    way->last = packet;
}

static void deliver(struct way *way, int descriptor, uint64_t now)
{
    while (way->first && way->first->arrives_ns <= now) {
        struct packet *packet = way->first;
        way->first = packet->next;
        if (way->cut) {
            way->lost++;
        } else if (write(descriptor, packet->content, packet->size) < 0) {
            way->dropped++; /* the receiving system has no room for it */
        } else {
            way->packets++;
            way->bytes += packet->size;
        }
        free(packet);
    }
}

/* Delivers what is due; when the next packet is, 0 for never. */
static uint64_t deliver_due(uint64_t now)
{
    uint64_t next = 0;
    for (int from = 0; from < port_count; from++) {
        for (int to = 0; to < port_count; to++) {
            struct way *way = &ways[from][to];
            deliver(way, ports[to].descriptor, now);
            if (way->first && (!next || way->first->arrives_ns < next))
                next = way->first->arrives_ns;
        }
    }
    return next;
}

static void receive(int from)
{
    static unsigned char content[MOST_PACKET];
    for (int turn = 0; turn < BURST; turn++) {
        ssize_t size = read(ports[from].descriptor, content, sizeof content);
        if (size <= 0)
            return;
        if (size < HEADER || content[0] >> 4 != 4)
            continue;
        uint32_t destination;
        memcpy(&destination, content + DESTINATION, sizeof destination);
        for (int to = 0; to < port_count; to++)
            if (to != from && ports[to].address == destination)
                take(&ways[from][to], content, (size_t)size, now_ns());
    }
}

static size_t count(char *answer)
{
    size_t length = 0;
    for (int from = 0; from < port_count; from++) {
        for (int to = 0; to < port_count; to++) {
            struct way *way = &ways[from][to];
            if (from != to)
                length += (size_t)snprintf(answer + length, MOST_ANSWER - length,
                                           "%d %d %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", from, to,
                                           way->packets, way->bytes, way->lost, way->dropped);
        }
    }
    return length;
}

static bool set(const char *order)
{
    unsigned from, to, cut;
    struct way new;
    if (sscanf(order, "set %u %u %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %u", &from, &to,
               &new.delay_ns, &new.jitter_ns, &new.loss, &new.bytes_per_second, &new.queue_bytes, &cut) != 8)
        return false;
    if (from >= (unsigned)port_count || to >= (unsigned)port_count || from == to || !new.bytes_per_second)
        return false;
    struct way *way = &ways[from][to];
    way->delay_ns = new.delay_ns;
    way->jitter_ns = new.jitter_ns;
    way->loss = new.loss;
    way->bytes_per_second = new.bytes_per_second;
    way->queue_bytes = new.queue_bytes;
    way->cut = cut;
    return true;
}

/* False at the end of the orders. */
static bool obey(int control)
{
    char order[256];
    static char answer[MOST_ANSWER];
    ssize_t size = recv(control, order, sizeof order - 1, 0);
    if (size <= 0)
        return size < 0 && errno == EINTR;
    order[size] = 0;
    size_t length;
    if (!strcmp(order, "count"))
        length = count(answer);
    else
        length = (size_t)snprintf(answer, sizeof answer, "%s", set(order) ? "ok" : "no such order");
    return send(control, answer, length, MSG_NOSIGNAL) >= 0;
}

static void watch(int epoll, int descriptor, uint32_t what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event))
        fail("a descriptor that was passed on");
}

static void run(int control)
{
    int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (epoll < 0 || timer < 0)
        fail("epoll, timerfd");
    watch(epoll, control, CONTROL);
    watch(epoll, timer, TIMER);
    for (int at = 0; at < port_count; at++)
        watch(epoll, ports[at].descriptor, (uint32_t)at);
    for (;;) {
        struct epoll_event events[MOST_PORTS + 2];
        int found = epoll_wait(epoll, events, MOST_PORTS + 2, -1);
        for (int at = 0; at < found; at++) {
            uint32_t what = events[at].data.u32;
            if (what == CONTROL) {
                if (!obey(control))
                    return;
            } else if (what != TIMER) {
                receive((int)what);
            }
        }
        uint64_t now = now_ns(), next = deliver_due(now);
        if (next && next < now + GRAIN_NS)
            next = now + GRAIN_NS;
        struct itimerspec alarm = {.it_value = {(time_t)(next / SECOND_NS), (long)(next % SECOND_NS)}};
        if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, NULL)) /* also takes back that it has rung */
            fail("timerfd");
    }
}

int main(int count_of_arguments, char **arguments)
{
    if (count_of_arguments < 3 || count_of_arguments - 3 > MOST_PORTS) {
        fprintf(stderr, "carrier CONTROL SEED PORT=ADDRESS... (at most %d)\n", MOST_PORTS);
        return 2;
    }
    uint64_t seed = strtoull(arguments[2], NULL, 10);
    for (int at = 3; at < count_of_arguments; at++) {
        struct port *port = &ports[port_count++];
        char *address = strchr(arguments[at], '=');
        port->descriptor = atoi(arguments[at]);
        if (!address || inet_pton(AF_INET, address + 1, &port->address) != 1) {
            fprintf(stderr, "carrier: %s: expected PORT=ADDRESS\n", arguments[at]);
            return 2;
        }
    }
    for (int from = 0; from < port_count; from++)
        for (int to = 0; to < port_count; to++)
            ways[from][to] = (struct way){.cut = true,
                                          .bytes_per_second = 1,
                                          .chance = seed * 1000003 + (uint64_t)(from * MOST_PORTS + to)};
    run(atoi(arguments[1]));
    return 0;
}
