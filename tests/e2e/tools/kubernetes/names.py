#!/usr/bin/env python3
"""Names of Services for the pods of a cluster without CoreDNS: names.py SERVER TOKEN HOSTS PID writes their addresses to the hosts
file HOSTS, twice a second, and tells the dnsmasq PID when they changed. A Service has its cluster address, or those of its ready pods."""

import json
import os
import signal
import ssl
import sys
import time
import urllib.request

server, token, hosts, pid = sys.argv[1:]
trusting = ssl._create_unverified_context()


def items(path):
    request = urllib.request.Request(server + path, headers={"Authorization": "Bearer " + token})
    with urllib.request.urlopen(request, timeout=5, context=trusting) as answer:
        return json.load(answer)["items"]


def ready(slices, service):
    for each in slices:
        meta = each["metadata"]
        if (meta["namespace"], meta["labels"].get("kubernetes.io/service-name")) == service and each["addressType"] == "IPv4":
            for endpoint in each["endpoints"] or []:
                if endpoint["conditions"].get("ready"):
                    yield from endpoint["addresses"]


def lines():
    slices = items("/apis/discovery.k8s.io/v1/endpointslices")
    for service in items("/api/v1/services"):
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        cluster = service["spec"]["clusterIP"]
        for address in ready(slices, (namespace, name)) if cluster == "None" else [cluster]:
            yield f"{address} {name}.{namespace}.svc.cluster.local\n"


told = None
while True:
    try:
        now = "".join(sorted(lines()))
        if now != told:
            with open(hosts, "w") as file:
                file.write(now)
            os.kill(int(pid), signal.SIGHUP)
            told = now
    except OSError as error:  # the API server may be busy
        print(error, file=sys.stderr, flush=True)
    time.sleep(0.5)
