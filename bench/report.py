# SPDX-License-Identifier: Apache-2.0
"""From measured times to medians, ratios and means, and from those to a table and a chart.

A record, as JSON keeps it: {"rows": [row], "machines": [name], ...}; a row: {"name", "group", "title", "times": {machine: [seconds]},
"failed": {machine: reason}, "is_equal": bool, "notes": [text]}.  A row counts in the means of two machines only if it
failed on neither and was computed alike everywhere.
"""
import html
import math
import statistics

GROUPS = {"compute": "compute", "system": "system", "first": "first runs", "io": "devices"}
PAIRS = [("viv", "native"), ("qemu", "native"), ("qemu", "viv")]
TITLES = {"native": "native", "viv": "viv", "qemu": "QEMU"}


def median(row, machine):
    times = row["times"].get(machine)
    return statistics.median(times) if times and machine not in row["failed"] else None


def ratio(row, above, below):
    a, b = median(row, above), median(row, below)
    return a / b if a and b and row["is_equal"] else None


def geomean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def means(rows, first_16):
    """{selection: {"viv/native": (mean, rows counted)}}"""
    selections = {GROUPS[g]: [r for r in rows if r["group"] == g] for g in GROUPS}
    selections["the first 16"] = [r for r in rows if r["name"] in first_16]
    selections["compute and system"] = [r for r in rows if r["group"] in ("compute", "system")]
    found = {}
    for title, chosen in selections.items():
        for above, below in PAIRS:
            ratios = [x for x in (ratio(r, above, below) for r in chosen) if x]
            if ratios:
                found.setdefault(title, {})[f"{above}/{below}"] = {"mean": geomean(ratios), "rows": len(ratios)}
    return found


# ---- text ----

def seconds(value):
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def times(value):
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def cell(row, machine):
    return "failed" if machine in row["failed"] else seconds(median(row, machine))


def aligned(lines):
    """Rows of cells as a Markdown table that also reads well as it is."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = []
    for number, line in enumerate(lines):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
        out.append("| " + " | ".join(cells) + " |")
        if number == 0:
            out.append("|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|")
    return out


def table(record):
    machines = record["machines"]
    pairs = [p for p in PAIRS if p[0] in machines and p[1] in machines]
    head = [f"{TITLES[m]}, s" for m in machines] + [f"{TITLES[a]} / {TITLES[b]}" for a, b in pairs]
    out = []
    for group, title in GROUPS.items():
        rows = [r for r in record["rows"] if r["group"] == group]
        if rows:
            out += aligned([[title, *head]] + [
                [r["title"], *(cell(r, m) for m in machines), *(times(ratio(r, a, b)) for a, b in pairs)] for r in rows])
            out.append("")
    lines = [["geometric means", *(f"{TITLES[a]} / {TITLES[b]}" for a, b in pairs), "rows"]]
    for title, found in record["means"].items():
        counts = sorted({f["rows"] for f in found.values()})
        lines.append([title, *(times(found.get(f"{a}/{b}", {}).get("mean")) for a, b in pairs),
                      "-".join(map(str, counts))])
    if len(lines) > 1:
        out += aligned(lines) + [""]
    starts = [s for s in record.get("starts", []) if s["times"]]
    if starts:
        names = [m for m in machines if m != "native"]
        both = {"viv", "qemu"} <= set(names)
        out += aligned([["starting, by the host's clock", *(f"{TITLES[m]}, s" for m in names),
                         *([f"{TITLES['viv']} / {TITLES['qemu']}"] if both else [])]] + [
            [s["title"], *(seconds(statistics.median(s["times"][m])) if s["times"].get(m) else "-" for m in names),
             *([times(start_ratio(s))] if both else [])] for s in starts if any(s["times"].values())]) + [""]
    held = [("at the end", {m: [v] for m, v in record.get("resident_mib", {}).items()})]
    held += [("at " + s["title"].removeprefix("to "), s["resident_mib"]) for s in starts if s.get("resident_mib")]
    for when, resident in held:
        told = [f"{TITLES[m]} {statistics.median(v):.0f} MiB" for m, v in resident.items() if v]
        if told:
            out += [f"Resident beside the guest's RAM, {when}: " + ", ".join(told) + ".", ""]
    return "\n".join(out)


def start_ratio(start):
    """viv's median as a multiple of QEMU's; None without both."""
    viv, qemu = start["times"].get("viv"), start["times"].get("qemu")
    return statistics.median(viv) / statistics.median(qemu) if viv and qemu else None


def failures(record):
    """Everything that did not go as it should, a line each."""
    found = []
    for row in record["rows"]:
        found += [f"{row['name']}: failed on {m}: {why}" for m, why in row["failed"].items()]
        if not row["is_equal"]:
            found.append(f"{row['name']}: the results differ: {row['results']}")
        found += [f"{row['name']}: {note}" for note in row["notes"]]
    return found + [f"{left}" for left in record.get("left_out", [])]


def describe(record):
    host, versions = record["host"], record["versions"]
    counts = {len(t) for r in record["rows"] for t in r["times"].values()}
    rounds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts, default=0))
    return (f"{record['date']}; {host['cpu']}, {host['cores']} CPUs, {host['memory_mib']} MiB, Linux {host['kernel']}, "
            f"load {host['load_before']:.2f} before and {host['load_after']:.2f} after; guest: {versions['image']}, {record.get('cpus', 1)} vCPU; "
            + "; ".join(f"{k}: {v}" for k, v in versions.items() if k != "image")
            + f"; medians of {rounds} runs that alternate between the machines.")


# ---- chart ----

COLOURS = {"viv": "#1b7f5a", "qemu": "#b9bec7"}


def bar(x, y, width, height, colour, label):
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" fill="{colour}"/>'
            f'<text x="{x + max(width, 1) + 4:.1f}" y="{y + height - 1.5:.1f}" class="n">{html.escape(label)}</text>')


def chart(record):
    """How many times slower than native, logarithmic, as SVG."""
    machines = [m for m in ("viv", "qemu") if m in record["machines"]]
    lines = [(r["title"], {m: ratio(r, m, "native") for m in machines}, False) for r in record["rows"]]
    lines += [(f"mean: {title}", {m: found.get(f"{m}/native", {}).get("mean") for m in machines}, True)
              for title, found in record["means"].items()]
    lines = [line for line in lines if any(line[1].values())]
    left, wide, high, top = 270, 520, 9, 58
    step = high * len(machines) + 7
    most = max([v for _, values, _ in lines for v in values.values() if v] + [10])
    least = min([v for _, values, _ in lines for v in values.values() if v] + [1])
    low, span = math.log(min(least, 1)), math.log(most * 1.1) - math.log(min(least, 1))

    def at(value):
        return left + (math.log(value) - low) / span * wide

    height = top + step * len(lines) + 16
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 70}" height="{height}" '
           f'viewBox="0 0 {left + wide + 70} {height}" font-family="sans-serif" font-size="11">',
           "<!-- SPDX-License-Identifier: Apache-2.0; made by bench/bench.py -->",
           "<style>.n{font-size:9px;fill:#555}.m{font-weight:bold}</style>",
           f'<rect width="{left + wide + 70}" height="{height}" fill="#fff"/>',
           '<text x="10" y="18" font-size="14" font-weight="bold">Time of a program, native = 1 (shorter is better)</text>']
    x = 10
    for m in machines:
        name = {"viv": f"viv ({record['viv_engine']})", "qemu": "QEMU TCG"}[m]
        out.append(f'<rect x="{x}" y="28" width="12" height="10" fill="{COLOURS[m]}"/><text x="{x + 17}" y="37">{name}</text>')
        x += 130
    tick = 1
    while tick <= most:
        out.append(f'<line x1="{at(tick):.1f}" y1="{top - 6}" x2="{at(tick):.1f}" y2="{height - 12}" stroke="#ddd"/>'
                   f'<text x="{at(tick):.1f}" y="{top - 9}" text-anchor="middle" class="n">{tick}x</text>')
        tick *= 10 if tick not in (1, 2, 5, 10, 20, 50, 100) else 2.5 if str(tick)[0] == "2" else 2
        tick = int(tick)
    y = top
    for title, values, is_mean in lines:
        style = ' class="m"' if is_mean else ""
        out.append(f'<text x="{left - 8}" y="{y + high * len(machines) / 2 + 4:.1f}" text-anchor="end"{style}>'
                   f'{html.escape(title)}</text>')
        for i, m in enumerate(machines):
            if values[m]:
                out.append(bar(left, y + i * high, at(values[m]) - left, high - 1, COLOURS[m], times(values[m])))
        y += step
    return "\n".join(out + ["</svg>", ""])
