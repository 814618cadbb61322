#!/usr/bin/env bash
# Fuzzes every target, or those that are named, for so many seconds each: tests/fuzz/run.sh [SECONDS] [TARGET...]
# Starts from tests/corpus; what it learns stays in target/fuzz, an input that breaks a promise in tests/fuzz/artifacts.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-60}
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
  for file in tests/fuzz/fuzz_targets/*.rs; do
    targets+=("$(basename "$file" .rs)")
  done
fi

# The sanitizer's flags are unstable, its libraries are part of the stable toolchain.
export RUSTC_BOOTSTRAP=1
build=${CARGO_TARGET_DIR:-target}/fuzz
# Targets that write files write them to memory where that is possible.
[[ -d /dev/shm ]] && export TMPDIR=/dev/shm

failed=()
for target in "${targets[@]}"; do
  learnt=$build/learnt/$target
  mkdir -p "$learnt"
  printf '\n==> %s: %d s\n' "$target" "$seconds"
  cargo fuzz run --fuzz-dir tests/fuzz --target-dir "$build" "$target" "$learnt" "tests/corpus/$target" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 -len_control=20 -print_final_stats=1 ||
    failed+=("$target")
done
if ((${#failed[@]})); then
  printf '\nBroken promises: %s\n' "${failed[*]}"
  exit 1
fi
