#!/usr/bin/env bash
# The image and the stack of deploy/compose on a real Docker engine, which this script starts for itself.
# Parts: Debian's docker.io, docker-compose, prometheus, curl, python3; Go and Go modules for the OpenTelemetry Collector. Needs root.
# Shows: the image holds one static program and runs as nobody; the three curl lines of the README; a killed collector loses nothing.
. "$(dirname "$0")/lib.sh"
need dockerd docker.io
need docker-compose docker-compose
need curl curl
need python3 python3
need iptables iptables
need prometheus prometheus
build
build_otelcol

say "== an engine of our own"
compose() { docker compose -f "$root/deploy/compose/compose.yaml" "$@"; }
take_down() {
  compose down --volumes --timeout 5 >"$work/down.log" 2>&1 || true
  engine_down
}
engine_up

# Compose is a plugin of Docker's command, or Debian's program of its own.
docker() {
  if [ "$1" = compose ] && ! command docker compose version >/dev/null 2>&1; then
    docker-compose "${@:2}"
  else
    command docker "$@"
  fi
}

say "== the image"
quick_start "On Docker Compose" >"$work/commands"
check "the README has five commands" equal "$(wc -l <"$work/commands")" 5
command_of() { sed -n "$1p" "$work/commands"; }
run_line() { (cd "$root" && eval "$(command_of "$1")"); }
check "$(command_of 1)" eval "run_line 1 >'$work/build.log' 2>&1"
check "it says its version" equal "$(docker run --rm phiward:latest --version)" "$("$phiward" --version)"
check "nobody runs it" equal "$(docker image inspect -f '{{.Config.User}}' phiward:latest)" 15099:15099
container=$(docker create phiward:latest)
docker export "$container" | tar -t >"$work/files"
docker rm "$container" >/dev/null
check "no shell, no library" eval "! matches '(^|/)(sh|bash|busybox|lib.*\.so.*)$' <'$work/files'"
docker run --rm --entrypoint /phiward phiward:latest policy schema >/dev/null
check "a list of its parts that names what it is linked from" eval "python3 -c 'import json,sys; d=json.load(open(sys.argv[1])); names={c[\"name\"] for c in d[\"components\"]}; sys.exit(not {\"rustls\",\"hyper\",\"tokio\"} <= names)' '$target/image/sbom.cdx.json'"
check "a whole mesh in a read-only container" eval "docker run --rm --read-only --tmpfs /tmp --cap-drop ALL phiward:latest dev --check >'$work/check.txt'"

say "== the stack"
check "$(command_of 2)" eval "run_line 2 >'$work/up.log' 2>&1"
answers() { run_line "$1" 2>/dev/null | head -1 | matches "$2"; }
until_true "web can read" answers 3 ' 200 '
check "the allow: $(command_of 3)" answers 3 ' 200 '
check "the denial: $(command_of 4)" answers 4 ' 403 '
check "the rejection: $(command_of 5)" answers 5 ' 400 '
check "the trail verifies at the collector" eval "compose exec -T collector /phiward audit verify /var/lib/phiward/store >'$work/verify.txt'"

say "== the profile of OpenTelemetry"
# The image of the profile, made here of a collector built from its sources: a registry may be out of reach.
image=$(sed -n 's/^ *image: \(otel.*\)/\1/p' "$root/deploy/compose/compose.yaml")
image_of "$image" "$otelcol/otelcol"
check "it comes up" eval "compose --profile otel up -d >>'$work/up.log' 2>&1"
otel_caller() { curl -fsS -m 5 -o /dev/null -H 'Host: records.clinic' http://127.0.0.1:15003/fhir/Patient/1; }
until_true "its caller can read" otel_caller
otel_has() { compose logs otel 2>/dev/null | matches 'access\.complete'; }
until_true "the OpenTelemetry Collector has its trail" otel_has

# The same of Prometheus, as Debian has it: the program and what it is linked with.
say "== the profile of Prometheus"
image=$(sed -n 's/^ *image: \(prom.*\)/\1/p' "$root/deploy/compose/compose.yaml")
image_of "$image" "$(command -v prometheus)" --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus
check "it comes up" eval "compose --profile prometheus up -d >>'$work/up.log' 2>&1"
asked() { curl -fsS -m 5 "http://127.0.0.1:9090/api/v1/$1"; }
targets_up() { asked targets | python3 -c 'import json,sys; t=json.load(sys.stdin)["data"]["activeTargets"]; sys.exit(not (len(t) == 4 and all(x["health"] == "up" for x in t)))'; }
until_true "it scrapes the three sidecars and the collector" targets_up
check "it scrapes the three sidecars and the collector" targets_up
check "it has the alert rules, and none fires" eval "asked rules | python3 -c 'import json,sys; r=[x for g in json.load(sys.stdin)[\"data\"][\"groups\"] for x in g[\"rules\"]]; sys.exit(not r or any(x[\"state\"] == \"firing\" for x in r))'"
counted() { asked 'query?query=sum(phiward_decisions_total)' | python3 -c 'import json,sys; sys.exit(float(json.load(sys.stdin)["data"]["result"][0]["value"][1]) < 3)'; }
until_true "it counts requests" counted

say "== the collector is killed"
compose kill -s KILL collector >"$work/kill.log" 2>&1
for _ in $(seq 50); do run_line 3 2>/dev/null | head -1 >>"$work/statuses"; done
check "requests still pass" equal "$(grep -c ' 200 ' "$work/statuses")" 50
compose up -d >>"$work/up.log" 2>&1
sent=$(compose exec -T records-sidecar /phiward audit query /var/lib/phiward/audit --type access.complete --format json 2>/dev/null | grep -c access.complete || true)
has_all() { [ "$(compose exec -T collector /phiward audit query /var/lib/phiward/store --type access.complete --format json 2>/dev/null | grep -c access.complete)" -ge "$sent" ]; }
check "there is something to deliver" [ "$sent" -ge 52 ]
until_true "the collector has every event" has_all
check "and the trail is whole" eval "compose exec -T collector /phiward audit verify /var/lib/phiward/store >'$work/verify.txt'"
