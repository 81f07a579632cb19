import pytest

from helios.presets import ABLATIONS, ablation, override, training_preset


def arm(name, preset):
    return override(training_preset(preset), ablation(name)).stage


@pytest.mark.parametrize("preset", ["tiny-stage1", "tiny-stage2", "stage1", "stage2"])
@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_each_takes_one_remedy_away_and_nothing_else(name, preset):
    whole, without = training_preset(preset).stage, arm(name, preset)
    changed = {
        f"{part}.{field}"
        for part in ("transformer", "corruption")
        for field in vars(getattr(whole, part))
        if getattr(getattr(whole, part), field) != getattr(getattr(without, part), field)
    }
    expected = {
        setting.split("=")[0].removeprefix("stage.")
        for setting in ABLATIONS[name]
        if "corruption." not in setting or name == "clip-corruption"
    }
    if name == "no-corruption":
        assert changed <= {s.split("=")[0].removeprefix("stage.") for s in ABLATIONS[name]}
        assert changed
        kinds = ("noise", "down_up", "exposure", "saturation", "scale")
        assert not any(getattr(without.corruption, kind) for kind in kinds)
    else:
        assert changed == expected


def test_unknown_ones_are_refused():
    with pytest.raises(ValueError, match="did you mean no-anchor"):
        ablation("no_anchor")
