#!/usr/bin/env bash
# The table of distillation: the student as it is and without each of its three aids, every one as
# long as the others, then all of them and the bundled model side by side. On two H200 about 2
# minutes for the trajectories, 4 for the warm-up, 8 for each of four students and 5 for the judge:
# 43, which is 86 GPU minutes. Called from the repository's root; models go to OUT/NAME/model, what
# a training prints to OUT/NAME.log, the report to OUT/report/distillation. A run that was stopped
# goes on.
#
#   BASE=runs/tiny/stage1 MID=runs/tiny/stage2 recipes/distillation.sh [OUT]
#   SECONDS_EACH=420 ODE_SECONDS=240 SEED=0 CAPTIONS=4096 JUDGED=500 …
#   HELIOS=.venv/bin/helios AT_ONCE=4 SECONDS_EACH=3360 …    # one GPU, which four students share
#   SETTINGS="--set stage.batch=32" …                        # of the students
# Variables that hold several words are split on purpose.
# shellcheck disable=SC2086
set -euo pipefail
source recipes/once.sh

export out="${1:-runs/distillation}" base="${BASE:?the flat model of stage 1}"
export mid="${MID:?the model of stage 2}" seconds="${SECONDS_EACH:-420}" settings="${SETTINGS:-}"
export helios="${HELIOS:-.venv/bin/torchrun --standalone --nproc-per-node 2 -m helios}"
export common="--resume auto --set trainer.seed=${SEED:-0} --set stage.sample_clips=0"

$helios precompute trajectories "$mid/model" --out "$out/trajectories" \
  --scenes "${CAPTIONS:-4096}" --guidance-scale 3

train() { # NAME PRESET INITIAL SECONDS SETTINGS…
  once "$out/$1" $helios train "$2" --initial "$3" --out "$out/$1" $common \
    --set trainer.max_seconds="$4" "${@:5}"
}

student() { # NAME INITIAL SETTINGS…
  train "$1" tiny-stage3 "$2" "$seconds" --set stage.teacher="$base" $settings "${@:3}"
}
export -f train student

train warm-up tiny-stage3-ode "$mid" "${ODE_SECONDS:-240}" \
  --set stage.trajectories="$out/trajectories"

xargs -P "${AT_ONCE:-1}" -L 1 bash -euc 'student "$@"' student <<STUDENTS
full $out/warm-up
no-warm-up $mid
no-schedule $out/warm-up --set stage.renoise.fade=0
no-adversary $out/warm-up --set stage.adversarial=none
STUDENTS

arms="bundled=helios/assets/tiny "
for name in warm-up no-warm-up no-schedule no-adversary; do arms+="$name=$out/$name/model "; done
BASE="$base/model" MID="$mid/model" DISTILLED="$out/full/model" ARMS="$arms" CAPTIONS="${JUDGED:-500}" \
  HELIOS="$helios" OUT="$out/report" recipes/evaluation.sh distillation
