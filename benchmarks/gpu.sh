#!/usr/bin/env bash
# Everything that only a GPU can tell, part by part, into one folder:
#   benchmarks/gpu.sh                      all of it, on one CUDA device of 80 GB (about an hour is expected)
#   benchmarks/gpu.sh --out FOLDER         go on in a folder of an earlier run: parts that passed are not run again
#   benchmarks/gpu.sh --smoke              the same parts at their smoke size, on any machine; what needs a GPU says so
# A part that fails is named, and the next one runs; the exit code is 1 if any failed.
set -uo pipefail
cd "$(dirname "$0")/.."

smoke="" out=""
while [ $# -gt 0 ]; do
  case "$1" in
    --smoke) smoke="--smoke" ;;
    --out) out="${2:?--out needs a folder}"; shift ;;
    *) echo "$0: unknown argument $1 (there are --smoke and --out FOLDER)" >&2; exit 2 ;;
  esac
  shift
done
python="${PYTHON:-python}"
cuda=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))') || exit 2
if [ "$cuda" = 0 ] && [ -z "$smoke" ]; then
  echo "$0: PyTorch finds no CUDA device; --smoke tries the script without one" >&2
  exit 2
fi
device=$([ "$cuda" = 1 ] && echo cuda || echo cpu)
out="${out:-benchmarks/results/gpu/$(date -u +%Y-%m-%dT%H-%M-%SZ)}"
mkdir -p "$out"
"$python" -c 'import json; from benchmarks.stamp import stamp; print(json.dumps(stamp("triton"), indent=1))' > "$out/stamp.json"

failed=()
part() { # part NAME COMMAND...: run it unless it has passed before; its output is NAME.log
  local name="$1" begun=$SECONDS
  shift
  if [ -e "$out/$name.passed" ]; then
    echo "passed before: $name"
    return
  fi
  if "$@" > "$out/$name.log" 2>&1; then
    touch "$out/$name.passed"
    echo "passed: $name ($((SECONDS - begun)) s)"
  else
    failed+=("$name")
    echo "FAILED: $name ($((SECONDS - begun)) s), see $out/$name.log"
    tail -n 5 "$out/$name.log" | sed 's/^/  | /'
  fi
}

if [ -n "$smoke" ]; then
  part tests "$python" -m pytest -q tests/steps/test_fused.py -k "held_layer or waits or graph"
  models=(smoke)
else
  part tests "$python" -m pytest -q tests/device tests/steps tests/test_signals.py tests/test_sums.py
  models=(135M gpt2-large 1B 3B)
fi
for model in "${models[@]}"; do
  for dtype in "float32" "bfloat16, float32 state" "bfloat16"; do
    name="grid-$model-$(echo "$dtype" | tr -d ',' | tr ' ' '-')"
    part "$name" "$python" -m benchmarks.speed.grid --model "$model" --dtype "$dtype" --device "$device" $smoke \
      --json "$out/$name.json"
  done
done
part step "$python" -m benchmarks.speed.step --device "$device" $smoke --json "$out/step.json"
part graph "$python" -m benchmarks.speed.graph $smoke --json "$out/graph.json"
part launches "$python" -m benchmarks.speed.launches $smoke
part train "$python" -m benchmarks.speed.train --device "$device" $smoke --json "$out/train.json"
part trace "$python" -m benchmarks.speed.trace --device "$device" $smoke --json "$out/trace.json"
part shards "$python" -m benchmarks.speed.shards --device "$device" $smoke --json "$out/shards.json"

if [ ${#failed[@]} -gt 0 ]; then
  echo "${#failed[@]} failed: ${failed[*]}. The others are in $out; --out $out runs these alone again."
  exit 1
fi
echo "all passed: $out"
