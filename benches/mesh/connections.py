"""What connections cost a peer: to make, to hold, to have many of. Drives idle.py and looks at the peer between its stages."""

import json
import pathlib
import subprocess
import sys
import time

import load

CLIENT = pathlib.Path(__file__).with_name("idle.py")


class Client:
    """A running idle.py."""

    def __init__(self, *args):
        command = [sys.executable, "-B", str(CLIENT), *map(str, args)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()

    def stage(self):
        """What it tells at the next stage, where it waits."""
        line = self.child.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.child.args)} ended; is the limit of open files too low?")
        return json.loads(line)

    def go_on(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()


def memory(peer, count):
    """Resident KiB of the inbound process for each of `count` idle mTLS connections: after the handshake, and after a request.

    The peer must be fresh: after load, an allocator serves connections from what it kept.
    """
    inbound = peer.pids(slice(0, 1))
    with Client("hold", peer.mesh, peer.place.pki, count) as client:
        before, opened, served = (resident(client, inbound) for _ in range(3))
    return {"kib_after_handshake": (opened - before) / count, "kib_after_request": (served - before) / count}


def resident(client, pids):
    """Resident KiB at the client's next stage, once the peer has come to rest."""
    client.stage()
    time.sleep(1)
    found = load.rss_kib(pids)
    client.go_on()
    return found


def fresh(peer, count):
    """CPU of the inbound process for a new mTLS connection with one request, in microseconds."""
    inbound = peer.pids(slice(0, 1))
    with Client("fresh", peer.mesh, peer.place.pki, count) as client:
        client.stage()
        before = load.cpu(inbound)
        client.go_on()
        client.stage()
        used = load.cpu(inbound) - before
    return {"cpu_us_per_connection": 1e6 * used / count}


def flatness(peer, count, rate, seconds):
    """CPU of both proxies for a request when `rate` requests/s come over `count` plain connections in turn."""
    with Client("rate", peer.front, count, rate, seconds) as client:
        client.stage()
        time.sleep(1)
        before = load.cpu(peer.pids())
        client.go_on()
        done = client.stage()
        used = load.cpu(peer.pids()) - before
        memory_now = load.rss_kib(peer.pids())
    return {
        "cpu_us_per_request": 1e6 * used / done["requests"],
        "requests_per_s": done["per_second"],
        "rss_kib": memory_now,
    }
