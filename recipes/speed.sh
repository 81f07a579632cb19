#!/usr/bin/env bash
# The figures of docs/results.md that need an NVIDIA GPU (H200 where the text says so) and no trained
# 14B model. Called from the repository's root with the name of a table; reports go to OUT.
#
#   recipes/speed.sh tests       # everything marked gpu: about 4 GPU minutes
#   recipes/speed.sh scenes      # rendering: 1
#   recipes/speed.sh kernels     # each kernel, product and attention at the sizes of 14B: 2
#   recipes/speed.sh fp8         # what e4m3 costs a trained model, 6,144 pairs: 2
#   recipes/speed.sh packed      # stage 2, three scales in one sequence against one by one: 3
#   recipes/speed.sh engines     # frames a second against diffusers, random 14B weights: 8
#   recipes/speed.sh steady      # 120 chunks, memory and time; two starts: 4
#   recipes/speed.sh full-size   # a 14B checkpoint written, loaded, compared: 6, and 30 GB of disk
#   recipes/speed.sh low-memory  # the same checkpoint on cards of 24, 16 and 12 GB: 3
#
# engines and full-size need diffusers 0.42.1; kernels also times FlashAttention-3 where fa3-fwd is.
set -euo pipefail

python="${PYTHON:-.venv/bin/python}"
out="${OUT:-runs/speed}" folder="${FOLDER:-runs/full-size}"
mkdir -p "$out"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" PYTHONUNBUFFERED=1
wide=(--device cuda --dtype bfloat16 --rounds 1)

case "${1:?which table: tests, scenes, kernels, fp8, packed, engines, steady, full-size or low-memory}" in
  tests) "$python" -m pytest -q -m gpu ;;
  scenes) "$python" benchmarks/bench_scenes.py --json "$out/scenes.json" ;;
  kernels) "$python" benchmarks/bench_kernels.py --tune --json "$out/kernels.json" ;;
  fp8) "$python" benchmarks/bench_fp8.py --captions 6144 --steps 2,2,2 --out "$out/fp8.json" ;;
  packed) "$python" benchmarks/bench_packed.py --json "$out/packed.json" ;;
  engines)
    "$python" -m helios bench random-14b --against diffusers --skip eager --skip compiled --skip unfused \
      --skip compiled_narrow --skip compiled_decoder --skip flash3 --skip without_flash3 \
      --skip history_once_a_scale --skip history_once_a_chunk --tune-decoder 3 \
      --budget 400 --chunks 5 --warm 2 --forwards 4 "${wide[@]}" --out "$out/engines"
    "$python" benchmarks/bench_decoder.py --repeat 5 --out "$out/decoder.json"
    ;;
  steady)
    "$python" -m helios bench random-14b --only helios --starts --steps 1,1,1 --warm 20 --chunks 120 \
      --forwards 2 --tune-decoder 3 "${wide[@]}" --out "$out/steady"
    ;;
  full-size)
    "$python" benchmarks/bench_full_size.py "$folder" --device cuda --report "$out/full-size.json"
    ;;
  low-memory)
    full_size() { "$python" benchmarks/bench_full_size.py "$folder" --device cuda "$@"; }
    if [ ! -f "$folder/model_index.json" ]; then full_size --phase write; fi
    for memory in 24 16 12; do
      full_size --phase run --dtype fp8 --low-memory --memory "$memory" --report "$out/low-memory-$memory.json"
    done
    full_size --phase run --low-memory --memory 24 --report "$out/low-memory-bfloat16.json"
    ;;
  *)
    echo "error: 2: no table is called $1" >&2
    exit 2
    ;;
esac
