#!/usr/bin/env python3
"""Measures phiward beside Envoy, HAProxy and nginx: two hops, plain -> mTLS -> plain, one worker a process.

Needs Python 3.9, wrk, h2load, nginx and haproxy; the SVIDs come from `phiward identity`. Envoy comes from its
PyPI package. Everything listens on 127.0.0.1. Rounds are interleaved, because machines drift: what is compared is the median
of each peer's figures within one run, as a ratio to HAProxy's.

    benches/mesh/run.py                      # everything, about 10 minutes
    benches/mesh/run.py --rounds 1 --scenario small-32 --peers phiward,haproxy
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

import peers

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLOCK = os.sysconf("SC_CLK_TCK")
JSON_150 = '{"resourceType":"Patient","id":"1","name":[{"family":"Testperson","given":["Ada"]}],"birthDate":"1950-12-10","active":true,"note":"150 bytes of JSON."}'

# name: (path, connections, what it shows)
SCENARIOS = {
    "small-32": ("/fhir/Patient/small", 32, "150 B, 32 connections"),
    "small-1": ("/fhir/Patient/small", 1, "150 B, 1 connection"),
    "small-256": ("/fhir/Patient/small", 256, "150 B, 256 connections"),
    "medium-32": ("/fhir/Patient/medium", 32, "16 KiB, 32 connections"),
    "large-8": ("/fhir/Patient/large", 8, "1 MiB, 8 connections"),
}


def main():
    args = arguments()
    work = ROOT / "target" / "bench-mesh"
    state = work / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    binary = pathlib.Path(args.binary or ROOT / "target" / "release" / "phiward")
    pki = make_pki(binary, state)
    app = start_app(state)
    fleet = make_fleet(args.peers.split(","), binary, args.baseline, pki, work, state)
    results = {}
    try:
        for peer in fleet:
            peer.dir.mkdir()
            peer.start()
        for peer in fleet:
            wait_until_served(peer)
        for round_number in range(args.rounds):
            for scenario in args.scenario.split(","):
                for peer in fleet:
                    figures = measure(peer, *SCENARIOS[scenario][:2], args.seconds)
                    results.setdefault(scenario, {}).setdefault(peer.name, []).append(figures)
                    print(f"round {round_number + 1} {scenario:10} {peer.name:12} {short(figures)}", file=sys.stderr)
        if args.rate:
            for round_number in range(args.rounds):
                for peer in fleet:
                    figures = measure_rate(peer, args.rate, args.seconds, state)
                    results.setdefault("rate", {}).setdefault(peer.name, []).append(figures)
                    print(f"round {round_number + 1} rate       {peer.name:12} {short(figures)}", file=sys.stderr)
        if args.syscalls:
            for peer in fleet:
                results.setdefault("syscalls", {})[peer.name] = [count_syscalls(peer, state)]
        for peer in fleet:
            results.setdefault("memory", {})[peer.name] = [{"rss_kib": sum(rss(pid) for pid in peer.pids())}]
    finally:
        for peer in fleet:
            peer.stop()
        app.terminate()
        app.wait(10)
    report(results, args.output)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of load for each figure")
    parser.add_argument("--scenario", default=",".join(SCENARIOS))
    parser.add_argument("--peers", default="haproxy,phiward,phiward-h1,nginx,envoy")
    parser.add_argument("--rate", type=int, default=5000, help="requests/s for the latency figures; 0: none")
    parser.add_argument("--syscalls", action="store_true", help="count system calls by strace (needs strace)")
    parser.add_argument("--binary", help="default: target/release/phiward")
    parser.add_argument("--baseline", help="an earlier build, for the peer phiward-baseline: before and after in one run")
    parser.add_argument("--output", type=pathlib.Path, help="write the figures there as JSON")
    return parser.parse_args()


def make_pki(binary, state):
    pki = state / "pki"
    pki.mkdir()
    run(binary, "identity", "ca", "--trust-domain", "hospital.local", "--dir", pki)
    for name, path in (("web", "ns/clinic/sa/web"), ("records", "ns/clinic/sa/records"), ("collector", "ns/audit/sa/collector")):
        run(binary, "identity", "issue", "--ca", pki, "--id", f"spiffe://hospital.local/{path}", "--dir", pki / name)
    return pki


def start_app(state):
    """nginx as the app: it answers from memory and costs little, so that it is not what is measured."""
    folder = state / "app"
    (folder / "html").mkdir(parents=True)
    for name, size in (("medium", 16 << 10), ("large", 1 << 20)):
        (folder / "html" / name).write_bytes(b"x" * size)
    (folder / "nginx.conf").write_text(f"""\
user root;
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/err;
events {{ worker_connections 9000; }}
http {{
  access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=10;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{peers.APP_PORT} backlog=4096;
    location = /fhir/Patient/small {{ default_type application/json; return 200 '{JSON_150}'; }}
    location /fhir/Patient/ {{ alias {folder}/html/; }}
  }}
}}
""")
    log = open(folder / "log", "wb")
    return subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stdout=log, stderr=log)


def make_fleet(names, binary, baseline, pki, work, state):
    made = {
        "phiward": lambda p: peers.Phiward("phiward", state, p, binary, pki),
        "phiward-h1": lambda p: peers.Phiward("phiward-h1", state, p, binary, pki, "h1"),
        "phiward-baseline": lambda p: peers.Phiward("phiward-baseline", state, p, baseline, pki),
        "haproxy": lambda p: peers.HAProxy("haproxy", state, p, pki),
        "nginx": lambda p: peers.Nginx("nginx", state, p, pki),
        "envoy": lambda p: peers.Envoy("envoy", state, p, pki, peers.envoy_binary(work)),
    }
    return [made[name](range(31000 + 10 * i, 31005 + 10 * i)) for i, name in enumerate(names)]


def wait_until_served(peer):
    request = urllib.request.Request(f"http://127.0.0.1:{peer.front}/fhir/Patient/small", headers={"Host": "records.clinic"})
    for _ in range(100):
        try:
            if urllib.request.urlopen(request, timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{peer.name} does not serve; see {peer.dir}")


def measure(peer, path, connections, seconds):
    before, began = cpu(peer), time.monotonic()
    out = run("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", "Host: records.clinic", f"http://127.0.0.1:{peer.front}{path}")
    elapsed, used = time.monotonic() - began, cpu(peer) - before
    requests = int(re.search(r"(\d+) requests in", out)[1])
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"{peer.name}: {out}")
    return {
        "requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
        "cpu_us_per_request": 1e6 * used / requests,
        "p50_us": latency(out, "50%"),
        "p99_us": latency(out, "99%"),
        "busy": used / elapsed,
    }


def measure_rate(peer, rate, seconds, state):
    """Latencies at a fixed rate, from each request's own time in h2load's log."""
    log = state / "h2load.tsv"
    log.unlink(missing_ok=True)
    clients = 10
    # By number, not by time: with --rps h2load 1.52 does not end after -D. Its own Host goes by the name of :authority.
    run("h2load", "--h1", f"-c{clients}", "-t1", f"--rps={rate // clients}", f"-n{rate * seconds}", f"--log-file={log}",
        "-H", ":authority: records.clinic", f"http://127.0.0.1:{peer.front}/fhir/Patient/small")
    answers = [line.split("\t") for line in log.read_text().splitlines()]
    if any(answer[1] != "200" for answer in answers):
        sys.exit(f"{peer.name}: not every answer was 200")
    times = sorted(int(answer[2]) for answer in answers)
    at = lambda q: times[min(len(times) - 1, int(q * len(times)))]
    return {"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "requests_per_s": len(times) / seconds}


def count_syscalls(peer, state):
    """System calls of both proxy processes under 32 connections, divided by the requests they served meanwhile."""
    summary = state / f"strace-{peer.name}"
    attach = [arg for pid in peer.pids() for arg in ("-p", str(pid))]
    tracer = subprocess.Popen(["strace", "-f", "-c", "-q", "-o", str(summary), *attach], stderr=subprocess.DEVNULL)
    time.sleep(1)
    out = run("wrk", "-t1", "-c32", "-d3s", "-H", "Host: records.clinic", f"http://127.0.0.1:{peer.front}/fhir/Patient/small")
    tracer.send_signal(2)
    tracer.wait(10)
    calls = int(re.search(r"(\d+)\s+\d*\s*total", summary.read_text())[1])
    requests = int(re.search(r"(\d+) requests in", out)[1])
    return {"syscalls_per_request_and_hop": calls / requests / 2}


def cpu(peer):
    """User and system time of the peer's processes, in seconds."""
    total = 0
    for pid in peer.pids():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / CLOCK


def rss(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    return int(found[1]) if found else 0


def latency(out, quantile):
    value, unit = re.search(rf"{quantile}\s+([\d.]+)(us|ms|s)", out).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def short(figures):
    return "  ".join(f"{key} {value:.4g}" for key, value in figures.items())


def report(results, output):
    medians = {
        scenario: {peer: {key: statistics.median(f[key] for f in rounds) for key in rounds[0]} for peer, rounds in of.items()}
        for scenario, of in results.items()
    }
    for scenario, of in medians.items():
        base = of.get("haproxy") or next(iter(of.values()))
        print(f"\n{scenario}: {SCENARIOS.get(scenario, ('', 0, ''))[2]} (medians; in brackets the ratio to HAProxy)")
        keys = list(next(iter(of.values())))
        print(f"{'':12}" + "".join(f"{key:>30}" for key in keys))
        for peer, figures in of.items():
            cells = (f"{figures[k]:.5g} ({figures[k] / base[k]:.2f})" if base[k] else f"{figures[k]:.5g}" for k in keys)
            print(f"{peer:12}" + "".join(f"{cell:>30}" for cell in cells))
    if output:
        output.write_text(json.dumps({"results": results, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
