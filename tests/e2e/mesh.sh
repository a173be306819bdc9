#!/usr/bin/env bash
# Two sidecar processes and a collector between wrk, h2load and curl on one side and nginx on the other, with SVIDs made by
# openssl. Parts: Debian's nginx, wrk, nghttp2-client, curl, openssl (installed when missing and run as root).
# Shows: 100,000 requests without a failure and exactly two events each, verified; HTTP/1.0, 1.1, HTTP/2; 1 GiB up and down
# with equal checksums and flat memory; an aborted request; refused peers.
. "$(dirname "$0")/lib.sh"
need nginx nginx
need wrk wrk
need h2load nghttp2-client
need curl curl
need openssl openssl
need zstdcat zstd
build

requests=${REQUESTS:-100000}
cd "$work"
openssl_ca ca hospital.local
openssl_svid ca records spiffe://hospital.local/ns/clinic/sa/records
openssl_svid ca web spiffe://hospital.local/ns/clinic/sa/web
openssl_svid ca collector spiffe://hospital.local/ns/audit/sa/collector
openssl rand -hex 32 >records/key
openssl rand -hex 32 >web/key

cat >nginx.conf <<CONF
user root;
worker_processes 1;
daemon off;
pid $work/nginx.pid;
error_log $work/nginx.log;
events { worker_connections 1024; }
http {
  log_format who '\$request_method \$uri \$status';
  access_log $work/access.txt who;
  client_max_body_size 0;
  client_body_temp_path $work/body;
  proxy_temp_path $work/proxy;
  fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi;
  scgi_temp_path $work/scgi;
  keepalive_requests 1000000000;
  server {
    listen 127.0.0.1:28080;
    location /fhir/ { default_type application/json; return 200 '{"resourceType":"Patient","id":"1","name":[{"family":"Testperson","given":["Ada"]}],"birthDate":"1950-12-10","active":true,"note":"150 bytes of JSON"}'; }
    location /files/ { alias $work/files/; }
    location /slow/ { alias $work/files/; limit_rate 1m; }
    location /up/ { dav_methods PUT; root $work/files; create_full_put_path on; }
  }
}
CONF
mkdir -p files/up
nginx -c "$work/nginx.conf" -p "$work" 2>nginx-start.log &

cat >records/policy.yaml <<'CONF'
apiVersion: phiward/v1
kind: Policy
metadata: {name: records, revision: "1"}
mode: enforce
service: {hosts: [records.clinic], health: [/healthz]}
roles:
  reader:
    - {name: read, methods: [GET, HEAD], paths: ["/fhir/Patient/{id}", "/files/{name}", "/slow/{name}"]}
    - {name: upload, methods: [PUT], paths: ["/up/{name}"]}
bindings:
  - {role: reader, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
CONF
sidecar() { # name, admin port, the rest from stdin
  cat >"$1/sidecar.yaml" <<CONF
version: 1
workload: {service: $1, namespace: clinic}
identity:
  trust_domain: hospital.local
  source: files
  files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}
audit:
  spool: {dir: audit, max_bytes: 4GiB, durability: write}
  key_file: key
  sinks:
    - {name: collector, type: phiward, endpoint: "https://127.0.0.1:25200", identities: ["spiffe://hospital.local/ns/audit/sa/collector"], required: true}
admin: {bind: "127.0.0.1:$2"}
workers: 1
$(cat)
CONF
  "$phiward" check --config "$1/sidecar.yaml" >/dev/null
  "$phiward" run --config "$1/sidecar.yaml" 2>"$1.log" &
  eval "$1_pid=$!"
}
cat >collector/collector.yaml <<'CONF'
version: 1
identity:
  trust_domain: hospital.local
  files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}
bind: "127.0.0.1:25200"
store: {dir: store}
admin: {bind: "127.0.0.1:25201"}
CONF
"$phiward" collect --config collector/collector.yaml 2>collector.log &
collector_pid=$!
sidecar records 25010 <<'CONF'
inbound:
  listeners:
    - {name: api, bind: "127.0.0.1:25006", app: "127.0.0.1:28080", protocol: http}
policy: {file: policy.yaml}
CONF
sidecar web 25000 <<'CONF'
outbound:
  bind: "127.0.0.1:25001"
  services:
    - {name: records, hosts: [records.clinic], endpoints: ["127.0.0.1:25006"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"], protocol: http}
CONF
until_true "both sidecars ready" eval "ready 25000 && ready 25010"
url=http://127.0.0.1:25001
host="Host: records.clinic"

say "== $requests requests by wrk"
# wrk runs for a time, not for a number; each run's last answers are cut off by wrk itself, and are aborted completions.
made=0
: >wrk.txt
while [ "$made" -lt "$requests" ]; do
  wrk -t1 -c32 -d5s -H "$host" "$url/fhir/Patient/1" >>wrk.txt
  made=$(awk '/requests in/{n += $1} END{print n}' wrk.txt)
done
grep -E 'requests in|Requests/sec' wrk.txt
check "wrk made $made requests" [ "$made" -ge "$requests" ]
check "wrk saw no failure" eval "! grep -qE 'Non-2xx|Socket errors' wrk.txt"
h2load -n 10000 -c4 -m16 -H "$host" --header ":authority: records.clinic" "$url/fhir/Patient/1" >h2load.txt 2>&1 || true
check "h2load: 10,000 of 10,000 over HTTP/2 from the caller" grep -q "10000 succeeded, 0 failed" h2load.txt

say "== curl, each protocol"
status() { curl -sS -o "$work/body.txt" -w '%{http_code} %{http_version}' -H "$host" "$@"; }
check "curl --http1.0" equal "$(status --http1.0 "$url/fhir/Patient/1")" "200 1"
check "curl --http1.1" equal "$(status --http1.1 "$url/fhir/Patient/1")" "200 1.1"
check "curl --http2-prior-knowledge" equal "$(status --http2-prior-knowledge "$url/fhir/Patient/1")" "200 2"
check "a rejected path" equal "$(status --path-as-is "$url/fhir/Patient/1/../2")" "400 1.1"
check "a denied path" equal "$(status "$url/admin")" "403 1.1"
check "an unknown host" equal "$(curl -sS -o /dev/null -w '%{http_code}' -H 'Host: nobody' "$url/")" "404"

say "== 1 GiB down and up"
head -c 1073741824 /dev/urandom >files/big
sum=$(sha256sum <files/big)
rss() { awk '/VmRSS/{print $2}' "/proc/$1/status"; }
before=$(($(rss "$web_pid") + $(rss "$records_pid")))
peak=0
watch_rss() {
  while :; do
    now=$(($(rss "$web_pid") + $(rss "$records_pid")))
    [ "$now" -gt "$peak" ] && { peak=$now; echo "$peak" >"$work/peak.txt"; }
    sleep 0.05
  done
}
watch_rss &
watcher=$!
check "download: equal checksums" equal "$(curl -sS -H "$host" "$url/files/big" | sha256sum)" "$sum"
curl -sS -H "$host" -T files/big "$url/up/big" >/dev/null
check "upload: equal checksums" equal "$(sha256sum <files/up/big)" "$sum"
kill "$watcher"
peak=$(cat peak.txt)
say "resident memory of both sidecars: $before KiB before, $peak KiB at most"
check "resident memory stays flat (less than 24 MiB more)" [ $((peak - before)) -lt 24576 ]

say "== a request killed half-way"
timeout 1 curl -sS -o /dev/null -H "$host" "$url/slow/big" || true
# Its length tells it from what wrk cut off.
aborted() { trail records/audit | grep '"type":"access.complete"' | matches '"aborted":true.*"response_bytes":[0-9]{5,},"status":200'; }
until_true "the aborted completion" aborted
check "an aborted completion event" aborted

say "== peers that are refused"
openssl_svid ca two spiffe://hospital.local/ns/clinic/sa/web,spiffe://hospital.local/ns/clinic/sa/other
openssl_ca otherca other.example
openssl_svid otherca foreign spiffe://other.example/ns/clinic/sa/web
openssl_svid ca expired spiffe://hospital.local/ns/clinic/sa/web -1
peer() { printf 'GET /fhir/Patient/1 HTTP/1.1\r\nHost: records.clinic\r\nConnection: close\r\n\r\n' |
  timeout 10 openssl s_client -quiet -connect 127.0.0.1:25006 "$@" 2>/dev/null | head -n 1 | tr -d '\r'; }
check "openssl with a good SVID is served" equal "$(peer -cert web/svid.pem -key web/svid.key)" "HTTP/1.1 200 OK"
check "no certificate is refused" equal "$(peer)" ""
for kind in two foreign expired; do
  check "a peer is refused: $kind" equal "$(peer -cert $kind/svid.pem -key $kind/svid.key)" ""
done
for reason in no_certificate several_uri_sans unknown_trust_domain expired; do
  until_true "conn.rejected: $reason" eval "trail records/audit | grep '\"type\":\"conn.rejected\"' | matches '\"$reason\"'"
done

say "== an app that is down"
kill "$(cat nginx.pid)"
until_true "nginx gone" eval "! curl -s http://127.0.0.1:28080/"
check "503 with a reason" eval "curl -sS -m 10 -H '$host' $url/fhir/Patient/1 | matches upstream_connect"

stored() { cat collector/store/*/*.ndjson | grep -c "\"type\":\"access.complete\""; }
say "== the trail"
app_saw=$(wc -l <access.txt)
curl -sS -X POST http://127.0.0.1:25000/drain
check "POST /drain ends the process with 0" wait "$web_pid"
kill -TERM "$records_pid"
check "SIGTERM drains and ends with 0" wait "$records_pid"
"$phiward" audit verify records/audit | tail -n 20
check "the inbound spool verifies" eval "$phiward audit verify records/audit >/dev/null"
allowed=$(trail records/audit | grep '"type":"access.decision"' | grep -c '"outcome":"allow"')
completed=$(events records/audit access.complete)
say "the app saw $app_saw requests; $allowed allows, $completed completions"
check "every allow has exactly one completion" equal "$completed" "$allowed"
# One allow found the app down, and a client that hangs up can take its request back before the app has seen it.
taken_back=$(trail records/audit | grep '"type":"access.complete"' | grep '"aborted":true' | grep -vc '"status":' || true)
check "every request the app saw has its decision ($taken_back were taken back)" \
  [ $((allowed - 1)) -ge "$app_saw" -a $((allowed - 1 - taken_back)) -le "$app_saw" ]
until_true "everything delivered" eval "[ \$(stored) -ge $completed ]"
kill -TERM "$collector_pid"
wait "$collector_pid" || true
check "the collector's store verifies" eval "$phiward audit verify collector/store >/dev/null"
check "the store has each completion once" equal "$(stored)" "$completed"
