#!/usr/bin/env python3
"""The guard of the hot path: counts instructions under callgrind and compares them with benches/instructions.baseline.

    benches/instructions.py              # measure and compare; 1 when a count grew by more than 3 %
    benches/instructions.py --record     # measure and write the baseline, for the commit that changes it on purpose
    benches/instructions.py --only audit # some of them, to look at while working

Two kinds of count. The steps of `benches/micro/subjects.rs`, each by the difference of two runs, which leaves preparation
out. And a whole request, GET of 150 bytes over one connection through both sidecars of the release build (policy, both
events, chain, HTTP/2 mesh leg), again by the difference of two runs, which leaves start-up and handshakes out.

Why counts: times on shared machines differ by a factor of two within minutes, counts by less than 1 %. What they do not see:
system calls' cost in the kernel, cache misses, waits. benches/mesh is for those.

What a count depends on besides the code stands at the head of the baseline. Valgrind shows every x86-64 CPU with AVX2 as the
same CPU (no AVX-512, no SHA extensions), so memchr, glibc and aws-lc choose the same code on all of them; the C library is
tuned by the variables below to what is the same everywhere. Needs Python 3.9, Rust and valgrind.
"""

import argparse
import concurrent.futures
import os
import pathlib
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BASELINE = ROOT / "benches" / "instructions.baseline"
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "benches" / "mesh"))

import peers  # noqa: E402
import phiward  # noqa: E402
import pki  # noqa: E402

TOLERANCE = 0.03
REQUESTS = (100, 1100)
# Seconds between two requests: longer than anything waits to go in company with the next, so that each request goes the same way
# on a fast machine and on a slow one.
PAUSE = 0.02
# Units of work in the two runs, where the usual numbers would take too long.
UNITS = {"audit_64_requests": (20, 120), "policy_load_10000_rules": (1, 3)}
BODY = b'{"resourceType":"Patient","id":"1","name":[{"family":"Testperson","given":["Ada"]}],"birthDate":"1950-12-10","active":true,"note":"150 bytes of JSON."}'
# glibc chooses string functions by the sizes of the caches too, which valgrind does not hide.
TUNABLES = "glibc.cpu.x86_non_temporal_threshold=0xc0000:glibc.cpu.x86_rep_movsb_threshold=0x800"


def main():
    args = arguments()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is missing: apt-get install valgrind")
    if not args.no_build:
        # The program that ships, and the one that has the steps.
        for what in (["static"], ["build", "--release", "--locked", "--bin=phiward-instructions", "--features=instructions"]):
            subprocess.run(["cargo", *what], cwd=ROOT, check=True)
    program = TARGET / "release" / "phiward-instructions"
    names = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    names = list(filter(args.only.search, names))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # a count does not mind neighbours
        counts = dict(zip(names, pool.map(lambda name: steps(program, name), names)))
    if args.only.search("request_inbound request_outbound"):
        counts |= whole_requests(args, 3 if args.record else 1)
        # Timers and wake-ups make one measure differ from the next by up to 1 %; what fails has been seen three times.
        if not args.record and grown(counts, read_baseline()[1]):
            counts |= whole_requests(args, 3)
    if args.record:
        record(counts, args)
    else:
        sys.exit(compare(counts, args))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the baseline")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="a pattern of names; with --record the others are kept")
    parser.add_argument("--port-base", type=int, default=31900, help="of 20 ports for the sidecars")
    parser.add_argument("--no-build", action="store_true", help="count what was built before")
    return parser.parse_args()


def environment():
    return {**os.environ, "GLIBC_TUNABLES": TUNABLES}


def steps(program, name):
    few, many = UNITS.get(name, (640, 12_800))
    counted = [callgrind(program, name, times) for times in (few, many)]
    return (counted[1] - counted[0]) / (many - few)


def callgrind(*command):
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *map(str, command)],
        capture_output=True, text=True, env=environment(),
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
    return collected(done.stderr)


def collected(text):
    return int(re.search(r"Collected\s*:\s*(\d+)", text)[1])


def whole_requests(args, rounds):
    """The medians of some measures of a whole request, by name."""
    measured = [whole_request(args.port_base) for _ in range(rounds)]
    return {f"request_{side}": statistics.median(figures[side] for figures in measured) for side in measured[0]}


def whole_request(port_base):
    """Instructions of each sidecar for one request.

    Both runs go side by side and last as long, so that what the sidecars do by the clock is in both and leaves the difference.
    """
    few_done, many_done = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        few = pool.submit(sidecars, port_base, REQUESTS[0], few_done, many_done)
        many = pool.submit(sidecars, port_base + 10, REQUESTS[1], many_done, few_done)
        few, many = few.result(), many.result()
    return {side: (many[side] - few[side]) / (REQUESTS[1] - REQUESTS[0]) for side in few}


def sidecars(port_base, requests, done, other_done):
    """Both sidecars under callgrind, `requests` requests one after another over one connection; their total counts."""
    binary = TARGET / "release" / "phiward"
    with tempfile.TemporaryDirectory(prefix="phiward-instructions-") as folder, App() as app:
        state = pathlib.Path(folder)
        place = peers.Place(state, pki.make(binary, state), app.port)
        under = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-file={}.valgrind", "--fair-sched=yes")
        # Without a collector: what is shipped together hangs on time, and delivery is not on a request's way.
        peer = phiward.Phiward("counted", place, range(port_base, port_base + 5), binary, under=under, ships=False)
        peer.environment = environment()
        peer.dir.mkdir()
        peer.start()
        try:
            with connect(peer.front) as connection:
                for _ in range(requests):
                    get(connection)
                    time.sleep(PAUSE)
                done.set()
                other_done.wait(300)
        finally:
            done.set()  # also when it failed: the other must not wait for it
            peer.stop(60)
        logs = {"inbound": "records.valgrind", "outbound": "web.valgrind"}
        return {side: collected((peer.dir / log).read_text()) for side, log in logs.items()}


def connect(port):
    """A connection that has served a request, so both sidecars are up and joined."""
    deadline = time.monotonic() + 240  # start-up under valgrind, on a machine that is busy with tests
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            get(connection)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                sys.exit("the sidecars do not serve under valgrind")
            time.sleep(0.2)


def get(connection):
    connection.sendall(b"GET /fhir/Patient/small HTTP/1.1\r\nhost: records.clinic\r\naccept: application/json\r\nuser-agent: count\r\n\r\n")
    answer = b""
    while not answer.endswith(BODY):
        more = connection.recv(65536)
        if not more or (b"\r\n\r\n" in answer and not answer.startswith(b"HTTP/1.1 200")):
            raise OSError("not served")
        answer += more


class App:
    """An app that answers every head it reads with the same bytes, a thread a connection."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        try:
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()
        except OSError:
            return  # closed

    def serve(self, connection):
        pending = b""
        try:
            while more := connection.recv(65536):
                *heads, pending = (pending + more).split(b"\r\n\r\n")
                connection.sendall(self.ANSWER * len(heads))
        except OSError:
            return  # the sidecar went


def circumstances():
    """What a count depends on besides the code."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    level = next((level for level in ("avx2", "avx") if level in flags), "sse")
    version = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    return {
        "rustc": version("rustc", "--version"),
        "valgrind": f"{version('valgrind', '--version')}, which shows {platform.machine()} with {level}",
        "libc": " ".join(platform.libc_ver()),
    }


def read_baseline():
    circumstance, counts = {}, {}
    for line in BASELINE.read_text().splitlines() if BASELINE.exists() else ():
        name, _, value = line.lstrip("# ").partition(" = ")
        if value:
            (circumstance if line.startswith("#") else counts)[name.strip()] = value
    return circumstance, {name: float(value) for name, value in counts.items()}


def record(counts, args):
    if args.only.pattern:
        counts = {**read_baseline()[1], **counts}
    lines = ["# Instructions of the hot path: benches/instructions.py compares with these, --record writes them."]
    lines += [f"# {name} = {value}" for name, value in circumstances().items()]
    lines += [f"{name} = {round(count)}" for name, count in counts.items()]
    BASELINE.write_text("\n".join(lines) + "\n")
    print(f"recorded: {BASELINE.relative_to(ROOT)}")


def grown(counts, known):
    """The names whose counts grew by more than is tolerated."""
    return [name for name, count in counts.items() if count > known.get(name, count) * (1 + TOLERANCE)]


def compare(counts, args):
    """Prints the comparison; the exit code."""
    then, known = read_baseline()
    now = circumstances()
    other = [f"  {key}: recorded with {then.get(key)}, measured with {value}" for key, value in now.items() if then.get(key) != value]
    worse, missing = grown(counts, known), [name for name in counts if name not in known]
    gone = [name for name in known if name not in counts] if not args.only.pattern else []
    print(f"{'':32} {'recorded':>12} {'now':>12} {'change':>8}")
    for name, count in counts.items():
        if name in missing:
            continue
        print(f"{name:32} {known[name]:>12,.0f} {count:>12,.0f} {count / known[name] - 1:>+8.1%}")
    if other:
        print("\nThe baseline comes from other circumstances, so differences may come from them:\n" + "\n".join(other))
    if not (worse or missing or gone):
        print(f"\nnothing grew by more than {TOLERANCE:.0%}")
        return 0
    print("\nFAILED: the hot path changed and benches/instructions.baseline did not.")
    lines = [f"{name} grew by {counts[name] / known[name] - 1:.1%}, from {known[name]:,.0f} to {counts[name]:,.0f} instructions" for name in worse]
    lines += [f"{name} is not in the baseline" for name in missing] + [f"{name} is in the baseline and is not measured" for name in gone]
    print("\n".join(f"  {line}" for line in lines))
    print("Make it cheaper, or say in the commit why it must cost more and put the new counts into the same commit:\n  benches/instructions.py --record")
    return 1


if __name__ == "__main__":
    main()
