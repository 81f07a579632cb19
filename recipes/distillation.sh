#!/usr/bin/env bash
# The table of distillation: the student as it is and without each of its three aids, every one as
# long as the others, then all of them side by side. On two H200 about 2 minutes for the
# trajectories, 4 for the warm-up, 8 for each of four students and 5 for the judge: 43, which is 86
# GPU minutes. Called from the repository's root; models go to OUT/NAME/model, what a student prints
# to OUT/NAME.log, the report to OUT/report. A run that was stopped goes on.
#
#   BASE=runs/tiny/stage1 MID=runs/tiny/stage2 recipes/distillation.sh [OUT]
#   SECONDS_EACH=420 ODE_SECONDS=240 SEED=0 CAPTIONS=4096 JUDGED=1000 …
#   HELIOS=.venv/bin/helios AT_ONCE=4 SECONDS_EACH=3360 …    # one GPU, which four students share
#   SETTINGS="--set stage.batch=32" …                        # of the students
# Variables that hold several words are split on purpose.
# shellcheck disable=SC2086
set -euo pipefail

export out="${1:-runs/distillation}" base="${BASE:?the flat model of stage 1}"
export mid="${MID:?the model of stage 2}" seconds="${SECONDS_EACH:-420}" settings="${SETTINGS:-}"
export helios="${HELIOS:-.venv/bin/torchrun --standalone --nproc-per-node 2 -m helios}"
export common="--resume auto --set trainer.seed=${SEED:-0} --set stage.sample_clips=0"

$helios precompute trajectories "$mid/model" --out "$out/trajectories" \
  --scenes "${CAPTIONS:-4096}" --guidance-scale 3
$helios train tiny-stage3-ode --initial "$mid" --out "$out/warm-up" $common \
  --set stage.trajectories="$out/trajectories" --set trainer.max_seconds="${ODE_SECONDS:-240}"

student() { # NAME INITIAL SETTINGS…
  $helios train tiny-stage3 --out "$out/$1" --initial "$2" $common --set stage.teacher="$base" \
    --set trainer.max_seconds="$seconds" $settings "${@:3}" \
    >"$out/$1.log" 2>&1 || { tail -n 3 "$out/$1.log" >&2; exit 1; }
  echo "$out/$1: $(tail -n 1 "$out/$1.log")"
}
export -f student

xargs -P "${AT_ONCE:-1}" -L 1 bash -euc 'student "$@"' student <<STUDENTS
full $out/warm-up
no-warm-up $mid
no-schedule $out/warm-up --set stage.renoise.fade=0
no-adversary $out/warm-up --set stage.adversarial=none
STUDENTS

against=(--against "mid 20-20-20=$mid/model")
for name in full warm-up no-warm-up no-schedule no-adversary; do
  for steps in 2,2,2 1,1,1; do
    against+=(--against "$name ${steps//,/-}=$out/$name/model@steps=$steps")
  done
done
$helios evaluate "base 50=$base/model" --suite compare --captions "${JUDGED:-1000}" --seeds 2 --lengths 99 \
  "${against[@]}" --ceilings --report "$out/report"
