#!/usr/bin/env bash
# The tables of docs/results.md that compare models, each by one command. Called from the
# repository's root with the name of a table; records stay in OUT, so a stopped run goes on.
#
#   BASE=DIR MID=DIR DISTILLED=DIR [ARMS="name=DIR ..."] recipes/evaluation.sh distillation   # about 6
#   FULL=DIR[,DIR...] ARMS="name=DIR[,DIR...] ..." recipes/evaluation.sh drift   # 5 for ten trainings
#   DISTILLED=DIR recipes/evaluation.sh hour                            # about 6, on one GPU
#   MODEL=DIR recipes/evaluation.sh heliosbench                         # about 8
#
# Minutes are for one H200, estimates but for the drift table. GPUS=4 deals the work to four of them; with AT_ONCE=8 as many arms share
# one, as the 5 minutes of the drift table want it. Plots go to docs/plots.
set -euo pipefail

gpus="${GPUS:-1}"
out="${OUT:-runs/evaluation}/${1:?which table: distillation, drift, hour or heliosbench}"
if [ "$gpus" -gt 1 ]; then
  evaluate="${TORCHRUN:-.venv/bin/torchrun} --standalone --nproc-per-node $gpus -m helios evaluate"
else
  evaluate="${HELIOS:-.venv/bin/helios} evaluate"
fi

compare() { # SUITE PLOTS SETTINGS NAME=MODEL[,MODEL…][@…]… — the first is what the others are held against
  local suite="$1" plots="$2" settings="$3 --report $out" arm name model models options alone=() against=()
  shift 3
  for arm in "${@:2}"; do against+=(--against "$arm"); done
  if [ "${AT_ONCE:-1}" -gt 1 ]; then # every training by itself, and the renders
    alone+=("'${1%%,*}@prompts=1' --ceilings")
    for arm in "$@"; do
      name="${arm%%=*}" models="${arm#*=}" options=""
      if [[ "$models" == *@* ]]; then options="@${models#*@}" models="${models%%@*}"; fi
      for model in ${models//,/ }; do alone+=("'$name=$model$options' --no-renders"); done
    done
    printf '%s\n' "${alone[@]}" | xargs -d '\n' -P "$AT_ONCE" -I {} \
      bash -c "$evaluate {} --suite drift $settings >/dev/null"
  fi
  # shellcheck disable=SC2086
  $evaluate "$1" --suite "$suite" $settings "${against[@]}" --ceilings --plots "docs/plots/$plots"
}

case "$1" in
  distillation)
    arms=("base 50=$BASE@steps=50" "mid 20-20-20=$MID@steps=20,20,20")
    for arm in "distilled=$DISTILLED" ${ARMS:-}; do
      for steps in 2,2,2 1,1,1; do arms+=("${arm%%=*} ${steps//,/-}=${arm#*=}@steps=$steps"); done
    done
    compare compare distillation \
      "--captions ${CAPTIONS:-500} --seeds 2 --lengths 99 --speed-chunks 0" "${arms[@]}"
    ;;
  drift)
    arms=("full=$FULL")
    for arm in ${ARMS:-}; do arms+=("$arm@prompts=16"); done
    compare drift arms "--captions ${CAPTIONS:-64} --lengths 81,240,720,1440" "${arms[@]}"
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
