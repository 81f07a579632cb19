"""The program as people start it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import helios
from helios.media import read_settings, read_video

PROMPT = "a red ball rolls on grass"


def helios_command(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from helios.cli.main import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_processes_make_the_same_file_and_bad_input_fails(
    tiny_random: Path, tmp_path: Path
) -> None:
    options = ["--model", tiny_random, "--num-frames", 34, "--seed", 7, "--steps", 2]
    for name in ("a.mp4", "b.mp4"):
        done = helios_command("generate", PROMPT, "-o", name, *options, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{name}\n"
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert read_video(tmp_path / "a.mp4")[0].shape == (34, 32, 48, 3)

    again = helios_command("generate", PROMPT, "-o", "a.mp4", *options, folder=tmp_path)
    assert again.returncode == 6
    assert again.stderr.strip().splitlines()[-1].startswith("error: 6: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_library_and_the_program_make_the_same_video(tiny_random: Path, tmp_path: Path) -> None:
    from helios.cli.main import run

    target = tmp_path / "cli.mp4"
    options = ["--num-frames", "34", "--seed", "7", "--steps", "2", "-o", str(target)]
    assert run(["generate", PROMPT, "--model", str(tiny_random), *options]) == 0
    settings = read_settings(target)
    pipe = helios.load(tiny_random)
    video = pipe(PROMPT, num_frames=34, seed=7, steps=2)
    assert video.settings == settings
    video.save(tmp_path / "library.mp4")
    one, two = (read_video(tmp_path / name)[0] for name in ("cli.mp4", "library.mp4"))
    assert np.array_equal(one, two)
