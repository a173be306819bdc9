#!/usr/bin/env bash
# Two SPIRE servers that federate, hospital.local and partner.example, with a sidecar each; and a third trust domain, lab.example,
# of an operator's own PKI, whose sidecar follows the partner's SPIFFE bundle endpoint.
# Parts: Go and the Go modules of SPIRE (built into target/ once), Debian's nginx, curl, openssl (installed when missing and run as
# root).
# Shows: requests pass both ways between federated trust domains; a workload that was not federated is refused; a CA vouches for its
# own trust domain and for no other; a federation that is ended ends access, also on connections that are open.
. "$(dirname "$0")/lib.sh"
need nginx nginx
need curl curl
need openssl openssl
need zstdcat zstd
. "$(dirname "$0")/lib-spire.sh"
build
build_spire

cd "$work"
# endpoint OWN-PORT OTHER-DOMAIN OTHER-PORT: the bundle endpoint of a server, and the one that it follows.
endpoint() {
  cat <<CONF
federation {
    bundle_endpoint {
      address = "127.0.0.1"
      port = $1
      refresh_hint = "5s"
      profile "https_spiffe" {}
    }
    federates_with "$2" {
      bundle_endpoint_url = "https://127.0.0.1:$3"
      bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "spiffe://$2/spire/server" }
    }
  }
CONF
}
# The partner's server has its CA from a key that the test has too, to make what a partner must not.
openssl_ca partner-root partner.example
upstream='UpstreamAuthority "disk" { plugin_data { cert_file_path = "'$work'/partner-root/ca.pem", key_file_path = "'$work'/partner-root/ca.key" } }'
spire_up hospital hospital.local 28181 "$(endpoint 28191 partner.example 28192)"
spire_up partner partner.example 28182 "$(endpoint 28192 hospital.local 28191)" "$upstream"
# The first exchange is the operators': by hand.
server partner bundle show -format spiffe | server hospital bundle set -format spiffe -id spiffe://partner.example >/dev/null
server hospital bundle show -format spiffe | server partner bundle set -format spiffe -id spiffe://hospital.local >/dev/null
openssl_ca lab-root lab.example
server partner bundle set -id spiffe://lab.example -path lab-root/ca.pem >/dev/null

mkdir -p records web gateway lab
for who in records web gateway; do cp "$phiward" "$who/phiward"; done
for who in records web gateway lab; do openssl rand -hex 32 >"$who/key"; done
register hospital spiffe://hospital.local/ns/clinic/sa/records "$work/records/phiward" -federatesWith spiffe://partner.example >records/entry
register hospital spiffe://hospital.local/ns/clinic/sa/web "$work/web/phiward" >web/entry
register partner spiffe://partner.example/gateway "$work/gateway/phiward" \
  -federatesWith spiffe://hospital.local -federatesWith spiffe://lab.example >gateway/entry
openssl_svid lab-root lab spiffe://lab.example/analyser
nginx_says_ok 28080

reader_policy "spiffe://partner.example/**" >records/policy.yaml
reader_policy "spiffe://hospital.local/**" >gateway/policy.yaml
reader_policy "spiffe://partner.example/**" >lab/policy.yaml
inbound() { printf 'inbound: {listeners: [{name: api, bind: "127.0.0.1:%s", app: "127.0.0.1:28080"}]}\npolicy: {file: policy.yaml}\n' "$1"; }
service() { printf '{name: %s, hosts: [%s.test], endpoints: ["127.0.0.1:%s"], identities: ["%s"]}' "$1" "$1" "$2" "$3"; }
gateway=$(service gateway 25106 spiffe://partner.example/gateway)
sidecar records 25010 "$(of_agent hospital.local hospital)" <<CONF
$(inbound 25006)
outbound: {bind: "127.0.0.1:25001", services: [$gateway]}
CONF
sidecar web 25020 "$(of_agent hospital.local hospital)" <<CONF
outbound: {bind: "127.0.0.1:25021", services: [$gateway]}
CONF
sidecar gateway 25110 "$(of_agent partner.example partner)" <<CONF
$(inbound 25106)
outbound:
  bind: "127.0.0.1:25101"
  services:
    - $(service records 25006 spiffe://hospital.local/ns/clinic/sa/records)
    - $(service lab 25206 spiffe://lab.example/analyser)
CONF
published='{url: "https://127.0.0.1:28192/", profile: https_spiffe, spiffe_id: "spiffe://partner.example/spire/server"}'
federation=", federation: [{trust_domain: partner.example, bundle: ../partner-root/ca.pem, endpoint: $published}]"
sidecar lab 25210 "$(of_files lab.example "$federation")" <<CONF
$(inbound 25206)
CONF
until_true "the sidecars ready" eval "ready 25010 && ready 25020 && ready 25110 && ready 25210"

ask() { curl -sS -m 10 -o /dev/null -w '%{http_code}' -H "Host: $2.test" "http://127.0.0.1:$1/fhir/Patient/1"; }
answers() { [ "$(ask "$1" "$2")" = "$3" ]; }
say "== both ways"
until_true "hospital's records reach the partner" answers 25001 gateway 200
until_true "the partner reaches hospital's records" answers 25101 records 200
until_true "the partner reaches the lab, which follows its bundle endpoint" answers 25101 lab 200
loaded() { curl -fsS -m 5 "http://127.0.0.1:$1/metrics" | matches "^phiward_reloads_total\{result=\"loaded\",what=\"federation\"\} [1-9]"; }
until_true "the lab has the bundle from the endpoint" loaded 25210

say "== and not across"
check "a workload that was not federated reaches no partner" equal "$(ask 25021 gateway)" 502
until_true "and its trail says why" eval "trail web/audit | matches upstream_identity"
# Who has the partner's CA can make any name: it counts for partner.example alone.
openssl_svid partner-root impostor spiffe://hospital.local/ns/clinic/sa/web
refused_with() { # folder, port, who
  openssl s_client -connect "127.0.0.1:$2" -alpn http/1.1 -cert "$1/svid.pem" -key "$1/svid.key" </dev/null >"$1.txt" 2>&1 || true
}
refused_with impostor 25006
reason() { trail records/audit | grep conn.rejected | matches "untrusted_chain"; }
until_true "an ID of hospital.local from the partner's CA is refused" reason
openssl_svid lab-root stranger spiffe://lab.example/analyser
refused_with stranger 25006
unknown() { trail records/audit | grep conn.rejected | matches "unknown_trust_domain"; }
until_true "a trust domain that was not federated is unknown" unknown

say "== a federation that ends"
{ printf 'GET /fhir/Patient/1 HTTP/1.1\r\nHost: records.test\r\n\r\n'; sleep 30; } | curl -sSN -m 40 telnet://127.0.0.1:25101 >open.txt 2>/dev/null &
until_true "a connection is open" eval "grep -q '200 OK' open.txt"
server hospital entry update -entryID "$(cat records/entry)" -parentID "$hospital_parent" -x509SVIDTTL 30 \
  -spiffeID spiffe://hospital.local/ns/clinic/sa/records -selector "unix:path:$work/records/phiward" >/dev/null
until_true "the partner has no access any more" answers 25101 records 502
closed() { [ "$(trail records/audit | grep conn.rejected | grep unknown_trust_domain | grep -c spiffe://partner.example/gateway)" -gt 0 ]; }
until_true "and the connection that was open is closed" closed
check "the lab goes on" equal "$(ask 25101 lab)" 200

kill -TERM "$records_pid" "$web_pid" "$gateway_pid" "$lab_pid"
wait "$records_pid" "$web_pid" "$gateway_pid" "$lab_pid" || true
for who in records web gateway lab; do check "the trail of $who verifies" eval "$phiward audit verify $who/audit >/dev/null"; done
