"""phiward as a peer: both sidecars and the collector, with what a variant changes.

Owns phiward's configuration in the benches. The default is what would run in production: policy by identity, both events
of each request, chained, durability `write`, shipped to a collector.
"""

import os
import shutil
import socket
import subprocess
import sys
import time

from peers import Peer

WEB = "spiffe://hospital.local/ns/clinic/sa/web"


class Phiward(Peer):
    """Two sidecars and a collector. The collector is not one of the two proxies, so its CPU and memory are not counted."""

    def __init__(self, name, place, ports, binary, **variant):
        super().__init__(name, place, ports)
        self.binary = binary
        self.mesh_protocol = variant.pop("mesh", "h2")
        self.durability = variant.pop("durability", "write")
        self.workers = variant.pop("workers", 1)
        self.rules = variant.pop("rules", 10)
        self.identities = variant.pop("identities", 1)
        self.ships = variant.pop("ships", True)
        # A command that the sidecars run under, such as valgrind; `{}` becomes the sidecar's name.
        self.under = variant.pop("under", ())
        self.scenarios = variant.pop("scenarios", None)
        assert not variant, f"unknown: {variant}"
        self.collector = None
        # Looked for by a build with --cfg phiward_bench_switch alone.
        self.trail_off = self.dir / "trail-off"
        self.environment = {**os.environ, "PHIWARD_BENCH_TRAIL_OFF": str(self.trail_off)}

    def trail(self, way):
        """Switches the trail "on" or "off", and waits until what is under way has ended."""
        if way == "off":
            self.trail_off.touch()
        else:
            self.trail_off.unlink(missing_ok=True)
        time.sleep(0.2)

    def start(self):
        collector, self.admin, outbound_admin = self.more
        for who in ("web", "records", "collector"):
            shutil.copytree(self.place.pki / who, self.dir / who)
        for who in ("web", "records"):
            self.write(f"{who}/key", "0123456789abcdef" * 4)
        self.write("records/policy.yaml", policy(self.rules, self.identities))
        self.sidecar("records", self.admin, f"""\
inbound: {{listeners: [{{name: api, bind: "127.0.0.1:{self.mesh}", app: "127.0.0.1:{self.place.app_port}"}}]}}
policy: {{file: policy.yaml}}
""")
        self.sidecar("web", outbound_admin, f"""\
outbound:
  bind: "127.0.0.1:{self.front}"
  services:
    - {{name: records, hosts: [records.clinic], endpoints: ["127.0.0.1:{self.mesh}"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"], mesh: {self.mesh_protocol}}}
""")
        if self.ships:
            self.start_collector(collector)
        self.start_sidecar("records")
        self.start_sidecar("web")

    def start_collector(self, port):
        self.write("collector/collector.yaml", f"""\
version: 1
identity:
  trust_domain: hospital.local
  files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
bind: "127.0.0.1:{port}"
store: {{dir: store}}
admin: {{bind: "127.0.0.1:0"}}
""")
        log = open(self.dir / "collector.log", "wb")
        command = [self.binary, "collect", "--config", "collector/collector.yaml"]
        self.collector = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.dir)
        # One that refused its configuration, as an older build's may, would make everything look cheaper than it is.
        while not reachable(port):
            if self.collector.poll() is not None:
                sys.exit(f"{self.name}: its collector ended:\n{(self.dir / 'collector.log').read_text()}")
            time.sleep(0.05)

    def prepare_ready(self):
        """An inbound sidecar on the two ports that are left, for time_to_ready: the same files, a spool of its own."""
        self.ready_port = self.front + 5
        shutil.copytree(self.dir / "records", self.dir / "ready", ignore=shutil.ignore_patterns("audit"))
        config = self.dir / "ready" / "sidecar.yaml"
        text = config.read_text().replace(f'"127.0.0.1:{self.admin}"', f'"127.0.0.1:{self.ready_port}"')
        config.write_text(text.replace(f'"127.0.0.1:{self.mesh}"', f'"127.0.0.1:{self.front + 6}"'))

    def start_sidecar(self, who):
        under = [part.replace("{}", who) for part in self.under]
        return self.spawn(*under, self.binary, "run", "--config", f"{who}/sidecar.yaml")

    def stop(self, patience=10):
        super().stop(patience)
        if self.collector:
            self.collector.terminate()
            self.collector.wait(10)

    def sidecar(self, who, admin, rest):
        """head_timeout also ends idle connections, which are what some of the measures are of."""
        sink = (
            f"""{{name: collector, type: phiward, endpoint: "https://127.0.0.1:{self.more[0]}", """
            """identities: ["spiffe://hospital.local/ns/audit/sa/collector"]}"""
        )
        self.write(f"{who}/sidecar.yaml", f"""\
version: 1
workload: {{service: {who}, namespace: clinic}}
identity:
  trust_domain: hospital.local
  files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
audit:
  spool: {{dir: audit, max_bytes: 8GiB, durability: {self.durability}}}
  key_file: key
  sinks: [{sink if self.ships else ""}]
admin: {{bind: "127.0.0.1:{admin}"}}
workers: {self.workers}
limits: {{head_timeout: 600s}}
{rest}""")


def reachable(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def policy(rules, identities):
    """A policy of `rules` permissions in roles of ten, with `identities` bound to each role; `web` is one of them."""
    roles = {}
    for rule in range(2, rules):
        roles.setdefault(f"role-{rule // 10}", []).append(f'{{name: rule-{rule}, methods: [GET], paths: ["/fhir/Type{rule}/{{id}}"]}}')
    roles.setdefault("role-0", []).extend([
        '{name: read, methods: [GET], paths: ["/fhir/Patient/{id}"]}',
        '{name: write, methods: [POST], paths: ["/fhir/Observation"]}',
    ])
    bound = [WEB] + [f"spiffe://hospital.local/ns/clinic/sa/other-{n}" for n in range(1, identities)]
    bound = ", ".join(f'"{identity}"' for identity in bound)
    lines = ["apiVersion: phiward/v1", "kind: Policy", 'metadata: {name: records, revision: "1"}', "service: {hosts: [records.clinic]}", "roles:"]
    for role, permissions in roles.items():
        lines += [f"  {role}:", *(f"    - {permission}" for permission in permissions)]
    lines += ["bindings:", *(f"  - {{role: {role}, identities: [{bound}]}}" for role in roles)]
    lines += ["deny:", '  - {name: no-admin, paths: ["/admin/**"]}']
    return "\n".join(lines) + "\n"
