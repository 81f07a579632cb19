#!/usr/bin/env bash
# A distilled model against the clock on two threads of a CPU, the finished mp4 included: frames a
# second in bfloat16 and in float32, and the operators that take the time. Two CPU minutes, no GPU, on a
# machine with nothing else to do. Called from the repository's root:
#
#   recipes/realtime.sh [MODEL] [OUT.json] [PLOT.svg]
set -euo pipefail

"${PYTHON:-.venv/bin/python}" benchmarks/bench_realtime.py --model "${1:-tiny}" --steps 1,1,1 \
  --threads 2 --dtype bfloat16 --dtype float32 --out "${2:-docs/results/realtime-cpu.json}" \
  --plot "${3:-docs/plots/realtime-cpu.svg}"
