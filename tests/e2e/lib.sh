# What the end-to-end scripts share. Source it; it makes a work folder, and ends every child with the script.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
phiward=$target/release/phiward
work=$(mktemp -d "${TMPDIR:-/tmp}/phiward-e2e-XXXXXX")
passed=0
failed=0

say() { printf '%s\n' "$*"; }

# What a script takes down before its children are killed; it may define its own.
take_down() { :; }

cleanup() {
  local status=$?
  trap - EXIT
  take_down
  # nginx is asked, because it makes new workers for those that are killed, and they outlive a master that is. Then every child
  # of this script.
  if [ -s "$work/nginx.pid" ]; then
    local nginx
    nginx=$(cat "$work/nginx.pid")
    kill -TERM "$nginx" 2>/dev/null && wait "$nginx" 2>/dev/null || true
  fi
  pkill -KILL -P $$ 2>/dev/null || true
  if [ "$status" -ne 0 ] || [ "$failed" -ne 0 ]; then
    say "logs: $work"
    for log in "$work"/*.log; do [ -s "$log" ] && { say "== $log"; tail -n 15 "$log"; }; done
  else
    rm -rf "$work"
  fi
  say "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] || exit 1
  exit "$status"
}
trap cleanup EXIT

# check WHAT CONDITION...: runs the condition, counts and tells.
check() {
  local what=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    say "ok   $what"
  else
    failed=$((failed + 1))
    say "FAIL $what"
  fi
}

# equal GOT WANTED: for check; tells both when they differ.
equal() { [ "$1" = "$2" ] || { say "     got '$1', wanted '$2'"; return 1; }; }

# matches PATTERN: is it in the input? Reads all of it: `grep -q` leaves at the first match, and what still writes to it is then ended
# by SIGPIPE, which `pipefail` takes for "no".
matches() { [ "$(grep -cE -- "$1")" -gt 0 ]; }

# need COMMAND PACKAGE...: installs Debian packages when a command is missing. A missing part fails the run. Where an init of System V
# starts what is installed, runlevel 1 tells it not to: its ports are for the scripts.
need() {
  local command=$1
  shift
  command -v "$command" >/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
      >"$work/apt.log" 2>&1 && command -v "$command" >/dev/null && return
  fi
  say "needs $command (Debian packages: $*)"
  exit 1
}

build() {
  say "building the release binary"
  (cd "$root" && cargo --quiet static)
}

# The OpenTelemetry Collector, built from Go modules once: its folder is $otelcol.
build_otelcol() {
  command -v go >/dev/null || { say "needs go (1.26 or later)"; exit 1; }
  otelcol=$target/otelcol/$(cat "$root"/tests/e2e/tools/{go.mod,otelcol.yaml} | sha256sum | cut -c1-16)
  [ -x "$otelcol/otelcol" ] && return
  say "building the OpenTelemetry Collector"
  mkdir -p "$otelcol"
  sed "s|^dist:|dist:\n  output_path: $otelcol|" "$root/tests/e2e/tools/otelcol.yaml" >"$work/otelcol-build.yaml"
  (cd "$root/tests/e2e/tools" && CGO_ENABLED=0 go tool builder --config "$work/otelcol-build.yaml") >"$work/otelcol-build.log" 2>&1
}

# A Docker engine of the script's own, which take_down has to end: its process is dockerd_pid.
engine_up() {
  export DOCKER_HOST=unix://$work/docker.sock
  dockerd --storage-driver=vfs --data-root "$work/docker" --exec-root "$work/exec" -H "$DOCKER_HOST" --pidfile "$work/dockerd.pid" >"$work/dockerd.log" 2>&1 &
  dockerd_pid=$!
  until_true "the engine" command docker info
}

engine_down() { kill -TERM "$dockerd_pid" 2>/dev/null && wait "$dockerd_pid" 2>/dev/null || true; }

# image_of NAME PROGRAM [ARGUMENT...]: an image with a program of this machine and all that it is linked with. More programs are in
# the list image_programs.
image_programs=()
image_of() {
  local name=$1 program=$2 folder
  folder=$(mktemp -d "$work/image-XXXXXX")
  { printf '%s\n' "$program" "${image_programs[@]}"; ldd "$program" "${image_programs[@]}" 2>/dev/null || true; } |
    { grep -o '/[^ :]*' || true; } | sort -u | tar -chf "$folder/files.tar" -T - 2>/dev/null
  printf 'FROM scratch\nADD files.tar /\nENTRYPOINT [%s]\n' "$(printf ', "%s"' "${@:2}" | cut -c3-)" >"$folder/Dockerfile"
  command docker build --quiet -t "$name" "$folder" >"$folder.log" 2>&1
}

# quick_start TITLE: the commands of that section of the README, a line each.
quick_start() { sed -n "/^## $1\$/,/^## /{s/^    //p}" "$root/README.md"; }

# until_true WHAT COMMAND...: waits up to 30 s for the command to succeed.
until_true() {
  local what=$1
  shift
  for _ in $(seq 300); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  say "never came to be: $what"
  exit 1
}

ready() { curl -fsS -m 5 -o /dev/null "http://127.0.0.1:$1/ready"; }

# CA and SVIDs with nothing but openssl, as an operator's own PKI would make them.
openssl_ca() {
  local dir=$1 domain=$2
  mkdir -p "$dir"
  openssl ecparam -name prime256v1 -genkey -noout -out "$dir/ca.key" 2>/dev/null
  openssl req -x509 -new -key "$dir/ca.key" -days 2 -subj "/CN=$domain CA" -out "$dir/ca.pem" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -addext "subjectAltName=URI:spiffe://$domain" 2>/dev/null
}

# openssl_svid CA-DIR DIR URI[,URI...]: svid.pem, svid.key, bundle.pem in DIR.
openssl_svid() {
  local ca=$1 dir=$2 names=$3
  mkdir -p "$dir"
  openssl ecparam -name prime256v1 -genkey -noout 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -out "$dir/svid.key"
  openssl req -new -key "$dir/svid.key" -subj "/" -out "$dir/svid.csr" 2>/dev/null
  local san=""
  for uri in ${names//,/ }; do san="$san${san:+,}URI:$uri"; done
  printf 'subjectAltName=%s\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n' \
    "$san" >"$dir/svid.ext"
  openssl x509 -req -in "$dir/svid.csr" -CA "$ca/ca.pem" -CAkey "$ca/ca.key" -CAcreateserial \
    -days "${4:-1}" -extfile "$dir/svid.ext" -out "$dir/svid.pem" 2>/dev/null
  cp "$ca/ca.pem" "$dir/bundle.pem"
}

# trail DIR: the lines of a spool, as Debian's zstd reads them (`need zstdcat zstd`). A last frame that is being written just now is left out.
trail() {
  zstdcat -qf "$1"/*.ndjson* 2>"$work/zstdcat.log" || true
}

# Events of one type in a spool.
events() { trail "$1" | grep -c "\"type\":\"$2\"" || true; }

# nginx_says_ok PORT: an app that answers every request with 200.
nginx_says_ok() {
  cat >"$work/nginx.conf" <<CONF
user root;
worker_processes 1;
daemon off;
pid $work/nginx.pid;
error_log $work/nginx.log;
events { worker_connections 256; }
http {
  access_log off;
  keepalive_requests 1000000;
  server { listen 127.0.0.1:$1; location / { return 200 "ok\n"; } }
}
CONF
  nginx -c "$work/nginx.conf" -p "$work" 2>"$work/nginx-start.log" &
}

# reader_policy IDENTITIES: a policy that lets them read patients.
reader_policy() {
  cat <<CONF
apiVersion: phiward/v1
kind: Policy
metadata: {name: records, revision: "1", owner: e2e, review: {by: e2e, due: 2099-01-01}}
roles:
  reader: [{name: read, methods: [GET], paths: ["/fhir/Patient/{id}"]}]
bindings:
  - {role: reader, identities: ["$1"]}
CONF
}

# sidecar NAME ADMIN-PORT IDENTITY [SINKS]: starts a sidecar in the folder NAME, with the rest of its configuration from stdin; its
# process is NAME_pid. A program in that folder is run instead of the usual one.
sidecar() {
  cat >"$1/sidecar.yaml" <<CONF
version: 1
workload: {service: $1, namespace: clinic}
identity: {$3}
audit: {spool: {dir: audit, max_bytes: 4GiB}, key_file: key, sinks: [${4:-}]}
admin: {bind: "127.0.0.1:$2"}
workers: 1
$(cat)
CONF
  local program=$phiward
  [ -x "$1/phiward" ] && program=$1/phiward
  "$program" run --config "$1/sidecar.yaml" 2>"$1.log" &
  eval "$1_pid=$!"
}

# of_files TRUST-DOMAIN [MORE]: the identity of a folder that openssl_svid filled.
of_files() { printf 'trust_domain: %s, files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}%s' "$1" "${2:-}"; }
