#!/usr/bin/env bash
# A release build that is laid out by the profile of a real load: target/pgo/phiward. Takes two release builds and a minute of load.
#
# Needs what benches/mesh/run.py needs for phiward alone (Python, wrk, nginx), and llvm-profdata: rustup component add llvm-tools
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[ -x "$profdata" ] || { echo "no $profdata: rustup component add llvm-tools" >&2; exit 2; }
pgo=$PWD/target/pgo
rm -rf "$pgo/profiles"
mkdir -p "$pgo/profiles"

# With --target the flags are for phiward and its libraries alone, not for the build scripts.
RUSTFLAGS="-Cprofile-generate=$pgo/profiles" cargo build --release --locked --target "$host" --target-dir "$pgo/measured"
benches/mesh/run.py --quick --seconds 4 --measure load --scenario get-150-32,get-150-256,post-150-32,get-16k-32,get-1m-8 \
  --peers phiward,phiward-h1 --binary "$pgo/measured/$host/release/phiward" --state "$pgo/state" >"$pgo/load.log"
"$profdata" merge -o "$pgo/phiward.profdata" "$pgo/profiles"/*.profraw
RUSTFLAGS="-Cprofile-use=$pgo/phiward.profdata" cargo build --release --locked --target "$host" --target-dir "$pgo/built"
cp "$pgo/built/$host/release/phiward" "$pgo/phiward"
echo "$pgo/phiward"
