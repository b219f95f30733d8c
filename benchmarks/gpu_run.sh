#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under 9 minutes:
#   correctness against float64, compute-sanitizer on small shapes, benchmarks against peers.
# Usage: benchmarks/gpu_run.sh [--device cuda|cpu] [--out FOLDER]
# --device cpu runs the same steps on the CPU, to see that the script reaches its end.
set -u -o pipefail

device=cuda
out=${OUT:-}
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "gpu_run: unknown argument $1; usage: gpu_run.sh [--device cuda|cpu] [--out FOLDER]" >&2; exit 2 ;;
  esac
done
cd "$(dirname "$0")/.." || exit 1
out=${out:-build/gpu_run}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0

# step NAME SECONDS COMMAND...: runs it under a time limit, keeps its output, goes on after a failure
step() {
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  local start=$SECONDS
  if timeout "$limit" "$@" > "$out/$name.log" 2>&1; then
    echo "   ok, $((SECONDS - start)) s"
  else
    echo "   FAILED (status $?), $((SECONDS - start)) s; the end of $out/$name.log:"
    tail -n 15 "$out/$name.log"
    failed=1
  fi
}

step build 120 python setup.py -q build_ext --inplace
step capabilities 60 python -m kernels
cat "$out/capabilities.log"

if [ "$device" = cuda ]; then
  step correctness 150 python -m pytest -q -m "gpu and not slow" tests/kernels -p no:cacheprovider
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
      step "sanitizer-$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        python -m benchmarks.sanitize_msda
    done
  else
    echo "== sanitizer: compute-sanitizer is not on PATH, left out"
  fi
  shapes="m2f-1024 m2f-1024-uniform m2f-1024-n8 detr-800x1333 openseed-swinl-1024 openseed-decoder-500 m2f-1024-d64"
  budget=0.4
  masked="--levels 64x64 128x128 --images 8 --dtype bfloat16 --budget 0.4"
else
  step correctness 300 python -m pytest -q tests/kernels/msda/test_cpu.py -p no:cacheprovider
  step sanitizer-dry 60 python -m benchmarks.sanitize_msda --device cpu
  shapes="m2f-512 openseed-decoder-300"
  budget=0.2
  masked="--levels 32x32 --masks blobs --budget 0.2"
fi

# shellcheck disable=SC2086
step bench-msda 150 python benchmarks/bench_msda.py --device "$device" --shapes $shapes \
  --budget "$budget" --json "$out/msda.json"
cat "$out/bench-msda.log"
# shellcheck disable=SC2086
step bench-masked-attention 120 python benchmarks/bench_masked_attention.py --device "$device" \
  $masked --json "$out/masked_attention.json"
cat "$out/bench-masked-attention.log"

echo "== results in $out after $SECONDS s"
exit "$failed"
