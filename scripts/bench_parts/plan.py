"""Which loads a run of scripts/bench-suite has, and running them in interleaved rounds.

Invariant: all paths have the same load in the same round before the next round begins, each round starts with another path.
"""

import contextlib
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from unittest import mock

from bench_parts import loads, wire
from bench_parts.peers import MOST_CLIENTS
from bench_parts.proxies import USER

# Seconds for a client to connect, until the first round tells.
CONNECT = 0.006
MODES = ("simple", "extended", "prepared")
CHURN = {"scram": "SCRAM, 4096 rounds", "tls": "SCRAM, 4096 rounds, TLS", "certificate": "client certificate, TLS", "few": "SCRAM, 16 rounds"}
BULK = {"copy": "`COPY … TO STDOUT`", "portal": "portal, 1000 rows an Execute"}


@dataclass(frozen=True)
class Row:
    """One line of the tables: what of a result, in which unit, how good is told."""

    metric: str
    label: str
    unit: str
    more_is_better: bool = True
    # Whether direct has this figure, so that a ratio to it says something.
    of_direct: bool = True
    digits: int = 0


@dataclass
class Job:
    """One load over all paths."""

    kind: str
    key: str
    rows: list
    rounds: int
    seconds: float
    # For the client and its connections to come and go.
    overhead: float = 0.5
    mode: str = ""
    clients: int = 1
    results: dict = field(default_factory=dict)
    absent: dict = field(default_factory=dict)

    def medians(self, metric):
        """The median of each path that has the figure."""
        found = {}
        for name, rounds in self.results.items():
            values = [one[metric] for one in rounds if one.get(metric) is not None]
            if values and name not in self.absent:
                found[name] = statistics.median(values)
        return found


def jobs(chosen):
    """All loads that are asked for, in the order of the tables."""
    made, wanted = [], set(chosen.loads)
    half = [(mode, clients) for mode, clients in (("simple", 16), ("prepared", 16), ("prepared", 64))
            if mode in chosen.modes and clients in chosen.clients] if "latency" in wanted else []
    if chosen.quick:
        half = half[-1:]
    for mode in chosen.modes:
        for clients in chosen.clients:
            if "point" in wanted or (mode, clients) in half:
                rows = [Row("value", f"`pgbench -S`, {mode}, {clients} client{'s' if clients > 1 else ''}", "tps"),
                        Row("cpu_us", f"proxy's CPU a statement, {mode}, {clients}", "µs", False, False, 1)]
                made.append(Job("point", f"point {mode} {clients}", rows, chosen.rounds, chosen.seconds, 0.4 + clients * CONNECT, mode, clients))
    if "churn" in wanted:
        for kind in chosen.churn:
            row = Row("value", f"connect, SELECT, leave: {CHURN[kind]}", "tps")
            made.append(Job("churn", f"churn {kind}", [row], chosen.rounds, chosen.seconds, 0.5, kind, 16))
    if "bulk" in wanted:
        for kind, title in BULK.items():
            rows = [Row("value", title, "MB/s"), Row("cpu_s_gb", f"proxy's CPU a GB, {title}", "s", False, False, 2)]
            made.append(Job("bulk", f"bulk {kind}", rows, chosen.rounds, chosen.seconds, 0.8, kind))
    for mode, clients in half:
        # Half of the same for all is what paths can be compared by.
        for load, title in (("own", "half of its own throughput"), ("same", "half of the slowest path's throughput"))[1 if chosen.quick else 0:]:
            rows = [Row(metric, f"{metric}, {mode}, {clients} clients, at {title}", "ms", False, True, 3) for metric in ("p50", "p99", "p99.9")]
            made.append(Job("latency", f"latency {mode} {clients} {load}", rows, chosen.rounds, chosen.seconds, 0.6, mode, clients))
    if "idle" in wanted:
        for count in chosen.idle:
            row = Row("value", f"memory for each of {count:,} idle clients", "KiB", False, False, 1)
            # Allocators keep and give back as they like, which counts for less the more clients there are.
            rounds = 1 if chosen.quick or count > 1000 else min(3, chosen.rounds)
            made.append(Job("idle", f"idle {count}", [row], rounds, 0.5, 3 + count * 0.005, clients=count))
    return made


class Progress:
    """A line for each step, with the time that is left."""

    def __init__(self, all_jobs, paths):
        self.steps = sum(job.rounds * len(paths) for job in all_jobs)
        self.expected = sum(job.rounds * len(paths) * (job.seconds + job.overhead) for job in all_jobs)
        self.done, self.past, self.begun = 0, 0.0, time.monotonic()

    def step(self, job, text):
        self.done += 1
        self.past += job.seconds + job.overhead
        left = max(0.0, self.expected - self.past) * (time.monotonic() - self.begun) / self.past
        left = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        print(f"[{self.done}/{self.steps}, {left} left] {text}", file=sys.stderr, flush=True)


def run(all_jobs, paths, proxies, ground, rows_in_table, open_files):
    """Runs all jobs; what comes of them lies in the jobs. Yields each job that is done."""
    progress = Progress(all_jobs, paths)
    for job in all_jobs:
        job.results = {path.name: [] for path in paths}
        rates, connect = {}, {}
        for path in paths:
            reason = _without(job, path, open_files)
            if reason:
                job.absent[path.name] = reason
        if job.kind == "latency":
            rates, connect = _rates(job, all_jobs)
        for number in range(job.rounds):
            turn = number % len(paths)
            for path in paths[turn:] + paths[:turn]:
                name, said = path.name, "left out"
                if name not in job.absent:
                    try:
                        got = _measure(job, path, proxies[name], ground, rows_in_table, rates, connect)
                        job.results[name].append(got)
                        said = ", ".join(f"{got[row.metric]:.{row.digits}f} {row.unit}" for row in job.rows if got.get(row.metric) is not None)
                    except (loads.Failed, wire.Refused, OSError) as error:
                        job.absent[name] = f"failed in round {number + 1}: {' '.join(str(error).split())[:300]}"
                        said = job.absent[name]
                progress.step(job, f"{job.key}, round {number + 1}: {name} {said}")
        yield job


def _without(job, path, open_files):
    """Why a path cannot have a load, or None."""
    if job.kind == "churn":
        return path.without.get(job.mode)
    if job.kind == "idle":
        if path.name == "direct":
            return "no proxy"
        if not path.few_sessions and job.clients > 1000:
            return f"would need {job.clients:,} sessions at the source"
        if job.clients + 200 > min(open_files, MOST_CLIENTS):
            return f"only {open_files} open files are allowed here"
        return None
    return path.without.get(job.mode)


def _rates(job, all_jobs):
    base = next(one for one in all_jobs if one.kind == "point" and (one.mode, one.clients) == (job.mode, job.clients))
    medians, connect = base.medians("value"), base.medians("connect_s")
    for name in job.results:
        if name not in medians:
            job.absent.setdefault(name, "its throughput was not measured")
    if job.key.endswith("same"):
        return dict.fromkeys(medians, min(medians.values(), default=0) / 2), connect
    return {name: value / 2 for name, value in medians.items()}, connect


def _measure(job, path, proxy, ground, rows_in_table, rates, connect):
    # Few rounds spare the client's CPU where it is not logging in that is measured.
    user = ground.libpq("scram" if "few" in path.without else "few")
    if job.kind == "point":
        before = job.results[path.name][-1]["connect_s"] if job.results[path.name] else job.clients * CONNECT
        return loads.pgbench(proxy, job.mode, job.clients, job.seconds + round(before), libpq=user)
    if job.kind == "churn":
        return loads.pgbench(proxy, "simple", job.clients, job.seconds, True, ground.libpq(job.mode))
    if job.kind == "bulk":
        return loads.bulk(proxy, job.mode, rows_in_table, job.seconds)
    if job.kind == "latency":
        return loads.latencies(proxy, job.mode, job.clients, job.seconds + round(connect[path.name]), rates[path.name], ground.folder, user)
    with contextlib.ExitStack() as stack:
        # A process of its own: what earlier loads left in its allocator would make its clients look cheap.
        # What is freed shall be seen as free at once, where an allocator (mimalloc) lets itself be told.
        with mock.patch.dict(os.environ, MIMALLOC_PURGE_DELAY="0"):
            proxy = path.start(ground, stack)
        return loads.idle(proxy, job.clients, user.get("user", USER))
