#!/usr/bin/env bash
# The arms of the drift table: what comes before, once as it is and once without each remedy;
# `recipes/evaluation.sh drift` compares them. As the paper's stage 1 starts from a text-to-video
# model, every arm starts from one that learns scenes from nothing and never sees a past. No arm
# starts from another: a model that has learnt with a remedy does not forget it in minutes
# (docs/log.md). About 8 GPU minutes for the start and 4 for each arm and seed. Called from the
# repository's root; the start goes to OUT/start/model, an arm to OUT/NAME-SEED/model, what a run
# prints to a .log beside it. A run that was stopped goes on.
#
#   recipes/ablations.sh [OUT]
#   START_SECONDS=480 SECONDS_EACH=215 SEEDS="0 1 2" ARMS="full no-corruption" recipes/ablations.sh [OUT]
#   CODEC=helios/assets/tiny …
#   AT_ONCE=6 SECONDS_EACH=1290 …    # six share a GPU, which never waits for a compiler then
#   SETTINGS="--set stage.batch=64" … # of the arms
# Variables that hold several words are split on purpose.
# shellcheck disable=SC2086
set -euo pipefail

export out="${1:-runs/arms}" helios="${HELIOS:-.venv/bin/helios}" codec="${CODEC:-helios/assets/tiny}"
export seconds="${SECONDS_EACH:-215}" settings="${SETTINGS:-}"

train() { # NAME SECONDS SEED SETTINGS…
  if [ -f "$out/$1/finished" ]; then return; fi
  $helios train tiny-stage1 --codec "$codec" --out "$out/$1" --resume auto --set stage.sample_clips=0 \
    --set trainer.max_seconds="$2" --set trainer.seed="$3" "${@:4}" \
    >"$out/$1.log" 2>&1 || { tail -n 3 "$out/$1.log" >&2; exit 1; }
  touch "$out/$1/finished"
  echo "$out/$1: $(tail -n 1 "$out/$1.log")"
}

arm() { # NAME SEED
  local remedy=()
  if [ "$1" != full ]; then remedy=(--ablation "$1"); fi
  train "$1-$2" "$seconds" "$2" --initial "$out/start" "${remedy[@]}" $settings
}
export -f train arm

mkdir -p "$out"
train start "${START_SECONDS:-480}" 0 --set stage.first_share=1 --set stage.sections=1 \
  --set trainer.optimizer.lr=1e-3
for seed in ${SEEDS:-0}; do
  for arm in ${ARMS:-full absolute-positions no-anchor no-corruption clip-corruption text-on-history}; do
    echo "$arm $seed"
  done
done | xargs -r -P "${AT_ONCE:-1}" -L 1 bash -euc 'arm "$@"' arm
