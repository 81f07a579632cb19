#!/usr/bin/env bash
# The figures of docs/results.md that need an NVIDIA GPU (H200 where the text says so) and no trained
# 14B model. Called from the repository's root with the name of a table; reports go to OUT.
#
#   recipes/speed.sh tests       # everything marked gpu: about 4 GPU minutes
#   recipes/speed.sh scenes      # rendering: 1
#   recipes/speed.sh kernels     # each kernel, product and attention at the sizes of 14B: 2
#   recipes/speed.sh fp8         # what e4m3 costs a trained model, 2,000 pairs: 4
#   recipes/speed.sh packed      # stage 2, three scales in one sequence against one by one: 3
#   recipes/speed.sh engines     # frames a second against diffusers, random 14B weights: 9
#   recipes/speed.sh steady      # 120 chunks, memory and time: 5
#   recipes/speed.sh full-size   # a 14B checkpoint written, loaded, compared: 6, and 30 GB of disk
#
# engines and full-size need diffusers 0.42.1; kernels also times FlashAttention-3 where fa3-fwd is.
set -euo pipefail

python="${PYTHON:-.venv/bin/python}"
out="${OUT:-runs/speed}"
mkdir -p "$out"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" PYTHONUNBUFFERED=1
wide=(--device cuda --dtype bfloat16 --rounds 1)

case "${1:?which table: tests, scenes, kernels, fp8, packed, engines, steady or full-size}" in
  tests) "$python" -m pytest -q -m gpu ;;
  scenes) "$python" benchmarks/bench_scenes.py --json "$out/scenes.json" ;;
  kernels) "$python" benchmarks/bench_kernels.py --tune --json "$out/kernels.json" ;;
  fp8) "$python" benchmarks/bench_fp8.py --out "$out/fp8.json" ;;
  packed) "$python" benchmarks/bench_packed.py --json "$out/packed.json" ;;
  engines)
    "$python" -m helios bench random-14b --against diffusers --skip eager --skip compiled --skip unfused \
      --skip history_once_a_scale --skip history_once_a_chunk --skip fp8_text_output \
      --skip fp8_history_once_a_chunk_preview --budget 505 --chunks 4 --warm 2 --forwards 4 "${wide[@]}" --out "$out/engines"
    "$python" benchmarks/bench_decoder.py --repeat 5 --out "$out/decoder.json"
    ;;
  steady)
    "$python" -m helios bench random-14b --only helios --starts --steps 1,1,1 --warm 20 --chunks 120 \
      --forwards 2 "${wide[@]}" --out "$out/steady"
    ;;
  full-size)
    "$python" benchmarks/bench_full_size.py "${FOLDER:-runs/full-size}" --device cuda \
      --report "$out/full-size.json"
    ;;
  *)
    echo "error: 2: no table is called $1" >&2
    exit 2
    ;;
esac
