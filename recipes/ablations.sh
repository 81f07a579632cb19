#!/usr/bin/env bash
# The arms of the drift table: the whole model trained on for a while, once as it is and once without
# each remedy; `recipes/evaluation.sh drift` compares them. About 5 minutes on two H200 for each of
# the six arms. Called from the repository's root; models go to OUT/NAME/model.
#
#   BASE=runs/tiny/stage1 SECONDS_EACH=240 SEED=0 recipes/ablations.sh [OUT]
set -euo pipefail

out="${1:-runs/arms}"
train="${TRAIN:-.venv/bin/torchrun --standalone --nproc-per-node 2 -m helios train}"
base="${BASE:?the flat model of stage 1}"
length=(--initial "$base" --set trainer.max_seconds="${SECONDS_EACH:-240}" --set trainer.seed="${SEED:-0}"
  --set stage.sample_clips=0)

$train tiny-stage1-post --out "$out/full" --resume auto "${length[@]}"
for remedy in absolute-positions no-anchor no-corruption clip-corruption text-on-history; do
  $train tiny-stage1-post --ablation "$remedy" --out "$out/$remedy" --resume auto "${length[@]}"
done
