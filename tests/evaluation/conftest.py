"""The random pipeline of the whole suite, at a size where a chunk takes a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helios.pipeline import Pipeline


@pytest.fixture(scope="session")
def little(pipeline: Pipeline) -> Pipeline:
    """32x48 pixels, two steps; tests must not change it."""
    from helios.diffusion import Flat
    from helios.pipeline import Pipeline

    defaults = replace(pipeline.defaults, height=32, width=48, plan=Flat(steps=2))
    return Pipeline(
        pipeline.transformer,
        pipeline.codec,
        pipeline.text_encoder,
        defaults,
        pipeline.schedule,
        name="little",
    )


@pytest.fixture(scope="session")
def little_folder(tmp_path_factory: pytest.TempPathFactory, little: Pipeline) -> Path:
    """The same in the published layout; tests must not change it."""
    return little.save(tmp_path_factory.mktemp("models") / "little")
