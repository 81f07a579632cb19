"""``helios generate`` through its real entry, in this process."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helios.cli.generate import parse_request, parse_script, parse_setting, parse_size
from helios.cli.main import run
from helios.errors import InputError
from helios.media import read_settings, read_video

PROMPT = "a red ball rolls on grass"

Command = Callable[..., int]


@pytest.fixture
def command(tiny_random: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``helios generate`` with the small model, in an empty folder, in float32."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> int:
        base = ["generate", "--model", str(tiny_random), "--dtype", "float32"]
        return run([*base, *(str(argument) for argument in arguments)])

    return call


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_video_with_its_settings_and_nothing_else(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(PROMPT, "-o", "v.mp4", "--num-frames", 70, "--seed", 7, "--steps", 2) == 0
    out, err = capsys.readouterr()
    assert out == "v.mp4\n"
    frames, rate = read_video(tmp_path / "v.mp4")
    assert (frames.shape, rate) == ((70, 32, 48, 3), 24)
    settings = read_settings(tmp_path / "v.mp4")
    assert settings["prompt"] == PROMPT
    assert (settings["seed"], settings["steps"], settings["model"]) == (7, 2, "small")
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    lines = [line for line in err.splitlines() if line.startswith("chunk ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert "2.9 s of video" in lines[-1]
    for words in ("frames/s", "x real time", "left", "MiB"):
        assert words in lines[0]


def test_same_seed_same_file(command: Command, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        assert command(PROMPT, "-o", name, "--num-frames", 34, "--seed", 7, "--steps", 1) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_every_option_reaches_the_request(command: Command, tmp_path: Path) -> None:
    options = ["--negative-prompt", "a cone", "--seconds", "2", "--fps", "12", "--size", "80x48"]
    options += ["--steps", "1", "--guidance-scale", "3", "--seed", "5"]
    assert command(PROMPT, "-o", "v.mp4", *options, "--set", "shift=consistent") == 0
    settings = read_settings(tmp_path / "v.mp4")
    expected = {
        "negative_prompt": "a cone",
        "num_frames": 24,
        "fps": 12,
        "width": 80,
        "height": 48,
        "steps": 1,
        "guidance_scale": 3.0,
        "seed": 5,
        "shift": "consistent",
    }
    assert {name: settings[name] for name in expected} == expected
    assert read_video(tmp_path / "v.mp4")[0].shape == (24, 48, 80, 3)


def test_image_and_video_starts(command: Command, tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 50, 3), 90, np.uint8)).save("start.png")
    quick = ["--num-frames", 34, "--steps", 1, "--seed", 1]
    assert command(PROMPT, "--image", "start.png", "-o", "i.mp4", "--motion", 0.7, *quick) == 0
    assert command(PROMPT, "--video", "i.mp4", "-o", "v.mp4", *quick) == 0
    assert read_settings(tmp_path / "i.mp4")["image"] == "start.png"
    assert read_settings(tmp_path / "v.mp4")["video"] == "i.mp4"
    assert read_video(tmp_path / "v.mp4")[0].shape == (34, 32, 48, 3)


def test_json_result(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(PROMPT, "--json", "--num-frames", 33, "--steps", 1) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["output"], result["frames"]) == ("completed", "out.mp4", 33)
    assert isinstance(result["settings"]["seed"], int)


def test_several_videos_are_what_each_seed_alone_gives(command: Command, tmp_path: Path) -> None:
    quick = ["--num-frames", 33, "--steps", 1]
    assert command(PROMPT, "-o", "v.mp4", "--num-videos", 2, "--seed", 5, *quick) == 0
    assert command(PROMPT, "-o", "six.mp4", "--seed", 6, *quick) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["six.mp4", "v-1.mp4", "v-2.mp4"]
    assert (tmp_path / "v-2.mp4").read_bytes() == (tmp_path / "six.mp4").read_bytes()


def test_a_script_sets_the_prompt_from_a_time_on(command: Command, tmp_path: Path) -> None:
    Path("script.tsv").write_text(f"0\t{PROMPT}\n\n2.7\ta blue cube on snow\n")
    assert command("--script", "script.tsv", "--num-frames", 99, "--steps", 1) == 0
    prompts = read_settings(tmp_path / "out.mp4")["prompt"]
    assert prompts == [[0, PROMPT], [2, "a blue cube on snow"]]


def test_a_batch_gives_a_line_each_and_fails_if_one_failed(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"prompt": PROMPT, "seed": 1, "output": "one.mp4"},
        {"prompt": ""},
        {"prompt": PROMPT, "sed": 1},
        {"prompt": "a blue cube", "size": "48x32", "num_frames": 34, "seed": 2},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\nnot json\n"
    Path("batch.jsonl").write_text(text)
    code = command("--batch", "batch.jsonl", "--num-frames", 33, "--steps", 1, "-o", "b.mp4")
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["line"] for result in results] == [1, 2, 3, 4, 5]
    assert [result["status"] == "completed" for result in results] == [1, 0, 0, 1, 0]
    assert [r["error"]["code"] for r in results if "error" in r] == [3, 2, 2]
    assert "did you mean 'seed'" in results[2]["error"]["message"]
    assert code == 3
    assert err.strip().splitlines()[-1].startswith("error: 3: 3 of 5 requests")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["b-4.mp4", "batch.jsonl", "one.mp4"]
    assert read_video(tmp_path / "b-4.mp4")[0].shape[0] == 34


# Bad input: one clear line, the exit code of the table, nothing left behind, no weight loaded.

TEXT = b"this is neither a picture nor a video"
BAD: list[tuple[Sequence[str], int, str]] = [
    (["", "-o", "v.mp4"], 3, "empty"),
    (["   "], 3, "empty"),
    ([], 3, "no prompt"),
    (["a\x07b"], 3, "U+0007"),
    ([PROMPT, "--negative-prompt", "a\x07b"], 3, "U+0007"),
    ([PROMPT, "--model", "tinny"], 4, "did you mean 'tiny'"),
    ([PROMPT, "--model", "someone/model"], 4, "someone/model"),
    ([PROMPT, "--size", "97x64"], 2, "96x64"),
    ([PROMPT, "--size", "0x0"], 2, "16x16"),
    ([PROMPT, "--size", "large"], 2, "640x384"),
    ([PROMPT, "--size", "-16x16"], 2, "16x16"),
    ([PROMPT, "--num-frames", "0"], 2, "num_frames"),
    ([PROMPT, "--num-frames", "-5"], 2, "num_frames"),
    ([PROMPT, "--num-frames", "2.5"], 2, "--num-frames"),
    ([PROMPT, "--num-frames", "99999999999"], 2, "num_frames"),
    ([PROMPT, "--seconds", "0"], 2, "seconds"),
    ([PROMPT, "--seconds", "nan"], 2, "seconds"),
    ([PROMPT, "--seconds", "1", "--num-frames", "33"], 2, "either num_frames or seconds"),
    ([PROMPT, "--steps", "0"], 2, "steps"),
    ([PROMPT, "--steps", "2,2,2"], 2, "one number"),
    ([PROMPT, "--steps", "few"], 2, "few"),
    ([PROMPT, "--guidance-scale", "-1"], 2, "guidance_scale"),
    ([PROMPT, "--motion", "2"], 2, "motion"),
    ([PROMPT, "--seed", "-1"], 2, "seed"),
    ([PROMPT, "--fps", "0"], 2, "fps"),
    ([PROMPT, "--num-videos", "0"], 2, "num_videos"),
    ([PROMPT, "--device", "gpu"], 2, "device"),
    ([PROMPT, "--device", "cuda:63"], 2, "cuda:63"),
    ([PROMPT, "--dtype", "float8"], 2, "dtype"),
    ([PROMPT, "--set", "num_frame=3"], 2, "did you mean 'num_frames'"),
    ([PROMPT, "--set", "novalue"], 2, "name=value"),
    ([PROMPT, "--no-such-option"], 2, "--no-such-option"),
    ([PROMPT, "--image", "missing.png"], 3, "missing.png"),
    ([PROMPT, "--image", "text.png"], 3, "text.png"),
    ([PROMPT, "--image", "folder"], 3, "folder"),
    ([PROMPT, "--video", "missing.mp4"], 3, "missing.mp4"),
    ([PROMPT, "--video", "text.mp4"], 3, "text.mp4"),
    ([PROMPT, "--image", "text.png", "--video", "text.mp4"], 2, "either image or video"),
    ([PROMPT, "-o", "old.mp4"], 6, "old.mp4"),
    ([PROMPT, "-o", "nowhere/v.mp4"], 6, "nowhere"),
    ([PROMPT, "-o", "folder"], 2, "mp4"),
    ([PROMPT, "-o", "v.avi"], 2, "mp4"),
    ([PROMPT, "--script", "text.png"], 2, "only one"),
    (["--script", "missing.tsv"], 3, "missing.tsv"),
    (["--script", "text.png"], 3, "line 1"),
    (["--batch", "missing.jsonl"], 3, "missing.jsonl"),
]


@pytest.mark.parametrize(("arguments", "code", "word"), BAD, ids=lambda value: repr(value)[:60])
def test_bad_input(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    code: int,
    word: str,
) -> None:
    for name in ("text.png", "text.mp4", "old.mp4"):
        Path(name).write_bytes(TEXT)
    Path("folder").mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded before the request was checked")

    monkeypatch.setattr("helios.pipeline.load_inspected", never)
    assert command(*arguments) == code
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"error: {code}: ")
    assert word in line
    assert out == ""
    assert "Traceback" not in err
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_size_that_memory_cannot_hold_is_refused_before_a_weight_is_read(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("helios.pipeline.machines.available_memory", lambda: 256 << 20)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    with monkeypatch.context() as unread:
        unread.setattr("helios.storage.Weights.read", read)
        assert command(PROMPT, "-o", "v.mp4", "--size", "8192x8192", "--device", "cpu") == 5
    line = last_line(capsys)
    assert line.startswith("error: 5: out of memory (8192x8192 by small on CPU, ")
    assert "GB are needed and 0.3 GB are free" in line
    assert list(tmp_path.iterdir()) == []
    assert command(PROMPT, "-o", "v.mp4", "--num-frames", 1, "--device", "cpu") == 0


def test_an_unwritable_place(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(PROMPT, "-o", "/proc/helios.mp4") == 6
    assert "/proc" in last_line(capsys)


def damaged(folder: Path, kind: str) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if kind == "pickle":
        weights.rename(weights.with_suffix(".bin"))
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    else:
        (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "word"),
    [("pickle", "pickle"), ("truncated", "damaged"), ("index", "model_index.json")],
)
def test_bad_checkpoints(
    command: Command,
    tiny_random: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    word: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_random, model)
    damaged(model, kind)
    assert command(PROMPT, "--model", model, "-o", "v.mp4") == 4
    line = last_line(capsys)
    assert line.startswith("error: 4: ")
    assert word in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_overwrite_replaces_only_when_complete(command: Command, tmp_path: Path) -> None:
    Path("old.mp4").write_bytes(TEXT)
    quick = ["-o", "old.mp4", "--num-frames", 33, "--steps", 1]
    assert command(PROMPT, "--overwrite", *quick) == 0
    assert read_video(tmp_path / "old.mp4")[0].shape[0] == 33


def test_a_failure_while_generating_leaves_the_old_file(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("old.mp4").write_bytes(TEXT)

    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("helios.cli.progress.Progress.show", fail)
    assert command(PROMPT, "-o", "old.mp4", "--overwrite", "--num-frames", 66, "--steps", 1) == 5
    assert last_line(capsys).startswith("error: 5: out of memory")
    assert (tmp_path / "old.mp4").read_bytes() == TEXT
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_keeps_a_playable_part(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    from helios.cli.progress import Progress

    show = Progress.show

    def show_then_stop(self: Progress, chunk: object) -> None:
        show(self, chunk)  # type: ignore[arg-type]
        if self.frames == 66:
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    monkeypatch.setattr(Progress, "show", show_then_stop)
    # A run in the background of a shell has been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    assert command(PROMPT, "-o", "v.mp4", "--num-frames", 330, "--steps", 1) == code
    line = last_line(capsys)
    assert line.startswith(f"error: {code}: interrupted")
    assert "v.partial.mp4" in line
    assert [path.name for path in tmp_path.iterdir()] == ["v.partial.mp4"]
    assert read_video(tmp_path / "v.partial.mp4")[0].shape[0] >= 33
    assert signal.getsignal(signal.SIGTERM) == before


def test_debug_shows_the_traceback(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(PROMPT, "--size", "97x64", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("error: 2: ")


def test_words_of_the_command_line() -> None:
    assert parse_size("640x384") == (640, 384)
    assert parse_size("640×384") == (640, 384)
    assert parse_setting("motion=0.5") == ("motion", 0.5)
    assert parse_setting("steps=[2, 2, 2]") == ("steps", (2, 2, 2))
    assert parse_setting("shift=published") == ("shift", "published")
    assert parse_request('{"prompt": [[0, "a"], [1, "b"]]}')["prompt"] == ((0, "a"), (1, "b"))
    for line in ('{"seed": 1, "seed": 2}', '{"seconds": NaN}', "[1]", "{", "[" * 100_000):
        with pytest.raises(ValueError, match="line"):
            parse_request(line)


@pytest.mark.parametrize(
    "text",
    ["", "0 no tab", "1\tnot at the start", "0\ta\n0.1\ttoo close", "-1\ta", "nan\ta", "x\ta"],
)
def test_bad_scripts_name_the_line(text: str) -> None:
    with pytest.raises(InputError, match=r"line \d|script is empty"):
        parse_script(text, 24)


def test_script_times_go_to_the_nearest_chunk() -> None:
    assert parse_script("0\ta\n2.0\tb\n2.9\tc", 24) == [(0, "a"), (1, "b"), (2, "c")]
    assert parse_script("0\ta\n5.5\tb", 12) == [(0, "a"), (2, "b")]
