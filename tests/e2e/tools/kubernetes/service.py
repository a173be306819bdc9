#!/usr/bin/env python3
"""What a Service is to the API server: one address, behind which connections go to the endpoints of the moment.

    service.py PORT ENDPOINTS      # a file with a port of 127.0.0.1 on each line, read anew for each connection
"""

import pathlib
import random
import socket
import sys
import threading


def carry(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        client, _ = listener.accept()
        endpoint = random.choice(pathlib.Path(sys.argv[2]).read_text().split())
        try:
            server = socket.create_connection(("127.0.0.1", int(endpoint)))
        except OSError:
            client.close()
            continue
        for ends in ((client, server), (server, client)):
            threading.Thread(target=carry, args=ends, daemon=True).start()


main()
