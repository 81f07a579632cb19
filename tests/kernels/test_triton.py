"""The Triton kernels without a GPU, in processes of their own: interpreted, and compiled ahead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run(file, **environment):
    """pytest over one file that is not collected by itself; its report if it fails."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / file)]
    # Neither may see the other's setting: kernels are either interpreted or compiled.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_interpreted_kernels_equal_their_plain_forms():
    run("triton_forms.py", TRITON_INTERPRET="1")


def test_kernels_compile_for_every_target_and_fit(tmp_path):
    run("ahead_of_time.py", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
def test_compiled_kernels_equal_their_plain_forms():
    run("triton_forms.py")
