from helios.data.scenes import render, sample_scenes
from helios.evaluation.metrics import JUDGE_FOLDER, load_judge
from helios.evaluation.reading import verdicts
from helios.evaluation.train_judge import judge_config


def test_bundled_judge_reads_renders_of_unseen_combinations() -> None:
    judge = load_judge()
    scenes = sample_scenes(6, seed=77, split="test")
    readings = judge.read(render(scenes, start=33))
    asked = ("colour set", "count", "shape", "motion", "setting", "camera")
    right = [
        verdicts(scene, reading)[name]
        for scene, reading in zip(scenes, readings, strict=True)
        for name in asked
    ]
    assert sum(right) >= 32, f"{sum(right)} of {len(right)} right"


def test_bundled_judge_speaks_of_today_s_scenes_and_is_small() -> None:
    assert load_judge().config == judge_config()
    assert sum(file.stat().st_size for file in JUDGE_FOLDER.iterdir()) <= 0.7 * 2**20
