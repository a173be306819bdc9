#!/usr/bin/env python3
"""Draws the figures of a run as bars of ratios: benches/mesh/run.py --output run.json; benches/mesh/plot.py run.json docs/performance.svg

Owns the picture. Each panel is one measure, each bar one peer, as a ratio to HAProxy (or what the panel says); a line marks the
target. Text and lines are of a grey that both light and dark pages show.
"""

import html
import json
import pathlib
import sys

# (title, section, key, the peer that is 1.0, whether less is better, the target or None)
PANELS = [
    ("CPU per request, 150 B", "get-150-32", "cpu_us_per_request", "haproxy", True, 0.70),
    ("requests/s, 150 B", "get-150-32", "requests_per_s", "haproxy", False, 1.3),
    ("MB/s, 1 MiB", "get-1m-8", "requests_per_s", "envoy", False, 1.2),
    ("p99 at a fixed rate", "rate", "p99_us", "haproxy", True, 1.0),
    ("CPU per new mTLS connection", "fresh", "cpu_us_per_connection", "envoy", True, 0.8),
    ("memory per idle mTLS connection", "connections", "kib_after_request", "haproxy", True, None),
    ("system calls per request", "syscalls", "per_request_and_hop", "haproxy", True, None),
    ("resident memory, idle", "idle", "rss_kib", "haproxy", True, None),
]
PEERS = ["phiward", "haproxy", "nginx", "envoy"]
# Readable on white and on near-black, and apart for those who see red and green alike.
COLOURS = {"phiward": "#e8710a", "haproxy": "#6b7fd7", "nginx": "#3a9e8f", "envoy": "#a06cc0"}
TEXT = "#808790"
COLUMNS, WIDTH, BAR, GAP = 2, 400, 18, 6
LABEL, FIGURE = 62, 44
HEIGHT = 34 + len(PEERS) * (BAR + GAP) + 20


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py RUN.json PICTURE.svg")
    found = json.loads(pathlib.Path(sys.argv[1]).read_text())["medians"]
    drawn = [panel for panel in (ratios(found, *panel) for panel in PANELS) if panel]
    if not drawn:
        sys.exit("none of the panels was measured in this run")
    rows = -(-len(drawn) // COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDTH} {rows * HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}" role="img">',
        "<title>phiward beside HAProxy, nginx and Envoy</title>",
    ]
    for at, panel in enumerate(drawn):
        parts += draw(at % COLUMNS * WIDTH, at // COLUMNS * HEIGHT, *panel)
    pathlib.Path(sys.argv[2]).write_text("\n".join([*parts, "</svg>"]) + "\n")


def ratios(found, title, section, key, base, less, target):
    """The panel's title, note, bars as (peer, ratio) and target, or None when it was not measured."""
    of = found.get(section, {})
    if not of.get(base, {}).get(key):
        return None
    bars = [(peer, of[peer][key] / of[base][key]) for peer in PEERS if peer in of]
    wanted = "less is better" if less else "more is better"
    name = base.replace("haproxy", "HAProxy").replace("envoy", "Envoy")
    return title, f"{name} = 1, {wanted}", bars, target


def draw(left, top, title, note, bars, target):
    room = WIDTH - LABEL - FIGURE - 20
    scale = room / max([ratio for _, ratio in bars] + [target or 0])
    x = left + LABEL
    yield f'<text x="{left + 4}" y="{top + 20}"><tspan font-weight="600">{html.escape(title)}</tspan> ({html.escape(note)})</text>'
    for at, (peer, ratio) in enumerate(bars):
        y = top + 34 + at * (BAR + GAP)
        yield f'<text x="{x - 6}" y="{y + BAR - 5}" text-anchor="end">{html.escape(peer)}</text>'
        yield f'<rect x="{x}" y="{y}" width="{max(1, ratio * scale):.1f}" height="{BAR}" rx="2" fill="{COLOURS[peer]}"/>'
        yield f'<text x="{x + ratio * scale + 5:.1f}" y="{y + BAR - 5}">{ratio:.2f}</text>'
    if target:
        bottom = top + 34 + len(bars) * (BAR + GAP)
        line = x + target * scale
        yield f'<line x1="{line:.1f}" x2="{line:.1f}" y1="{top + 30}" y2="{bottom}" stroke="{TEXT}" stroke-dasharray="3 3"/>'
        yield f'<text x="{line:.1f}" y="{bottom + 11}" text-anchor="middle" font-size="10">target {target:g}</text>'


if __name__ == "__main__":
    main()
