#!/usr/bin/env python3
"""Measures phiward beside Envoy, HAProxy and nginx: two hops, plain -> mTLS -> plain, one worker a process.

Needs Python 3.9, wrk, h2load, strace, nginx and haproxy; the SVIDs come from `phiward identity`, Envoy from its PyPI package.
Everything listens on loopback. Rounds are interleaved, because machines drift: what is compared is the median of each peer's
figures within one run, as a ratio to HAProxy's. Run it on an idle machine.

    benches/mesh/run.py                          # everything, about an hour
    benches/mesh/run.py --quick                  # every measure once and short, about 6 minutes: does it work, roughly what
    benches/mesh/run.py --measure load --scenario get-150-32 --peers phiward,haproxy

Measures: load (the scenarios METHOD-SIZE-CONNECTIONS), rate, syscalls, idle, connections, fresh, over, ready, and with --switch trail.
Variants of phiward, by name in --peers: phiward-h1 (mesh leg), phiward-fsync, phiward-2-workers, phiward-10000-rules,
phiward-1000-identities, phiward-baseline (with --baseline BINARY, an earlier build), phiward-switch (with --switch BINARY, a build whose
trail can be switched off while it runs: what the trail costs is measured within one process).
"""

import argparse
import json
import os
import pathlib
import platform
import random
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True

import app  # noqa: E402
import connections  # noqa: E402
import limits  # noqa: E402
import load  # noqa: E402
import peers  # noqa: E402
import phiward  # noqa: E402
import pki  # noqa: E402
import report  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ["haproxy", "phiward", "nginx", "envoy", "phiward-h1", "phiward-fsync", "phiward-2-workers", "phiward-10000-rules", "phiward-1000-identities"]
MEASURES = ["idle", "load", "rate", "syscalls", "fresh", "over", "ready", "connections", "trail"]
SCENARIOS = [f"{method}-{size}-{count}" for method in ("get", "post") for size in load.SIZES for count in (1, 32, 256)] + ["get-1m-8"]
QUICK_SCENARIOS = ["get-150-1", "get-150-32", "get-150-256", "get-1m-8", "post-16k-32"]
OVER = [1, 100, 1000, 10_000]
# What a variant answers is asked of it in these scenarios, where phiward itself runs too.
SMALL = {"get-150-32", "get-150-256"}
# So many pairs of rounds, one with the trail and one without, for each start.
PAIRS = 5


def main():
    args = arguments()
    # Most open files: 10,000 connections on each side of a proxy.
    files = limits.raise_open_files()
    args.state.mkdir(parents=True, exist_ok=True)
    state = args.state / "run"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    place = peers.Place(state, pki.make(args.binary, state), args.port_base)
    results = Results()
    fleet = make_fleet(args, place)
    with app.App(place):
        try:
            for peer in fleet:
                peer.dir.mkdir()
                peer.start()
            for peer in fleet:
                load.wait_until_served(peer)
            for measure in args.measure:
                MEASURE[measure](args, fleet, results)
        finally:
            for peer in fleet:
                peer.stop()
    shown = report.show(results.of)
    if args.output:
        args.output.write_text(json.dumps({"machine": machine(args, files), **shown}, indent=1) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: text.split(",")
    parser.add_argument("--quick", action="store_true", help="one round of one second, few scenarios, 1,000 connections")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of load for each figure")
    parser.add_argument("--restart", action="store_true", help="begin each peer anew for each round of load: where its memory lies moves a figure by some percent")
    parser.add_argument("--measure", type=listed, default=MEASURES)
    parser.add_argument("--scenario", type=listed)
    parser.add_argument("--peers", type=listed)
    parser.add_argument("--rate", type=int, default=5000, help="requests/s for the latency figures")
    parser.add_argument("--connections", type=int, help="how many are held idle, and the most that requests go over")
    file = lambda text: pathlib.Path(text).resolve()  # the peers are started in folders of their own
    parser.add_argument("--binary", type=file, default=ROOT / "target" / "release" / "phiward")
    parser.add_argument("--switch", type=file, help="a build with --cfg phiward_bench_switch, for phiward-switch and trail")
    parser.add_argument("--baseline", type=file, help="an earlier build, for phiward-baseline: before and after in one run")
    parser.add_argument("--envoy", type=file, help="default: fetched from PyPI into the state folder, once")
    parser.add_argument("--state", type=file, default=ROOT / "target" / "bench-mesh", help="a folder for configurations, trails, logs")
    parser.add_argument("--port-base", type=int, default=31000, help="the app's port; peers take ten each after it")
    parser.add_argument("--output", type=pathlib.Path, help="write the figures there as JSON, for plot.py")
    args = parser.parse_args()
    quick = args.quick
    args.rounds = args.rounds or (1 if quick else 5)
    args.seconds = args.seconds or (1 if quick else 3)
    args.scenario = args.scenario or (QUICK_SCENARIOS if quick else SCENARIOS)
    args.connections = args.connections or (1000 if quick else 10_000)
    if not args.peers:
        args.peers = PEERS + ["phiward-switch"] * bool(args.switch) + ["phiward-baseline"] * bool(args.baseline)
    for unknown in set(args.measure) - set(MEASURES):
        parser.error(f"{unknown}: a measure is one of {', '.join(MEASURES)}")
    # Any build makes the identities, so what the trail costs needs no other than the one with a switch.
    if args.switch and all(peer == "phiward-switch" for peer in args.peers if peer.startswith("phiward")):
        args.binary = args.switch
    for binary in (args.binary, args.switch, args.baseline):
        if binary and not binary.is_file():
            parser.error(f"{binary}: there is no such program; docs/performance.md says how to build it")
    return args


def make_fleet(args, place):
    def variant(binary=args.binary, **changes):
        if binary is None:
            sys.exit("phiward-switch needs --switch BINARY, phiward-baseline needs --baseline BINARY")
        return lambda name, ports: phiward.Phiward(name, place, ports, pathlib.Path(binary).resolve(), **changes)

    made = {
        "phiward": variant(),
        "phiward-h1": variant(mesh="h1"),
        "phiward-fsync": variant(durability="fsync", scenarios=SMALL),
        "phiward-2-workers": variant(workers=2, scenarios=SMALL),
        "phiward-10000-rules": variant(rules=10_000, scenarios=SMALL),
        "phiward-1000-identities": variant(identities=1000, scenarios=SMALL),
        "phiward-switch": variant(args.switch, scenarios=set()) if "phiward-switch" in args.peers else None,
        "phiward-baseline": variant(args.baseline) if "phiward-baseline" in args.peers else None,
        "haproxy": lambda name, ports: peers.HAProxy(name, place, ports),
        "nginx": lambda name, ports: peers.Nginx(name, place, ports),
        "envoy": lambda name, ports: peers.Envoy(name, place, ports, args.envoy or peers.envoy_binary(args.state)),
    }
    for unknown in set(args.peers) - set(made):
        sys.exit(f"{unknown}: a peer is one of {', '.join(made)}")
    first = args.port_base + 10
    return [made[name](name, range(first + 10 * i, first + 10 * i + 5)) for i, name in enumerate(args.peers)]


class Results:
    """Figures as they come, told on stderr: an hour is long."""

    def __init__(self):
        self.of = {}

    def add(self, section, peer, figures):
        self.of.setdefault(section, {}).setdefault(peer.name, []).append(figures)
        told = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{section:14} {peer.name:24} {told}", file=sys.stderr)


def whole(fleet):
    """Those that take part in everything."""
    return [peer for peer in fleet if peer.scenarios is None]


def measure_load(args, fleet, results):
    for number in range(args.rounds):
        if args.restart and number:
            begin_anew(fleet)
        for name in args.scenario:
            for peer in fleet:
                if peer.scenarios is None or name in peer.scenarios:
                    results.add(name, peer, load.closed_loop(peer, name, args.seconds))


def begin_anew(fleet):
    """With a second of load that is not counted: the first requests pay for memory that later ones find."""
    for peer in fleet:
        peer.restart()
    for peer in fleet:
        load.wait_until_served(peer)
        load.closed_loop(peer, "get-150-32", 1)


def measure_trail(args, fleet, results):
    """CPU for a request with the trail and without, in pairs of rounds of one process, either first."""
    for _ in range(args.rounds):
        for peer in (peer for peer in fleet if peer.name == "phiward-switch"):
            begin_anew([peer])
            for name in (name for name in args.scenario if name in SMALL):
                for _ in range(PAIRS):
                    results.add(f"trail-{name}", peer, trail_pair(peer, name, args.seconds))


def trail_pair(peer, name, seconds):
    cost = {}
    for way in random.sample(["on", "off"], 2):
        peer.trail(way)
        cost[way] = load.closed_loop(peer, name, seconds)["cpu_us_per_request"]
    peer.trail("on")
    return {"cpu_us_on": cost["on"], "cpu_us_off": cost["off"], "on_to_off": cost["on"] / cost["off"]}


def measure_rate(args, fleet, results):
    for _ in range(args.rounds):
        for peer in whole(fleet):
            results.add("rate", peer, load.fixed_rate(peer, args.rate, args.seconds))


def measure_syscalls(args, fleet, results):
    for peer in whole(fleet):
        results.add("syscalls", peer, load.system_calls(peer, args.seconds))


def measure_idle(args, fleet, results):
    for peer in whole(fleet):
        each = [load.rss_kib([pid]) for pid in peer.pids()]
        results.add("idle", peer, {"rss_kib": sum(each), "largest_process_kib": max(each)})


def measure_connections(args, fleet, results):
    for peer in whole(fleet):
        peer.restart()
        load.wait_until_served(peer)
        results.add("connections", peer, connections.memory(peer, args.connections))


def measure_fresh(args, fleet, results):
    for _ in range(min(args.rounds, 3)):
        for peer in whole(fleet):
            results.add("fresh", peer, connections.fresh(peer, 300 * args.seconds))


def measure_over(args, fleet, results):
    for _ in range(min(args.rounds, 3)):
        for count in [count for count in OVER if count < args.connections] + [args.connections]:
            for peer in whole(fleet):
                results.add(f"over-{count}", peer, connections.flatness(peer, count, 1000, 2 * args.seconds))


def measure_ready(args, fleet, results):
    for peer in whole(fleet):
        if isinstance(peer, phiward.Phiward):
            peer.prepare_ready()
            results.add("ready", peer, load.time_to_ready(peer, 11))
            results.add("binary", peer, {"mib": peer.binary.stat().st_size / (1 << 20)})


MEASURE = {
    "idle": measure_idle, "load": measure_load, "rate": measure_rate, "syscalls": measure_syscalls, "fresh": measure_fresh,
    "over": measure_over, "ready": measure_ready, "connections": measure_connections, "trail": measure_trail,
}


def machine(args, files):
    first = lambda *command: (subprocess.run(command, capture_output=True, text=True).stdout.splitlines() or ["?"])[0]
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(), "cpus": os.cpu_count(),
        "kernel": platform.release(), "open_files": files, "haproxy": first("haproxy", "-v"),
        "phiward": first(str(args.binary), "--version"), "rounds": args.rounds, "seconds": args.seconds, "connections": args.connections,
    }


if __name__ == "__main__":
    main()
