"""What a run says: tables of medians with ratios, and each target of the design, reached or not.

Owns the targets. Figures come as {section: {peer: [figures of a round, ...]}}; only what was measured is judged.
"""

import statistics

import load

BASE = "haproxy"


def medians(results):
    return {
        section: {peer: {key: statistics.median(f[key] for f in rounds) for key in rounds[0]} for peer, rounds in of.items()}
        for section, of in results.items()
    }


def targets(found):
    """(what, the figure or None, how it is compared, the bound, unit) for each target of the design."""

    def at(section, peer, key):
        return found.get(section, {}).get(peer, {}).get(key)

    def ratio(section, key, peer, other, other_section=None):
        mine, theirs = at(section, peer, key), at(other_section or section, other, key)
        return mine / theirs if mine is not None and theirs else None

    cpu, rate = "cpu_us_per_request", "requests_per_s"
    idle, many = at("idle", "phiward", "largest_process_kib"), max(connection_counts(found), default=0)
    return [
        ("CPU per request, HAProxy = 1", ratio("get-150-32", cpu, "phiward", "haproxy"), "<=", 0.70, ""),
        ("CPU per request, Envoy = 1", ratio("get-150-32", cpu, "phiward", "envoy"), "<=", 0.25, ""),
        ("requests/s, HAProxy = 1", ratio("get-150-32", rate, "phiward", "haproxy"), ">=", 1.3, ""),
        ("1 MiB bodies, MB/s, Envoy = 1", ratio("get-1m-8", rate, "phiward", "envoy"), ">=", 1.2, ""),
        ("p99 at a fixed rate, HAProxy = 1", ratio("rate", "p99_us", "phiward", "haproxy"), "<=", 1.0, ""),
        ("CPU per mTLS connection + request, inbound, Envoy = 1", ratio("fresh", "cpu_us_per_connection", "phiward", "envoy"), "<=", 0.8, ""),
        ("memory per idle mTLS connection", at("connections", "phiward", "kib_after_request"), "<=", 24, " KiB"),
        ("system calls per request and hop", at("syscalls", "phiward", "per_request_and_hop"), "<=", 2.4, ""),
        ("requests/s of durability fsync, 256 connections, write = 1", ratio("get-150-256", rate, "phiward-fsync", "phiward"), ">=", 0.7, ""),
        ("CPU per request, audit off = 1", at("trail-get-150-32", "phiward-switch", "on_to_off"), "<=", 1.15, ""),
        ("CPU per request at 10,000 rules, 10 rules = 1", ratio("get-150-32", cpu, "phiward-10000-rules", "phiward"), "<=", 1.05, ""),
        ("CPU per request at 1,000 identities, 1 identity = 1", ratio("get-150-32", cpu, "phiward-1000-identities", "phiward"), "<=", 1.05, ""),
        (f"CPU per request over {many or 'many'} connections, 1 connection = 1", ratio(f"over-{many}", cpu, "phiward", "phiward", "over-1") if many > 1 else None, "<=", 1.10, ""),
        ("requests/s of two workers, one = 1", ratio("get-150-256", rate, "phiward-2-workers", "phiward"), ">=", 1.8, ""),
        ("resident memory of an idle sidecar", idle / 1024 if idle else None, "<=", 12, " MiB"),
        ("from exec to ready", at("ready", "phiward", "ready_ms"), "<=", 100, " ms"),
        ("release binary", at("binary", "phiward", "mib"), "<=", 16, " MiB"),
    ]


def connection_counts(found):
    return [int(section[5:]) for section in found if section.startswith("over-")]


def judge(found):
    """The targets with a verdict: "reached", "not reached" or "not measured"."""
    judged = []
    for what, figure, how, bound, unit in targets(found):
        if figure is None:
            verdict = "not measured"
        else:
            verdict = "reached" if (figure <= bound if how == "<=" else figure >= bound) else "not reached"
        judged.append({"what": what, "figure": figure, "how": how, "bound": bound, "unit": unit, "verdict": verdict})
    return judged


def title(section):
    names = {
        "rate": "fixed rate", "syscalls": "system calls (strace slows all)", "idle": "memory before any load",
        "connections": "memory of idle mTLS connections, inbound", "fresh": "new mTLS connections with one request, inbound",
        "ready": "start", "binary": "binary",
    }
    if section in names:
        return names[section]
    if section.startswith("trail-"):
        return f"{load.describe(section[6:])}, the trail on and off in turn within one process"
    if section.startswith("over-"):
        return f"GET 150 B at a low rate over {int(section[5:]):,} plain connections"
    return load.describe(section)


def mean_of_pairs(pairs):
    """The mean of the differences, with its standard error, to the mean without: a median hides how sure it is."""
    off = statistics.mean(pair["cpu_us_off"] for pair in pairs)
    more = [(pair["cpu_us_on"] - pair["cpu_us_off"]) / off for pair in pairs]
    error = statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else float("nan")
    return f"mean of the pairs {1 + statistics.mean(more):.3f} +- {error:.3f}"


def show(results):
    """Prints the tables and the verdicts; returns both for a file."""
    found = medians(results)
    for section, of in found.items():
        base = of.get(BASE) or {}
        rounds = len(next(iter(results[section].values())))
        print(f"\n{section}: {title(section)} (medians of {rounds}; in brackets the ratio to HAProxy)")
        keys = list(next(iter(of.values())))
        print(f"{'':24}" + "".join(f"{key:>26}" for key in keys))
        for peer, figures in of.items():
            cells = (f"{figures[k]:.5g} ({figures[k] / base[k]:.2f})" if base.get(k) else f"{figures[k]:.5g}" for k in keys)
            print(f"{peer:24}" + "".join(f"{cell:>26}" for cell in cells))
        for peer, pairs in results[section].items() if section.startswith("trail-") else ():
            print(f"{peer:24}{mean_of_pairs(pairs):>78}")
    judged = judge(found)
    print("\ntargets")
    for target in judged:
        figure = "" if target["figure"] is None else f"{target['figure']:.3g}{target['unit']}"
        print(f"  {target['verdict']:13} {figure:>10}   {target['how']} {target['bound']:g}{target['unit']:5} {target['what']}")
    return {"results": results, "medians": found, "targets": judged}
