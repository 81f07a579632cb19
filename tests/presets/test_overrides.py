from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from helios.presets import TRAINING_PRESETS, override, training_preset
from helios.presets.overrides import paths
from helios.training import to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    parts: tuple[int, int] = (1, 3)
    names: tuple[str, ...] = ("a",)
    limit: float | None = None

    def __post_init__(self):
        if sum(self.parts) != self.width:
            raise ValueError(f"parts must sum to width, got {self.parts}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    on: bool = False
    mode: Literal["fast", "slow"] = "fast"
    folder: Path | None = None
    rate: float = 0.1


def test_every_type_is_read():
    result = override(
        Outer(),
        [
            "inner.names=x, y",
            "inner.limit=2.5",
            "on=yes",
            "mode=slow",
            "folder=some/where",
            "rate=8e-4",
        ],
    )
    assert result == Outer(
        inner=Inner(names=("x", "y"), limit=2.5),
        on=True,
        mode="slow",
        folder=Path("some/where"),
        rate=8e-4,
    )
    assert override(result, ["inner.limit=none", "folder=none"]).inner.limit is None


def test_settings_that_depend_on_each_other_are_checked_together():
    assert override(Outer(), ["inner.width=10", "inner.parts=[4, 6]"]).inner.parts == (4, 6)
    with pytest.raises(ValueError, match="inner: parts must sum"):
        override(Outer(), ["inner.width=10"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("inner.widht=3", "inner.width"),
        ("width=3", "inner.width"),
        ("rate=fast", "rate: must be a number"),
        ("rate=nan", "finite"),
        ("inner.width=3.5", "whole number"),
        ("inner.parts=1,2,3", "2 values"),
        ("on=maybe", "true or false"),
        ("mode=medium", "fast, slow"),
        ("inner=3", "group of settings"),
        ("inner.width.deep=3", "no setting"),
        ("rate", "path=value"),
        ("=3", "path=value"),
    ],
)
def test_mistakes_are_named(setting, words):
    with pytest.raises(ValueError, match=words):
        override(Outer(), [setting])


def test_all_mistakes_at_once():
    with pytest.raises(ValueError) as error:
        override(Outer(), ["rate=x", "inner.widht=1", "on=2", "inner.width=9"])
    for word in ("rate", "widht", "on:", "inner: parts"):
        assert word in str(error.value)


@pytest.mark.parametrize("name", sorted(TRAINING_PRESETS))
def test_presets_can_be_listed_and_written(name):
    config = training_preset(name)
    listed = list(paths(config))
    assert "trainer.optimizer.lr" in listed
    assert to_json(config)["stage"]["type"].endswith("Config")


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="did you mean tiny-stage1"):
        training_preset("tiny_stage1")


@dataclass(frozen=True, kw_only=True)
class Optional:
    inner: Inner | None = field(default_factory=Inner)


def test_a_group_of_settings_that_may_be_missing_can_be_taken_away():
    assert override(Optional(), ["inner=none"]).inner is None
    assert override(Optional(), ["inner.limit=1", "inner=none"]).inner is None
    with pytest.raises(ValueError, match="was set to none"):
        override(Optional(), ["inner=none", "inner.limit=1"])
    with pytest.raises(ValueError, match="group of settings"):
        override(Optional(), ["inner=4"])
    with pytest.raises(ValueError, match="group of settings"):
        override(Outer(), ["inner=none"])
    stage = override(training_preset("tiny-stage3"), ["stage.adversarial=none"]).stage
    assert stage.adversarial is None
