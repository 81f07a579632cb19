#!/usr/bin/env bash
# The arms of the drift table: the flat model trained from nothing, once as it is and once without
# each remedy; `recipes/evaluation.sh drift` compares them. A model that has learnt with a remedy does
# not forget it in minutes (docs/log.md), so no arm starts from another. About 4 GPU minutes for each
# of the six arms and seeds, 5 for the judge. Called from the repository's root; models go to
# OUT/NAME-SEED/model. A run that was stopped goes on.
#
#   recipes/ablations.sh [OUT]
#   SECONDS_EACH=215 SEEDS="0 1 2" ARMS="full no-corruption" CODEC=helios/assets/tiny recipes/ablations.sh [OUT]
set -euo pipefail

out="${1:-runs/arms}"
helios="${HELIOS:-.venv/bin/helios}"
for seed in ${SEEDS:-0}; do
  for arm in ${ARMS:-full absolute-positions no-anchor no-corruption clip-corruption text-on-history}; do
    remedy=()
    if [ "$arm" != full ]; then remedy=(--ablation "$arm"); fi
    $helios train tiny-stage1 --codec "${CODEC:-helios/assets/tiny}" "${remedy[@]}" --out "$out/$arm-$seed" \
      --resume auto --set trainer.max_seconds="${SECONDS_EACH:-215}" --set trainer.seed="$seed" \
      --set stage.sample_clips=0
  done
done
