#!/usr/bin/env bash
# One setting of every method on the real model, by the command line alone: trace, train, evaluate.
#
#     benchmarks/lifelong/first_look.sh PREPARED OUT        (PREPARED: what benchmarks.lifelong.prepare wrote)
#
# About an hour on two cores. A killed run goes on where it was; what is there already is not made again.
set -euo pipefail
data=$1 out=$2
mkdir -p "$out"

trace() { # name, probe, reference
  [ -f "$out/$1.safetensors" ] || localopt trace "$data/model" --probe "$2" --reference "$3" --limit 64 --seq-len 128 \
    --out "$out/$1.safetensors" --plot "$out/$1.png"
}
trace updated-text "$data/updated.dev.jsonl" "$data/text.txt"
trace updated-facts "$data/updated.dev.jsonl" "$data/retained.trace.jsonl"
trace entities-text "$data/new_entities.dev.jsonl" "$data/text.txt"

evaluate() { # name, model
  [ -f "$out/$1.json" ] || {
    localopt eval "$2" --json --batch-size 32 --probe "updated=$data/updated.test.jsonl" \
      --probe "retained=$data/retained.test.jsonl" --probe "entities=$data/new_entities.test.jsonl" \
      --reference "$data/wikitext.txt" > "$out/$1.json.part"
    mv "$out/$1.json.part" "$out/$1.json"
  }
}
train() { # name, arguments
  local name=$1
  shift
  [ -d "$out/$name/model" ] || localopt train "$data/model" --corpus "$data/corpus_train.jsonl" --out "$out/$name" \
    --resume --bf16 --lr 1e-4 --epochs 3 --seq-len 160 "$@" \
    --probe "updated=$data/updated.test.jsonl" --reference "$data/retained.test.jsonl"
  evaluate "$name" "$out/$name/model"
}
evaluate start "$data/model"
train full --method full
train freeze-text --method freeze --trace "$out/updated-text.safetensors"
train freeze-facts --method freeze --trace "$out/updated-facts.safetensors"
train rescale-text --method rescale --trace "$out/updated-text.safetensors"
train online --method online
python -m benchmarks.lifelong.first_look "$out"
