import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from helios.cli.errors import CommandError
from helios.cli.evaluate import evaluate
from helios.evaluation import heliosbench
from helios.evaluation.metrics.judge_file import save_judge
from helios.evaluation.metrics.scene_judge import SceneJudge
from helios.evaluation.train_judge import judge_config
from helios.pipeline import Pipeline

app = typer.Typer()
app.command()(evaluate)

CHEAP = ("--device", "cpu", "--dtype", "float32", "--steps", 1, "--guidance-scale", 1)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    judge = SceneJudge(replace(judge_config(), widths=(8, 8, 16), hidden=16)).eval()
    save_judge(judge, folder, torch.zeros(1, 2, 32, 48, 3).byte())
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


class Outline(HTMLParser):
    """Checks that tags close and nothing is fetched."""

    void = frozenset({"meta", "img", "br", "line", "circle", "polygon", "polyline", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.fetched.append(str(value))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


@pytest.mark.filterwarnings("ignore:this model does not know the words")
def test_quick_reports_on_a_random_model(little_folder: Path, judge: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    text = run(little_folder, "--judge", judge, "--report", out, "--captions", 2, *CHEAP)
    assert "| caption accuracy, % |" in text
    report = json.loads((out / "report.json").read_text())
    assert report["suite"] == "quick"
    assert report["order"] == ["little", "renders"]
    ours = report["arms"]["little"]
    assert ours["videos"] == 2
    assert ours["work"]["passes"] == 1
    assert ours["speed"]["fps"] > 0
    assert ours["lengths"]["66"]["delta_e"]["value"]["value"] > 0
    assert len(ours["curves"]["caption"]["mean"]) == 2
    assert report["grades"]["little"]["66"]["ratings"].keys() == {"amplitude", "smoothness"}
    assert report["grades"]["little"]["66"]["total"] is None
    assert (out / "report.md").read_text().startswith("# little: quick")
    page = (out / "report.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.fetched == []
    assert outline.seen.count("img") == 4
    assert outline.seen.count("polyline") > 10
    # Nothing is measured twice; the report is written anew.
    stamps = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    run(little_folder, "--judge", judge, "--report", out, "--captions", 2, *CHEAP)
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}


def test_models_are_compared_on_the_same_prompts(
    little_folder: Path, judge: Path, tmp_path: Path
) -> None:
    out, plots = tmp_path / "report", tmp_path / "plots"
    text = run(
        f"one={little_folder}", "--suite", "compare", "--against", f"two={little_folder}@steps=2",
        "--against", f"same={little_folder}", "--captions", 2, "--seeds", 2, "--lengths", "33,40",
        "--speed-chunks", 0, "--judge", judge, "--report", out, "--plots", plots, *CHEAP,
        "--no-renders",
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["order"] == ["one", "two", "same"]
    assert report["arms"]["two"]["work"]["passes"] == 4
    assert {pair["ours"] for pair in report["pairs"]} == {"two", "same"}
    assert report["arms"]["one"]["sets"]["40"]["diversity"]["n"] == 2
    assert "two less one, 40 frames" in text
    drawn = {path.name for path in plots.iterdir()}
    assert {"caption.svg", "saturation-change.svg", "captions.svg"} <= drawn


def test_an_arm_may_have_several_trainings(
    little_folder: Path, judge: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    text = run(
        f"full={little_folder},{little_folder}@prompts=2", "--suite", "drift", "--captions", 3,
        "--lengths", 66, "--judge", judge, "--report", other, *CHEAP, "--ceilings",
    )  # fmt: skip
    report = json.loads((other / "report.json").read_text())
    assert report["order"] == ["full", "renders", "other renders", "renders, codec"]
    assert report["grades"].keys() == {"full"}
    pixels = {
        n: a["lengths"]["66"]["sharpness"]["value"]["value"] for n, a in report["arms"].items()
    }
    assert len(set(pixels.values())) == 4
    arm = report["arms"]["full"]
    assert (arm["trainings"], arm["prompts"], arm["videos"]) == (2, 2, 4)
    values = arm["lengths"]["66"]["saturation"]["value of trainings"]
    assert values[0] == values[1]
    assert "each training by itself" in text


def test_parts_of_the_work_meet_in_one_folder(
    little_folder: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = [
        str(little_folder), "--suite", "drift", "--captions", "3", "--lengths", "40", "--judge",
        str(judge), "--report", str(tmp_path), "--no-renders", *CHEAP,
    ]  # fmt: skip
    assert "part 0 of 2 is measured" in run(*usual, "--shard", "0/2")
    assert not (tmp_path / "report.json").exists()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(*usual)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["arms"]["little"]["videos"] == 3


def test_an_interrupted_run_says_what_is_kept(
    little_folder: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = heliosbench.Bench._batch, []

    def once(self: heliosbench.Bench, *rest: object) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(rest)
        real(self, *rest)

    usual = [
        little_folder, "--suite", "drift", "--captions", 3, "--lengths", 33, "--batch-size", 1,
        "--judge", judge, "--no-renders", *CHEAP,
    ]  # fmt: skip
    monkeypatch.setattr(heliosbench.Bench, "_batch", once)
    with pytest.raises(CommandError, match="the same command goes on") as caught:
        run(*usual, "--report", tmp_path)
    assert caught.value.exit_code == 130
    assert len(list((tmp_path / "records").glob("*.json"))) == 1
    monkeypatch.setattr(heliosbench.Bench, "_batch", real)
    assert "wrote" in run(*usual, "--report", tmp_path)
    assert len(list((tmp_path / "records").glob("*.json"))) == 3


def test_a_folder_of_videos_is_measured(little: Pipeline, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for index in range(2):
        little(("a red ball", "a blue cube")[index], num_frames=40, seed=index).save(
            videos / f"{index}.mp4"
        )
    out = tmp_path / "report"
    text = run(videos, "--suite", "heliosbench", "--lengths", 33, "--report", out)
    report = json.loads((out / "report.json").read_text())
    assert report["arms"]["videos"]["videos"] == 2
    assert report["missing"].keys() == {"aesthetic", "semantic", "naturalness"}
    assert "needs naturalness/ in the folder given with --networks" in text
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("only one\n")
    with pytest.raises(ValueError, match="2 videos, and there are 1 prompts"):
        run(videos, "--lengths", 33, "--prompts", prompts)
    with pytest.raises(ValueError, match="has 40 frames, 66 are to be measured"):
        run(videos)


def test_scenes_judges_captions_and_continuations(
    little_folder: Path, judge: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    sizes = ("--suite", "scenes", "--captions", 2, "--clips", 1)
    text = run(little_folder, "--judge", judge, "--report", out, *sizes, *CHEAP)
    assert "| main colour |" in text
    report = json.loads((out / "report.json").read_text())
    assert {"truth, chunk 1", "model, chunk 1", "video, model"} <= set(report["tables"])
    assert report["tables"]["model, chunk 1"]["overall"]["setting"]["total"] == 2
    assert "untrained" in report["continuation"]
    assert report["settings"]["parts"] == ["truth", "model", "image", "video"]
    assert (out / "report.md").read_text().startswith("# little")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "everything"], "suite must be one of quick"),
        (["--suite", "compare"], "needs --against"),
        (["--suite", "scenes", "--lengths", "33"], "takes no --against"),
        (["--lengths", "a lot"], "lengths must be frames"),
        (["--lengths", "8"], "at least 33 frames"),
        (["--steps", "two"], "steps must be like 25 or 2,2,2"),
        (["--shard", "2/2"], "shard must be like 0/4"),
        (["--shard", "0/2"], "give --report"),
        (["--against", "tiny@speed=3"], "unknown option 'speed'"),
        (["--against", "a=tiny@prompts=0"], "prompts must be at least 1"),
        (["--against", "renders=tiny"], "no arm may be called 'renders'"),
        (["--against", "tiny"], "different names"),
        (["--prompts", "nowhere.txt"], "is not a file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run("tiny", "--device", "cpu", *arguments)
    assert "\n" not in str(caught.value)
