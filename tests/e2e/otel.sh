#!/usr/bin/env bash
# A sidecar delivers its audit trail to the real OpenTelemetry Collector, under load, while the Collector is killed and
# started again. Parts: Go and Go modules for the Collector (built into target/ once), Debian's nginx, nghttp2-client, curl,
# jq, openssl, python3 (installed when missing and run as root).
# Shows: every event of the spool is in the Collector's files, byte for byte and in order; the trail verifies from there;
# nothing is quarantined; the documented way to send a quarantined file works.
. "$(dirname "$0")/lib.sh"
need nginx nginx
need h2load nghttp2-client
need curl curl
need jq jq
need openssl openssl
need python3 python3
need zstdcat zstd
build
build_otelcol

seconds=${SECONDS_OF_LOAD:-25}
kills=${KILLS:-6}
cd "$work"
openssl_ca ca hospital.local
openssl_svid ca records spiffe://hospital.local/ns/clinic/sa/records
openssl_svid ca web spiffe://hospital.local/ns/clinic/sa/web
openssl rand -hex 32 >records/key
openssl rand -hex 32 >web/key

nginx_says_ok 28081
reader_policy spiffe://hospital.local/ns/clinic/sa/web >records/policy.yaml
sidecar records 26010 "$(of_files hospital.local)" '{name: otel, type: otlp, endpoint: "http://127.0.0.1:26318"}' <<'CONF'
inbound: {listeners: [{name: api, bind: "127.0.0.1:26006", app: "127.0.0.1:28081"}]}
policy: {file: policy.yaml}
CONF
sidecar web 26000 "$(of_files hospital.local)" <<'CONF'
outbound:
  bind: "127.0.0.1:26001"
  services: [{name: records, hosts: [records.clinic], endpoints: ["127.0.0.1:26006"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"]}]
CONF
until_true "both sidecars ready" eval "ready 26000 && ready 26010"

# `rotation` makes the exporter write each request to the file before it answers; without it a second of events is in a
# buffer of the Collector, answered 200, and lost with the process. No batch processor, for the same reason.
mkdir otel
cat >otelcol.yaml <<CONF
receivers: {otlp: {protocols: {http: {endpoint: "127.0.0.1:26318"}}}}
exporters: {file: {path: $work/otel/logs.json, rotation: {max_megabytes: 100000}}}
service:
  telemetry: {metrics: {level: none}}
  pipelines: {logs: {receivers: [otlp], exporters: [file]}}
CONF
collector() { "$otelcol/otelcol" --config "file:$work/otelcol.yaml" >>otelcol.log 2>&1 & collector_pid=$!; }
taking() { curl -s -o /dev/null -m 2 -H 'content-type: application/json' --data '{}' http://127.0.0.1:26318/v1/logs; }
sink() { curl -fsS -m 5 http://127.0.0.1:26010/ready | jq -r ".audit.sinks[0].$1"; }

say "== load for $seconds s, and $kills ends of the Collector"
collector
until_true "the Collector takes logs" taking
h2load -D "$seconds" -c4 -m4 --rps=150 -H "Host: records.clinic" --header ":authority: records.clinic" \
  http://127.0.0.1:26001/fhir/Patient/1 >h2load.txt 2>&1 &
load_pid=$!
for number in $(seq "$kills"); do
  until_true "events arrive before end $number" eval "[ \"\$(sink acked_events)\" -gt \"\${acked:-0}\" ]"
  acked=$(sink acked_events)
  # Mostly by SIGKILL; every third time it may end by itself. It stays away for up to two seconds.
  if [ $((number % 3)) = 0 ]; then kill -TERM "$collector_pid"; else kill -KILL "$collector_pid"; fi
  wait "$collector_pid" 2>/dev/null || true
  sleep "$((RANDOM % 2)).$((RANDOM % 10))"
  collector
  until_true "the Collector takes logs again" taking
done
wait "$load_pid" || true
check "the load saw no failure while the Collector came and went" grep -qE '[1-9][0-9]* succeeded, 0 failed, 0 errored' h2load.txt
until_true "everything delivered" eval "[ \"\$(sink backlog_bytes)\" = 0 ]"
say "retries: $(sink retries), acknowledged: $(sink acked_events)"
check "attempts failed and were made again" [ "$(sink retries)" -gt 0 ]
check "nothing was quarantined" equal "$(sink quarantined_events)" 0
kill -TERM "$records_pid"
check "the sidecar ends with 0" wait "$records_pid"

say "== the trail behind the Collector"
cat >compare.py <<'PY'
"""Every line of the spool, from standard input, is a body in the Collector's files; prints the trail as it is there, each event once."""
import json, os, sys

spool = sys.stdin.buffer.read().splitlines()
text = open("otel/logs.json", encoding="utf-8").read()
bodies, seen, torn = [], set(), 0
# A kill can leave half a request, which was not acknowledged, in front of the next one.
for piece in text.split('{"resourceLogs"')[1:]:
    try:
        request = json.loads('{"resourceLogs"' + piece)
    except ValueError:
        torn += 1
        continue
    for logs in request["resourceLogs"]:
        for record in (record for scope in logs["scopeLogs"] for record in scope["logRecords"]):
            body = record["body"]["stringValue"].encode()
            bodies.append(body)
            assert record["eventName"] == json.loads(body)["type"]
once = [body for body in bodies if not (body in seen or seen.add(body))]
print(f"{len(spool)} events in the spool, {len(bodies)} in the Collector's file, {len(once)} different, {torn} torn", file=sys.stderr)
epoch = json.loads(once[0])["chain"]["epoch"]
os.makedirs("export", exist_ok=True)
open(f"export/{epoch}-0000000000000000.ndjson", "wb").write(b"".join(body + b"\n" for body in once))
sys.exit(0 if once == spool else 1)
PY
check "every event of the spool is there, byte for byte and in order" eval "trail records/audit | python3 compare.py"
check "and the trail verifies from there" "$phiward" audit verify export

say "== the documented way to send a quarantined file"
trail records/audit | sed -n 1,3p >quarantined.ndjson
before=$(wc -c <otel/logs.json)
jq -Rs '{resourceLogs:[{scopeLogs:[{scope:{name:"phiward.audit"},logRecords:[split("\n")[]|select(.!="")|{body:{stringValue:.},eventName:(fromjson.type)}]}]}]}' quarantined.ndjson |
  curl -fsS -H 'content-type: application/json' --data-binary @- http://127.0.0.1:26318/v1/logs >/dev/null
tail -c "+$((before + 1))" otel/logs.json | jq -r '.resourceLogs[].scopeLogs[].logRecords[].body.stringValue' >resent.ndjson
check "its events arrive as they are" cmp quarantined.ndjson resent.ndjson
kill -TERM "$collector_pid"
wait "$collector_pid" || true
