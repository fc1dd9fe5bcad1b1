"""What the guard costs by itself, from `cargo bench --bench verdict`.

Invariant: the figures are those that the bench prints; none is worked out here.
"""

import re
import subprocess

from bench_parts.proxies import TREE

_WHOLE = re.compile(r"^(\w+): (\d+) statements, median uncached (\S+) \(slowest Some\((\S+?)\)\), cached (\S+)$", re.M)
_PARTS = re.compile(r"^(\w+): of it lexer (\S+), front (\S+), parser (\S+), judging (\S+)$", re.M)


def measure(say):
    """A row for each recorded client."""
    say("cargo bench --bench verdict, which builds first")
    # The bench's own least-of-40 figures are taken; criterion's runs after them only have to end.
    run = subprocess.run(["cargo", "bench", "--quiet", "--bench", "verdict", "--", "--warm-up-time", "0.2", "--measurement-time", "0.5",
                          "--sample-size", "10"], cwd=TREE, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"cargo bench --bench verdict failed:\n{run.stderr[-3000:]}")
    parts = {found[0]: found[1:] for found in _PARTS.findall(run.stdout)}
    rows = [{"client": client, "statements": int(count), "new": new, "slowest": slowest, "remembered": cached,
             **dict(zip(("lexer", "front", "parser", "judging"), parts.get(client, ("–",) * 4), strict=True))}
            for client, count, new, slowest, cached in _WHOLE.findall(run.stdout)]
    if not rows:
        raise SystemExit(f"cargo bench --bench verdict printed no figures:\n{run.stdout[-3000:]}")
    return rows
