#!/usr/bin/env bash
# A spool on a small file system of its own that somebody else fills. Parts: Debian's nginx, curl, openssl. Needs root, for the mounts.
# Shows: while the disk is full requests are refused, or pass and are counted, as on_failure says; the trail tells it while it is full;
# a sidecar that is killed then starts again; nothing that the app saw is missing, and all is served again once there is space.
. "$(dirname "$0")/lib.sh"
need nginx nginx
need curl curl
need openssl openssl
need zstdcat zstd
build
cd "$work"
take_down() { umount "$work"/*/audit 2>/dev/null || true; }

openssl_ca ca hospital.local
openssl_svid ca web spiffe://hospital.local/ns/clinic/sa/web
nginx_says_ok 28082

start() { # NAME ON-FAILURE
  cat >"$1/sidecar.yaml" <<CONF
version: 1
workload: {service: $1, namespace: clinic}
identity: {$(of_files hospital.local)}
inbound: {listeners: [{name: api, bind: "127.0.0.1:27006", app: "127.0.0.1:28082"}]}
policy: {file: policy.yaml}
audit: {spool: {dir: audit, max_bytes: 4GiB}, on_failure: $2, key_file: key}
admin: {bind: "127.0.0.1:27000"}
workers: 1
CONF
  "$phiward" run --config "$1/sidecar.yaml" 2>>"$1.log" &
  sidecar_pid=$!
}
many() { curl -sk -m 60 -o /dev/null -w '%{http_code}\n' --cert web/svid.pem --key web/svid.key "https://127.0.0.1:27006/fhir/Patient/[1-$1]"; }
fill() { dd if=/dev/zero of="$1/audit/filler" bs=64k 2>/dev/null || true; }
counted() { trail "$1"/audit | grep '"type":"audit.gap"' | sed -n "s/.*\"$2\":\([0-9]*\).*/\1/p" | awk '{ sum += $1 } END { print sum + 0 }'; }
allows() { trail "$1"/audit | grep '"type":"access.decision"' | grep -c '"outcome":"allow"' || true; }

for mode in deny allow_with_gap; do
  say "== on_failure: $mode"
  name=records-$mode
  openssl_svid ca $name spiffe://hospital.local/ns/clinic/sa/records
  openssl rand -hex 32 >$name/key
  reader_policy spiffe://hospital.local/ns/clinic/sa/web >$name/policy.yaml
  mkdir $name/audit
  mount -t tmpfs -o size=16m tmpfs $name/audit
  start $name $mode
  until_true "the sidecar is ready" ready 27000
  many 20 >before
  check "requests pass while there is space" equal "$(grep -c 200 before)" 20
  fill $name
  # Space for what was let in is taken ahead, so the first of them still pass.
  until_full() { many 500 >>before; ! ready 27000; }
  until_true "the disk is known to be full" until_full
  many 50 >during
  if [ $mode = deny ]; then
    check "requests are refused while the disk is full" equal "$(grep -c 503 during)" 50
  else
    check "requests pass while the disk is full" equal "$(grep -c 200 during)" 50
  fi
  told_while_full() { [ "$(counted $name allowed)$(counted $name denied)" != 00 ]; }
  until_true "the trail tells of it" told_while_full
  check "the trail tells of it while the disk is full" eval "! ready 27000"
  kill -KILL "$sidecar_pid" && wait "$sidecar_pid" 2>/dev/null || true
  start $name $mode
  until_true "it starts again on the full disk" eval "curl -s -m 2 -o /dev/null http://127.0.0.1:27000/live"
  rm $name/audit/filler
  until_true "it is ready once there is space" ready 27000
  many 20 >after
  check "requests pass again" equal "$(grep -c 200 after)" 20
  kill -TERM "$sidecar_pid" && wait "$sidecar_pid" || true
  passed_requests=$(cat before during after | grep -c 200)
  check "each request that passed is in the trail, or counted" equal "$(($(allows $name) + $(counted $name allowed)))" "$passed_requests"
  check "each refusal is counted" equal "$(counted $name denied)" "$(cat before during | grep -c 503 || true)"
  check "the trail verifies" eval "$phiward audit verify $name/audit >verify.txt"
done
