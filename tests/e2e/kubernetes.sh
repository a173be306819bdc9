#!/usr/bin/env bash
# The chart, the webhook and injected pods on a real cluster of one node, with SPIRE; all of it is in namespaces of its own.
# Parts: Go and the Go modules of Kubernetes, Helm and SPIRE (built into target/ once); Debian's etcd-server, kubernetes-client, containerd,
# containernetworking-plugins, docker.io, nftables, iptables, dnsmasq-base, iproute2, busybox-static, wrk, curl, python3, openssl. Needs root.
# Shows: the README's commands; pods whose apps know nothing of phiward call each other by their Services' names, over mTLS with identity, under
# policy, and the collector has the trail; a Job completes; a deployment is restarted under load; a namespace goes from plain text to enforced,
# step by step; bad annotations are refused; pod security "restricted" is enforced; webhooks are replaced while pods are made; what is optional;
# `helm test`; removal leaves nothing.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/lib-spire.sh"
. "$(dirname "$0")/lib-cluster.sh"
need dockerd docker.io
need busybox busybox-static
need wrk wrk
need curl curl
need python3 python3
need openssl openssl
need_cluster
build
build_spire
mapfile -t crds < <("$root/tests/e2e/tools/kubernetes/crds.sh")
in_own_namespaces
cd "$work"

say "== images"
engine_up
"$root/deploy/docker/build.sh" >image.log 2>&1
image_programs=("$(command -v wrk)" "$(command -v curl)")
image_of e2e/box:1 "$(command -v busybox)"
image_programs=()
image_of e2e/pause:1 "$(command -v busybox)" sleep infinity
command docker save -o images.tar phiward:0.1.0 e2e/box:1 e2e/pause:1
engine_down

say "== a cluster"
cluster_up
spire_up own hospital.local 28081 "" "" 'WorkloadAttestor "k8s" { plugin_data { skip_kubelet_verification = true, use_anonymous_authentication = true } }'
spiffe_csi_up
# The collector's volume. What the chart installs is held to pod security from the start.
mkdir store
kubectl create -f - >commands.log <<CONF
apiVersion: v1
kind: PersistentVolume
metadata: {name: store}
spec:
  capacity: {storage: 20Gi}
  accessModes: [ReadWriteOnce]
  local: {path: $work/store}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
---
apiVersion: v1
kind: Namespace
metadata: {name: phiward, labels: {pod-security.kubernetes.io/enforce: restricted}}
CONF
register_pod phiward phiward-collector
for who in web billing records; do register_pod clinic $who; done

say "== the chart, by the commands of the README"
chart=$root/deploy/helm/phiward
helm() { "$tools/helm" "$@"; }
check "it lints" eval "helm lint '$chart' >lint.log"
check "a wrong value is told" eval "{ helm template p '$chart' --set identity.source=magic 2>&1 || true; } | matches 'identity/source'"
quick_start "On Kubernetes" >commands
check "there are five" equal "$(wc -l <commands)" 5
while read -r command; do
  check "$command" eval "(cd '$root' && eval \"\$command\" >>'$work/commands.log' 2>&1)"
done <commands
up() { kubectl -n "$1" rollout status "$2" --timeout=90s >>rollout.log 2>&1; }
check "the webhook comes up" up phiward deployment/phiward-webhook
check "so does the collector" up phiward statefulset/phiward-collector
kubectl -n clinic get configmap phiward-policy -o jsonpath='{.data.policy\.yaml}' >installed-policy.yaml
check "the policy arrives as it was written" eval "$phiward policy validate installed-policy.yaml >/dev/null"

say "== pods"
kubectl create -f - >>commands.log <<'CONF'
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: clinic}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: billing, namespace: clinic}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: records, namespace: clinic}}
  - {apiVersion: v1, kind: Namespace, metadata: {name: other}}
  - apiVersion: v1
    kind: Service
    metadata: {name: records, namespace: clinic}
    spec: {selector: {app: records}, ports: [{port: 8080}]}
  - apiVersion: v1
    kind: Service
    metadata: {name: records-pods, namespace: clinic}
    spec: {clusterIP: None, selector: {app: records}, ports: [{port: 8080}]}
CONF
# deployment NAME REPLICAS ARGUMENTS ANNOTATIONS [MORE-OF-THE-CONTAINER]
deployment() {
  local context='{runAsUser: 1000}'
  [ -n "${security:-}" ] && context=$security
  kubectl -n "${namespace:-clinic}" create -f - >>commands.log <<CONF
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1}
spec:
  replicas: $2
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}, annotations: {$4}}
    spec:
      serviceAccountName: ${account:-$1}
      terminationGracePeriodSeconds: 10
      containers:
        - name: app
          image: ${image:-e2e/box:1}
          args: [$3]
          securityContext: $context
          ${5:-}
CONF
}
# What an app calls is known by the Service's own address (calls), or by those of its pods (calls_pods), as docs/kubernetes.md has it.
calls="phiward.dev/services: '[{\"name\": \"records\", \"hosts\": [\"records.clinic\"], \"endpoints\": [\"records.clinic.svc.cluster.local:8080\"], \"identities\": [\"spiffe://hospital.local/ns/clinic/sa/records\"]}]'"
calls_pods=${calls/records.clinic.svc/records-pods.clinic.svc}
# As docs/kubernetes.md says under Upgrade, for an app that closes its port at SIGTERM.
image=phiward:0.1.0 deployment records 2 'dev, --app-only, "0.0.0.0:8080"' '' 'ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
          lifecycle: {preStop: {sleep: {seconds: 3}}}'
deployment web 1 'sleep, infinity' "$calls_pods"
deployment billing 1 'sleep, infinity' "$calls"
account=web deployment nurse 1 'sleep, infinity' "$calls"
namespace=other account=default deployment stranger 1 'sleep, infinity' ''
for who in records web billing nurse; do check "$who comes up, behind its sidecar" up clinic deployment/$who; done
up other deployment/stranger
check "a pod of another namespace has none" equal "$(kubectl -n other get pods -o jsonpath='{.items[*].spec.initContainers}')" ""
check "the kubelet asks the app through its sidecar" equal "$(kubectl -n clinic get pods -l app=records -o jsonpath='{.items[0].spec.containers[0].readinessProbe.httpGet.port}')" 15008
app_of() { kubectl -n "${namespace:-clinic}" exec "deploy/$1" -c app -- "${@:2}"; }
get() { app_of "$1" "$(command -v curl)" -sS -m 5 -w " %{http_code}" "http://records.clinic:8080$2" 2>&1 || true; }
until_true "the name of its pods" eval "get web /fhir/Patient/1 | matches Testperson"
check "an app reads by the Service's name, and is known by its identity" eval "get web /fhir/Patient/1 | matches 'spiffe://hospital.local/ns/clinic/sa/web.*Testperson'"
check "one that may not is denied" eval "get billing /fhir/Patient/1 | matches 403"
check "so is what nobody may" eval "get web /admin/x | matches 403"
check "a pod without a sidecar gets nothing" eval "! namespace=other get stranger /fhir/Patient/1 | matches Testperson"
at_collector() { kubectl -n phiward exec phiward-collector-0 -- /phiward audit "$@"; }
has_denial() { at_collector query /var/lib/phiward/store --outcome deny --identity 'spiffe://hospital.local/ns/clinic/sa/billing' | matches billing; }
until_true "the collector has the denial" has_denial
check "the trail verifies at the collector" eval "at_collector verify /var/lib/phiward/store >verify.txt"

say "== a Job"
kubectl -n clinic create -f - >>commands.log <<CONF
apiVersion: batch/v1
kind: Job
metadata: {name: report}
spec:
  backoffLimit: 0
  template:
    metadata: {annotations: {$calls}}
    spec:
      restartPolicy: Never
      serviceAccountName: web
      initContainers: [{name: before, image: "e2e/box:1", command: [$(command -v curl), -sS, "http://records.clinic:8080/fhir/Patient/1"], securityContext: {runAsUser: 1000}}]
      containers: [{name: app, image: "e2e/box:1", command: [$(command -v curl), -sS, "http://records.clinic:8080/fhir/Patient/2"], securityContext: {runAsUser: 1000}}]
CONF
check "completes: its sidecar ends with it" kubectl -n clinic wait --for=condition=complete job/report --timeout=60s
check "it had its answer" eval "kubectl -n clinic logs job/report -c app | matches Grace"
check "so had what runs before it" eval "kubectl -n clinic logs job/report -c before | matches Ada"

say "== restarts under load"
# WHO: sends requests while records is restarted; none may fail, and each is at the collector in the end.
restarted_under() {
  app_of "$1" "$(command -v wrk)" -t1 -c8 -d20s --timeout 10s http://records.clinic:8080/fhir/Patient/1 >"wrk-$1.txt" 2>&1 &
  local wrk_pid=$!
  kubectl -n clinic rollout restart deployment/records >>commands.log
  check "records is restarted" up clinic deployment/records
  wait $wrk_pid
  sent=$(awk '/requests in/{print $1}' "wrk-$1.txt")
  say "$sent requests"
  check "there was load" [ "$sent" -ge 1000 ]
  check "no request failed" eval "! matches 'Non-2xx|Socket errors' <'wrk-$1.txt'"
}
at_collector_of() { at_collector query /var/lib/phiward/store --limit 0 --type access.complete --identity "spiffe://hospital.local/ns/clinic/sa/$1" --format json | grep -c '"status":200' || true; }
say "by the addresses of its pods"
app_of web "$(command -v wrk)" -t1 -c8 -d3s --timeout 10s http://records.clinic:8080/fhir/Patient/1 >shares.txt 2>&1
shares() { at_collector query /var/lib/phiward/store --limit 0 --type access.complete --format json | grep -o '"pod":"records-[^"]*"' | sort | uniq -c | awk '$1 > 100' | wc -l; }
both_share() { [ "$(shares)" = 2 ]; }
until_true "both pods have their share" both_share
check "both pods have their share" both_share
restarted_under web
has_all() { [ "$(at_collector_of web)" -ge "$sent" ]; }
until_true "the collector has them all" has_all
check "what the pods that are gone had recorded is at the collector" has_all
say "by the Service's address"
restarted_under nurse

say "== from plain text to enforced"
# The five steps of docs/kubernetes.md, in a namespace that begins without phiward. `stranger` never has a sidecar.
kubectl create namespace moving >>commands.log
kubectl -n moving create -f - >>commands.log <<'CONF'
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: web}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: billing}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: records}}
  - {apiVersion: v1, kind: Service, metadata: {name: records}, spec: {selector: {app: records}, ports: [{port: 8080}]}}
  - {apiVersion: v1, kind: Service, metadata: {name: lab}, spec: {selector: {app: lab}, ports: [{port: 8080}]}}
CONF
for who in web billing records; do register_pod moving $who; done
namespace=moving image=phiward:0.1.0 deployment records 1 'dev, --app-only, "0.0.0.0:8080"' '' 'ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
          lifecycle: {preStop: {sleep: {seconds: 3}}}'
for who in web billing; do namespace=moving deployment $who 1 'sleep, infinity' ''; done
namespace=moving account=default image=phiward:0.1.0 deployment lab 1 'dev, --app-only, "0.0.0.0:8080"' '"phiward.dev/inject": "false"'
for who in web billing records lab; do up moving deployment/$who; done
# annotate ANNOTATIONS WHO...: a null takes one away. The pods are made anew by it.
annotate() {
  local annotations=$1 who
  shift
  for who in "$@"; do
    kubectl -n moving patch deployment "$who" --type merge -p "spec: {template: {metadata: {annotations: {$annotations}}}}" >>commands.log || return
  done
  for who in "$@"; do up moving deployment/$who || return; done
}
# from WHO HOST: what its app is answered, and by whom it is known.
from() {
  local namespace=moving
  [ "$1" = stranger ] && namespace=other
  app_of "$1" "$(command -v curl)" -sS -m 5 -w " %{http_code}" "http://$2.moving:8080/fhir/Patient/1" 2>&1 || true
}
known_as() { from "$1" records | matches "ns/moving/sa/$1.*Testperson"; }
at_collector_for() { at_collector query /var/lib/phiward/store --since 1h --reason "$1" | matches "$2"; }
until_true "the app answers" eval "from web records | matches Testperson"
{ reader_policy spiffe://hospital.local/ns/moving/sa/web; echo "mode: shadow"; } >moving.yaml
kubectl -n moving create configmap phiward-policy --from-file=policy.yaml=moving.yaml >>commands.log
kubectl -n moving create secret generic phiward-audit-key --from-literal=audit-hmac.key="$(openssl rand -hex 32)" >>commands.log

say "see"
kubectl label namespace moving phiward.dev/inject=enabled >>commands.log
curl=$(command -v curl)
busybox=$(command -v busybox)
namespace=other app_of stranger "$busybox" sh -c "until [ -e /dev/shm/enough ]; do $curl -sS -m 5 -o /dev/null -w '%{http_code}\n' http://records.moving:8080/fhir/Patient/1; $busybox sleep 0.05; done" >asked.txt 2>&1 &
asked_pid=$!
see='"phiward.dev/mode": permissive, "phiward.dev/unknown": passthrough'
check "each gets its sidecar" annotate "$see" records web billing
namespace=other app_of stranger "$busybox" touch /dev/shm/enough
wait $asked_pid
check "who had none was asking all that time" [ "$(wc -l <asked.txt)" -ge 50 ]
check "and was answered each time" equal "$(sort asked.txt | uniq -c | awk '{print $2}')" 200
check "so is who has one and names nobody" eval "from web records | matches Testperson"
check "neither is known yet" eval "! known_as web"
address=$(kubectl -n moving get service records -o jsonpath='{.spec.clusterIP}')
in_trail() { at_collector_for unauthenticated '\[records ' && at_collector_for passthrough "GET $address:8080 by spiffe://hospital.local/ns/moving/sa/web"; }
until_true "both are in the trail" in_trail
check "the trail tells of plain text, and where it went" in_trail

say "encrypt"
check "callers name the service" annotate "${calls//clinic/moving}" web billing
check "and are known by it" known_as web
check "who the policy would refuse is not, yet" known_as billing
in_trail() { at_collector_for shadow_mode moving/sa/billing; }
until_true "what it would refuse is in the trail" in_trail
check "what it would refuse is in the trail" in_trail

say "be strict"
check "a listener that is strict" annotate '"phiward.dev/mode": null' records web billing
# The old pod, which is permissive, goes on while it is taken out of the Service, and ends after that.
until_true "the old one is gone" eval "[ \$(kubectl -n moving get pods -l app=records -o name | wc -l) = 1 ]"
check "takes those who are known" known_as web
from stranger records >answered.txt
check "and nobody else" eval "! matches Testperson <answered.txt || ! cat answered.txt"

say "know every destination"
check "what is not named is reached" eval "from web lab | matches Testperson"
check "it is refused from now on" annotate '"phiward.dev/unknown": null' records web billing
check "by the caller's sidecar" eval "from web lab | matches 404"
check "what is named goes on" known_as web

say "enforce"
sed -i 's/mode: shadow/mode: enforce/' moving.yaml
kubectl -n moving create configmap phiward-policy --from-file=policy.yaml=moving.yaml -o yaml --dry-run=client | kubectl replace -f - >>commands.log
refused() { from billing records | matches 403; }
until_true "the policy that enforces is there" refused
check "who may not is refused" refused
check "who may is not" known_as web

say "== what a pod may be"
# Of pods that are not meant to run: what the API server makes of them. ANNOTATIONS [MORE-OF-THE-SPEC]
made() {
  kubectl -n "${namespace:-clinic}" create --dry-run=server -o json -f - 2>&1 <<CONF || true
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made", "annotations": {$1}}, "spec": {"containers": [{"name": "app", "image": "app",
  "ports": [{"containerPort": 8080}], "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
  "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}] ${2:-}}}
CONF
}
of() { python3 -c "import json,sys; o=json.load(sys.stdin); print($1)"; }
check "a sidecar and the capture step" equal "$(made '' | of '[(c["name"], c.get("restartPolicy")) for c in o["spec"]["initContainers"]]')" "[('phiward', 'Always'), ('phiward-capture', None)]"
kubectl -n phiward get configmap phiward-webhook -o jsonpath='{.data.webhook\.yaml}' >webhook.yaml
kubectl -n clinic get pods -l app=web -o json | of 'o["items"][0]["metadata"]["annotations"]["phiward.dev/config"]' >sidecar.json
check "its configuration is one that run takes" eval "{ $phiward check --config sidecar.json 2>&1 || true; } | matches 'spire|agent'"
printf '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made"}, "spec": {"containers": [{"name": "app", "image": "app"}]}}' |
  "$phiward" k8s inject --config webhook.yaml --namespace clinic -f - >injected.yaml
check "inject says the same" eval "matches phiward-capture <injected.yaml && matches 'phiward.dev/status' <injected.yaml"
"$phiward" k8s inject --config webhook.yaml -f injected.yaml >twice.yaml
check "twice is once" cmp injected.yaml twice.yaml
check "a pod can opt out by annotation" equal "$(made '"phiward.dev/inject": "false"' | of 'o["spec"].get("initContainers")')" None
check "a bad annotation is refused with its message" eval "made '\"phiward.dev/prots\": \"8080\"' | matches 'did you mean phiward.dev/ports'"
check "so is hostNetwork" eval "made '' ', \"hostNetwork\": true' | matches 'hostNetwork: true'"

say "== pod security"
kubectl create -f - >>commands.log <<'CONF'
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "sealed", "labels": {"phiward.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted"}}}
CONF
reader_policy spiffe://hospital.local/ns/sealed/sa/web >policy.yaml
kubectl -n sealed create configmap phiward-policy --from-file=policy.yaml >>commands.log
kubectl -n sealed create secret generic phiward-audit-key --from-literal=audit-hmac.key="$(openssl rand -hex 32)" >>commands.log
check "the API server refuses the capture step, and says why" eval "namespace=sealed made '' | matches 'violates PodSecurity .restricted.*phiward-capture.*NET_ADMIN'"
check "and nothing else of it" eval "! namespace=sealed made '' | matches 'container .phiward. '"
namespace=sealed made '"phiward.dev/capture": "false"' >sealed.json
check "without capture it takes all of it" equal "$(of '[c["name"] for c in o["spec"]["initContainers"]]' <sealed.json)" "['phiward']"
# As docs/kubernetes.md says under "Without capture".
kubectl -n sealed create -f - >>commands.log <<'CONF'
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: web}}
  - {apiVersion: v1, kind: ServiceAccount, metadata: {name: records}}
  - {apiVersion: v1, kind: Service, metadata: {name: records}, spec: {selector: {app: records}, ports: [{port: 8080, targetPort: 15006}]}}
CONF
for who in web records; do register_pod sealed $who; done
security='{runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}'
namespace=sealed image=phiward:0.1.0 deployment records 1 'dev, --app-only, "127.0.0.1:8080"' '"phiward.dev/capture": "false"' 'ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}'
namespace=sealed deployment web 1 'sleep, infinity' "\"phiward.dev/capture\": \"false\", ${calls//clinic/sealed}"
unset security
check "a sealed app comes up behind its sidecar, and is asked how it is" up sealed deployment/records
check "so does its caller" up sealed deployment/web
sealed() { namespace=sealed app_of web "$(command -v curl)" -sS -m 5 "$@" 2>&1 || true; }
check "it calls by its sidecar as a proxy" eval "sealed -x http://127.0.0.1:15001 http://records.sealed:8080/fhir/Patient/1 | matches 'ns/sealed/sa/web.*Testperson'"
check "nobody reaches the app around its sidecar" eval "sealed http://records.sealed:8080/fhir/Patient/1 | matches 'HTTP/0.9|reset|refused'"

say "== upgrade"
secret() { kubectl -n phiward get secret phiward-webhook-tls -o jsonpath='{.data.tls\.crt}'; }
before=$(secret)
upgrade() { helm upgrade phiward "$chart" -n phiward --reuse-values "$@" >upgrade.log 2>&1; }
check "it upgrades" upgrade --set webhook.failurePolicy=Ignore --set-file "policies.other=$root/config/policy.yaml"
check "the certificate stays" equal "$(secret)" "$before"
check "the new value is there" eval "kubectl get mutatingwebhookconfiguration phiward-phiward -o yaml | matches Ignore"

say "== webhooks are replaced while pods are created"
: >rolling
roll() { # until the file is gone
  while [ -e rolling ]; do
    made '' >rolled.json
    if matches phiward-capture <rolled.json; then echo injected; else tr -d '\n' <rolled.json; echo; fi
  done >rolled
}
roll &
rolling_pid=$!
kubectl -n phiward rollout restart deployment/phiward-webhook >>commands.log
check "they are" up phiward deployment/phiward-webhook
# The old ones go on for as long as somebody may still ask them.
until_true "the old ones are gone" eval "[ \$(kubectl -n phiward get pods -l app.kubernetes.io/name=phiward-webhook -o name | wc -l) = 2 ]"
rm rolling
wait "$rolling_pid"
say "$(grep -c injected rolled) pods"
check "there were pods in all of that time" [ "$(grep -c injected rolled)" -ge 5 ]
check "each of them was created, with its sidecar" equal "$(grep -vc injected rolled)" 0

say "== helm test"
check "passes" eval "helm test phiward -n phiward --timeout 60s >helm-test.log 2>&1"
kubectl -n phiward get configmap phiward-webhook -o json | sed 's/trust_domain: hospital.local/trust_domain: not a domain/' | kubectl replace -f - >>commands.log
check "and fails where the configuration is wrong" eval "! helm test phiward -n phiward --timeout 60s >>helm-test.log 2>&1"
check "an upgrade mends it" upgrade
check "passes again" eval "helm test phiward -n phiward --timeout 60s >>helm-test.log 2>&1"

say "== what is optional"
check "the definitions of the Prometheus operator and cert-manager" eval "kubectl create $(printf -- '-f %s ' "${crds[@]}") >>commands.log 2>&1"
until_true "they are served" eval "kubectl get podmonitors,prometheusrules,certificates -A"
check "with monitoring" upgrade --set monitoring.enabled=true
check "its objects are there" equal "$(kubectl -n phiward get podmonitors,prometheusrules -o name | wc -l)" 3
check "and the dashboard" eval "kubectl -n phiward get configmap phiward-dashboard -o jsonpath='{.data.phiward\.json}' | python3 -m json.tool >/dev/null"
check "identities by cert-manager's driver" upgrade --set identity.source=cert-manager
check "the collector takes its own so" eval "kubectl -n phiward get statefulset phiward-collector -o yaml | matches spiffe.csi.cert-manager.io"
check "identities that are brought" upgrade --set identity.source=secret --set identity.secret=own-svid
check "the collector takes its own so too" eval "kubectl -n phiward get statefulset phiward-collector -o yaml | matches own-svid"
check "the webhook's certificate by cert-manager" upgrade --set webhook.certManagerIssuer=clinic-ca
check "it is asked for by the Service's name" eval "kubectl -n phiward get certificate phiward-webhook -o yaml | matches phiward-webhook.phiward.svc"
check "and its CA is to be put where the API server looks" eval "kubectl get mutatingwebhookconfiguration phiward-phiward -o yaml | matches 'inject-ca-from: phiward/phiward-webhook'"

say "== removal"
check "the chart carries policies too" eval "kubectl -n other get configmap phiward-policy -o yaml | matches fhir"
sed -n '/^## Uninstall/,/^## /{s/^    //p}' "$root/docs/kubernetes.md" >commands
check "the documentation has three commands" equal "$(wc -l <commands)" 3
while read -r command; do
  check "$command" eval "eval \"\$command\" >>uninstall.log 2>&1"
done <commands
kinds=configmaps,secrets,services,serviceaccounts,deployments,statefulsets,poddisruptionbudgets,networkpolicies,mutatingwebhookconfigurations,podmonitors,prometheusrules,certificates
check "nothing is left" equal "$(kubectl get $kinds -A -l app.kubernetes.io/part-of=phiward -o name)" ""
check "the trail is" eval "kubectl -n phiward get pvc -o name | matches store-phiward-collector-0"
for who in records web billing nurse; do up clinic deployment/$who; done
bare() { ! kubectl -n clinic get pods -l app -o yaml | matches 'name: phiward-capture'; }
until_true "pods without a sidecar" bare
check "pods go on without a sidecar" bare
