#!/usr/bin/env bash
# The arms of the drift table: the flat model trained from nothing, once as it is and once without
# each remedy; `recipes/evaluation.sh drift` compares them. A model that has learnt with a remedy does
# not forget it in minutes (docs/log.md), so no arm starts from another. About 4 GPU minutes for each
# of the six arms and seeds, 5 for the judge. Called from the repository's root; models go to
# OUT/NAME-SEED/model, what a run prints to OUT/NAME-SEED.log. A run that was stopped goes on.
#
#   recipes/ablations.sh [OUT]
#   SECONDS_EACH=215 SEEDS="0 1 2" ARMS="full no-corruption" CODEC=helios/assets/tiny recipes/ablations.sh [OUT]
#   AT_ONCE=6 SECONDS_EACH=1290 …    # six share a GPU, which never waits for a compiler then
#   SETTINGS="--set stage.batch=64" …
# Variables that hold several words are split on purpose.
# shellcheck disable=SC2086
set -euo pipefail

export out="${1:-runs/arms}" helios="${HELIOS:-.venv/bin/helios}" codec="${CODEC:-helios/assets/tiny}"
export seconds="${SECONDS_EACH:-215}" settings="${SETTINGS:-}"

train() { # ARM SEED
  local remedy=()
  if [ "$1" != full ]; then remedy=(--ablation "$1"); fi
  $helios train tiny-stage1 --codec "$codec" "${remedy[@]}" --out "$out/$1-$2" --resume auto \
    --set trainer.max_seconds="$seconds" --set trainer.seed="$2" --set stage.sample_clips=0 $settings \
    >"$out/$1-$2.log" 2>&1 || { tail -n 3 "$out/$1-$2.log" >&2; exit 1; }
  echo "$out/$1-$2: $(tail -n 1 "$out/$1-$2.log")"
}
export -f train

mkdir -p "$out"
for seed in ${SEEDS:-0}; do
  for arm in ${ARMS:-full absolute-positions no-anchor no-corruption clip-corruption text-on-history}; do
    echo "$arm $seed"
  done
done | xargs -P "${AT_ONCE:-1}" -L 1 bash -euc 'train "$@"' train
