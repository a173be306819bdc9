"""Load on a peer, and what it costs: CPU, latency, system calls, memory.

Owns the load generators (wrk, h2load, strace) and /proc. Knows peers as processes and ports, not what they are.
"""

import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import urllib.request

CLOCK = os.sysconf("SC_CLK_TCK")
HOST = "records.clinic"
SIZES = {"150": 150, "16k": 16 << 10, "1m": 1 << 20}
PATHS = {"150": "/fhir/Patient/small", "16k": "/fhir/Patient/medium", "1m": "/fhir/Patient/large"}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def cpu(pids):
    """User and system time of the processes so far, in seconds."""
    total = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / CLOCK


def rss_kib(pids):
    """Resident memory of the processes, in KiB."""
    found = (re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()) for pid in pids)
    return sum(int(match[1]) for match in found if match)


def wait_until_served(peer):
    request = urllib.request.Request(f"http://127.0.0.1:{peer.front}{PATHS['150']}", headers={"Host": HOST})
    for _ in range(200):
        try:
            if urllib.request.urlopen(request, timeout=5).status == 200:
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{peer.name} does not serve; see {peer.dir}")


def scenario(name):
    """`get-150-32` is GET of 150 bytes over 32 connections; `post-1m-8` sends 1 MiB over 8."""
    found = re.fullmatch(rf"(get|post)-({'|'.join(SIZES)})-(\d+)", name)
    if not found:
        sys.exit(f"{name}: a scenario is METHOD-SIZE-CONNECTIONS, such as get-150-32 or post-16k-1")
    return found[1], found[2], int(found[3])


def describe(name):
    method, size, connections = scenario(name)
    body = {"150": "150 B", "16k": "16 KiB", "1m": "1 MiB"}[size]
    return f"{method.upper()} {body}, {connections} connection{'s' * (connections != 1)}"


def closed_loop(peer, name, seconds):
    """wrk: as many requests as the peer answers, a next one when the last was answered."""
    method, size, connections = scenario(name)
    extra, path = [], PATHS[size]
    if method == "post":
        script = peer.place.state / f"post-{size}.lua"
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = string.rep("x", {SIZES[size]})\n'
            'wrk.headers["Content-Type"] = "application/fhir+json"\n'
        )
        extra, path = ["-s", str(script)], "/fhir/Observation"
    before, began = cpu(peer.pids()), time.monotonic()
    out = run("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=20s", "--latency", *extra, "-H", f"Host: {HOST}",
              f"http://127.0.0.1:{peer.front}{path}")
    elapsed, used = time.monotonic() - began, cpu(peer.pids()) - before
    requests = int(re.search(r"(\d+) requests in", out)[1])
    if "Non-2xx" in out or "Socket errors" in out or not requests:
        sys.exit(f"{peer.name}, {name}: {out}")
    return {
        "requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]),
        "cpu_us_per_request": 1e6 * used / requests,
        "p50_us": latency(out, "50%"),
        "p99_us": latency(out, "99%"),
        "rss_kib": rss_kib(peer.pids()),
        "cores_busy": used / elapsed,
    }


def latency(out, quantile):
    value, unit = re.search(rf"{quantile}\s+([\d.]+)(us|ms|s)", out).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def fixed_rate(peer, rate, seconds):
    """Latencies at a fixed rate, from each request's own time in h2load's log."""
    log = peer.place.state / "h2load.tsv"
    log.unlink(missing_ok=True)
    clients = 10
    before = cpu(peer.pids())
    # By number, not by time: with --rps h2load 1.52 does not end after -D. Its own Host goes by the name of :authority.
    run("h2load", "--h1", f"-c{clients}", "-t1", f"--rps={rate // clients}", f"-n{rate * seconds}", f"--log-file={log}",
        "-H", f":authority: {HOST}", f"http://127.0.0.1:{peer.front}{PATHS['150']}")
    used = cpu(peer.pids()) - before
    answers = [line.split("\t") for line in log.read_text().splitlines()]
    if any(answer[1] != "200" for answer in answers):
        sys.exit(f"{peer.name}: not every answer was 200")
    times = sorted(int(answer[2]) for answer in answers)
    at = lambda q: times[min(len(times) - 1, int(q * len(times)))]
    return {"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "cpu_us_per_request": 1e6 * used / len(times)}


def system_calls(peer, seconds):
    """System calls of both proxies under 32 connections, by the requests they served meanwhile. strace slows all down."""
    summary = peer.place.state / f"strace-{peer.name}"
    attach = [arg for pid in peer.pids() for arg in ("-p", str(pid))]
    tracer = subprocess.Popen(["strace", "-f", "-c", "-q", "-o", str(summary), *attach], stderr=subprocess.DEVNULL)
    time.sleep(1)
    out = run("wrk", "-t1", "-c32", f"-d{seconds}s", "-H", f"Host: {HOST}", f"http://127.0.0.1:{peer.front}{PATHS['150']}")
    tracer.send_signal(2)
    tracer.wait(30)
    calls = int(re.search(r"(\d+)\s+\d*\s*total", summary.read_text())[1])
    requests = int(re.search(r"(\d+) requests in", out)[1])
    return {"per_request_and_hop": calls / requests / 2}


def time_to_ready(peer, times):
    """From exec to the first 200 of /ready, in ms, of an inbound sidecar that is started for it and ended."""
    figures = []
    for _ in range(times):
        began = time.monotonic()
        child = subprocess.Popen([peer.binary, "run", "--config", "ready/sidecar.yaml"], cwd=peer.dir,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{peer.ready_port}/ready", timeout=5)
                    break
                except OSError:
                    if child.poll() is not None or time.monotonic() - began > 30:
                        sys.exit(f"{peer.name} does not become ready; see {peer.dir}/ready")
                    time.sleep(0.0005)
            figures.append(1e3 * (time.monotonic() - began))
        finally:
            child.terminate()
            child.wait(30)
    return {"ready_ms": statistics.median(figures), "ready_ms_worst": max(figures)}
