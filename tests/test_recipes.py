"""The recipes, with a stand-in that notes what it is called with: every command is one there is."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from helios.cli.main import app, run

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path

with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if "--out" in sys.argv:
    model = Path(sys.argv[sys.argv.index("--out") + 1], "model")
    model.mkdir(parents=True, exist_ok=True)
    (model / "model_index.json").write_text("{}")
print("done")
"""


def calls_of(folder: Path, recipe: str, *arguments: str, **settings: str) -> list[list[str]]:
    """What a recipe calls ``helios`` with."""
    program, calls = folder / "helios", folder / "calls.jsonl"
    program.write_text(STAND_IN, "utf-8")
    program.chmod(0o755)
    own = {"HELIOS": str(program), "CALLS": str(calls), "OUT": str(folder / "out")}
    done = subprocess.run(
        [ROOT / "recipes" / recipe, *arguments],
        cwd=ROOT,
        env={**os.environ, **own, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in calls.read_text("utf-8").splitlines()]


def check(call: list[str]) -> None:
    """Refuse options and values that the command does not have; settings of a training too."""
    if call[0] == "train":
        assert run([*call, "--show"]) == 0, call
        return
    # What the suite would refuse only when it runs.
    assert "compare" not in call or "--against" in call, call
    command, arguments = get_command(app), list(call)
    while arguments and hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context(call[0], arguments).close()


def test_the_tiny_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assets = str(tmp_path / "assets")
    times = dict.fromkeys(("CODEC_SECONDS", "STAGE1_SECONDS", "ODE_SECONDS"), "5")
    calls = calls_of(tmp_path, "tiny.sh", str(tmp_path / "tiny"), ASSETS=assets, **times)
    assert [call[0] for call in calls] == ["train"] * 4 + ["precompute"] + ["train"] * 2
    for call in calls:
        check(call)
    assert "max_seconds" in capsys.readouterr().out
    assert (tmp_path / "assets" / "model_index.json").is_file()


@pytest.mark.parametrize("at_once", ["1", "3"])
def test_the_arms_of_the_drift_table(tmp_path: Path, at_once: str) -> None:
    start, *arms = calls_of(tmp_path, "ablations.sh", str(tmp_path / "arms"), AT_ONCE=at_once)
    assert len(arms) == 10
    for call in (start, *arms):
        check(call)
    seeds = [setting for call in arms for setting in call if setting.startswith("trainer.seed=")]
    assert seeds.count("trainer.seed=0") == 6
    assert sum("--ablation" in call for call in arms) == 7
    folder = start[start.index("--out") + 1]
    assert all(call[call.index("--initial") + 1] == folder for call in arms)


def test_the_table_of_distillation(tmp_path: Path) -> None:
    calls = calls_of(
        tmp_path, "distillation.sh", str(tmp_path / "out"), BASE="base", MID="mid", AT_ONCE="4"
    )
    commands = [call[0] for call in calls]
    arms = 2 + 6 * 2  # Base, Mid, and six students at two numbers of steps
    assert commands == ["precompute", *["train"] * 5, *["evaluate"] * (1 + arms), "evaluate"]
    for call in calls:
        check(call)
    assert calls[-1].count("--against") == arms - 1


def test_what_is_trained_is_not_trained_again(tmp_path: Path) -> None:
    for _ in range(2):
        calls = calls_of(
            tmp_path, "ablations.sh", str(tmp_path / "arms"), RUNS="full-0 no-anchor-0"
        )
    assert len(calls) == 3


@pytest.mark.parametrize("table", ["distillation", "drift", "hour", "heliosbench"])
def test_the_tables_that_compare_models(tmp_path: Path, table: str) -> None:
    models = {"BASE": "a", "MID": "b", "DISTILLED": "c", "FULL": "d,e", "ARMS": "x=f,g y=h"}
    calls = calls_of(tmp_path, "evaluation.sh", table, MODEL="tiny", **models)
    assert [call[0] for call in calls] == ["evaluate"]
    check(calls[0])


def test_trainings_that_share_a_gpu_are_measured_one_by_one(tmp_path: Path) -> None:
    models = {"FULL": "d,e", "ARMS": "x=f,g y=h"}
    calls = calls_of(tmp_path, "evaluation.sh", "drift", AT_ONCE="3", **models)
    for call in calls:
        check(call)
    wanted = [
        "full=d@prompts=1",
        "full=d",
        "full=e",
        *(f"{m}@prompts=16" for m in ("x=f", "x=g", "y=h")),
    ]
    assert sorted(call[1] for call in calls[:-1]) == sorted(wanted)
    assert calls[-1].count("--against") == 2


@pytest.mark.parametrize(
    "table",
    ["tests", "scenes", "kernels", "fp8", "packed", "engines", "steady", "full-size", "low-memory"],
)
def test_the_tables_of_speed(tmp_path: Path, table: str) -> None:
    settings = {"PYTHON": str(tmp_path / "helios"), "FOLDER": str(tmp_path / "full-size")}
    for call in calls_of(tmp_path, "speed.sh", table, **settings):
        if call[:2] == ["-m", "helios"]:
            check(call[2:])
        elif call[:2] != ["-m", "pytest"]:
            assert (ROOT / call[0]).is_file(), call


def test_a_recipe_stops_where_a_run_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "recipes" / "ablations.sh", tmp_path],
        cwd=ROOT,
        env={**os.environ, "HELIOS": "false", "RUNS": "full-0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
