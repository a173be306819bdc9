#!/usr/bin/env bash
# Builds the parts of a cluster and helm, of the versions in go.mod, once, and says where they are. Needs Go 1.26 and Go modules.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../../../target}
tools=$target/kubernetes/$(cat "$here/go.mod" "$here"/cluster/*.go | sha256sum | cut -c1-16)
if [ ! -x "$tools/helm" ]; then
  version=$(sed -n 's/^\tk8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$here/go.mod")
  mkdir -p "$tools"
  # Without optimisation: it is compiled more often than it runs. The version is what the chart asks for.
  for part in ./cluster helm.sh/helm/v3/cmd/helm; do
    (cd "$here" && CGO_ENABLED=0 go build -ldflags="-s -w -X k8s.io/component-base/version.gitVersion=v$version" -gcflags=all="-N -l" -o "$tools/" "$part") >&2
  done
  for part in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubelet socket-driver; do ln -sf cluster "$tools/$part"; done
fi
(cd "$tools" && pwd)
