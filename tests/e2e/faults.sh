#!/usr/bin/env bash
# Two sidecars, a collector and an app under load, in many short runs: what can fail fails, and nothing may be lost. See
# docs/testing.md, "Faults". Parts: a C compiler. RUNS says how many runs, SEED which is the first.
. "$(dirname "$0")/lib.sh"

# The build of the tests, with its assertions; the release binary is static, and no shim can be put into it.
export PHIWARD_FAULT_RUNS=${RUNS:-200}
export PHIWARD_FAULT_SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
export PHIWARD_FAULT_JOBS=${JOBS:-4}
say "$PHIWARD_FAULT_RUNS runs, seeds from $PHIWARD_FAULT_SEED"
check "nothing is lost in $PHIWARD_FAULT_RUNS runs from seed $PHIWARD_FAULT_SEED" \
  cargo test --locked --quiet --manifest-path "$root/Cargo.toml" --test faults -- --nocapture
