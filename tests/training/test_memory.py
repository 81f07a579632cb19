from dataclasses import replace

import pytest

from helios.presets import training_preset
from helios.training.memory import stage3_memory

GB = 1e9


@pytest.fixture(scope="module")
def full():
    config = training_preset("stage3").stage
    return config, stage3_memory(config)


def test_counts_are_those_of_the_specification(full):
    """Training.md 0.1, 0.3 and 6.7: a base of 14.31 B, adapters of 1,246 M and heads of 988 M."""
    _, memory = full
    base = 14_312_427_584
    assert base * 2 <= memory.student <= base * 2 * 1.01  # some of it stays float32
    student, critic, heads = 4_868_416 * 256 + 20_032 * 256, 4_868_416 * 256, 988e6
    assert memory.learning == pytest.approx(4 * (student + critic + heads), rel=2e-3)
    assert memory.moments == 2 * memory.learning
    assert memory.average == 4 * student
    kept = 40 * (2940 + 4560 + 11040) * 5120 + 11040 * (26 * 5120 + 2 * 13824)
    assert memory.student_turn == 4 * student + 2 * kept


def test_offloading_takes_one_base_away(full):
    config, memory = full
    both = stage3_memory(replace(config, offload=False))
    assert memory.offload
    assert both.total - memory.total == pytest.approx(memory.teacher, rel=0.01)
    plain = stage3_memory(replace(config, adversarial=None))
    assert plain.total < 80 * GB < memory.total < both.total < 141 * GB


def test_four_models_fit_in_80_gb_without_sharding(full):
    """Student, teacher, critic and average, with heads: the preset as it is."""
    preset = training_preset("stage3")
    assert preset.trainer.moments_on_host
    memory = stage3_memory(preset.stage, moments_on_host=True)
    assert memory.total < 80 * GB
    assert memory.total == full[1].total - memory.moments + max(
        0, max(memory.parked) * 3 // 2 - memory.critic_turn
    )


def test_other_ways_to_learn_are_not_forecast(full):
    config, _ = full
    with pytest.raises(ValueError, match="recompute"):
        stage3_memory(replace(config, recompute=False))
