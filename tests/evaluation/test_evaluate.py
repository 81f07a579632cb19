import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from helios.cli.evaluate import evaluate
from helios.evaluation.metrics.scene_judge import SceneJudge, save_judge
from helios.evaluation.train_judge import judge_config

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_judge(SceneJudge(judge_config()), tmp_path / "judge")
    return tmp_path / "judge"


def test_evaluate_reports_on_a_random_model(
    little_folder: Path, judge: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    sizes = "--captions 2 --clips 1 --steps 1 --guidance-scale 1 --device cpu --dtype float32"
    arguments = [str(little_folder), "--judge", str(judge), "--report", str(out), *sizes.split()]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| main colour |" in result.output
    report = json.loads((out / "report.json").read_text())
    assert {"truth, chunk 1", "model, chunk 1", "video, model"} <= set(report["tables"])
    assert report["tables"]["model, chunk 1"]["overall"]["setting"]["total"] == 2
    assert "untrained" in report["continuation"]
    assert report["settings"]["parts"] == ["truth", "model", "image", "video"]
    assert (out / "report.md").read_text().startswith("# little")


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="suite must be one of quick"):
        evaluate(suite="everything")
