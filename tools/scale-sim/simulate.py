#!/usr/bin/env python3
"""What many gateways side by side come to: 1,000 partners, 100,000 quotes a second.

    tools/scale-sim/simulate.py                        prints the tables
    tools/scale-sim/simulate.py --write docs/scale.md  puts them between the page's markers
    tools/scale-sim/simulate.py --check docs/scale.md  says whether the page holds what comes out now

One seed, no clock, no network, standard library alone: the same output everywhere. Queues are simulated event by event and
held against formulas; losses of a part are a fluid in steps of 10 ms. It is a model of the gateway and not the gateway: what
it takes from measurements, and what it supposes, is said in PARAMETERS.
"""

import argparse
import heapq
import math
import pathlib
import random
import sys
from typing import NamedTuple

SEED = 20261129


class Parameter(NamedTuple):
    """A value that the results hang on, and where it is from."""

    value: float
    unit: str
    source: str


PARTNER_COUNT = 1_000
MEASURED_LEDGER = ((1, 946, 0.98), (64, 11_983, 5.15), (256, 16_957, 14.44))  # callers, pairs a second, p50 in ms

PARAMETERS = {
    "rate": Parameter(100_000, "quotes/s at the peak", "choice: what this page asks about"),
    "skew": Parameter(1.0, "exponent of Zipf's law over 1,000 partners", "assumption"),
    "peak_to_mean": Parameter(3, "times", "assumption: a day's peak against its mean"),
    "plan_ledger": Parameter(0.6, "of what a ledger can do is planned for", "choice: room for a failover's backlog"),
    "plan_cpu": Parameter(0.6, "of a node's cores are planned for", "choice"),
    "plan_device": Parameter(0.7, "of what devices can do is planned for", "choice"),
    "cpu_us": Parameter(700, "µs of CPU for a quote", "docs/performance.md: above what it takes under load, below the 952 at a slow token's pace, where a core has time"),
    "cores": Parameter(8, "cores of a node", "choice"),
    "ledger_pairs": Parameter(17_366, "pairs/s at the most", "docs/performance.md, PostgreSQL, 3 gateways, 256 callers, 2 cores for all"),
    "ledger_sync_ms": Parameter(2.0, "ms more for each batch", "assumption: a disk's flush, a synchronous standby in another zone and two round trips; what was measured is one machine whose disk answers from its cache"),
    "far_standby_ms": Parameter(20, "ms instead, where the standby is in another region", "assumption"),
    "batch_max": Parameter(512, "operations of a gateway in a batch", "docs/config.md, `ledger.batch_max`"),
    "queue_max": Parameter(256, "quotes that may wait at a device of a gateway", "docs/config.md, `queue_max`; one caller gets half of the places"),
    "quote_kb": Parameter(1.81, "kB of ledger for a quote", "docs/performance.md: 18.1 GB for 10,000,000, with SQLite"),
    "keep_days": Parameter(30, "days a quote is kept", "docs/config.md, `ledger.keep_days`; records of production stay for ever unless `audit.keep_days` says otherwise"),
    "volume_tb": Parameter(16, "TB on one database volume", "assumption"),
    "hsm_per_s": Parameter(833, "RSA-2048/s of one HSM", "AWS CloudHSM User Guide, *Performance*: 5,000/s for 6; not run"),
    "hsm_3072": Parameter(3.87, "times slower with RSA-3072", "docs/performance.md: SoftHSM, 4,349/s against 1,123/s; assumed of HSMs"),
    "hsm_network_ms": Parameter(1.0, "ms to an HSM and back", "assumption"),
    "kms_quota": Parameter(1_000, "RSA requests/s of an account and region", "AWS KMS Developer Guide, *Request quotas*; can be raised; check"),
    "kms_reserve": Parameter(0.1, "of the quota in reserve", "docs/kms.md, the share of the quota"),
    "kms_ms": Parameter(20, "ms for a signature, half of it varying", "assumption, as the emulator's in docs/kms.md"),
    "regions": Parameter(3, "regions", "choice"),
    "lost_replica_s": Parameter(10, "s until callers leave a host that is gone", "assumption: the balancer's or the client's keep-alive"),
    "lost_hsm_s": Parameter(2, "s a call hangs at an HSM that is gone", "docs/config.md, `call_timeout_ms`; then another session stands in"),
    "lost_hsms_s": Parameter(300, "s until HSMs that are all gone answer again", "docs/hsm.md: a report of five minutes of a network HSM"),
    "lost_primary_s": Parameter(40, "s until a standby is primary", "assumption: Patroni's defaults, `ttl` 30 s and `loop_wait` 10 s"),
    "lost_region_s": Parameter(100, "s until another region has taken over", "assumption: the same and 60 s for names and balancers"),
    "patience_s": Parameter(30, "s a caller goes on asking for the same quote", "assumption; a quote may live 900 s"),
    "kms_2048_usd": Parameter(0.03, "USD for 10,000 requests, RSA-2048", "assumption, as of mid-2026, us-east-1, list price; check"),
    "kms_3072_usd": Parameter(0.15, "USD for 10,000 requests, other RSA", "assumption, as of mid-2026, us-east-1, list price; check"),
    "kms_key_usd": Parameter(1.0, "USD a month for a key", "AWS KMS pricing page, as of mid-2026; check"),
    "hsm_usd": Parameter(1.60, "USD an hour for an HSM", "assumption, AWS CloudHSM, as of mid-2026; check"),
    "node_usd": Parameter(0.34, "USD an hour for a node of 8 cores", "assumption; check"),
    "database_usd": Parameter(4.00, "USD an hour for a database host; two for each ledger", "assumption; check"),
    "disk_usd": Parameter(0.12, "USD a month for a GB of database disk, on both hosts", "assumption; check"),
}
# What the pages must go on saying for the parameters above to stand.
QUOTED = {
    "docs/performance.md": (
        "| 1 | 1 | 946 |", "| 0.98 ms |", "| 1 | 64 | 11983 |", "| 5.15 ms |", "| 1 | 256 | 16957 |", "| 14.44 ms |", "| 3 | 256 | 17366 |",
        "| traces of 1 % | 570, 640 |", "| 10,000,000 | 18.4 GB | 18.1 GB |", "RSA-2048, 2 sessions | 4349/s |", "RSA-3072, 2 sessions | 1123/s |",
    ),
    "docs/config.md": ("committed together at most. A quarter as many refusals join them. | 512 |", "| `keep_days` | How many days after its expiry a quote is forgotten; its number stays taken. Held ones are kept. | 30 |",
                       "| `call_timeout_ms` | How long one call into the module may take before its session counts as stuck and another stands in for it. | 2000 |"),
    "docs/kms.md": ("a tenth in reserve", "takes 20 ms"),
    "docs/hsm.md": ("5 minutes without an answer",),
}
P = {name: parameter.value for name, parameter in PARAMETERS.items()}
HOURS_A_MONTH = 730
SIMULATED_S, WARM = 2.0, 0.25


def shares(skew=None):
    """How much of all quotes each partner sends, the greatest first."""
    weights = [1 / rank ** (skew or P["skew"]) for rank in range(1, PARTNER_COUNT + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


# The ledger: one batch after another, each of all that waits. A batch of n operations takes a + b * n.


def fitted():
    """a and b in seconds, by least squares from closed loops: N callers, half of whom are in the batch that runs."""
    points = [(max(1, callers / 2), max(1, callers / 2) / (2 * pairs)) for callers, pairs, _ in MEASURED_LEDGER]
    count = len(points)
    mean_n, mean_t = math.fsum(n for n, _ in points) / count, math.fsum(t for _, t in points) / count
    b = math.fsum((n - mean_n) * (t - mean_t) for n, t in points) / math.fsum((n - mean_n) ** 2 for n, _ in points)
    return mean_t - b * mean_n, b


FIT_A, FIT_B = fitted()
# Several gateways together came to less than the fit says of one: the less counts.
BATCH_B = max(FIT_B, 1 / (2 * P["ledger_pairs"]))
BATCH_A = FIT_A + P["ledger_sync_ms"] / 1e3


def ledger_capacity(gateways, begins=BATCH_A):
    """Pairs a second that a ledger can do for so many gateways."""
    largest = P["batch_max"] * gateways
    return largest / (2 * (begins + BATCH_B * largest))


def closed_loop(callers, seconds=4.0):
    """So many callers who reserve, commit and begin again at once: pairs a second and the median pair, in ms."""
    now, pairs, took = 0.0, 0, []
    everyone = [(0.0, True)] * callers
    batch, waiting = everyone[: callers // 2], everyone[callers // 2 :]
    while now < seconds:
        if not batch:
            batch, waiting = waiting, []
        now += FIT_A + FIT_B * len(batch)
        answered = []
        for began, is_reserve in batch:
            if is_reserve:
                answered.append((began, False))
            else:
                pairs += 1
                took.append(now - began)
                answered.append((now, True))
        # Who is answered asks again while the next batch runs already.
        batch, waiting = waiting, answered
    return pairs / now, percentile(took, 0.5) * 1e3


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


class Servers:
    """Some servers with one line in the order of arrival; arrivals must be given in that order."""

    def __init__(self, count):
        self.free = [0.0] * count
        self.busy = 0.0

    def serve(self, now, service):
        """When an order that comes now is done."""
        begins = max(now, heapq.heappop(self.free))
        heapq.heappush(self.free, begins + service)
        self.busy += service
        return begins + service


class Shard(NamedTuple):
    """Some partners with a ledger, gateways and devices of their own."""

    partners: list  # (rank, quotes a second)
    rate: float
    gateways: int
    hsms: int


def sharded(rate=None, skew=None, extra=0):
    """The partners spread over as few ledgers as the plan allows, the largest first, each to the emptiest."""
    rates = [rate_of * (rate or P["rate"]) for rate_of in shares(skew)]
    planned = ledger_capacity(3) * P["plan_ledger"]
    count = max(1, math.ceil(math.fsum(rates) / planned)) + extra
    bins = [(0.0, at, []) for at in range(count)]
    heapq.heapify(bins)
    for rank, of_partner in enumerate(rates, 1):
        load, at, partners = heapq.heappop(bins)
        partners.append((rank, of_partner))
        heapq.heappush(bins, (load + of_partner, at, partners))
    node = P["cores"] / (P["cpu_us"] / 1e6) * P["plan_cpu"]
    made = []
    for load, _, partners in sorted(bins, key=lambda entry: entry[1]):
        hsms = math.ceil(load / (P["hsm_per_s"] * P["plan_device"])) + 1
        made.append(Shard(partners, load, math.ceil(load / node) + 1, hsms))
    return sorted(made, key=lambda shard: -shard.rate)


def accounts(partners):
    """KMS accounts and regions for these partners: how many take several partners, and what the others must ask for."""
    planned = P["kms_quota"] * (1 - P["kms_reserve"]) * P["plan_device"]
    shared, raised = [], []
    for _, rate in partners:
        if rate > planned:
            raised.append(rate / ((1 - P["kms_reserve"]) * P["plan_device"]))
            continue
        for at, load in enumerate(shared):
            if load + rate <= planned:
                shared[at] += rate
                break
        else:
            shared.append(rate)
    return shared, raised


def simulate(shard, kind, seed, factor=1.0, seconds=SIMULATED_S):
    """One shard, event by event. Tells latencies, how full each part was and what was done of what came."""
    rng = random.Random(seed)
    rate = shard.rate * factor
    cores = [Servers(int(P["cores"])) for _ in range(shard.gateways)]
    of_account, paces = {}, []
    if kind == "kms":
        planned = P["kms_quota"] * (1 - P["kms_reserve"]) * P["plan_device"]
        loads = []
        for rank, of_partner in shard.partners:
            fits = [at for at, load in enumerate(loads) if load + of_partner <= planned]
            at = fits[0] if fits else len(loads)
            if not fits:
                loads.append(0.0)
            loads[at] += of_partner
            of_account[rank] = at
        # What an account may be asked: the default quota, or what was asked for; each gateway has its part of it.
        for load in loads:
            quota = max(P["kms_quota"], load / ((1 - P["kms_reserve"]) * P["plan_device"]))
            paces.append(quota * (1 - P["kms_reserve"]) / shard.gateways)
    pools = {}
    hsms = Servers(shard.hsms)
    cumulative, total = [], 0.0
    for rank, of_partner in shard.partners:
        total += of_partner
        cumulative.append(total)
    ranks = [rank for rank, _ in shard.partners]
    picked = rng.choices(ranks, cum_weights=cumulative, k=int(rate * seconds * 1.1) + 100)
    events, order, at = [], 0, 0.0
    for rank in picked:
        at -= math.log(1 - rng.random()) / rate
        if at >= seconds:
            break
        gateway = int(rng.random() * shard.gateways)
        done = cores[gateway].serve(at, P["cpu_us"] / 1e6)
        events.append((done, order, 0, (at, rank, gateway)))
        order += 1
    offered = order
    heapq.heapify(events)
    largest = int(P["batch_max"]) * shard.gateways
    waiting, running, batches, operations = [], False, 0, 0
    took, of_rank = [], {}
    second_half = {"came": sum(1 for _, _, _, (came, _, _) in events if came >= seconds / 2), "done": 0}

    while events:
        now, _, what, quote = heapq.heappop(events)
        if what == 2:
            running = False
            for is_reserve, one in quote:
                if is_reserve:
                    began, rank, gateway = one
                    if kind == "hsm":
                        signed = hsms.serve(now, 1 / P["hsm_per_s"]) + P["hsm_network_ms"] / 1e3
                    else:
                        account = of_account[rank]
                        pace = pools.setdefault((account, gateway), Servers(1))
                        turn = pace.serve(now, 1 / paces[account]) - 1 / paces[account]
                        half = P["kms_ms"] / 2e3
                        signed = turn + half - half * math.log(1 - rng.random())
                    order += 1
                    heapq.heappush(events, (signed, order, 1, one))
                else:
                    began, rank, _ = one
                    if seconds / 2 <= now < seconds:
                        second_half["done"] += 1
                    if began >= WARM * seconds:
                        took.append(now - began)
                        of_rank.setdefault(rank, []).append(now - began)
        else:
            waiting.append((what == 0, quote))
        if not running and waiting:
            batch, waiting = waiting[:largest], waiting[largest:]
            length = BATCH_A + BATCH_B * len(batch)
            running = True
            order += 1
            batches += 1
            operations += len(batch)
            heapq.heappush(events, (now + length, order, 2, batch))
    return {
        "offered": offered,
        "took": took,
        "of_rank": of_rank,
        "batch": operations / batches,
        "ledger": offered / seconds / ledger_capacity(shard.gateways),
        "cpu": math.fsum(gateway.busy for gateway in cores) / (seconds * P["cores"] * shard.gateways),
        "device": hsms.busy / (seconds * shard.hsms),
        "kept_up": second_half["done"] / second_half["came"],
    }


# Formulas to hold the simulation against.


def erlang_c_wait(rate, service, servers):
    """The mean wait of M/M/k."""
    load = rate * service
    term, below = 1.0, 1.0
    for k in range(1, servers):
        term *= load / k
        below += term
    last = term * load / servers * servers / (servers - load)
    return last / (below + last) * service / (servers - load)


def deterministic_wait(rate, service, servers):
    """The mean wait of M/D/k, by Cosmetatos' approximation; exact for one server."""
    fill = rate * service / servers
    correction = 1 + (1 - fill) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * fill * servers)
    return erlang_c_wait(rate, service, servers) * correction / 2


def simulated_wait(rate, service, servers, is_fixed, count, rng):
    line, at, waited = Servers(servers), 0.0, 0.0
    for _ in range(count):
        at -= math.log(1 - rng.random()) / rate
        length = service if is_fixed else -service * math.log(1 - rng.random())
        waited += line.serve(at, length) - length - at
    return waited / count


def open_batch(rate, seconds, rng):
    """The mean batch, operation by operation, where operations come at random."""
    now, batches, operations, waiting = 0.0, 0, 0, 0
    coming = -math.log(1 - rng.random()) / rate
    while now < seconds:
        while coming <= now:
            waiting += 1
            coming -= math.log(1 - rng.random()) / rate
        if not waiting:
            now = coming
            continue
        batches, operations = batches + 1, operations + waiting
        now += BATCH_A + BATCH_B * waiting
        waiting = 0
    return operations / batches


# Losses: what comes, what can be done, what waits; a caller asks again until it has its quote or gives up.


def lost(rate, full, during, lasts, after, horizon=600.0, step=0.01):
    """A shard of `full` capacity that has `during` for `lasts` seconds and `after` from then on."""
    waiting, at, done, given_up, peak, drained = [], 0.0, 0.0, 0.0, 0.0, None
    queued, first = 0.0, 0
    while at < horizon:
        capacity = during if at < lasts else after
        waiting.append([at, rate * step])
        queued += rate * step
        room = capacity * step
        while first < len(waiting) and (room > 1e-9 or at - waiting[first][0] > P["patience_s"]):
            came, count = waiting[first]
            if at - came > P["patience_s"]:
                given_up, queued, first = given_up + count, queued - count, first + 1
                continue
            taken = min(room, count)
            room, queued, done = room - taken, queued - taken, done + taken
            waiting[first][1] -= taken
            if waiting[first][1] <= 1e-9:
                first += 1
        peak = max(peak, queued)
        if at >= lasts and queued <= rate * step * 1.01 and drained is None:
            drained = at - lasts
        at += step
    return {"peak": peak, "drained": drained, "given_up": given_up, "goodput": done / (rate * horizon)}


def number(value, digits=0):
    return f"{value:,.{digits}f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def section_parameters():
    shown = [(f"`{name}`", f"{entry.value:,g}", entry.unit, entry.source) for name, entry in PARAMETERS.items()]
    return "### Parameters\n\n" + table(("name", "value", "what", "from"), shown)


def section_validation():
    rng, rows, worst = random.Random(SEED), [], 0.0
    for name, servers, fill, is_fixed in (
        ("M/M/k", 8, 0.8, False), ("M/M/k", 24, 0.9, False), ("M/D/k", 1, 0.7, True), ("M/D/k", 18, 0.9, True),
    ):
        service = 1 / P["hsm_per_s"]
        rate = fill * servers / service
        formula = (deterministic_wait if is_fixed else erlang_c_wait)(rate, service, servers)
        simulated = simulated_wait(rate, service, servers, is_fixed, 400_000, rng)
        off = simulated / formula - 1
        worst = max(worst, abs(off))
        rows.append((f"{name}, k = {servers}, {fill:.0%} full: mean wait", f"{formula * 1e6:,.1f} µs", f"{simulated * 1e6:,.1f} µs", f"{off:+.1%}"))
    operations = 2 * P["rate"] * shares()[0]
    formula = operations * BATCH_A / (1 - operations * BATCH_B)
    simulated = open_batch(operations, 40, rng)
    worst = max(worst, abs(simulated / formula - 1))
    rows.append(("ledger, the largest partner's operations at random: mean batch", number(formula), number(simulated), f"{simulated / formula - 1:+.1%}"))
    measured = []
    for callers, pairs, p50 in MEASURED_LEDGER:
        got, median = closed_loop(callers)
        worst = max(worst, abs(got / pairs - 1))
        measured.append((f"{callers}", number(pairs), number(got), f"{got / pairs - 1:+.1%}", f"{p50:.2f} ms", f"{median:.2f} ms"))
    if worst > 0.10:
        sys.exit(f"simulate.py: the simulation is {worst:.1%} off a formula or a measurement; see validation")
    return "\n\n".join((
        "### The simulation against formulas and measurements",
        table(("queue", "formula", "simulated", "off"), rows),
        f"A batch of n operations takes {FIT_A * 1e3:.2f} ms + n · {FIT_B * 1e6:.1f} µs, fitted to the rows of "
        "docs/performance.md for one gateway. The medians were not fitted:",
        table(("callers, closed loop", "pairs/s measured", "simulated", "off", "p50 measured", "simulated"), measured),
    ))


def section_one():
    slower = P["hsm_3072"]
    rows = [
        ("AWS KMS, one account and region at the default quota, a tenth in reserve", P["kms_quota"] * (1 - P["kms_reserve"])),
        ("one HSM, RSA-3072", P["hsm_per_s"] / slower),
        ("one HSM, RSA-2048", P["hsm_per_s"]),
        ("six HSMs, RSA-2048", 6 * P["hsm_per_s"]),
        (f"CPU of one node, {P['cores']:.0f} cores", P["cores"] / (P["cpu_us"] / 1e6)),
        ("PostgreSQL ledger, one gateway", ledger_capacity(1)),
        ("PostgreSQL ledger, three gateways", ledger_capacity(3)),
        ("PostgreSQL ledger, three gateways, its synchronous standby in another region", ledger_capacity(3, FIT_A + P["far_standby_ms"] / 1e3)),
    ]
    rows.sort(key=lambda row: row[1])
    return "### What one of each can do\n\n" + table(("bound", "quotes/s at the most"), [(name, number(value)) for name, value in rows])


def section_fleet():
    rows = []
    for rate in (1_000, 10_000, 50_000, 100_000, 200_000):
        fleet = sharded(rate)
        shared, raised = map(lambda parts: [entry for part in parts for entry in part], zip(*(accounts(shard.partners) for shard in fleet)))
        small = sum(math.ceil(shard.rate * P["hsm_3072"] / (P["hsm_per_s"] * P["plan_device"])) + 1 for shard in fleet)
        rows.append((
            number(rate), number(len(fleet)), number(sum(shard.gateways for shard in fleet)), number(sum(shard.hsms for shard in fleet)),
            number(small), number(len(shared)), f"{len(raised)}, up to {number(max(raised))}/s" if raised else "0",
            number(rate * shares()[0]), f"{fleet[0].rate / ledger_capacity(fleet[0].gateways):.0%}",
        ))
    head = ("quotes/s", "ledgers", "gateways", "HSMs, RSA-2048", "HSMs, RSA-3072", "or: KMS accounts × regions at the default quota",
            "and partners that need a raised one", "largest partner, quotes/s", "the fullest ledger")
    return "### How much of each\n\n" + table(head, rows)


def run_fleet(kind):
    fleet = sharded()
    return fleet, [simulate(shard, kind, SEED + at) for at, shard in enumerate(fleet)]


def section_queues():
    rows, under_way = [], []
    for kind, name in (("hsm", "HSMs"), ("kms", "KMS")):
        fleet, results = run_fleet(kind)
        everything = [entry for result in results for entry in result["took"]]
        parts = [("all ledgers", everything, results), ("the largest partner's", results[0]["took"], results[:1]),
                 ("another ledger", results[-1]["took"], results[-1:])]
        for which, took, of in parts:
            count = len(of)
            rows.append((
                name, which, number(sum(result["offered"] for result in of) / SIMULATED_S),
                f"{percentile(took, 0.5) * 1e3:.1f} ms", f"{percentile(took, 0.99) * 1e3:.1f} ms",
                f"{sum(result['cpu'] for result in of) / count:.0%}",
                f"{sum(result['device'] for result in of) / count:.0%}" if kind == "hsm" else f"{P['plan_device']:.0%} at the most",
                f"{sum(result['ledger'] for result in of) / count:.0%}", f"{sum(result['batch'] for result in of) / count:.0f}",
            ))
        mean_s = math.fsum(results[0]["took"]) / len(results[0]["took"])
        under_way.append(f"{fleet[0].rate / fleet[0].gateways * mean_s:.0f} with {name}")
        small = [entry for result in results for rank, took in result["of_rank"].items() if rank > 100 for entry in took]
        rows.append((name, "partners 101 to 1,000, wherever", number(len(small) / (SIMULATED_S * (1 - WARM))),
                     f"{percentile(small, 0.5) * 1e3:.1f} ms", f"{percentile(small, 0.99) * 1e3:.1f} ms", "", "", "", ""))
    head = ("devices", "where", "quotes/s", "p50", "p99", "CPU", "devices", "of what the ledger can do", "mean batch")
    intro = (f"Event by event, {SIMULATED_S:.0f} s of which the first quarter is not counted. What a ledger has left is in its batches: "
             "it commits whatever waits, and a batch may grow to 512 operations for each gateway.")
    places = (f"At each of its {fleet[0].gateways} gateways the largest partner has, by Little's law, {under_way[0]} or {under_way[1]} calls under way. With the "
              f"default `queue_max` of {P['queue_max']:.0f} one caller gets some {P['queue_max'] / 2:.0f} places: it must be raised there, or the partner must call under several names.")
    return "### At 100,000 quotes a second\n\n" + intro + "\n\n" + table(head, rows) + "\n\n" + places


def breaking():
    """Each bound of the fleet for 100,000 quotes a second, and the rate of the whole at which it is reached."""
    fleet, rate = sharded(), P["rate"]
    bounds = [
        ("the largest partner's ledger", min(rate * ledger_capacity(shard.gateways) / shard.rate for shard in fleet[:1])),
        ("any other ledger", min(rate * ledger_capacity(shard.gateways) / shard.rate for shard in fleet[1:])),
        ("HSMs of a ledger, all there", min(rate * shard.hsms * P["hsm_per_s"] / shard.rate for shard in fleet)),
        ("HSMs of a ledger, one lost", min(rate * (shard.hsms - 1) * P["hsm_per_s"] / shard.rate for shard in fleet)),
        ("CPU of a ledger's gateways, all there", min(rate * shard.gateways * P["cores"] / (P["cpu_us"] / 1e6) / shard.rate for shard in fleet)),
        ("CPU of a ledger's gateways, one lost", min(rate * (shard.gateways - 1) * P["cores"] / (P["cpu_us"] / 1e6) / shard.rate for shard in fleet)),
        ("a KMS account's share, in place of HSMs", rate / P["plan_device"]),
    ]
    a_day = rate / P["peak_to_mean"] * 86_400 * P["quote_kb"] / 1e9  # TB
    fullest = fleet[0].rate / rate
    bounds.append((f"the disk of the largest partner's ledger, {P['volume_tb']:.0f} TB, {P['keep_days']:.0f} days",
                   rate * P["volume_tb"] / (a_day * fullest * P["keep_days"])))
    return sorted(bounds, key=lambda bound: bound[1])


def section_breaks():
    bounds = breaking()
    rows = [(f"{at}", name, number(value)) for at, (name, value) in enumerate(bounds, 1)]
    fleet = sharded()
    a_day = fleet[0].rate / P["peak_to_mean"] * 86_400 * P["quote_kb"] / 1e9
    swept = []
    edge = ledger_capacity(fleet[0].gateways) / fleet[0].rate
    for factor in (0.8, 0.95, 1.05, 1.2):
        result = simulate(fleet[0], "hsm", SEED, factor=factor * edge, seconds=3.0)
        swept.append((f"{factor:.2f}", number(P["rate"] * factor * edge), f"{min(1.0, result['kept_up']):.0%}", f"{result['batch']:.0f}",
                      f"{percentile(result['took'], 0.5) * 1e3:.0f} ms", f"{percentile(result['took'], 0.99) * 1e3:.0f} ms"))
    skews = []
    for skew in (0.8, 1.0, 1.2):
        head = shares(skew)[0]
        skews.append((f"{skew:.1f}", f"{head:.1%}", number(ledger_capacity(4) / head), number(P["kms_quota"] * (1 - P["kms_reserve"]) / head)))
    return "\n\n".join((
        "### Where it breaks first",
        "The fleet for 100,000 quotes a second, as more and more comes; the rate of the whole at which a part is full:",
        table(("", "bound", "quotes/s of the whole"), rows),
        f"The largest partner's ledger fills {P['volume_tb']:.0f} TB in {P['volume_tb'] / a_day:.0f} days of quotes at {number(P['rate'])} a second.",
        "The largest partner's ledger, event by event for 3 s, around the rate at which the formula says that it is full. Beyond it what waits "
        "grows for as long as it lasts; the gateway then refuses what would come too late:",
        table(("of the ledger's bound", "quotes/s of the whole", "done, of what came meanwhile", "mean batch", "p50", "p99"), swept),
        "More ledgers do not help the largest partner. What the skew makes of that, with four gateways on its ledger, or one KMS account "
        "at the default quota for its key:",
        table(("skew", "the largest partner's share", "quotes/s of the whole at which its ledger is full", "at which its KMS account is"), skews),
    ))


def section_losses():
    fleet = sharded()
    shard, rate = fleet[-1], fleet[-1].rate
    node, hsm = P["cores"] / (P["cpu_us"] / 1e6), P["hsm_per_s"]
    full = min(ledger_capacity(shard.gateways), shard.gateways * node, shard.hsms * hsm)
    without_node = min(ledger_capacity(shard.gateways), (shard.gateways - 1) * node, shard.hsms * hsm)
    without_hsm = min(ledger_capacity(shard.gateways), shard.gateways * node, (shard.hsms - 1) * hsm)
    share = rate / P["rate"]
    of_region = math.ceil(len(fleet) / P["regions"])
    region = math.fsum(entry.rate for entry in fleet[:of_region]) / P["rate"]
    region_rate = math.fsum(entry.rate for entry in fleet[:of_region])
    region_full = math.fsum(min(ledger_capacity(e.gateways), e.gateways * node, e.hsms * hsm) for e in fleet[:of_region])
    rows = []
    for name, who, hit, offered, before, during, lasts, after in (
        ("one gateway's host", f"`UNAVAILABLE` from that host, 1 call in {shard.gateways} of its ledger", share / shard.gateways,
         rate, full, rate * (1 - 1 / shard.gateways), P["lost_replica_s"], without_node),
        (f"one HSM of {shard.hsms}", f"nobody; 1 order in {shard.hsms} waits", 0.0,
         rate, full, min(without_hsm, rate * (1 - 1 / shard.hsms)), P["lost_hsm_s"], without_hsm),
        ("all HSMs of a ledger, where its keys lie on no others", "`SIGNER_UNAVAILABLE`, all of its partners", share, rate, full, 0.0, P["lost_hsms_s"], full),
        ("a PostgreSQL primary", "`LEDGER_UNAVAILABLE`, all of its partners", share, rate, full, 0.0, P["lost_primary_s"], full),
        ("the region with the largest partner", f"`LEDGER_UNAVAILABLE` or no answer, {of_region} ledgers of {len(fleet)}", region, region_rate, region_full, 0.0, P["lost_region_s"], region_full),
    ):
        came = lost(offered, before, during, lasts, after)
        drained = "never" if came["drained"] is None else f"{came['drained']:.1f} s"
        whole = 1 - (1 - came["goodput"]) * offered / P["rate"]
        rows.append((name, who, f"{hit:.1%}", f"{lasts:.0f} s", number(came["peak"]), drained, number(came["given_up"]),
                     f"{came['goodput']:.1%}", f"{whole:.1%}"))
    head = ("lost", "refused, and to whom", "of all calls", "for", "most that wait", "drained after", "given up", "goodput of what was hit, ten minutes", "of the whole")
    check = rate * 10 / (full - rate)
    simulated = lost(rate, full, 0.0, 10, full)["drained"]
    return "\n\n".join((
        "### When a part is lost",
        f"At the peak, of a ledger that gets {number(rate)} quotes a second and can do {number(full)}. Callers ask again for the same quote for "
        f"{P['patience_s']:.0f} s.",
        table(head, rows),
        f"Held against a formula: after 10 s without anything, the backlog is drained after 10 s · rate / (capacity − rate) = {check:.1f} s; "
        f"the fluid says {simulated:.1f} s.",
    ))


def section_cost():
    fleet, rows = sharded(), []
    mean = P["rate"] / P["peak_to_mean"]
    quotes = mean * HOURS_A_MONTH * 3_600
    nodes = sum(shard.gateways for shard in fleet) * P["node_usd"] * HOURS_A_MONTH
    databases = 2 * len(fleet) * P["database_usd"] * HOURS_A_MONTH
    stored_gb = mean * 86_400 * P["keep_days"] * P["quote_kb"] / 1e6
    disks = 2 * stored_gb * P["disk_usd"]
    keys = 2 * PARTNER_COUNT * P["kms_key_usd"]
    big = [sum(math.ceil(s.rate * slow / (P["hsm_per_s"] * P["plan_device"])) + 1 for s in fleet) for slow in (1, P["hsm_3072"])]
    above = [shard_rate for shard in fleet for _, shard_rate in shard.partners
             if shard_rate > P["kms_quota"] * (1 - P["kms_reserve"]) * P["plan_device"]]
    head_hsms = math.ceil(math.fsum(above) / (P["hsm_per_s"] * P["plan_device"])) + len(fleet)
    tail = 1 - math.fsum(above) / P["rate"]
    for name, devices in (
        ("KMS, RSA-2048", quotes / 1e4 * P["kms_2048_usd"] + keys),
        ("KMS, RSA-3072", quotes / 1e4 * P["kms_3072_usd"] + keys),
        (f"{big[0]} HSMs, RSA-2048", big[0] * P["hsm_usd"] * HOURS_A_MONTH),
        (f"{big[1]} HSMs, RSA-3072", big[1] * P["hsm_usd"] * HOURS_A_MONTH),
        (f"{head_hsms} HSMs for the {len(above)} largest partners, KMS at default quotas for the others, RSA-2048",
         head_hsms * P["hsm_usd"] * HOURS_A_MONTH + tail * quotes / 1e4 * P["kms_2048_usd"] + keys),
    ):
        total = devices + nodes + databases + disks
        rows.append((name, number(devices), number(nodes), number(databases), number(disks), number(total), f"{total / quotes * 1e6:.2f}"))
    break_even = P["hsm_usd"] / (P["kms_2048_usd"] / 1e4) / 3_600
    return "\n\n".join((
        "### What it costs",
        f"USD a month, at the prices above and {number(mean)} quotes a second in the mean ({quotes / 1e9:.1f} billion a month):",
        table(("devices", "devices", "gateways", "databases", "disks", "together", "USD for a million quotes"), rows),
        f"An HSM costs as much as KMS for {number(break_even)} RSA-2048 requests a second, sustained; for fewer, KMS is cheaper, but that an HSM should "
        f"not be alone. In {P['keep_days']:.0f} days {number(stored_gb / 1e3)} TB come together, {number(stored_gb / 1e3 / len(fleet))} TB for each ledger; "
        f"ledgers of {number(stored_gb / len(fleet) / P['quote_kb'] / 1e3)} billion quotes were never run, 10 million were.",
    ))


BEGIN, END = "<!-- begin: tools/scale-sim/simulate.py -->", "<!-- end: tools/scale-sim/simulate.py -->"


def block():
    sections = (section_one, section_fleet, section_queues, section_breaks, section_losses, section_cost, section_validation, section_parameters)
    return "\n\n".join(section() for section in sections)


def unsaid():
    """What the pages no longer say."""
    root = pathlib.Path(__file__).resolve().parents[2]
    for page, quotes in QUOTED.items():
        text = " ".join((root / page).read_text(encoding="utf-8").split())
        yield from (f"{page} no longer says `{quote}`; mend the parameter and QUOTED" for quote in quotes if quote not in text)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    what = arguments.add_mutually_exclusive_group()
    what.add_argument("--check", metavar="PAGE", help="end with 1 where the page holds something else")
    what.add_argument("--write", metavar="PAGE", help="put it into the page")
    given = arguments.parse_args()
    wrong = list(unsaid())
    if wrong:
        sys.exit("simulate.py: " + "\n".join(wrong))
    made = block()
    page = given.check or given.write
    if not page:
        print(made)
        return
    with open(page, encoding="utf-8") as file:
        text = file.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"simulate.py: {page} must have `{BEGIN}` and `{END}` once each")
    before, rest = text.split(BEGIN)
    held, after = rest.split(END)
    if given.write:
        with open(page, "w", encoding="utf-8") as file:
            file.write(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")
    elif held.strip("\n") != made:
        for there, now in zip(held.strip("\n").split("\n") + [""], made.split("\n") + [""]):
            if there != now:
                print(f"page: {there}\nnow:  {now}", file=sys.stderr)
                break
        sys.exit(f"simulate.py: {page} holds something else; run simulate.py --write {page} and read what changed")
    else:
        print(f"{page}: what it holds comes out again")


if __name__ == "__main__":
    main()
