#!/usr/bin/env bash
# Prints the files with the custom resource definitions that the chart's optional objects are of, from the Go modules that publish them.
set -euo pipefail
cd "$(mktemp -d)"
module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
operator=$(module github.com/prometheus-operator/prometheus-operator@v0.94.0)
cert_manager=$(module github.com/cert-manager/cert-manager@v1.19.1)
for kind in podmonitors prometheusrules; do ls "$operator/example/prometheus-operator-crd/monitoring.coreos.com_$kind.yaml"; done
ls "$cert_manager/deploy/crds/cert-manager.io_certificates.yaml"
rmdir "$PWD"
