#!/usr/bin/env bash
# Builds the image phiward:VERSION and phiward:latest. Needs Rust, Python and a Docker engine.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
cd "$root"
cargo --quiet static
rm -rf "$target/image"
mkdir -p "$target/image/state"
touch "$target/image/state/.keep"
cp "$target/release/phiward" "$target/image/phiward"
deploy/docker/sbom.py >"$target/image/sbom.cdx.json"
version=$("$target/release/phiward" --version | awk '{print $2}')
docker build --quiet -f deploy/docker/Dockerfile -t "phiward:$version" -t phiward:latest "$target/image"
