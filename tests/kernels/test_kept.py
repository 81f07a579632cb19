"""Where compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helios.kernels.kept import keep_compiled


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what the call under test sets is taken back as well.
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    for name in ("TRITON_CACHE_DIR", "HELIOS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_what_the_user_says_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    assert keep_compiled() == tmp_path / "own"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("name", "below"), [("HELIOS_CACHE", "triton"), ("XDG_CACHE_HOME", "helios/triton")]
)
def test_it_lies_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, below: str
) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    assert keep_compiled() == tmp_path / below
    assert (tmp_path / below).is_dir()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / below)


def test_a_folder_that_cannot_be_made_leads_to_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HELIOS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    found = keep_compiled()
    assert found is not None
    assert found.parents[1] == tmp_path / "temporary"


def test_what_belongs_to_somebody_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HELIOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert keep_compiled() is None
    assert "TRITON_CACHE_DIR" not in os.environ
