from __future__ import annotations

from pathlib import Path

import pytest

from helios.cli.folders import output_folder
from helios.cli.main import run


def test_a_failure_leaves_none_of_the_folders_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="late"), output_folder(tmp_path / "there" / "a" / "b"):
        raise ValueError("late")
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert not list((tmp_path / "there").iterdir())


def test_what_was_written_stays(tmp_path: Path) -> None:
    with output_folder(tmp_path / "a" / "records"):
        (tmp_path / "a" / "records" / "one").write_text("1")
    assert (tmp_path / "a" / "records" / "one").read_text() == "1"
    with output_folder(None):
        pass


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "nothing-of-this-name", "--out"],
        ["evaluate", "nothing-of-this-name", "--report"],
        ["evaluate", "nothing-of-this-name", "--suite", "scenes", "--report"],
        ["evaluate", "nothing-of-this-name", "--plots"],
    ],
)
def test_a_model_that_is_not_there_leaves_no_folder(command: list[str], tmp_path: Path) -> None:
    assert run([*command, str(tmp_path / "new" / "deep")]) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "tiny", "--out"],
        ["evaluate", "tiny", "--report"],
        ["evaluate", "tiny", "--plots"],
    ],
)
def test_a_file_in_the_way_is_said_before_anything_is_loaded(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run([*command, str(tmp_path / "file")]) == 6
    last = capsys.readouterr().err.splitlines()[-1]
    assert "; a file is in the way, give another" in last
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
