"""What a run of scripts/bench-suite says: tables in Markdown, the targets, and a plot.

Invariant: every figure comes out of the jobs that are handed in; a figure that was not measured is a dash with its reason.
"""

import math
import os
import statistics
from html import escape

from bench_parts.plan import MODES
from bench_parts.proxies import machine

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PLOT = "performance.svg"
GATEWAY = ("fedgate session", "fedgate transaction")


def plain(job, names):
    """One job for the terminal."""
    lines = [""]
    for row in job.rows:
        lines.append(f"{row.label.replace('`', '')}, {row.unit}")
        for name in names:
            values = _values(job, row, name)
            if values:
                ratio = _ratio(job, row, name)
                lines.append(f"  {name:<22} {statistics.median(values):>12.{row.digits}f}   {min(values):.{row.digits}f} to {max(values):.{row.digits}f}"
                             + (f"   {ratio[0]:.2f} of direct" if ratio else ""))
            elif name in job.absent and row is job.rows[0]:
                lines.append(f"  {name:<22} {'-':>12}   {job.absent[name]}")
    return "\n".join(lines)


def _values(job, row, name):
    if name in job.absent:
        return []
    return [one[row.metric] for one in job.results.get(name, []) if one.get(row.metric) is not None]


def _ratio(job, row, name, base="direct"):
    """The ratio of the medians, and the least and the most of the rounds' own ratios."""
    own, other = _values(job, row, name), _values(job, row, base)
    if not row.of_direct or not own or not other or name == base:
        return None
    rounds = [a / b for a, b in zip(own, other) if b]
    return statistics.median(own) / statistics.median(other), min(rounds), max(rounds)


def _cell(job, row, name):
    values = _values(job, row, name)
    if not values:
        return "–"
    spread = f" ({min(values):.{row.digits}f}–{max(values):.{row.digits}f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.{row.digits}f}{spread}"


def _table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |",
                      *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def markdown(about, jobs, names, verdict):
    """The whole generated part of docs/performance.md."""
    versions = ", ".join(f"{name} {version}" for name, version in _by_program(about["versions"]).items())
    parts = [f"Measured {about['date']} on {machine()}; {about['others']:.1f} cores were busy with other work before the start, "
             f"{about['others_after']:.1f} after the end. {versions}"
             + (f" (revision {about['revision']})" if about["revision"] else "") + ".",
             f"Command: `{about['command']}`: {about['rounds']} interleaved rounds of {about['seconds']} s, pgbench's scale {about['scale']}.\n"]
    compared = [(job, row) for job in jobs for row in job.rows if row.of_direct]
    if any(_ratio(job, row, name) for job, row in compared for name in names):
        parts.append(f"![ratios to direct, by load]({PLOT})\n")
        others = [name for name in names if name != "direct"]
        rows = []
        for job, row in compared:
            direct = job.medians(row.metric).get("direct")
            cells = [row.label, "–" if direct is None else f"{direct:.{row.digits}f} {row.unit}"]
            for name in others:
                ratio = _ratio(job, row, name)
                text = f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})" if ratio else "–"
                cells.append(f"**{text}**" if ratio and name in GATEWAY else text)
            rows.append(cells)
        parts.append("Ratios to direct: of the medians, and in brackets the least and the most of the single rounds. More is better, but for latencies (ms).\n")
        parts.append(_table(["", "direct", *others], rows))
    targets = _targets(jobs)
    if targets:
        parts.append("The targets, by the same figures (session / transaction; the best peer is the best path that is neither direct nor fedgate):\n")
        parts.append(_table(["load", "target", "session", "transaction", ""], targets))
    costs = [(job, row) for job in jobs for row in job.rows if not row.of_direct]
    if costs:
        others = [name for name in names if name != "direct"]
        parts.append("What the proxy itself uses, medians with the least and the most; less is better:\n")
        parts.append(_table(["", *others], [[f"{row.label}, {row.unit}", *(_cell(job, row, name) for name in others)] for job, row in costs]))
    if verdict:
        keys = ("statements", "new", "slowest", "remembered", "lexer", "front", "parser", "judging")
        parts.append("`cargo bench --bench verdict`, medians over the statements:\n")
        parts.append(_table(["recorded from", "statements", "new text", "the slowest", "remembered text", "of a new one: lexer", "front", "parser", "judging"],
                            [[row["client"], *(str(row[key]) for key in keys)] for row in verdict]))
    if compared:
        parts.append("The medians themselves, with the least and the most:\n")
        parts.append(_table(["", *names], [[f"{row.label}, {row.unit}", *(_cell(job, row, name) for name in names)] for job, row in compared]))
    notes = _notes(about, jobs)
    if notes:
        parts.append("Left out:\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    return "\n".join(parts)


def _by_program(versions):
    """One version for each program, however many modes of it were measured."""
    found = {}
    for name, version in versions.items():
        found.setdefault({"haproxy": "HAProxy", "pgbouncer": "PgBouncer", "pgcat": "PgCat", "pgdog": "PgDog"}.get(name.split()[0], name.split()[0]), version)
    return found


def _notes(about, jobs):
    reasons = {}
    for name, reason in about["missing"].items():
        reasons.setdefault((name, reason), [])
    for job in jobs:
        for name, reason in job.absent.items():
            if (name, reason) != ("direct", "no proxy"):
                reasons.setdefault((name, reason), []).append(job.key)
    return [f"{name}{': ' + ', '.join(keys) if keys else ''}: {reason}" for (name, reason), keys in reasons.items()]


def _targets(jobs):
    """Each target with what was measured in both modes, and whether it is met by at least one of them."""
    found = []

    def add(load, target, figures, good, unit=""):
        if any(figure is not None for figure in figures):
            met = [figure is not None and good(figure) for figure in figures]
            word = "met" if all(met) else "missed" if not any(met) else "met in session mode" if met[0] else "met in transaction mode"
            if None in figures and any(met):
                word = "met in the mode that was measured"
            found.append([load, target, *("–" if figure is None else f"{figure:.2f}{unit}" for figure in figures), word])

    for job in jobs:
        for row in job.rows:
            medians = job.medians(row.metric)
            peers = [value for name, value in medians.items() if name != "direct" and name not in GATEWAY]
            best = (max if row.more_is_better else min)(peers, default=None)

            def against(base):
                return [medians[name] / base if name in medians and base else None for name in GATEWAY]

            direct = medians.get("direct")
            if job.kind == "point" and row.metric == "value" and job.clients in (16, 64):
                add(row.label, "1.1 × the best peer", against(best), lambda x: x >= 1.1)
                if job.clients == 64:
                    add(row.label, "1.0 × direct in transaction mode", [None, against(direct)[1]], lambda x: x >= 1.0)
            elif job.kind == "churn" and job.mode != "tls":
                wanted = 2 if job.mode == "scram" else 10
                add(row.label, f"{wanted} × direct", against(direct), lambda x, wanted=wanted: x >= wanted)
            elif job.kind == "bulk" and row.metric == "value":
                add(row.label, "0.95 × direct", against(direct), lambda x: x >= 0.95)
            elif job.kind == "bulk":
                add(row.label, "1.0 × HAProxy's at most", against(medians.get("haproxy")), lambda x: x <= 1.0)
            elif job.kind == "latency" and row.metric == "p99":
                add(row.label, "1.2 × the best peer's at most", against(best), lambda x: x <= 1.2)
            elif job.kind == "idle":
                add(row.label, "12 KiB at most", [medians.get(name) for name in GATEWAY], lambda x: x <= 12, " KiB")
    return found


def write(docs, text, plot):
    """Puts the generated part between the marks of performance.md, and the plot beside it."""
    path = os.path.join(docs, "performance.md")
    with open(path, encoding="utf-8") as page:
        whole = page.read()
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise SystemExit(f"{path} needs one line {BEGIN} and, after it, one line {END}")
    before, after = whole.split(BEGIN)[0], whole.split(END)[1]
    for name, content in ((path, f"{before}{BEGIN}\n{text}\n{END}{after}"), (os.path.join(docs, PLOT), plot)):
        with open(name + ".part", "w", encoding="utf-8") as out:
            out.write(content)
        os.replace(name + ".part", name)


COLOURS = {"socat": "#8c8c8c", "haproxy": "#e69f00", "pgbouncer session": "#7cc4ee", "pgbouncer transaction": "#2a7fb8",
           "pgcat session": "#dd9cc2", "pgcat transaction": "#b3528c", "pgdog session": "#c9b84a", "pgdog transaction": "#8f8020",
           "fedgate session": "#2fae7f", "fedgate transaction": "#d9541e"}
SHORT = {"scram": "SCRAM", "tls": "SCRAM in TLS", "certificate": "certificate", "few": "16 rounds", "copy": "COPY … TO STDOUT", "portal": "portal"}
WIDTH, PANEL, HEIGHT, LEFT = 1000, 480, 230, 52


def svg(jobs, names):
    """Ratios to direct as bars, a panel for each kind of load; thin lines are the least and the most of the rounds."""
    shown = [name for name in names if name != "direct"]
    panels = []
    for mode in MODES:
        panels.append((f"pgbench -S, {mode}, by clients", [(str(job.clients), job, job.rows[0]) for job in jobs if job.kind == "point" and job.mode == mode]))
    panels.append(("connect, SELECT, leave", [(SHORT[job.mode], job, job.rows[0]) for job in jobs if job.kind == "churn"]))
    panels.append(("bulk, MB/s", [(SHORT[job.mode], job, job.rows[0]) for job in jobs if job.kind == "bulk"]))
    panels.append(("p99 at one rate for all (less is better)",
                   [(f"{job.mode}, {job.clients}", job, job.rows[1]) for job in jobs if job.kind == "latency" and job.key.endswith("same")]))
    panels = [(title, bars) for title, bars in ((title, [(label, [_ratio(job, row, name) for name in shown]) for label, job, row in groups])
                                                for title, groups in panels) if any(ratio for _, ratios in bars for ratio in ratios)]
    legend, below = _legend(shown)
    height = below + (len(panels) + 1) // 2 * HEIGHT + 10
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" role="img">',
           "<title>Ratios to a direct connection, by load and path</title>",
           "<style>text{fill:#57606a}.axis{stroke:#8b949e;stroke-width:1}.one{stroke:#57606a;stroke-width:1.5;stroke-dasharray:5 3}"
           ".spread{stroke:#57606a;stroke-width:1}"
           "@media (prefers-color-scheme:dark){text{fill:#adbac7}.one,.spread{stroke:#adbac7}}</style>"]
    out += legend
    for number, (title, groups) in enumerate(panels):
        out += _panel(title, groups, shown, (number % 2) * (WIDTH - PANEL), below + number // 2 * HEIGHT)
    return "\n".join(out) + "\n</svg>\n"


def _legend(shown):
    """Its elements, and where what is below it begins."""
    out, x, y = [], 10, 8
    for name in [*shown, "direct"]:
        width = 40 + 6.8 * len(name)
        if x + width > WIDTH:
            x, y = 10, y + 18
        if name == "direct":
            out.append(f'<line class="one" x1="{x:.0f}" x2="{x + 22:.0f}" y1="{y + 6}" y2="{y + 6}"/><text x="{x + 27:.0f}" y="{y + 10}">direct</text>')
        else:
            out.append(f'<rect x="{x:.0f}" y="{y}" width="11" height="11" fill="{COLOURS.get(name, "#999999")}"/>'
                       f'<text x="{x + 15:.0f}" y="{y + 10}">{escape(name)}</text>')
        x += width
    return out, y + 26


def _panel(title, groups, shown, x, y):
    ratios = [ratio for _, all_ratios in groups for ratio in all_ratios if ratio]
    top = max(1.1, *(ratio[2] for ratio in ratios))
    bottom_y, span = y + HEIGHT - 34, HEIGHT - 34 - 30
    if top > 5:
        # Each step doubles.
        low, high = math.log2(min(0.5, *(ratio[1] for ratio in ratios))), math.log2(top)
        low, high = math.floor(low), math.ceil(high)
        scale = lambda value: bottom_y - span * (max(math.log2(value), low) - low) / (high - low)  # noqa: E731
        ticks, title = [2.0 ** power for power in range(low, high + 1)], f"{title} (each step doubles)"
    else:
        step = 0.25 if top <= 1.6 else 0.5 if top <= 3 else 1
        high = step * (int(top / step) + 1)
        scale = lambda value: bottom_y - span * value / high  # noqa: E731
        ticks = [step * count for count in range(int(high / step) + 1)]
    out = [f'<text x="{x + LEFT}" y="{y + 18}" font-weight="600">{escape(title)}</text>',
           f'<text x="{x + 12}" y="{y + HEIGHT / 2}" transform="rotate(-90 {x + 12} {y + HEIGHT / 2})" text-anchor="middle">× direct</text>']
    for tick in ticks:
        out.append(f'<line class="axis" x1="{x + LEFT - 4}" x2="{x + LEFT}" y1="{scale(tick):.1f}" y2="{scale(tick):.1f}"/>'
                   f'<text x="{x + LEFT - 7}" y="{scale(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    out.append(f'<line class="axis" x1="{x + LEFT}" x2="{x + LEFT}" y1="{y + 30}" y2="{bottom_y}"/>')
    out.append(f'<line class="axis" x1="{x + LEFT}" x2="{x + PANEL}" y1="{bottom_y}" y2="{bottom_y}"/>')
    room = (PANEL - LEFT - 6) / len(groups)
    bar = min(room * 0.86 / len(shown), 26)
    for at, (label, all_ratios) in enumerate(groups):
        middle = x + LEFT + room * (at + 0.5)
        out.append(f'<text x="{middle:.1f}" y="{bottom_y + 17}" text-anchor="middle">{escape(label)}</text>')
        for place, (name, ratio) in enumerate(zip(shown, all_ratios, strict=True)):
            if ratio:
                left = middle + (place - len(shown) / 2) * bar
                out.append(f'<rect x="{left:.1f}" y="{scale(ratio[0]):.1f}" width="{bar - 1.5:.1f}" height="{max(bottom_y - scale(ratio[0]), 0.5):.1f}" '
                           f'fill="{COLOURS.get(name, "#999999")}"><title>{escape(name)}, {escape(label)}: {ratio[0]:.2f}</title></rect>'
                           f'<line class="spread" x1="{left + bar / 2:.1f}" x2="{left + bar / 2:.1f}" y1="{scale(ratio[1]):.1f}" y2="{scale(ratio[2]):.1f}"/>')
    out.append(f'<line class="one" x1="{x + LEFT}" x2="{x + PANEL}" y1="{scale(1):.1f}" y2="{scale(1):.1f}"/>')
    return out
