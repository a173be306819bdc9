#!/usr/bin/env bash
# The chart and the webhook against a real kube-apiserver and etcd.
# Parts: Go and the Go modules of kube-apiserver and helm (built into target/ once), Debian's etcd-server, kubernetes-client, curl, python3, openssl.
# Shows: the chart lints and installs by the README's commands; pods and a Job's pod are mutated by the API server as `inject` says; bad annotations are
# refused with their message; opting out; upgrade keeps the certificate, and no pod is refused or left without a sidecar while webhooks are replaced; what is
# optional is taken by the API server by its publishers' definitions; uninstall leaves nothing. No kubelet: what is injected runs in capture.sh and compose.sh.
. "$(dirname "$0")/lib.sh"
need etcd etcd-server
need curl curl
need python3 python3
need openssl openssl
need kubectl kubernetes-client
command -v go >/dev/null || { say "needs go (1.26 or later)"; exit 1; }
build

say "building kube-apiserver and helm, if they are not there"
tools=$("$root/tests/e2e/tools/kubernetes/build.sh" 2>"$work/tools-build.log")
cd "$work"

say "== an API server"
etcd --data-dir etcd --listen-client-urls http://127.0.0.1:26379 --advertise-client-urls http://127.0.0.1:26379 \
  --listen-peer-urls http://127.0.0.1:26380 --initial-advertise-peer-urls http://127.0.0.1:26380 --initial-cluster default=http://127.0.0.1:26380 >etcd.log 2>&1 &
openssl genrsa -out sa.key 2048 2>/dev/null
echo "e2e-token,e2e,1,system:masters" >tokens.csv
"$tools/kube-apiserver" --etcd-servers=http://127.0.0.1:26379 --secure-port=26443 --bind-address=127.0.0.1 --cert-dir=apiserver \
  --service-account-key-file=sa.key --service-account-signing-key-file=sa.key --service-account-issuer=https://e2e \
  --token-auth-file=tokens.csv --authorization-mode=RBAC --service-cluster-ip-range=10.96.0.0/16 \
  --disable-admission-plugins=ServiceAccount >apiserver.log 2>&1 &
api() { curl -sS -k -m 20 -H 'Authorization: Bearer e2e-token' -H 'Content-Type: application/json' "$@"; }
at=https://127.0.0.1:26443
for _ in $(seq 900); do [ "$(api -o /dev/null -w '%{http_code}' $at/readyz 2>/dev/null)" = 200 ] && break; sleep 0.1; done
check "it is ready" equal "$(api $at/readyz)" ok
cat >kubeconfig <<CONF
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "$at", insecure-skip-tls-verify: true}}]
users: [{name: e2e, user: {token: e2e-token}}]
contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}]
current-context: e2e
CONF
export KUBECONFIG=$work/kubeconfig
# Here the webhook is no pod: the API server is told where it is.
helm() {
  case $1 in
    install | upgrade) "$tools/helm" "$@" --set webhook.url=https://127.0.0.1:26446 ;;
    *) "$tools/helm" "$@" ;;
  esac
}

say "== the chart, by the commands of the README"
chart=$root/deploy/helm/phiward
check "it lints" eval "helm lint '$chart' >lint.log"
check "a wrong value is told" eval "{ helm template p '$chart' --set identity.source=magic 2>&1 || true; } | matches 'identity/source'"
quick_start "On Kubernetes" >commands
check "there are five" equal "$(wc -l <commands)" 5
while read -r command; do
  check "$command" eval "(cd '$root' && eval \"\$command\" >>'$work/commands.log' 2>&1)"
done <commands
kubectl create namespace other >>commands.log
policy=$(api $at/api/v1/namespaces/clinic/configmaps/phiward-policy | python3 -c 'import json,sys; print(json.load(sys.stdin)["data"]["policy.yaml"],end="")')
printf '%s' "$policy" >installed-policy.yaml
check "the policy arrives as it was written" eval "$phiward policy validate installed-policy.yaml >/dev/null"
key=$(api $at/api/v1/namespaces/clinic/secrets/phiward-audit-key | python3 -c 'import json,sys,base64; print(len(base64.b64decode(json.load(sys.stdin)["data"]["audit-hmac.key"])))')
check "the audit key is one of 32 bytes, in hexadecimal" equal "$key" 64

say "== the webhook, by the chart's certificate and configuration"
of() { python3 -c "import json,sys,base64; o=json.load(sys.stdin); print($1)"; }
secret() { api $at/api/v1/namespaces/phiward/secrets/phiward-webhook-tls; }
mkdir -p webhook
secret | of 'base64.b64decode(o["data"]["tls.crt"]).decode()' >webhook/tls.crt
secret | of 'base64.b64decode(o["data"]["tls.key"]).decode()' >webhook/tls.key
api $at/api/v1/namespaces/phiward/configmaps/phiward-webhook | of 'o["data"]["webhook.yaml"]' | sed "s#/etc/phiward/tls#$work/webhook#g" >installed-webhook.yaml
webhook() { # PORT: starts one, which is an endpoint once it is ready; its process is webhook_pid
  sed "s#0.0.0.0:15443#127.0.0.1:$1#" installed-webhook.yaml >"webhook/$1.yaml"
  "$phiward" k8s webhook --config "webhook/$1.yaml" 2>"webhook-$1.log" &
  webhook_pid=$!
  until_true "the webhook" curl -fsSk -m 2 -o /dev/null "https://127.0.0.1:$1/ready"
}
webhook 26444
echo 26444 >endpoints
"$root/tests/e2e/tools/kubernetes/service.py" 26446 endpoints 2>service.log &
until_true "its Service" curl -fsSk -m 2 -o /dev/null https://127.0.0.1:26446/ready

pod() { # NAME ANNOTATIONS [MORE-OF-SPEC [MORE-OF-METADATA]]
  printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s","labels":{"app":"records"},"annotations":%s%s},"spec":{"containers":[{"name":"app","image":"app","ports":[{"containerPort":8080}],"readinessProbe":{"httpGet":{"path":"/healthz","port":8080}}}]%s}}' "$1" "$2" "${4:-}" "${3:-}"
}
create() { local in=$1; shift; pod "$@" | api -d @- "$at/api/v1/namespaces/$in/pods"; }
create clinic records '{}' >records.json
check "a pod gets its sidecar" equal "$(of '[c["name"] for c in o["spec"]["initContainers"]]' <records.json)" "['phiward', 'phiward-capture']"
check "a native one" equal "$(of 'o["spec"]["initContainers"][0]["restartPolicy"]' <records.json)" Always
check "its probe goes to the probe listener" equal "$(of 'o["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"]' <records.json)" 15008
of 'o["metadata"]["annotations"]["phiward.dev/config"]' <records.json >sidecar.json
check "its configuration is one that run takes" eval "{ $phiward check --config sidecar.json 2>&1 || true; } | matches 'spire|agent'"
pod records '{}' | "$phiward" k8s inject --config webhook/26444.yaml --namespace clinic -f - >injected.yaml
check "inject says the same" eval "matches phiward-capture <injected.yaml && matches 'phiward.dev/status' <injected.yaml"
"$phiward" k8s inject --config webhook/26444.yaml -f injected.yaml >twice.yaml
check "twice is once" cmp injected.yaml twice.yaml
create clinic job '{}' ',"restartPolicy":"Never"' ',"ownerReferences":[{"apiVersion":"batch/v1","kind":"Job","name":"j","uid":"1"}]' >job.json
check "a Job's pod can complete: its sidecar is native" equal "$(of 'o["spec"]["restartPolicy"]+" "+o["spec"]["initContainers"][0]["restartPolicy"]' <job.json)" "Never Always"
create clinic lone '{"phiward.dev/inject":"false"}' >lone.json
check "a pod can opt out by annotation" equal "$(of 'o["spec"].get("initContainers")' <lone.json)" None
create other plain '{}' >plain.json
check "another namespace is left alone" equal "$(of 'o["spec"].get("initContainers")' <plain.json)" None
create clinic bad '{"phiward.dev/prots":"8080"}' >bad.json
check "a bad annotation is refused with its message" eval "matches 'did you mean phiward.dev/ports' <bad.json && matches '\"code\": 422' <bad.json"
create clinic host '{}' ',"hostNetwork":true' >host.json
check "so is hostNetwork" eval "matches 'hostNetwork: true' <host.json"

say "== upgrade"
before=$(secret | of 'o["data"]["tls.crt"]')
upgrade() { helm upgrade phiward "$chart" -n phiward --reuse-values "$@" >upgrade.log 2>&1; }
check "it upgrades" upgrade --set webhook.failurePolicy=Ignore --set-file "policies.other=$root/config/policy.yaml"
check "the certificate stays" equal "$(secret | of 'o["data"]["tls.crt"]')" "$before"
check "the new value is there" eval "api $at/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/phiward-phiward | matches Ignore"
create clinic again '{}' >again.json
check "pods are still injected" eval "matches phiward-capture <again.json"
say "== webhooks are replaced while pods are created"
: >rolling
roll() { # until the file is gone
  local i=0
  while [ -e rolling ]; do
    i=$((i + 1))
    create clinic "rolling-$i" '{}' >rolled.json
    if matches phiward-capture <rolled.json; then echo injected; else tr -d '\n' <rolled.json; echo; fi
  done >rolled
}
roll &
rolling_pid=$!
for port in 26445 26444; do
  old_pid=$webhook_pid
  webhook $port
  # The pod is told to end, and is an endpoint for a moment longer: the two go their own ways in a cluster.
  kill -TERM "$old_pid"
  sleep 1
  echo $port >endpoints
  wait "$old_pid"
done
rm rolling
wait "$rolling_pid"
say "$(grep -c injected rolled) pods"
check "there were pods in all of that time" [ "$(grep -c injected rolled)" -ge 20 ]
check "each of them was created, with its sidecar" equal "$(grep -vc injected rolled)" 0

say "== what is optional"
mapfile -t crds < <("$root/tests/e2e/tools/kubernetes/crds.sh")
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

say "== helm test: what its pod runs"
"$tools/helm" -n phiward get hooks phiward | kubectl create --dry-run=client -o json -f - >test-pod.json
mapfile -t arguments < <(of '"\n".join(o["spec"]["containers"][0]["args"])' <test-pod.json | sed "s#/etc/phiward/config/webhook.yaml#installed-webhook.yaml#")
check "it is content with the installed configuration" eval '"$phiward" "${arguments[@]}" >helm-test.log 2>&1'
sed -i 's/^  trust_domain:.*/  trust_domain: "not a domain"/' installed-webhook.yaml
check "and not with another" eval '! "$phiward" "${arguments[@]}" >>helm-test.log 2>&1'

say "== removal"
check "the chart carries policies too" eval "kubectl -n other get configmap phiward-policy -o yaml | matches fhir"
check "it is removed" eval "helm uninstall phiward -n phiward >uninstall.log 2>&1"
left() { for kind in api/v1/configmaps api/v1/secrets api/v1/services api/v1/serviceaccounts apis/apps/v1/deployments apis/apps/v1/statefulsets apis/policy/v1/poddisruptionbudgets apis/networking.k8s.io/v1/networkpolicies apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations apis/monitoring.coreos.com/v1/podmonitors apis/monitoring.coreos.com/v1/prometheusrules apis/cert-manager.io/v1/certificates; do
  api "$at/$kind?labelSelector=app.kubernetes.io/part-of%3Dphiward" | of '"".join(i["metadata"]["name"]+"\n" for i in o["items"])'; done | tr -d '\n'; }
check "and leaves nothing" equal "$(left)" ""
