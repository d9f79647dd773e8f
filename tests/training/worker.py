"""One process of a tiny run, for tests of several processes.

Every process prints one line of JSON: what it trained on, where it ended, and a hash of the state.
Started with the same options by several processes, or by one, it is the same run.
"""

import dataclasses
import hashlib
import itertools
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

from harmonic_jax.cli.command import run_as_process, use_both_cores
from harmonic_jax.cli.options import FLAT, parse_options
from harmonic_jax.config import Config, OptimConfig
from harmonic_jax.data import loader
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
from tests.data.fake_source import FakeSource, encode, make_record, noise
from tests.training.run_tiny import tiny_run_config
from tests.training.tiny import flip_bit_of_largest, tiny_config

BATCH = 8
NUM_IMAGES = 24  # 16 landscape, 8 portrait: an epoch is 3 whole batches
EVAL_COUNTS = (1, 7, 8, 9, 40)


@dataclasses.dataclass(frozen=True)
class Options:
    run_dir: Positional[Path]
    steps: int = 12
    seed: int = 0
    save: Path | None = None
    more: bool = False
    """Also the order, and evaluations."""
    full: bool = False
    """Another detector, both orientations."""
    hang: int | None = None
    """Images after which process 1 hangs."""
    step_timeout: int = 600
    fail: Literal["alone", "together"] | None = None
    processes: Annotated[ProcessOptions, FLAT] = ProcessOptions()


def config_of(options: Options) -> Config:
    """The tiny run, by SGD; with `--full` all levels, AdamW and an average."""
    config = tiny_run_config(options.run_dir, steps=options.steps, batch_size=BATCH)
    data = dataclasses.replace(config.data, max_side=96, short_sides=(64,))
    train = dataclasses.replace(config.train, step_timeout=options.step_timeout, seed=options.seed)
    config = dataclasses.replace(config, data=data, train=train)
    if options.full:
        return dataclasses.replace(config, model=tiny_config().model)
    optim = OptimConfig(learning_rate=0.01, warmup_steps=0, schedule="constant")
    return dataclasses.replace(config, optim=optim)


def mixed_images(count: int) -> FakeSource:
    """Landscape and portrait images in turn, with one to three objects."""
    records, files = [], []
    for i in range(count):
        height, width = (40, 60) if i % 3 else (60, 40)
        boxes = ((4 + i % 7, 6, 30, 34), (12, 10, 38, 28), (2, 20, 20, 39))[: 1 + i % 3]
        records.append(make_record(i, height=height, width=width, boxes=boxes))
        files.append(encode(noise(height, width, seed=i)))
    return FakeSource(records, files)


@dataclasses.dataclass
class HangingSource(FakeSource):
    """Does not answer any more after some images."""

    num_answers: int = 0

    def image_bytes(self, index: int) -> bytes:
        self.num_answers -= 1
        if self.num_answers < 0:
            time.sleep(1000)
        return super().image_bytes(index)


def wide_images(source: FakeSource) -> FakeSource:
    """Those of one orientation: half of the programs to compile."""
    is_wide = [record.width > record.height for record in source.records]
    return FakeSource(
        list(itertools.compress(source.records, is_wide)),
        list(itertools.compress(source.files, is_wide)),
    )


def order_of_both(config: Config) -> list[tuple[list[int], list[int]]]:
    """(shape, record indices) of the batches that this process loads of images of both forms."""
    batches = loader.train_batches(
        mixed_images(NUM_IMAGES),
        config.data,
        batch_size=BATCH,
        seed=config.train.seed,
        num_steps=12,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with batches:
        return [(list(b.images.shape[1:3]), b.record_index.tolist()) for b in batches]


def record_batches() -> list[tuple[list[int], list[int]]]:
    """Notes (shape, record indices) of every training batch this process hands to its devices."""
    seen: list[tuple[list[int], list[int]]] = []
    put = loop.put_batch

    def put_and_note(batch: Batch, mesh: Mesh) -> Batch:
        seen.append((list(batch.images.shape[1:3]), batch.record_index.tolist()))
        return put(batch, mesh)

    loop.put_batch = put_and_note
    return seen


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

    return jax.jit(
        predict,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
    )


def evaluations(config: Config) -> list[dict]:
    """Metrics, and detections per image, of data sets that no batch size divides."""
    mesh = data_mesh()
    predict_step = oracle(mesh)
    results = []
    for count in EVAL_COUNTS:
        source = mixed_images(count)
        found = evaluate(predict_step, Variables({}, {}), source, config, mesh)
        ids, times = np.unique(found.detections.image_id, return_counts=True)
        expected = [len(record.boxes) for record in source.records]
        results.append(
            {
                "metrics": found.metrics,
                "is_complete": ids.tolist() == [r.image_id for r in source.records],
                "is_once": times.tolist() == expected,
            }
        )
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
        if jax.process_index() == jax.process_count() - 1:
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested_anywhere()
        assert (stop.name == "SIGTERM") == (jax.process_index() == jax.process_count() - 1)


def train_and_print(options: Options, console: Console) -> int:
    seen = record_batches()
    config = config_of(options)
    run_dir = RunFolder.of(config)
    source = mixed_images(NUM_IMAGES)
    eval_source = wide_images(source)
    train_source = source if options.full else eval_source
    if options.hang is not None and jax.process_index() == 1:
        train_source = HangingSource(
            train_source.records, train_source.files, num_answers=options.hang
        )
    with run_dir.opened(config):
        result = loop.train(config, run_dir, train_source, eval_source)
    state = jax.device_get(result.state)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    if options.save is not None and is_primary():
        leaves = jax.tree_util.tree_leaves_with_path(state.variables)
        np.savez(options.save, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
    if options.more:
        check_store(options.run_dir / "store")
    metrics = None if result.evaluation is None else result.evaluation.metrics
    report = {
        "process": jax.process_index(),
        "devices": jax.device_count(),
        "step": result.step,
        "stopped_by": result.stopped_by,
        "hash": digest.hexdigest(),
        "batches": seen,
        "metrics": metrics,
        "order": order_of_both(config) if options.more else [],
        "evaluations": evaluations(config) if options.more else [],
    }
    print(json.dumps(report), flush=True)
    return 3 if result.evaluation is None else 0


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
    use_both_cores()

    def body(console: Console) -> int:
        return fail(options.fail) if options.fail else train_and_print(options, console)

    return run_as_process(options.processes, body)


if __name__ == "__main__":
    sys.exit(main())
