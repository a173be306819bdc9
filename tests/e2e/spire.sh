#!/usr/bin/env bash
# A real SPIRE server and agent give two sidecars and a collector SVIDs of 30 seconds, while wrk sends requests through them.
# Parts: Go and the Go modules of SPIRE (built into target/ once), Debian's nginx, wrk, curl, openssl (installed when missing and
# run as root).
# Shows: no request fails across rotations and across a change of the CA; a removed registration and a dead agent end access
# when they must, with the events that say so. PHIWARD_SPIRE_SECONDS says for how long.
. "$(dirname "$0")/lib.sh"
need nginx nginx
need wrk wrk
need curl curl
need openssl openssl
need zstdcat zstd
. "$(dirname "$0")/lib-spire.sh"
build
build_spire

seconds=${PHIWARD_SPIRE_SECONDS:-300}
cd "$work"
spire_up own hospital.local 28181
# Each workload is known by the path of its program.
for who in web records collector; do
  mkdir -p "$who"
  cp "$phiward" "$who/phiward"
  namespace=clinic
  [ "$who" = collector ] && namespace=audit
  register own "spiffe://hospital.local/ns/$namespace/sa/$who" "$work/$who/phiward" >"$who/entry"
done
nginx_says_ok 28080

for who in web records; do openssl rand -hex 32 >"$who/key"; done
reader_policy spiffe://hospital.local/ns/clinic/sa/web >records/policy.yaml
identity=$(of_agent hospital.local own)
sink='{name: collector, type: phiward, endpoint: "https://127.0.0.1:25200", identities: ["spiffe://hospital.local/ns/audit/sa/collector"], required: true}'
cat >collector/collector.yaml <<CONF
version: 1
identity: {$identity}
bind: "127.0.0.1:25200"
store: {dir: store}
admin: {bind: "127.0.0.1:25201"}
CONF
collector/phiward collect --config collector/collector.yaml 2>collector.log &
sidecar records 25010 "$identity" "$sink" <<'CONF'
inbound:
  listeners:
    - {name: api, bind: "127.0.0.1:25006", app: "127.0.0.1:28080"}
policy: {file: policy.yaml}
CONF
sidecar web 25000 "$identity" "$sink" <<'CONF'
outbound:
  bind: "127.0.0.1:25001"
  services:
    - {name: records, hosts: [records.clinic], endpoints: ["127.0.0.1:25006"], identities: ["spiffe://hospital.local/ns/clinic/sa/records"]}
CONF
until_true "both sidecars ready" eval "ready 25000 && ready 25010"
check "check asks the agent as run does" records/phiward check --config records/sidecar.yaml
url=http://127.0.0.1:25001/fhir/Patient/1
status() { curl -sS -m 10 -o /dev/null -w '%{http_code}' -H 'Host: records.clinic' "$url"; }
check "a request" equal "$(status)" 200

say "== $seconds seconds of wrk, with a new CA half-way"
wrk -t1 -c16 -d"${seconds}s" -H 'Host: records.clinic' "$url" >wrk.txt &
wrk_pid=$!
sleep $((seconds / 3))
server own localauthority x509 prepare >authority.txt
new=$(awk '/Authority ID/{print $3}' authority.txt | head -n 1)
# Bundles first: those who verify must know the new CA before anybody shows a certificate of it.
sleep 6
check "the new CA is activated" eval "server own localauthority x509 activate -authorityID $new >/dev/null"
wait "$wrk_pid"
grep -E 'requests in|Socket|Non-2xx' wrk.txt
check "wrk made requests" eval "grep -q 'requests in' wrk.txt"
check "no request failed" eval "! grep -qE 'Non-2xx|Socket errors' wrk.txt"
rotations=$(events records/audit identity.rotated)
say "records rotated $rotations times"
check "an SVID of 30 seconds was renewed in time, each time" [ "$rotations" -ge $((seconds / 20)) ]
check "nothing was lost meanwhile" equal "$(events records/audit identity.lost)" 0
served_by() { openssl s_client -connect 127.0.0.1:25006 -showcerts </dev/null 2>/dev/null | openssl x509 -noout -ext authorityKeyIdentifier 2>/dev/null; }
until_true "SVIDs of the new CA" eval "served_by | tr -d ': \n' | tr A-F a-f | matches '$new'"

say "== a registration is removed"
server own entry delete -entryID "$(cat web/entry)" >/dev/null
lost() { [ "$(events "$1/audit" identity.lost)" -gt 0 ]; }
until_true "the withdrawal is recorded" lost web
check "it is called what it is" eval "trail web/audit | grep identity.lost | matches withdrawn"
refused() { [ "$(status)" = 502 ]; }
served() { [ "$(status)" = 200 ]; }
until_true "it has no access" eval "refused && ! ready 25000"
register own spiffe://hospital.local/ns/clinic/sa/web "$work/web/phiward" >web/entry
until_true "registered again, it has access" eval "ready 25000 && served"

say "== the agent dies"
kill -KILL "$own_agent_pid"
check "what it gave stays good" equal "$(status)" 200
until_true "until it expires" refused
until_true "the expiry is recorded" eval "trail records/audit | grep identity.lost | matches expired"
check "readiness is off" eval "! ready 25010"

kill -TERM "$web_pid" "$records_pid"
wait "$web_pid" "$records_pid" || true
check "the trails verify" eval "$phiward audit verify records/audit >/dev/null && $phiward audit verify web/audit >/dev/null"
