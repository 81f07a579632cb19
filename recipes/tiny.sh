#!/usr/bin/env bash
# The tiny models from nothing: autoencoder (twice: sharp, then easy to model), transformer with text
# encoder (Base), the same on three scales (Mid), a few-step student of it (Distilled), then the
# package's assets. About 95 minutes on one H200. Called from the repository's root:
#
#   recipes/tiny.sh [OUT]                       # steps as in the presets
#   CODEC_SECONDS=800 SMOOTH_SECONDS=340 STAGE1_SECONDS=2000 STAGE2_SECONDS=700 ODE_SECONDS=480 \
#     STAGE3_SECONDS=960 recipes/tiny.sh [OUT]  # by the clock
#   HELIOS=".venv/bin/torchrun --standalone --nproc-per-node 2 -m helios" recipes/tiny.sh [OUT]
#
# OUT keeps logs, checkpoints, samples and the model of each run. A run that was interrupted goes on
# when the script is called again.
set -euo pipefail

out="${1:-runs/tiny}"
helios="${HELIOS:-.venv/bin/helios}"
assets="${ASSETS:-helios/assets/tiny}"

length() { if [ -n "${1:-}" ]; then echo "--set trainer.max_seconds=$1"; fi; }

# shellcheck disable=SC2046
$helios train tiny-codec --out "$out/codec" --resume auto $(length "${CODEC_SECONDS:-}")
# shellcheck disable=SC2046
$helios train tiny-codec-smooth --out "$out/smooth" --resume auto \
  --set stage.initial="$out/codec/model/vae" $(length "${SMOOTH_SECONDS:-}")
# shellcheck disable=SC2046
$helios train tiny-stage1 --codec "$out/smooth" --out "$out/stage1" --resume auto \
  $(length "${STAGE1_SECONDS:-}")
# shellcheck disable=SC2046
$helios train tiny-stage2 --initial "$out/stage1" --out "$out/stage2" --resume auto \
  $(length "${STAGE2_SECONDS:-}")
$helios precompute trajectories "$out/stage2/model" --out "$out/trajectories" \
  --scenes "${CAPTIONS:-4096}"
# shellcheck disable=SC2046
$helios train tiny-stage3-ode --initial "$out/stage2" --out "$out/ode" --resume auto \
  --set stage.trajectories="$out/trajectories" $(length "${ODE_SECONDS:-}")
# shellcheck disable=SC2046
$helios train tiny-stage3 --initial "$out/ode" --out "$out/stage3" --resume auto \
  --set stage.teacher="$out/stage1" $(length "${STAGE3_SECONDS:-}")

echo "==> $assets"
mkdir -p "$assets"
find "$assets" -mindepth 1 -delete
cp -r "$out/stage3/model/." "$assets/"
du -sb "$assets" | awk '{printf "%.2f MiB of at most 24\n", $1 / 1048576; exit $1 > 24 * 1048576}'
