import math

import pytest
import torch
from diffusers import HeliosDMDScheduler, HeliosScheduler

from helios.diffusion import (
    ScheduleConfig,
    ShiftLaw,
    draw_sigma,
    flat_schedule,
    solver_from_json,
    stage_schedule,
    stage_table,
)

LINEAR, EXPONENTIAL = ShiftLaw(kind="linear"), ShiftLaw(kind="exponential")
FULL = 8640
TOKENS = {"lagged": (540, 540, 2160), "current": (540, 2160, 8640)}


def close(values, expected, atol):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(
        torch.as_tensor(values, dtype=torch.float64), expected, rtol=0, atol=atol
    )


@pytest.mark.parametrize(
    ("tokens", "mu", "factor"),
    [(540, 0.54807292, 1.729916), (2160, 0.82229167, 2.275709), (8640, 1.91916667, 6.815277)],
)
def test_mu_table(tokens, mu, factor):
    assert LINEAR.mu(tokens) == pytest.approx(mu, abs=5e-9)
    assert LINEAR.factor(tokens) == pytest.approx(mu, abs=5e-9)
    assert EXPONENTIAL.factor(tokens) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("law", [LINEAR, EXPONENTIAL])
def test_shift_keeps_both_ends_and_order(law):
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = law.apply(sigma, FULL)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted.diff() > 0).all()
    factor = law.factor(FULL)
    close(shifted, factor * sigma / (1 + (factor - 1) * sigma), 1e-15)


def test_mu_may_be_bounded():
    law = ShiftLaw(max_mu=math.log(7))
    assert law.factor(14040) == pytest.approx(7.0)
    assert law.mu(FULL) == EXPONENTIAL.mu(FULL)


def test_stage_table():
    table = stage_table(ScheduleConfig())
    expected = [
        (0.999, 0.999, 0.666333, 999.0, 743.511744),
        (0.666333, 0.7997597119, 0.333666, 743.256, 385.971642),
        (0.333666, 0.5003741566, 0.0, 385.614, 1.383615),
    ]
    for stage, row in zip(table, expected, strict=True):
        found = (stage.original, stage.start, stage.end, stage.timestep_max, stage.timestep_min)
        close(found, row, 1e-6)


def test_span_shares():
    table = stage_table(ScheduleConfig())
    spans = torch.tensor([stage.start - stage.end for stage in table], dtype=torch.float64)
    close(spans, (0.33267, 0.46609, 0.50037), 1e-5)
    close(spans.cumsum(0)[:2] / spans.sum(), (0.2560681020, 0.6148404844), 1e-10)


DMD_LAGGED = {
    2: [
        ([998.534227, 833.963564], [0.99817693, 0.35403514, 0]),
        ([742.604645, 512.462859], [0.99817693, 0.35403514, 0]),
        ([385.146833, 174.763707], [0.99878415, 0.45123993, 0]),
    ],
    1: [
        ([998.534227], [0.99817693, 0]),
        ([742.604645], [0.99817693, 0]),
        ([385.146833], [0.99878415, 0]),
    ],
    4: [
        (
            [998.534227, 902.218307, 833.963564, 783.066039],
            [0.99817693, 0.62118927, 0.35403514, 0.15481845, 0],
        ),
        (
            [742.604645, 607.912851, 512.462859, 441.285852],
            [0.99817693, 0.62118927, 0.35403514, 0.15481845, 0],
        ),
        (
            [385.146833, 274.574593, 174.763707, 84.216067],
            [0.99878415, 0.71100826, 0.45123993, 0.21558017, 0],
        ),
    ],
}
DMD_CURRENT = {
    2: [
        DMD_LAGGED[2][0],
        ([742.821596, 547.192611], [0.99878415, 0.45123993, 0]),
        ([385.413697, 253.990515], [0.99947869, 0.65743603, 0]),
    ],
    1: [
        DMD_LAGGED[1][0],
        ([742.821596], [0.99878415, 0]),
        ([385.413697], [0.99947869, 0]),
    ],
    4: [
        DMD_LAGGED[4][0],
        (
            [742.821596, 640.003772, 547.192611, 462.995065],
            [0.99878415, 0.71100826, 0.45123993, 0.21558017, 0],
        ),
        (
            [385.413697, 328.624870, 253.990515, 151.530821],
            [0.99947869, 0.85167979, 0.65743603, 0.39077390, 0],
        ),
    ],
}


@pytest.mark.parametrize("mode", ["lagged", "current"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_step_tables(mode, steps):
    rows = (DMD_LAGGED if mode == "lagged" else DMD_CURRENT)[steps]
    config = ScheduleConfig(dynamic=LINEAR)
    for stage, (timesteps, sigmas) in enumerate(rows):
        schedule = stage_schedule(steps, stage, config, TOKENS[mode][stage], renoise=True)
        assert len(schedule) == steps
        close(schedule.timesteps, timesteps, 1e-6)
        close(schedule.sigmas, sigmas, 1e-8)


def test_distillation_targets_are_the_few_step_times():
    """The times at which teacher trajectories are recorded (training specification, 5.1)."""
    expected = {
        4: [
            (998.534, 902.218, 833.964, 783.066),
            (742.822, 640.004, 547.193, 462.995),
            (385.414, 328.625, 253.991, 151.531),
        ],
        2: [(998.534, 833.964), (742.822, 547.193), (385.414, 253.991)],
    }
    config = ScheduleConfig(dynamic=LINEAR)
    for steps, rows in expected.items():
        for stage, row in enumerate(rows):
            tokens = TOKENS["current"][stage]
            schedule = stage_schedule(steps, stage, config, tokens, renoise=True)
            close(schedule.timesteps, row, 6e-4)
    raw = stage_schedule(4, 1, ScheduleConfig(), 0, renoise=True)
    close(raw.timesteps, (743.26, 653.93, 564.61, 475.29), 6e-3)


UNIPC_T = {
    ("both", 0): """998.852 990.912 982.604 973.900 964.774 955.192 945.120 934.519 923.347 911.556
        899.093 885.899 871.908 857.045 841.226 824.357 806.328 787.016 766.279 743.953""",
    ("lagged", 1): """743.049 731.946 720.327 708.156 695.392 681.993 667.908 653.083 637.459
        620.970 603.542 585.091 565.525 544.741 522.620 499.029 473.816 446.810 417.810 386.589""",
    ("lagged", 2): """385.445 376.297 366.576 356.227 345.187 333.384 320.735 307.148 292.514
        276.706 259.578 240.956 220.637 198.378 173.886 146.809 116.713 83.064 45.194 2.256""",
    ("current", 1): """743.099 734.592 725.553 715.930 705.664 694.688 682.927 670.293 656.685
        641.986 626.058 608.743 589.849 569.151 546.377 521.198 493.213 461.924 426.710 386.783""",
    ("current", 2): """385.558 382.452 379.040 375.275 371.097 366.437 361.205 355.288 348.544
        340.784 331.763 321.143 308.460 293.048 273.918 249.542 217.419 173.158 108.275 3.985""",
}
UNIPC_S = {
    540: """0.999422 0.968343 0.935823 0.901758 0.866035 0.828531 0.789108 0.747616 0.703887
        0.657736 0.608955 0.557313 0.502551 0.444377 0.382463 0.316434 0.245868 0.170279 0.089113
        0.001727 0""",
    2160: """0.999560 0.975752 0.950452 0.923518 0.894784 0.864065 0.831147 0.795785 0.757697
        0.716555 0.671977 0.623512 0.570630 0.512698 0.448956 0.378484 0.300156 0.212582 0.114022
        0.002271 0""",
    8640: """0.999853 0.991770 0.982891 0.973091 0.962219 0.950090 0.936473 0.921074 0.903521
        0.883326 0.859846 0.832208 0.799199 0.759087 0.709300 0.645859 0.562255 0.447061 0.278197
        0.006769 0""",
}


@pytest.mark.parametrize(("mode", "stage"), UNIPC_T)
def test_unipc_tables(mode, stage):
    tokens = TOKENS["lagged" if mode == "both" else mode][stage]
    schedule = stage_schedule(20, stage, ScheduleConfig(dynamic=EXPONENTIAL), tokens)
    close(schedule.timesteps, [float(t) for t in UNIPC_T[mode, stage].split()], 5.1e-4)
    close(schedule.sigmas, [float(s) for s in UNIPC_S[tokens].split()], 5.1e-7)


def test_stage_schedule_without_shift():
    for stage, band in enumerate(stage_table(ScheduleConfig())):
        schedule = stage_schedule(20, stage, ScheduleConfig(), 540)
        close(schedule.sigmas[:-1], torch.linspace(0.999, 0.000999, 20).double(), 1e-6)
        assert schedule.sigmas[-1] == 0
        ends = torch.stack((schedule.timesteps[0], schedule.timesteps[-1]))
        close(ends, (band.timestep_max, band.timestep_min), 1e-12)


FLAT_50 = """0.99985 0.99687 0.99377 0.99057 0.98725 0.98380 0.98022 0.97651 0.97265 0.96863
    0.96444 0.96009 0.95554 0.95079 0.94584 0.94065 0.93522 0.92953 0.92356 0.91729
    0.91069 0.90375 0.89642 0.88868 0.88050 0.87182 0.86262 0.85283 0.84240 0.83127
    0.81936 0.80659 0.79286 0.77805 0.76204 0.74468 0.72578 0.70513 0.68248 0.65751
    0.62986 0.59907 0.56457 0.52566 0.48141 0.43066 0.37185 0.30292 0.22099 0.12199 0"""


def test_flat_table():
    schedule = flat_schedule(50, ScheduleConfig(stages=1, dynamic=EXPONENTIAL), FULL)
    close(schedule.sigmas, [float(s) for s in FLAT_50.split()], 5.1e-6)
    close(schedule.timesteps, 1000 * schedule.sigmas[:-1], 0)


def test_flat_with_fixed_shift():
    plain = flat_schedule(10, ScheduleConfig(stages=1), FULL).sigmas
    shifted = flat_schedule(10, ScheduleConfig(stages=1, shift=2.0), FULL).sigmas
    close(plain, torch.linspace(0.999, 0, 11, dtype=torch.float64), 1e-15)
    close(shifted, 2 * plain / (1 + plain), 1e-15)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("law", [LINEAR, EXPONENTIAL, None])
def test_flat_equals_the_oracle(steps, law):
    import numpy as np

    config = ScheduleConfig(stages=1, dynamic=law)
    oracle = HeliosScheduler.from_config(config.to_json())
    first = np.linspace(0.999, 0.0, steps + 1)[:-1]
    oracle.set_timesteps(steps, sigmas=first, mu=law.mu(864) if law else None)
    schedule = flat_schedule(steps, config, 864)
    assert torch.equal(schedule.sigmas, oracle.sigmas)
    assert torch.equal(schedule.timesteps, oracle.timesteps)


CONFIGS = [
    ScheduleConfig(dynamic=LINEAR),
    ScheduleConfig(dynamic=EXPONENTIAL),
    ScheduleConfig(),
    ScheduleConfig(shift=3.0),
    ScheduleConfig(gamma=0.2, stage_range=(0, 0.25, 0.6, 1), dynamic=LINEAR),
    ScheduleConfig(stages=2, stage_range=(0, 0.5, 1), num_train_timesteps=500),
]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("renoise", [False, True])
def test_stages_equal_the_oracle(config, steps, renoise):
    solver = "renoise" if renoise else "unipc"
    oracle = (HeliosDMDScheduler if renoise else HeliosScheduler).from_config(
        config.to_json(solver)
    )
    for stage, constants in enumerate(stage_table(config)):
        mu = config.dynamic.mu(2160) if config.dynamic else None
        oracle.set_timesteps(steps, stage, mu=mu)
        schedule = stage_schedule(steps, stage, config, 2160, renoise=renoise)
        assert torch.equal(schedule.sigmas, oracle.sigmas)
        assert torch.equal(schedule.timesteps, oracle.timesteps)
        assert constants.original == oracle.ori_start_sigmas[stage]
        assert constants.start == pytest.approx(oracle.start_sigmas[stage], abs=1e-15)
        assert constants.end == oracle.end_sigmas[stage]


@pytest.mark.parametrize(
    "config",
    [*CONFIGS, ScheduleConfig(stages=1, lag=True), ScheduleConfig(fractional_timesteps=True)],
)
@pytest.mark.parametrize("solver", ["unipc", "euler", "renoise"])
def test_json_round_trip(config, solver):
    data = config.to_json(solver)
    assert ScheduleConfig.from_json(data) == config
    assert solver_from_json(data) == solver


def test_oracle_reads_and_writes_our_json(tmp_path):
    law = ShiftLaw(kind="linear", max_shift=1.5, base_tokens=128)
    config = ScheduleConfig(dynamic=law, gamma=0.25)
    for solver, kind in (("unipc", HeliosScheduler), ("renoise", HeliosDMDScheduler)):
        kind.from_config(config.to_json(solver)).save_pretrained(tmp_path)
        import json

        data = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert ScheduleConfig.from_json(data) == config
        assert solver_from_json(data) == solver


def test_published_json_means_published_shift():
    published = {"_class_name": "HeliosDMDScheduler", "use_dynamic_shifting": True}
    config = ScheduleConfig.from_json(published)
    assert config.lag
    assert config.dynamic == LINEAR
    assert ScheduleConfig.from_json({"use_dynamic_shifting": True}).dynamic == EXPONENTIAL
    assert not ScheduleConfig.from_json({**published, "shift_mode": "consistent"}).lag
    assert "shift_mode" not in config.to_json("renoise")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type"),
        ({"solver_order": 3}, "solver_order"),
        ({"solver_type": "bh1"}, "solver_type"),
        ({"disable_corrector": [0]}, "disable_corrector"),
        ({"shift_mode": "other"}, "shift_mode"),
        ({"_class_name": "DDIMScheduler"}, "_class_name"),
        ({"scheduler_type": "heun"}, "scheduler_type"),
        ({"use_dynamic_shifting": True, "time_shift_type": "cubic"}, "kind"),
    ],
)
def test_json_that_is_not_implemented(data, named):
    with pytest.raises(ValueError, match=named):
        ScheduleConfig.from_json(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_train_timesteps": 1},
        {"shift": 0.0},
        {"shift": 2.0, "dynamic": LINEAR},
        {"gamma": 0.5},
        {"stages": 0},
        {"stages": 2},
        {"stage_range": (0, 0.7, 0.6, 1)},
    ],
)
def test_configs_without_meaning(fields):
    with pytest.raises(ValueError):
        ScheduleConfig(**fields)


@pytest.mark.parametrize(
    "fields", [{"kind": "cubic"}, {"base_tokens": 4096}, {"base_shift": 0.0}, {"max_mu": -1.0}]
)
def test_laws_without_meaning(fields):
    with pytest.raises(ValueError):
        ShiftLaw(**fields)


def test_steps_and_stages_are_checked():
    with pytest.raises(ValueError, match="steps"):
        flat_schedule(0, ScheduleConfig(), 540)
    with pytest.raises(ValueError, match="stage"):
        stage_schedule(2, 3, ScheduleConfig(), 540)


def test_drawn_levels_follow_their_law():
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    sigma = draw_sigma(n, mean=0.5, std=1.1, generator=generator)
    assert sigma.dtype == torch.float32
    assert sigma.min() > 0
    assert sigma.max() <= 1
    normal = torch.logit(sigma.double())
    assert normal.mean().item() == pytest.approx(0.5, abs=3 * 1.1 / math.sqrt(n))
    assert normal.std().item() == pytest.approx(1.1, abs=3 * 1.1 / math.sqrt(2 * n))

    even = draw_sigma(n, law="uniform", generator=generator)
    assert even.min() > 0
    assert even.mean().item() == pytest.approx(0.5, abs=3 / math.sqrt(12 * n))
    assert even.var().item() == pytest.approx(1 / 12, abs=1e-3)


def test_uniform_share_mixes_the_laws():
    """Levels below 0.01 hardly occur in the bell, so they count the uniform draws."""
    n, share = 200_000, 0.5
    generator = torch.Generator().manual_seed(0)
    sigma = draw_sigma(n, mean=3.0, std=0.1, uniform_share=share, generator=generator)
    low = (sigma < 0.5).float().mean().item()
    assert low == pytest.approx(share / 2, abs=3 * math.sqrt(0.25 * 0.75 / n))


def test_draws_repeat_with_their_generator():
    first, second = (
        draw_sigma(64, uniform_share=0.1, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="law"):
        draw_sigma(3, law="cubic")
    with pytest.raises(ValueError, match="uniform_share"):
        draw_sigma(3, uniform_share=1.5)


POINTS = [  # training specification, 5.1: stage, points of the first section, of a later one
    (0, (998.534, 902.218, 833.964, 783.066), (998.534, 833.964)),
    (1, (742.822, 640.004, 547.193, 462.995), (742.822, 547.193)),
    (2, (385.414, 328.625, 253.991, 151.531), (385.414, 253.991)),
]


@pytest.mark.parametrize(("stage", "first", "later"), POINTS)
def test_a_long_schedule_visits_every_few_step_time(stage, first, later):
    config = ScheduleConfig(dynamic=LINEAR)
    tokens = TOKENS["current"][stage]
    long = stage_schedule(20, stage, config, tokens, visit=4)
    plain = stage_schedule(20, stage, config, tokens)
    assert len(long) == 20 + 3  # the first point is shared
    assert (long.timesteps.diff() < 0).all()
    assert (long.sigmas.diff() < 0).all()
    for points, steps in ((first, 4), (later, 2)):
        few = stage_schedule(steps, stage, config, tokens, renoise=True)
        close(few.timesteps, points, 1e-3)
        for own, other in ((long.timesteps, few.timesteps), (long.sigmas, few.sigmas[:-1])):
            gaps = (own[:, None] - other).abs().amin(dim=0)
            assert gaps.max() < 1e-9
    missing = (plain.sigmas[:, None] - long.sigmas).abs().amin(dim=1)
    assert missing.max() < 1e-12


def test_a_cut_schedule_ends_at_zero_from_where_it_is():
    schedule = stage_schedule(4, 1, ScheduleConfig(dynamic=LINEAR), 2160, renoise=True)
    assert len(schedule.cut(2)) == 2
    close(schedule.cut(2).sigmas, [*schedule.sigmas[:2].tolist(), 0.0], 0)
    close(schedule.cut(4).sigmas, schedule.sigmas, 0)
