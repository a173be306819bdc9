#!/usr/bin/env python3
"""Many connections: a client of its own, run as a process so that its memory and CPU are not the bench's.

Owns connections that are opened and held. It prints one line of JSON at each stage and waits for a line on its input, so
that the bench can look at the peer meanwhile; any HTTP/1.1 server does.

    idle.py hold  PORT PKI N       # 50 mTLS connections (stage 1), N more (stage 2), one GET on each of those (stage 3)
    idle.py fresh PORT PKI N       # once (stage 1), then N times (stage 2): connect, mTLS handshake, one GET, close
    idle.py rate  PORT N RATE SECONDS   # N plain connections, RATE requests/s over them in turn (stages 1 and 2)
"""

import json
import pathlib
import socket
import ssl
import sys
import time

import limits

HEAD = b"GET /fhir/Patient/small HTTP/1.1\r\nhost: records.clinic\r\n\r\n"


def main():
    limits.raise_open_files()
    what, port, *rest = sys.argv[1:]
    {"hold": hold, "fresh": fresh, "rate": rate}[what](int(port), *rest)


def stage(**figures):
    """Tells the bench, and waits until it has looked."""
    print(json.dumps(figures), flush=True)
    sys.stdin.readline()


def context(pki):
    """TLS 1.3 with the SVID of `web`. SPIFFE IDs are not host names, so the name is not checked; the chain is."""
    folder = pathlib.Path(pki)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.load_verify_locations(folder / "web" / "bundle.pem")
    made.load_cert_chain(folder / "web" / "svid.pem", folder / "web" / "svid.key")
    made.set_alpn_protocols(["http/1.1"])
    return made


def connect(port, tls=None):
    # Each source address has about 28,000 ports; three of them leave room for those that linger after a run.
    source = f"127.0.0.{2 + connect.made % 3}"
    connect.made += 1
    plain = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(plain) if tls else plain


connect.made = 0


def get(connection):
    """One request, and the whole answer."""
    connection.sendall(HEAD)
    answer = b""
    while True:
        more = connection.recv(65536)
        if not more:
            sys.exit(f"the peer closed a connection: {answer[:200]!r}")
        answer += more
        head, found, body = answer.partition(b"\r\n\r\n")
        if not found:
            continue
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"not served: {head[:200]!r}")
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
        done = answer.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length)
        if done:
            return


def hold(port, pki, count):
    tls = context(pki)
    # What the first connections make the peer allocate is not what each one costs.
    first = [connect(port, tls) for _ in range(50)]
    for connection in first:
        get(connection)
    stage(warm=len(first))
    held = [connect(port, tls) for _ in range(int(count))]
    stage(opened=len(held))
    for connection in held:
        get(connection)
    stage(served=len(held))


def fresh(port, pki, count):
    tls = context(pki)
    get(connect(port, tls))
    stage(warm=1)
    for _ in range(int(count)):
        connection = connect(port, tls)
        get(connection)
        connection.close()
    stage(made=int(count))


def rate(port, count, per_second, seconds):
    """One request at a time, at its moment, so that requests do not come in bunches however many connections there are."""
    held = [connect(port) for _ in range(int(count))]
    for connection in held:
        get(connection)
    stage(opened=len(held))
    total = int(int(per_second) * float(seconds))
    began = time.monotonic()
    for at in range(total):
        early = began + at / int(per_second) - time.monotonic()
        if early > 0:
            time.sleep(early)
        get(held[at % len(held)])
    stage(requests=total, per_second=total / (time.monotonic() - began))


if __name__ == "__main__":
    main()
