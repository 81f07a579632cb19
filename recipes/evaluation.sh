#!/usr/bin/env bash
# The tables of docs/results.md that compare models, each by one command. Called from the
# repository's root with the name of a table; records stay in OUT, so a stopped run goes on.
#
#   BASE=DIR MID=DIR DISTILLED=DIR recipes/evaluation.sh distillation   # about 6 GPU minutes
#   FULL=DIR[,DIR...] ARMS="name=DIR[,DIR...] ..." recipes/evaluation.sh drift   # about 8
#   DISTILLED=DIR recipes/evaluation.sh hour                            # about 6, on one GPU
#   MODEL=DIR recipes/evaluation.sh heliosbench                         # about 8
#
# Minutes are estimates for one H200. GPUS=4 deals the work to four of them; AT_ONCE=8 lets as many
# arms of the drift table share one. Plots go to docs/plots.
set -euo pipefail

gpus="${GPUS:-1}"
out="${OUT:-runs/evaluation}/${1:?which table: distillation, drift, hour or heliosbench}"
if [ "$gpus" -gt 1 ]; then
  evaluate="${TORCHRUN:-.venv/bin/torchrun} --standalone --nproc-per-node $gpus -m helios evaluate"
else
  evaluate="${HELIOS:-.venv/bin/helios} evaluate"
fi

case "$1" in
  distillation)
    $evaluate "base 50=$BASE" --suite compare --captions "${CAPTIONS:-1000}" --seeds 2 --lengths 99 \
      --against "mid 20-20-20=$MID" --against "distilled 2-2-2=$DISTILLED@steps=2,2,2" \
      --against "distilled 1-1-1=$DISTILLED@steps=1,1,1" --ceilings \
      --report "$out" --plots docs/plots/distillation
    ;;
  drift)
    settings="--suite drift --captions ${CAPTIONS:-64} --lengths 81,240,720,1440 --report $out"
    arms=() alone=("full=${FULL%%,*}@prompts=1 --ceilings")
    for model in ${FULL//,/ }; do alone+=("full=$model --no-renders"); done
    for arm in ${ARMS:-}; do
      arms+=(--against "$arm@prompts=16")
      models="${arm#*=}"
      for model in ${models//,/ }; do alone+=("${arm%%=*}=$model@prompts=16 --no-renders"); done
    done
    if [ "${AT_ONCE:-1}" -gt 1 ]; then # one GPU, which several share: every training by itself
      printf '%s\n' "${alone[@]}" | xargs -P "$AT_ONCE" -I {} bash -c "$evaluate {} $settings >/dev/null"
    fi
    # shellcheck disable=SC2086
    $evaluate "full=$FULL" $settings "${arms[@]}" --ceilings --plots docs/plots/drift
    ;;
  hour)
    $evaluate "distilled=$DISTILLED" --suite drift --captions "${CAPTIONS:-8}" \
      --lengths 1440,14400,43200,86400 --batch-size 8 --speed-chunks 12 \
      --report "$out" --plots docs/plots/hour
    ;;
  heliosbench)
    $evaluate "$MODEL" --suite heliosbench --captions "${CAPTIONS:-240}" --report "$out"
    ;;
  *)
    echo "error: 2: no table is called $1" >&2
    exit 2
    ;;
esac
