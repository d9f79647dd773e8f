"""The grid of runs, and the tables made of its results."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ablation_figures import draw_density, draw_gains, draw_starts
from benchmarks.ablation_grid import Grid, GridError, load_grid
from benchmarks.ablation_measure import CURVE, density, resampled_metrics, training_curve
from benchmarks.ablation_recipe import rival
from benchmarks.ablation_results import (
    METRICS,
    paired_difference,
    read_results,
    stretch,
)
from benchmarks.ablation_runner import check_same, config_of
from benchmarks.ablation_tables import tables
from harmonic_jax.config import RIVALS
from harmonic_jax.metrics.consistency.sampling import OVERALL, sample_metrics
from harmonic_jax.metrics.consistency.study import Study
from tests.metrics.synthetic import detector_output

GRIDS = sorted((Path(__file__).parent.parent.parent / "benchmarks" / "grids").glob("*.py"))
GRID = Grid(
    title="Parts",
    cases={"scenes": ("configs/retinanet_r18_scenes.py",)},
    arms={"baseline": ("--loss.no-hardet",), "hardet": ()},
    baseline="baseline",
    seeds=(0, 1),
    common=("--train.steps", "10"),
)


def row(arm: str, seed: int, ap: float, **more: Any) -> dict[str, Any]:
    """A finished run; its resamples are its number plus -.01, 0 and .01."""
    spread = [ap, ap - 0.01, ap, ap + 0.01]
    found = {"name": f"scenes-{arm}-seed{seed}", "case": "scenes", "arm": arm, "seed": seed}
    found |= {"status": "done", "revision": "a", "metrics": dict.fromkeys(METRICS, ap)}
    found |= {
        "resamples": dict.fromkeys(METRICS, spread),
        "config": {},
        "density": [[1, 0], [2, 3]],
    }
    curve = {"step": [20, 40]} | {name: [1.0, 0.5] for name in CURVE}
    return found | {"curve": curve} | more


def test_the_options_of_a_rival_make_its_losses() -> None:
    for name, loss in RIVALS.items():
        grid = dataclasses.replace(GRID, arms={"baseline": rival(name)}, seeds=(0,))
        assert config_of(grid.runs()[0])["loss"] == dataclasses.asdict(loss) | {
            "type": "LossConfig"
        }, name


def test_runs_of_a_grid() -> None:
    runs = GRID.runs()
    assert [run.name for run in runs] == [
        "scenes-baseline-seed0",
        "scenes-hardet-seed0",
        "scenes-baseline-seed1",
        "scenes-hardet-seed1",
    ]
    assert runs[0].args == (
        "configs/retinanet_r18_scenes.py", "--train.steps", "10", "--loss.no-hardet",
    )  # fmt: skip
    assert not config_of(runs[0])["loss"]["hardet"]
    assert config_of(runs[3])["train"]["seed"] == 1
    assert GRID.runs("*hardet-seed?") == [runs[1], runs[3]]
    with pytest.raises(GridError, match="no run is named 'plain'; the first is scenes-baseline"):
        GRID.runs("plain")
    with pytest.raises(GridError, match="cannot compare with 'plain'"):
        dataclasses.replace(GRID, baseline="plain")
    once = dataclasses.replace(GRID, num_seeds={"hardet": 1}).runs()
    assert [run.name for run in once] == [run.name for run in runs[:3]]
    with pytest.raises(GridError, match=r"num_seeds names \['plain'\]"):
        dataclasses.replace(GRID, num_seeds={"plain": 1})


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_the_grids_has_a_legal_config(path: Path) -> None:
    grid = load_grid(path)
    configs = [json.dumps(config_of(run), sort_keys=True) for run in grid.runs()]
    assert len(set(configs)) == len(configs) >= 2  # no two arms are the same


def test_the_paired_difference_is_that_of_equal_images_and_seeds() -> None:
    base = {0: row("baseline", 0, 0.3), 1: row("baseline", 1, 0.5)}
    same_gain = {0: row("hardet", 0, 0.32), 1: row("hardet", 1, 0.52)}
    # The images' effect is in both arms, and the seeds gain the same: nothing is left to vary.
    gain = paired_difference(same_gain, base, "AP")
    np.testing.assert_allclose((gain.mean, gain.low, gain.high), 0.02)
    assert (gain.sign, gain.num_seeds) == (1, 2)
    other = {0: row("hardet", 0, 0.30), 1: row("hardet", 1, 0.54)}
    gain = paired_difference(other, base, "AP")
    # Two seeds drawn of two: both the first (a quarter), one of each, both the second.
    reach = 0.02 * np.sqrt(2) * 12.7062 / 1.95996
    np.testing.assert_allclose(
        (gain.mean, gain.low, gain.high), (0.02, 0.02 - reach, 0.02 + reach), rtol=1e-4
    )
    assert gain.sign == 0
    assert paired_difference({2: row("hardet", 2, 0.3)}, base, "AP") is None
    alone = {1: row("hardet", 1, 0.6, resamples={"AP": [0.6, *np.linspace(0.5, 0.7, 201)]})}
    flat = {1: row("baseline", 1, 0.5, resamples={"AP": [0.5] * 202})}
    single = paired_difference(alone, flat, "AP")
    np.testing.assert_allclose(
        (single.mean, single.low, single.high), (0.1, 0.005, 0.195), atol=2e-3
    )
    assert (single.sign, single.num_seeds) == (0, 1)
    assert dataclasses.replace(single, low=0.01).sign == 0  # another training might say otherwise
    unknown = {1: row("hardet", 1, 0.6, resamples={"AP": [None] * 4})}
    assert paired_difference(unknown, base, "AP") is None


@pytest.mark.parametrize(("num_seeds", "image_sd"), [(5, 0.0), (5, 2.0), (3, 0.0)])
def test_intervals_cover_as_often_as_they_say(num_seeds: int, image_sd: float) -> None:
    """Seeds of a normal distribution, and images that move all of them alike."""
    rng, covered, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        seeds, images = rng.normal(size=num_seeds), image_sd * rng.normal(size=201)
        images[1:] += images[0]  # resamples lie about what these images give
        base = {s: row("baseline", s, 0.0, resamples={"AP": [0.0] * 201}) for s in range(num_seeds)}
        runs = {
            s: row("hardet", s, 0.0, resamples={"AP": [float(seeds[s] + x) for x in images]})
            for s in range(num_seeds)
        }
        gain = paired_difference(runs, base, "AP")
        covered += gain.low <= 0.0 <= gain.high
    # A binomial share of 200 at .95 is within .91 and .985 in 99 of 100 tries; drawing seeds from
    # so few without stretching would cover .84 (five) and .75 (three).
    assert 0.91 <= covered / trials <= 0.995
    assert stretch(num_seeds) > 1.5


def test_tables_show_every_run(tmp_path: Path) -> None:
    rows = [row("baseline", s, 0.30 + s / 100) for s in (0, 1)]
    rows += [row("hardet", 0, 0.32)]
    rows += [row("hardet", 1, 0.0) | {"status": "diverged", "message": "step 7", "metrics": {}}]
    text = tables(rows, GRID)
    assert "| baseline | 2 | 0.305 ± 0.007 |" in text
    assert "| hardet | 1, 1 diverged | 0.320 |" in text
    assert "| hardet | 1: images alone | +0.020 [+0.020, +0.020] |" in text
    assert "minus baseline" not in tables(rows[:2], GRID)
    rows[-1] = row("hardet", 1, 0.33)
    assert "| hardet | 2 | **+0.020** [+0.020, +0.020] |" in tables(rows, GRID)
    both = tables(rows, dataclasses.replace(GRID, references=("hardet",)))
    assert both.index("| minus baseline |") < both.index("| minus hardet |")
    assert "| baseline | 2 | **-0.020** [-0.020, -0.020] |" in both
    draw_gains(rows, GRID, tmp_path / "gains.png")
    draw_density(rows, "scenes", ["baseline", "hardet"], tmp_path / "density.png")
    draw_starts(rows, "scenes", ["baseline", "hardet"], tmp_path / "starts.png", steps=100)
    assert all((tmp_path / f"{n}.png").stat().st_size > 1000 for n in ("gains", "density"))
    with pytest.raises(GridError, match="no seed with all of"):
        draw_density(rows, "scenes", ["baseline", "other"], tmp_path / "none.png")


def test_results_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == []

    def write(*lines: dict[str, Any]) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(row("baseline", 0, 0.3), row("hardet", 0, 0.3, revision="b"))
    with pytest.raises(GridError, match=r"mixes results of the code revisions \['a', 'b'\]"):
        read_results(path)
    write(row("baseline", 0, 0.3), row("baseline", 0, 0.4))
    with pytest.raises(GridError, match="line 2: scenes-baseline-seed0 is there already"):
        read_results(path)
    path.write_text('{"name": "x"\n')
    with pytest.raises(GridError, match="line 1 is not JSON"):
        read_results(path)
    config = config_of(GRID.runs()[0])
    known = row("baseline", 0, 0.3, config=config)
    check_same(known, config, "a", path)
    with pytest.raises(GridError, match="of the code a, and the code is now c"):
        check_same(known, config, "c", path)
    changed = config | {"train": config["train"] | {"steps": 11}}
    with pytest.raises(GridError, match=r"with another config \(its \['train'\]\)"):
        check_same(known, changed, "a", path)


def test_resamples_are_the_reports() -> None:
    truth, found = detector_output(3, num_images=30, num_classes=3, objects=4, detections=20)
    _, raw = detector_output(3, num_images=30, num_classes=3, objects=4, detections=40)
    case = Study(truth, found, raw)
    expected = sample_metrics(case, resamples=20, seed=0).values[OVERALL, ""]
    values = resampled_metrics(case, 20)
    for metric in METRICS:
        np.testing.assert_allclose(values[metric], expected[metric], rtol=1e-12)
    counts = np.array(density(case.pairs))
    assert counts.sum() == len(case.pairs)
    assert counts[0].sum() == (case.pairs.iou < 0.04).sum()  # rows are IoU
    assert counts[:, -1].sum() == (case.pairs.score >= 0.96).sum()


def test_the_curve_is_that_of_the_log() -> None:
    log = [{"kind": "train", "step": 20} | dict.fromkeys(CURVE, 0.123456)]
    log += [{"kind": "eval", "step": 20, "AP": 0.5}]
    assert training_curve(log) == {"step": [20]} | {name: [0.1235] for name in CURVE}
