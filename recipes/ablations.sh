#!/usr/bin/env bash
# The arms of the drift table: what comes before, as it is and without one remedy at a time;
# `recipes/evaluation.sh drift` compares them. As the paper's stage 1 starts from a text-to-video
# model, every arm starts from one that learns scenes from nothing and never sees a past. No arm
# starts from another: a model that has learnt with a remedy does not forget it in minutes
# (docs/log.md). On one H200 9 minutes for the start and 10 for the ten arms, which share it.
# Called from the repository's root; models go to OUT/start/model and OUT/ARM-SEED/model, what a
# training prints to a .log beside its folder. A run that was stopped goes on.
#
#   recipes/ablations.sh [OUT]
#   RUNS="full-0 no-corruption-0" START_SECONDS=505 SECONDS_EACH=54 AT_ONCE=1 recipes/ablations.sh [OUT]
#   CODEC=helios/assets/tiny SETTINGS="--set stage.batch=64" …    # the settings are the arms'
# Variables that hold several words are split on purpose.
# shellcheck disable=SC2086
set -euo pipefail
source recipes/once.sh

export out="${1:-runs/arms}" helios="${HELIOS:-.venv/bin/helios}" codec="${CODEC:-helios/assets/tiny}"
export seconds="${SECONDS_EACH:-535}" settings="${SETTINGS:---set stage.batch=64 --set stage.data.first_groups=8}"
runs="${RUNS:-full-0 full-1 full-2 no-corruption-0 no-corruption-1 no-corruption-2 clip-corruption-0
  no-anchor-0 absolute-positions-0 text-on-history-0}"

train() { # NAME SECONDS SEED SETTINGS…
  once "$out/$1" $helios train tiny-stage1 --codec "$codec" --out "$out/$1" --resume auto \
    --set stage.sample_clips=0 --set trainer.max_seconds="$2" --set trainer.seed="$3" "${@:4}"
}

arm() { # ARM-SEED
  local remedy=()
  if [ "${1%-*}" != full ]; then remedy=(--ablation "${1%-*}"); fi
  train "$1" "$seconds" "${1##*-}" --initial "$out/start" "${remedy[@]}" $settings
}
export -f train arm

mkdir -p "$out"
train start "${START_SECONDS:-505}" 0 --set stage.first_share=1 --set stage.sections=1 \
  --set trainer.optimizer.lr=1e-3
printf '%s\n' $runs | xargs -r -P "${AT_ONCE:-10}" -L 1 bash -euc 'arm "$@"' arm
