"""The wheel: built, installed where nothing of the source tree is in reach, and generating."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from helios.media import read_video

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "helios" / "assets" / "tiny" / "model_index.json"


def run(*command: str | Path, folder: Path) -> str:
    # Nothing of the caller's Python settings may lead back into the source tree.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    options = ("--wheel", "--no-isolation", "--outdir", target, ROOT)
    run(sys.executable, "-m", "build", *options, folder=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that has the wheel, and the dependencies of this one.

    The dependencies are lent by path instead of being installed a second time; the editable
    installation of the source tree, which sits beside them, is kept out of it.
    """
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True, symlinks=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, folder=place)
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=place
    ).strip()
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # A plain path line adds a folder without reading the .pth files in it.
    (Path(site) / "lent.pth").write_text("\n".join(sorted(paths)) + "\n")
    return place / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"helios", "helios_video-0.1.0.dist-info"}
    assert "helios/py.typed" in names
    assert "helios/cli/main.py" in names
    assert not [name for name in names if name.endswith((".pyc", ".bin", ".pt"))]
    assert ("helios/assets/tiny/model_index.json" in names) == BUNDLED.is_file()


def test_the_installed_program_generates(
    installed: Path, tiny_random: Path, tmp_path: Path
) -> None:
    where = run(
        installed / "python", "-c", "import helios; print(helios.__file__)", folder=tmp_path
    )
    assert ROOT not in Path(where.strip()).parents
    assert run(installed / "helios", "--version", folder=tmp_path) == "helios 0.1.0\n"
    # Once the bundled model is there, this is the promise: no option but the prompt.
    model = [] if BUNDLED.is_file() else ["--model", tiny_random]
    options = ("--num-frames", "34", "-o", "v.mp4", *model)
    out = run(
        installed / "helios", "generate", "a red ball rolls on grass", *options, folder=tmp_path
    )
    assert out == "v.mp4\n"
    assert read_video(tmp_path / "v.mp4")[0].shape[0] == 34
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
