"""What is saved when something fails: the state before its evaluation, and the best so far."""

import dataclasses
import math
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.log import NonFiniteLossError, read_metrics
from harmonic_jax.training.state import TrainState, Variables
from tests.training.quick_run import quick_run
from tests.training.tiny import flip_bit_of_largest

# Save, then evaluate.


def test_a_step_whose_evaluation_fails_is_saved(tmp_path: Path) -> None:
    """Whoever mends what failed goes on from there; until then every start says it again."""
    run = quick_run(tmp_path)

    def fail(step: int) -> float:
        if step == 4:
            raise ValueError("two categories are called 'cat'")
        return 0.5

    run.evaluate = fail
    for _ in range(2):
        with pytest.raises(ValueError, match="two categories"):
            run()
        assert run.steps == (2, 4)
        assert run.best == (2, 0.5)
    run.evaluate = lambda step: 0.75
    assert run().step == 6
    assert (run.steps, run.best) == ((4, 6), (6, 0.75))
    rows = [(row["step"], row["kind"]) for row in read_metrics(run.run_dir.log)]
    assert rows.count((4, "train")) == rows.count((4, "eval")) == 1


def test_a_signal_at_a_step_that_evaluates_saves_and_stops(tmp_path: Path) -> None:
    run = quick_run(tmp_path)

    def stop(state: TrainState) -> TrainState:
        if int(state.step) == 3:
            signal.raise_signal(signal.SIGTERM)
        return state

    run.update = stop
    result = run()
    assert (result.step, result.stopped_by, result.evaluation) == (4, "SIGTERM", None)
    assert (run.steps, run.best[0]) == ((2, 4), 2)
    run.update = lambda state: state
    assert run().evaluation is not None
    assert [row["step"] for row in read_metrics(run.run_dir.log) if row["kind"] == "eval"] == [
        2,
        4,
        6,
    ]


def test_the_steps_of_a_profile_are_traced_once(tmp_path: Path) -> None:
    run = quick_run(tmp_path, profile=(2, 3), steps=4)
    written = []

    def look(state: TrainState) -> TrainState:
        written.append(len(list(run.run_dir.path.glob("profile/**/*.xplane.pb"))))
        return state

    run.update = look
    for _ in range(2):
        run()
        assert written == [0, 0, 0, 1]  # before each step: it is there once its last one is done
        assert len(list(run.run_dir.path.glob("profile/**/*.xplane.pb"))) == 1


def test_a_profile_that_a_signal_cuts_short_is_written(tmp_path: Path) -> None:
    """And the process can profile another run."""
    run = quick_run(tmp_path / "a", profile=(2, 6), steps=6)

    def stop(state: TrainState) -> TrainState:
        if int(state.step) == 3:
            signal.raise_signal(signal.SIGTERM)
        return state

    run.update = stop
    assert run().stopped_by == "SIGTERM"
    other = quick_run(tmp_path / "b", profile=(1, 2), steps=2)
    assert other().step == 2
    for each in (run, other):
        assert len(list(each.run_dir.path.glob("profile/**/*.xplane.pb"))) == 1


def test_a_profile_that_cannot_be_written_costs_no_step(tmp_path: Path, capsys) -> None:
    run = quick_run(tmp_path, profile=(2, 3), steps=4)
    run.run_dir.path.mkdir(exist_ok=True)
    run.update = lambda state: ((run.run_dir.path / "profile").touch(), state)[1]
    assert run().step == 4
    assert "the profile is not written to " in capsys.readouterr().out


# What is sealed is finite.


@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, step: int) -> None:
    run = quick_run(tmp_path)
    run.loss = lambda number: math.nan if number == step else 1.0
    with pytest.raises(NonFiniteLossError, match=f"the loss is not finite at step {step}: "):
        run()
    assert run.steps == ((2, 4) if step == 6 else (2,))


@pytest.mark.parametrize("part", ["params", "model_state", "opt_state", "ema"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, part: str) -> None:
    """The loss is that of the parameters before the update, and finite still."""
    run = quick_run(tmp_path)
    broken = jnp.array([1.0, math.inf, 1.0])

    def diverge(state: TrainState) -> TrainState:
        if int(state.step) < 3:
            return state
        match part:
            case "opt_state":
                return dataclasses.replace(state, opt_state={"m": broken})
            case "ema":
                return dataclasses.replace(state, ema=Variables({"w": broken}, {}))
        changed = dataclasses.replace(state.variables, **{part: {"x": broken}})
        return dataclasses.replace(state, variables=changed)

    run.update = diverge
    with pytest.raises(CheckpointError, match=rf"leaf '.*{part}.*' is not finite .* step 4, which"):
        run()
    assert run.steps == (2,)
    assert run.best[0] == 2


# The best.


@pytest.mark.parametrize(
    ("aps", "best"),
    [
        ((0.1, 0.3, 0.2), (4, 0.3)),
        ((0.3, 0.1, 0.3), (6, 0.3)),  # of two that are as good, the newer
        ((0.0, 0.0, 0.0), (6, 0.0)),
        ((0.0, -1.0, -1.0), (2, 0.0)),
        ((-1.0, -1.0, -1.0), (6, -1.0)),  # no objects
        ((math.nan, math.nan, math.nan), (6, -1.0)),
    ],
)
def test_the_best_is_the_newest_of_those_with_the_highest_ap(
    tmp_path: Path, aps: tuple[float, ...], best: tuple[int, float]
) -> None:
    run = quick_run(tmp_path)
    run.evaluate = lambda step: aps[step // 2 - 1]
    run()
    assert run.best == best


@pytest.mark.parametrize("what", ["manifest", "arrays", "AP"])
def test_a_damaged_best_counts_as_none_and_is_replaced(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = quick_run(tmp_path, steps=6, eval_every=4)
    run.evaluate = lambda step: 0.9 if step == 4 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        run()
    (folder,) = run.run_dir.best.glob("step_*")
    if what == "manifest":
        raw = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(raw.replace(b'"AP": 0.9', b'"AP": 0.8'))
    elif what == "arrays":
        flip_bit_of_largest(folder / "arrays")
    else:
        with CheckpointStore(run.run_dir.best, keep=1) as store:
            config = store.read_metadata()
            store.save(4, {"leaf": np.ones(1)}, config | {"AP": "0.95"})
    run.evaluate = lambda step: 0.1
    run()
    assert run.best == (6, 0.1)
    said = capsys.readouterr().out.count("no undamaged checkpoint in")
    assert said == (0 if what == "AP" else 1)
    assert [path.name for path in run.run_dir.best.glob("step_*")] == ["step_00000006"]


def test_a_finished_run_started_again_leaves_its_best_as_it_is(tmp_path: Path) -> None:
    run = quick_run(tmp_path)
    run()
    before = [(path, path.stat().st_mtime_ns) for path in sorted(run.run_dir.best.rglob("*"))]
    run()
    after = [(path, path.stat().st_mtime_ns) for path in sorted(run.run_dir.best.rglob("*"))]
    assert after == before
