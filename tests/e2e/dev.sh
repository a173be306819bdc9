#!/usr/bin/env bash
# `phiward dev`, and the very commands it prints. Parts: Debian's curl (installed when missing and run as root).
. "$(dirname "$0")/lib.sh"
need curl curl
build
cd "$work"

"$phiward" dev --dir "$work/mesh" >guide.txt 2>dev.log &
dev_pid=$!
until_true "the mesh is ready" eval "ready 15000 && ready 15010 && ready 15020"
cat guide.txt

# Every curl line stands under a line that tells the status it gets, in brackets.
lines=$(grep -c '^  curl ' guide.txt)
check "it prints three curl lines" equal "$lines" 3
while read -r told; do
  read -r command
  wanted=$(grep -oE '\([0-9]{3}\)' <<<"$told" | tr -d '()')
  got=$(eval "$command -s -o /dev/null -w '%{http_code}'")
  check "$command" equal "$got" "$wanted"
done < <(grep -B1 '^  curl ' guide.txt | grep -v '^--')

tail_command=$(grep -oE '[^ ]+ audit tail .*' guide.txt)
verify_command=$(grep -oE '[^ ]+ audit verify .*' guide.txt)
# A worker's events are in its journal at once, and in a segment some 20 ms later.
until_true "the trail shows an allow" eval "$tail_command | matches 'allow GET'"
until_true "the trail shows a denial" eval "$tail_command | matches 'deny GET'"
until_true "the trail shows a rejection" eval "$tail_command | matches 'dot_segment'"
delivered() { $verify_command --format json 2>/dev/null | matches '"access.decision": *3'; }
until_true "the collector has all three decisions" delivered
check "the store verifies while it is written" eval "$verify_command >/dev/null"

# The policy file is read again: billing gets the right that web has. As long as the file's own tests deny it that right, the new
# version is refused.
billing() { curl -s -o /dev/null -w '%{http_code}' -H 'Host: records.clinic' http://127.0.0.1:15002/fhir/Patient/1; }
sed -i 's#sa/web"\]}#sa/web", "spiffe://hospital.local/ns/clinic/sa/billing"]}#' mesh/records/policy.yaml
until_true "the refusal is told" grep -q 'policy refused: the test expects deny' dev.log
check "a policy that fails its own tests is not put in force" equal "$(billing)" 403
sed -i '/sa\/billing", request: "GET \/fhir\/Patient/s/expect: deny, reason: no_allow_rule/expect: allow/' mesh/records/policy.yaml
until_true "the new policy decides" eval '[ "$(billing)" = 200 ]'
check "a changed policy is read again" equal "$(billing)" 200

kill -INT "$dev_pid"
check "Ctrl-C ends it with 0" wait "$dev_pid"
