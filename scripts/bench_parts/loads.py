"""What is done to each path, and what comes of it.

Invariant: a load either finished without an error or raises `Failed`; there is no half result.
"""

import contextlib
import glob
import os
import re
import subprocess
import time

from bench_parts import wire
from bench_parts.proxies import DATABASE, PASSWORD, USER, environment
from private_postgres import program


class Failed(Exception):
    """A load could not be run over a path; the text says why."""


def pgbench(proxy, mode, clients, seconds, churn=False, libpq=None, arguments=()):
    """Transactions a second, average latency in ms, and the proxy's CPU microseconds for each.

    pgbench's clock runs while its clients connect, but its rate is counted from when all are there.
    """
    command = [program("pgbench"), "-n", "-S", "-M", mode, "-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1)), "-T", str(seconds),
               *(["-C"] if churn else []), *arguments]
    before = proxy.cpu()
    try:
        run = subprocess.run(command, env=environment(proxy.port, **(libpq or {})), capture_output=True, text=True, timeout=seconds + 60)
    except subprocess.TimeoutExpired:
        raise Failed(f"pgbench through {proxy.name} did not end") from None
    after = proxy.cpu()
    tps = re.search(r"tps = ([\d.]+)", run.stdout)
    latency = re.search(r"latency average = ([\d.]+)", run.stdout)
    failed = re.search(r"number of failed transactions: (\d+)", run.stdout)
    if run.returncode or not tps or not latency or (failed and failed.group(1) != "0"):
        said = [line for line in run.stderr.splitlines() if "error" in line or "FATAL" in line]
        why = said[0] if said else run.stderr.strip() or f"no statement came through in {seconds} s"
        raise Failed(f"pgbench through {proxy.name} failed: {why[:500]}")
    connected = re.search(r"initial connection time = ([\d.]+) ms", run.stdout)
    done = int(re.search(r"transactions actually processed: (\d+)", run.stdout).group(1))
    return {"value": float(tps.group(1)), "latency_ms": float(latency.group(1)),
            "connect_s": float(connected.group(1)) / 1e3 if connected else None,
            "cpu_us": None if before is None else (after - before) * 1e6 / max(done, 1)}


def latencies(proxy, mode, clients, seconds, rate, folder, libpq=None):
    """Percentiles in ms at a fixed rate, counted from when each statement was due."""
    prefix = os.path.join(folder, f"latency-{proxy.name.replace(' ', '-')}")
    pgbench(proxy, mode, clients, seconds, libpq=libpq, arguments=("-R", f"{rate:.0f}", "-l", f"--log-prefix={prefix}"))
    found = []
    for path in glob.glob(prefix + ".*"):
        with open(path, encoding="utf-8") as lines:
            found += [int(line.split()[2]) / 1000 for line in lines]
        os.unlink(path)
    if not found:
        raise Failed(f"pgbench through {proxy.name} has logged nothing")
    found.sort()
    return {"p50": found[len(found) // 2], "p99": found[len(found) * 99 // 100], "p99.9": found[len(found) * 999 // 1000],
            "rate": rate, "value": found[len(found) * 99 // 100]}


def bulk(proxy, kind, rows, seconds, at_once=1000):
    """MB a second of one client that reads all accounts again and again, and the proxy's CPU seconds for a GB."""
    with client(proxy) as reader:
        size, before, begun = 0, proxy.cpu(), time.monotonic()
        while (took := time.monotonic() - begun) < seconds:
            if kind == "copy":
                size += reader.copy_out("pgbench_accounts", rows)
            else:
                size += reader.fetch("SELECT * FROM pgbench_accounts", rows, at_once)
        after = proxy.cpu()
    return {"value": size / took / 1e6, "cpu_s_gb": None if before is None else (after - before) * 1e9 / size}


def idle(proxy, count, user=USER):
    """KiB for each of `count` clients that have logged in, read once and wait."""
    # What the first clients make it take once is not a client's price: a few come first and stay, and the others count.
    first = 16
    with contextlib.ExitStack() as stack:
        for at in range(count):
            if at == first:
                before = _settled(proxy)
            stack.enter_context(client(proxy, user)).query("SELECT * FROM pgbench_accounts LIMIT 100")
        return {"value": (_settled(proxy) - before) / (count - first)}


def _settled(proxy, patience=8.0):
    """KiB of its memory when that has not changed by a hundredth for a second."""
    until, seen = time.monotonic() + patience, [proxy.memory()]
    while time.monotonic() < until:
        time.sleep(0.25)
        seen = [*seen[-4:], proxy.memory()]
        if len(seen) == 5 and max(seen) - min(seen) <= max(seen) / 100:
            break
    return seen[-1]


def client(proxy, user=USER):
    try:
        return wire.Connection(proxy.port, user, PASSWORD, DATABASE)
    except (wire.Refused, OSError) as error:
        raise Failed(f"a client of {proxy.name} was not let in: {error}") from error
