#!/usr/bin/env bash
# Builds kube-apiserver and helm of the versions in go.mod, once, and says where they are. Needs Go 1.26 and Go modules.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../../../target}
tools=$target/kubernetes/$(sha256sum <"$here/go.mod" | cut -c1-16)
if [ ! -x "$tools/helm" ]; then
  version=$(sed -n 's/^\tk8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$here/go.mod")
  mkdir -p "$tools"
  # Without optimisation: it is compiled more often than it runs. The version is what the chart asks for.
  for part in k8s.io/kubernetes/cmd/kube-apiserver helm.sh/helm/v3/cmd/helm; do
    (cd "$here" && CGO_ENABLED=0 go build -ldflags="-s -w -X k8s.io/component-base/version.gitVersion=v$version" -gcflags=all="-N -l" -o "$tools/" "$part") >&2
  done
fi
(cd "$tools" && pwd)
