"""The entry: version, help, doctor, and one table from errors to exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import helios
from helios.cli.errors import CommandError, exit_code, explain
from helios.cli.main import run
from helios.errors import (
    CheckpointCorruptError,
    CheckpointError,
    DataError,
    DivergedError,
    InputError,
    ResumableError,
    UnsafeCheckpointError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("x"), 1),
        (FloatingPointError("x"), 1),
        (ValueError("x"), 2),
        (InputError("x"), 3),
        (CheckpointError("x"), 4),
        (UnsafeCheckpointError("x"), 4),
        (CheckpointCorruptError("x"), 4),
        (MemoryError(), 5),
        (torch.OutOfMemoryError("CUDA out of memory"), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5),
        (FileExistsError("x"), 6),
        (PermissionError(13, "denied", "f"), 6),
        (DivergedError("x"), 7),
        (DataError("x"), 8),
        (ResumableError("x"), 75),
        (KeyboardInterrupt(), 130),
        (CommandError(143, "x"), 143),
    ],
)
def test_every_error_has_its_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code
    assert "\n" not in explain(error)
    assert explain(error)


def test_messages_are_one_line_without_control_characters() -> None:
    assert explain(ValueError("a\nb\x1b[31m  c")) == "a b [31m c"
    refused = explain(PermissionError(13, "Permission denied", "f.mp4"))
    assert refused == "f.mp4: Permission denied; change its permissions, or give another place"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"helios {helios.__version__}\n"


def test_the_version_is_the_packages() -> None:
    import importlib.metadata

    assert importlib.metadata.version("helios-video") == helios.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-h"],
        ["--help"],
        ["generate", "-h"],
        ["train", "-h"],
        ["evaluate", "-h"],
        ["doctor", "-h"],
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert "helios" in capsys.readouterr().out.lower()


def test_unknown_commands_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generat"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: 2: ")
    assert "generat" in line


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("versions:", "torch", "CPU", "attention", "write h264: yes", "tiny:", "advice:"):
        assert word in text
    assert run(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["versions"]["helios"] == helios.__version__
    assert findings["auto"]["dtype"] in ("float32", "bfloat16")
    assert findings["advice"]


def test_importing_helios_loads_nothing_heavy() -> None:
    code = (
        "import sys, helios, helios.errors; "
        "heavy = {'torch', 'numpy', 'transformers', 'av', 'PIL'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "assert {'load', 'Request', 'Chunk', 'Video'} <= set(dir(helios)); "
        "helios.Request"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in helios.__all__:
        assert getattr(helios, name) is not None
    settings = helios.DriftConfig(noise=0.2)
    assert helios.Request(prompt="a ball", anti_drift=settings).anti_drift == settings


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = helios.nothing  # type: ignore[attr-defined]
