"""One process of a tiny run, for tests of whole runs and of several processes.

    python -m tests.training.worker DIR

Every process prints one line of JSON: what it trained on, where it ended, and a hash of the state.
Started with the same options by several processes, or by one, it is the same run.
"""

import dataclasses
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from tyro.conf import Positional

from harmonic_jax.cli.command import prepare_processor, run_as_process
from harmonic_jax.cli.options import FLAT, parse_options
from harmonic_jax.config import Config
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training import loop
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.evaluation import evaluate
from harmonic_jax.training.processes import ProcessOptions, is_primary, run_on_all
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import data_mesh, replicated, split_batch
from harmonic_jax.training.state import Variables
from harmonic_jax.training.step import PredictStep
from harmonic_jax.training.watchdog import StopSignal
from tests.data.fake_source import FakeSource
from tests.training.tiny import flip_bit_of_largest, mixed_images, run_config, wide_images

EVAL_COUNTS = (1, 9)


@dataclasses.dataclass(frozen=True)
class Options:
    run_dir: Positional[Path]
    steps: int = 8
    seed: int = 0
    save: Path | None = None
    more: bool = False
    """Also evaluations, and a store of checkpoints."""
    hang: int | None = None
    """Images after which process 1 hangs."""
    step_timeout: int = 600
    fail: Literal["alone", "together"] | None = None
    processes: Annotated[ProcessOptions, FLAT] = ProcessOptions()


@dataclasses.dataclass
class HangingSource(FakeSource):
    """Does not answer any more after some images."""

    num_answers: int = 0

    def image_bytes(self, index: int) -> bytes:
        self.num_answers -= 1
        if self.num_answers < 0:
            time.sleep(1000)
        return super().image_bytes(index)


def run(config: Config, train_source: DetectionSource | None = None) -> dict[str, Any]:
    """Trains, or goes on; where it came, on what, and a hash of the final state."""
    seen: list[list[int]] = []
    put = loop.put_batch

    def put_and_note(batch: Batch, mesh: Mesh) -> Batch:
        seen.append(batch.record_index.tolist())
        return put(batch, mesh)

    folder = RunFolder.of(config)
    loop.put_batch = put_and_note
    try:
        with folder.opened(config):
            result = loop.train(config, folder, train_source or wide_images(), wide_images())
    finally:
        loop.put_batch = put
    state = jax.device_get(result.state)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    return {
        "step": result.step,
        "stopped_by": result.stopped_by,
        "hash": digest.hexdigest(),
        "batches": seen,
        "metrics": result.evaluation and result.evaluation.metrics,
        "variables": state.variables,
    }


def oracle(mesh: Mesh) -> PredictStep:
    """Finds every object, a little beside where it is: scores that are neither 0 nor 1."""

    def predict(variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        truth = batch.ground_truth
        slot = jnp.arange(truth.labels.shape[1])[None, :]
        phase = jnp.sin(7.0 * batch.record_index[:, None] + 3.0 * slot)
        scale = jnp.tile(batch.scale[:, ::-1], 2)[:, None, :]
        found = Detections(
            boxes=(truth.boxes + 4.0 * phase[:, :, None]) / scale,
            scores=0.5 + 0.4 * phase,
            labels=truth.labels,
            valid=truth.valid & batch.is_real[:, None],
        )
        return found, batch.record_index

    everywhere = replicated(mesh)
    shardings = (everywhere, split_batch(mesh))
    return jax.jit(predict, in_shardings=shardings, out_shardings=everywhere)


def evaluations(config: Config) -> list[dict[str, Any]]:
    """Metrics, and detections per image, of data sets that no batch size divides."""
    mesh, results = data_mesh(), []
    predict_step = oracle(mesh)
    for source in map(mixed_images, EVAL_COUNTS):
        found = evaluate(predict_step, Variables({}, {}), source, config, mesh)
        ids, times = np.unique(found.detections.image_id, return_counts=True)
        assert ids.tolist() == [record.image_id for record in source.records]
        assert times.tolist() == [len(record.boxes) for record in source.records]
        results.append(found.metrics)
    return results


def check_store(folder: Path) -> None:
    """A store of several processes: replicated and split arrays, damage, a missing step."""
    mesh = data_mesh()

    def state(step: int) -> dict[str, Any]:
        values = np.arange(32, dtype=np.float32).reshape(8, 4) + step
        shardings = {"replicated": replicated(mesh), "split": split_batch(mesh)}
        return {name: jax.device_put(values, s) for name, s in shardings.items()}

    with CheckpointStore(folder) as store:
        for step in (1, 2, 3, 3):
            store.save(step, state(step), {"step": step})
        store.wait()
        assert store.steps() == (2, 3)
        if is_primary():
            flip_bit_of_largest(max(folder.glob("step_*")))
        run_on_all(lambda: None)
        restored = store.restore(state(0))
        assert restored.step == 2
        for name, leaf in state(2).items():
            assert restored.state[name].sharding == leaf.sharding, name
            parts = (restored.state[name].addressable_shards, leaf.addressable_shards)
            for a, b in zip(*parts, strict=True):
                np.testing.assert_array_equal(a.data, b.data)
    with StopSignal() as stop:  # that reaches one, and is known to all
        is_last = jax.process_index() == jax.process_count() - 1
        if is_last:
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested_anywhere()
        assert (stop.name == "SIGTERM") == is_last


def fail(how: str) -> int:
    """Process 1 cannot do its part: where the others wait for it, or while they go on."""

    def action() -> None:
        if jax.process_index() == 1:
            raise OSError("no space left on the moon")

    if how == "alone":
        action()
    run_on_all(action)
    return 0


def main() -> int:
    options = parse_options(Options, sys.argv[1:], prog="worker.py")
    prepare_processor()
    times = {"steps": options.steps, "seed": options.seed, "step_timeout": options.step_timeout}
    config = run_config(options.run_dir, **times)

    def body(console: Console) -> int:
        if options.fail:
            return fail(options.fail)
        source = wide_images()
        if options.hang is not None and jax.process_index() == 1:
            source = HangingSource(source.records, source.files, num_answers=options.hang)
        report = run(config, source)
        variables = report.pop("variables")
        if options.save is not None and is_primary():
            leaves = jax.tree_util.tree_leaves_with_path(variables)
            np.savez(options.save, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
        if options.more:
            check_store(options.run_dir / "store")
            report["evaluations"] = evaluations(config)
        print(json.dumps(report | {"devices": jax.device_count()}), flush=True)
        return 3 if report["metrics"] is None else 0

    return run_as_process(options.processes, body)


if __name__ == "__main__":
    sys.exit(main())
