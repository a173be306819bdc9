#!/usr/bin/env bash
# Two pods as network namespaces, with the real capture rules: apps that know nothing of phiward call each other by their plain
# addresses.
# Parts: Debian's iproute2, nftables, curl, openssl; python3. Needs root, for network namespaces.
# Shows: the rules that netlink sets are those that nft reads from --dry-run; a plain call over IPv4 and IPv6 arrives over mTLS with its
# identity; what is not named is no way around; passthrough and deny; a database's stream; --undo leaves nothing.
. "$(dirname "$0")/lib.sh"
need ip iproute2
need nft nftables
need curl curl
need openssl openssl
need python3 python3
need zstdcat zstd
build
cd "$work"
# Others than root run it here.
chmod 711 "$work"
cp "$phiward" "$work/phiward"
phiward=$work/phiward

network=e2e-phiward-$$
pods="$network-a $network-b $network-c"
# The bridge has a namespace of its own: what this machine filters (Docker drops what it does not know) is not asked.
take_down() { for each in $pods "$network-net"; do ip netns del "$each" 2>/dev/null || true; done; }

say "== three pods on one network"
ip netns add "$network-net"
ip -n "$network-net" link add bridge type bridge
ip -n "$network-net" link set bridge up
number=1
for pod in $pods; do
  ip netns add "$pod"
  ip -n "$network-net" link add "pod$number" type veth peer name eth0 netns "$pod"
  ip -n "$network-net" link set "pod$number" master bridge up
  ip -n "$pod" link set lo up
  ip -n "$pod" link set eth0 up
  ip -n "$pod" address add "10.77.0.$number/24" dev eth0
  ip -n "$pod" address add "fd77::$number/64" dev eth0 nodad
  number=$((number + 1))
done
in_web() { ip netns exec "$network-a" "$@"; }
in_records() { ip netns exec "$network-b" "$@"; }
outside() { ip netns exec "$network-c" "$@"; }

say "== the rules"
rules="--outbound 15001 --inbound 8080:15006,5432:15016 --open-ports 15008 --exclude-outbound-cidrs 10.99.0.0/16,fd99::/33,10.98.0.1 --exclude-outbound-ports 3306"
in_web "$phiward" k8s capture $rules
in_web "$phiward" k8s capture $rules
"$phiward" k8s capture $rules --dry-run >rules.nft
outside nft -f rules.nft
outside nft list ruleset >by-nft
in_web nft list ruleset >by-phiward
check "netlink sets what nft reads, and once" cmp by-nft by-phiward
for pod in $pods; do ip netns exec "$pod" "$phiward" k8s capture --undo; done
check "undo leaves nothing" equal "$(in_web nft list ruleset)$(outside nft list ruleset)" ""
check "without the right, one clear error" eval "{ outside setpriv --bounding-set -net_admin --reuid 1000 --clear-groups '$work/phiward' k8s capture --outbound 1 2>&1 || true; } | matches NET_ADMIN"

say "== two sidecars"
openssl_ca ca hospital.local
for who in web records; do
  openssl_svid ca "$who" "spiffe://hospital.local/ns/clinic/sa/$who"
  openssl rand -hex 32 >"$who/key"
done
cat >records/policy.yaml <<'CONF'
apiVersion: phiward/v1
kind: Policy
metadata: {name: records, revision: "1", owner: e2e, review: {by: e2e, due: 2099-01-01}}
roles:
  reader: [{name: read, methods: [GET], paths: ["/fhir/Patient/{id}"]}]
  db: [{name: sql, tcp: {listeners: [db]}}]
bindings:
  - {role: reader, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
  - {role: db, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
CONF
# The sidecars run as the user that the rules leave alone.
start() {
  local pod=$1 who=$2
  chown -R 15099:15099 "$who"
  ip netns exec "$pod" setpriv --reuid 15099 --regid 15099 --clear-groups "$phiward" run --config "$who/sidecar.yaml" 2>"$who.log" &
  eval "${who}_pid=$!"
}
head_of() {
  cat <<CONF
version: 1
workload: {service: $1, namespace: clinic}
identity: {$(of_files hospital.local)}
audit: {spool: {dir: audit}, key_file: key}
workers: 1
CONF
}
{ head_of records; cat <<'CONF'; } >records/sidecar.yaml
inbound:
  listeners:
    - {name: api, bind: ["0.0.0.0:15006", "[::]:15006"], app: "127.0.0.1:8080"}
    - {name: db, protocol: tcp, bind: ["0.0.0.0:15016", "[::]:15016"], app: "127.0.0.1:5432"}
  probes: {bind: ["0.0.0.0:15008", "[::]:15008"], paths: [/healthz]}
outbound: {bind: ["127.0.0.1:15001", "[::1]:15001"], services: []}
policy: {file: policy.yaml}
CONF
start "$network-b" records
web_with() {
  { head_of web; cat <<CONF; } >web/sidecar.yaml
outbound:
  bind: ["127.0.0.1:15001", "[::1]:15001"]
  unknown: $1
  services:
    - {name: records, hosts: [records.clinic], endpoints: ["10.77.0.2:8080", "[fd77::2]:8080"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"]}
    - {name: db, protocol: tcp, endpoints: ["10.77.0.2:5432"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"]}
CONF
  start "$network-a" web
  until_true "web's sidecar" in_web curl -fsS -m 2 -o /dev/null http://127.0.0.1:15000/ready
}
web_with deny
until_true "records' sidecar" in_records curl -fsS -m 2 -o /dev/null http://127.0.0.1:15000/ready
in_records "$phiward" k8s capture --outbound 15001 --inbound 8080:15006,5432:15016 --open-ports 15008
in_web "$phiward" k8s capture --outbound 15001

cat >app.py <<'PY'
import http.server, socket, socketserver, sys, threading
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        said = (self.headers.get("x-forwarded-client-cert") or "nobody").encode()
        self.send_response(200); self.send_header("content-length", str(len(said))); self.end_headers(); self.wfile.write(said)
    def log_message(self, *a): pass
class Db(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"ready\n"); self.wfile.write(b"you said " + self.rfile.readline())
socketserver.ThreadingTCPServer.allow_reuse_address = True
def on(cls, port, handler):
    server = cls(("0.0.0.0", port), handler); server.daemon_threads = True
    threading.Thread(target=server.serve_forever).start()
for port in map(int, sys.argv[1].split(",")): on(http.server.ThreadingHTTPServer, port, App)
for port in map(int, filter(None, sys.argv[2].split(","))): on(socketserver.ThreadingTCPServer, port, Db)
PY
in_records python3 app.py 8080,9999,15099 5432 &
outside python3 app.py 80 5432 &
until_true "the apps" eval "in_records curl -fsS -m 2 -o /dev/null http://127.0.0.1:8080/ && outside curl -fsS -m 2 -o /dev/null http://127.0.0.1:80/"

say "== plain addresses, mTLS under them"
called() { in_web curl -sS -m 5 "$@"; }
check "IPv4: it arrives with its identity" eval "called http://10.77.0.2:8080/fhir/Patient/1 | matches 'URI=spiffe://hospital.local/ns/clinic/sa/web'"
check "IPv6: it arrives with its identity" eval "called 'http://[fd77::2]:8080/fhir/Patient/1' | matches 'URI=spiffe://hospital.local/ns/clinic/sa/web'"
check "by name, wherever the name leads" eval "called --resolve records.clinic:8080:10.77.0.9 http://records.clinic:8080/fhir/Patient/1 | matches URI="
check "the policy decides" equal "$(called -o /dev/null -w '%{http_code}' http://10.77.0.2:8080/admin)" 403
talk='import socket,sys; s=socket.create_connection((sys.argv[1],5432),5); f=s.makefile("rw"); print(f.readline(),end=""); f.write("select 1\n"); f.flush(); print(f.readline(),end="")'
check "a database that speaks first" equal "$(in_web python3 -c "$talk" 10.77.0.2)" "$(printf 'ready\nyou said select 1')"
check "the whole of a large body" equal "$(in_web curl -sS -m 20 -H "x-pad: $(head -c 30000 /dev/zero | tr '\0' x)" -o /dev/null -w '%{http_code}' http://10.77.0.2:8080/fhir/Patient/1)" 200

say "== nothing goes around"
refuses() { ! "$@" >/dev/null 2>&1; }
check "a caller without a sidecar gets no answer of the app" eval "! outside curl -sS -m 3 http://10.77.0.2:8080/fhir/Patient/1 2>/dev/null | matches nobody"
check "nor over IPv6" eval "! outside curl -sS -m 3 'http://[fd77::2]:8080/fhir/Patient/1' 2>/dev/null | matches nobody"
check "a port that nobody named is refused" refuses outside curl -sS -m 3 http://10.77.0.2:9999/
check "probes are answered in the clear" equal "$(outside curl -sS -m 3 -o /dev/null -w '%{http_code}' http://10.77.0.2:15008/healthz)" 200
check "and nothing else by them" equal "$(outside curl -sS -m 3 -o /dev/null -w '%{http_code}' http://10.77.0.2:15008/fhir/Patient/1)" 404
check "the pod reaches itself" equal "$(in_records curl -sS -m 3 -o /dev/null -w '%{http_code}' http://10.77.0.2:8080/healthz)" 200

say "== unknown destinations"
check "HTTP to nobody known is denied" equal "$(called -o /dev/null -w '%{http_code}' http://10.77.0.3/)" 404
check "anything else is closed before a byte" equal "$(in_web python3 -c "$talk" 10.77.0.3 2>/dev/null || true)" ""
check "a pod that calls nobody calls nobody" equal "$(in_records curl -sS -m 3 -o /dev/null -w '%{http_code}' http://10.77.0.3/)" 404
kill -TERM "$web_pid"; wait "$web_pid" || true
rejected=$(trail web/audit | grep '"type":"conn.rejected"' | grep -c '"destination":"10.77.0.3:5432"' || true)
check "the refusal tells where it was meant to go" equal "$rejected" 1
web_with passthrough
check "passthrough: HTTP goes where it was meant to" equal "$(called http://10.77.0.3/)" nobody
check "passthrough: and so does a server that speaks first" equal "$(in_web python3 -c "$talk" 10.77.0.3)" "$(printf 'ready\nyou said select 1')"
check "who is known still gets mTLS" eval "called http://10.77.0.2:8080/fhir/Patient/1 | matches URI="
passed_through() { trail web/audit | grep '"reason":"passthrough"' | grep -c '"type":"access.decision"'; }
until_true "each of them is recorded" eval 'equal "$(passed_through)" 2'

say "== the end"
kill -TERM "$web_pid" "$records_pid"
wait "$web_pid" "$records_pid" || true
check "the trails verify" eval "$phiward audit verify web/audit >/dev/null && $phiward audit verify records/audit >/dev/null"
identities=$(trail records/audit | grep '"outcome":"allow"' | grep -vc 'sa/web' || true)
check "nobody else was allowed anything" equal "$identities" 0
in_web "$phiward" k8s capture --undo
check "without rules the pod is as before" equal "$(called http://10.77.0.3/)" nobody
