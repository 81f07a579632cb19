# Every target sets itself up: on a fresh machine `make demo` or `make test` is the only command needed.
PYTHON ?= python3
PROMPT ?= a large red ball bounces on green grass
OUT    ?= demo.mp4
PIP    := .venv/bin/python -m pip --disable-pip-version-check
# One thread per test process: with two, threads of neighbouring processes spin on each other's core.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup demo check test test-slow test-gpu test-ray bench bench-engines bench-memory realtime soak clean
.DELETE_ON_ERROR:

.venv/bin/python:
	@echo "==> creating .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; call make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	@echo "==> installing helios-video and what it needs (about a minute, PyTorch is the largest part)"
	@$(PIP) install -q -c constraints.txt -e . 2>&1 | grep -v '^WARNING: Location' || true
	@.venv/bin/python -c 'import torch, av, transformers'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "==> installing helios-video with the development tools (about a minute and a half)"
	@$(PIP) install -q -c constraints.txt -e '.[dev]' 2>&1 | grep -v '^WARNING: Location' || true
	@.venv/bin/python -c 'import torch, av, transformers, pytest, diffusers'
	@touch $@ .venv/.core

# The studio's tests drive a real browser.
.venv/.browser: | .venv/.dev
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "==> installing Chromium for the studio's tests"; \
	  (apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core) >/dev/null 2>&1 \
	  || { echo "error: install Chromium (Debian: apt-get install chromium), the studio's tests drive it"; exit 1; }; }
	@touch $@

setup: .venv/.dev ## create .venv with everything needed to develop

demo: .venv/.core ## make demo.mp4 from PROMPT with the bundled model, on the CPU
	@echo "==> generating $(OUT): $(PROMPT)"
	@.venv/bin/helios generate "$(PROMPT)" --seconds 4 --output "$(OUT)" --overwrite --device cpu

check: .venv/.dev ## formatting, lint, types, import directions
	@echo "==> ruff format"; .venv/bin/ruff format --check .
	@echo "==> ruff check"; .venv/bin/ruff check .
	@echo "==> mypy"; .venv/bin/mypy
	@echo "==> import directions"; .venv/bin/lint-imports

test: .venv/.dev .venv/.browser ## the whole CPU test suite
	$(ONE_THREAD) .venv/bin/python -m pytest -n 2 --dist loadfile

test-slow: .venv/.dev ## minutes-long CPU tests
	$(ONE_THREAD) .venv/bin/python -m pytest -n 2 -m 'slow and not gpu'

test-gpu: .venv/.dev ## tests that need a CUDA device
	.venv/bin/python -m pytest -m gpu

.venv/.ray: pyproject.toml constraints.txt | .venv/.dev
	@echo "==> installing Ray"
	@$(PIP) install -q -c constraints.txt -e '.[dev,ray]' 2>&1 | grep -v '^WARNING: Location' || true
	@.venv/bin/python -c 'import ray'
	@touch $@

test-ray: .venv/.ray ## two workers on Ray Serve, on this machine
	$(ONE_THREAD) .venv/bin/python -m pytest tests/serving/on_ray.py

bench: .venv/.core ## 300 chunks streamed with the bundled model: memory and time per chunk
	.venv/bin/python benchmarks/bench_stream.py

bench-engines: .venv/.dev ## frames a second of the bundled model, against diffusers on the same weights
	.venv/bin/helios bench tiny --against diffusers --out runs/bench

bench-memory: .venv/.dev ## 500 chunks: memory and time per chunk, against diffusers on the same weights
	.venv/bin/python benchmarks/bench_memory.py

realtime: .venv/.dev ## frames a second of MODEL on a CPU, the mp4 included
	recipes/realtime.sh $(or $(MODEL),tiny) realtime.json realtime.svg

soak: .venv/.dev ## load on a running server, in the short form: under half an hour
	.venv/bin/python benchmarks/soak.py --seconds 60 --chunks 2619 --report docs/results/soak.json

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
