"""Records -> batches, in threads, in an order that a seed and a step number determine.

`plan` says which images a step sees, `sample` loads one of them, Grain keeps a few steps ahead and
in order. Every random draw of a sample comes from its seed, step and row, so threads, processes
and interruptions change nothing: to resume at step n, start at n.
"""

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from harmonic_jax.data.plan import StepPlan, TrainPlan, local_rows, plan_evaluation
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.resize import FILL_COLOUR
from harmonic_jax.data.sample import empty_batch, load_sample
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.structures import Batch

# Part of the fingerprint: raise it when a change here or below alters the batches.
PIPELINE_VERSION = 1
# Fields that change how a batch is made, but not what is in it.
_IMMATERIAL = {"format", "name", "root", "train_split", "eval_split", "eval_share", "num_threads"}
# Augmentations that PIPELINE_VERSION 1 came without: no part of it where they are off.
_NEW_CHANGES = {"mosaic", "large_scale_jitter", "copy_paste", "mixup", "erase"}
_BATCHES_AHEAD = 2


class LoaderError(RuntimeError):
    """A sample could not be loaded for a reason that is no property of its image."""


class BatchIterator(Iterator[Batch]):
    """Batches of this process, numpy arrays. Close it, or use it in a `with` statement.

    `report` counts what was remarkable in the batches handed out so far, bad images above all.
    """

    def __init__(self, batches: Any, pool: ThreadPoolExecutor, *, length: int):
        self.report = DataReport()
        self._length = length
        self._running = [batches]  # empty once closed
        # Threads hold no reference to this object: forgetting it stops them as well.
        self._finalizer = weakref.finalize(self, _stop, self._running, pool)

    def __len__(self) -> int:
        """Batches from the first to the last, however many were taken."""
        return self._length

    def __next__(self) -> Batch:
        if not self._running:
            raise StopIteration
        try:
            batch, reports = next(self._running[0])
        except BaseException:
            self.close()
            raise
        for report in reports:
            self.report.merge(report)
        return batch

    def close(self) -> None:
        """Stops the threads; iteration is over. Safe to call again."""
        self._finalizer()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stop(running: list[Any], pool: ThreadPoolExecutor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    # Let go of it too: Grain closes again when it is deleted, and fails if that is at exit.
    running.pop().close()


def train_batches(
    source: DetectionSource,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Iterates over the training batches of steps start_step, .., num_steps - 1.

    Args:
      source: its `image_bytes` is called from several threads.
      batch_size: images in a global batch, a multiple of process_count.
      seed: of the order and of every augmentation, in [0, 2**31).
      start_step: where to begin: the steps before it are not computed.
      process_index, process_count: this process loads its contiguous share of every batch.

    Returns:
      Batches with batch_size / process_count images, all of one bucket at a time.

    Raises:
      DataError: at once where there is nothing to train on.
      LoaderError: while iterating, with the file's name, on an unforeseen failure. Bad images
        are not one: they leave a blank row and a line in the report.
    """
    plan = TrainPlan(source.records, config, batch_size=batch_size, seed=seed)
    rows = local_rows(batch_size, process_index=process_index, process_count=process_count)
    return _iterate(source, config, plan, rows, range(start_step, num_steps), seed)


def eval_batches(
    source: DetectionSource,
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Iterates over every image once, without augmentation; every process gets as many batches.

    Rows that only fill up the last batch of a bucket have `is_real` False and record index -1.
    Ground truth has no masks: they are scored in original pixels, from the records.
    Arguments and errors are those of `train_batches`.
    """
    plan = plan_evaluation(source.records, config, batch_size=batch_size)
    rows = local_rows(batch_size, process_index=process_index, process_count=process_count)
    return _iterate(source, config, plan, rows, range(len(plan)), None)


def train_shapes(
    source: DetectionSource, config: DataConfig, *, batch_size: int, num_steps: int
) -> list[tuple[int, int]]:
    """The (height, width) in which training batches come: of the buckets that have images."""
    plan = TrainPlan(source.records, config, batch_size=batch_size, seed=0)
    return [config.buckets[bucket] for bucket in plan.buckets_used(num_steps)]


def eval_shapes(
    source: DetectionSource, config: DataConfig, *, batch_size: int
) -> list[tuple[int, int]]:
    """The (height, width) in which evaluation batches come."""
    plan = plan_evaluation(source.records, config, batch_size=batch_size)
    return [config.buckets[bucket] for bucket in sorted({step.bucket for step in plan})]


def order_fingerprint(
    source: DetectionSource, config: DataConfig, *, batch_size: int, seed: int
) -> str:
    """SHA-256 of all that determines the training batches, as hexadecimal digits.

    A run may be resumed only with an equal fingerprint. The number of processes or threads and
    the place of the data are no part of it: they do not change the global batches.
    """
    settings = dataclasses.asdict(config)
    off = {name for name in _NEW_CHANGES if not getattr(config.augment, name)}
    settings["augment"] = {n: v for n, v in settings["augment"].items() if n not in off}
    facts = {
        "pipeline": PIPELINE_VERSION,
        "source": source.fingerprint(),
        "config": {name: settings[name] for name in settings if name not in _IMMATERIAL},
        "fill": FILL_COLOUR,
        "batch_size": batch_size,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _iterate(
    source: DetectionSource,
    config: DataConfig,
    plan: TrainPlan | list[StepPlan],
    rows: range,
    steps: range,
    seed: int | None,
) -> BatchIterator:
    import grain  # half a second to import: not for those who only read records

    partners = plan.images if isinstance(plan, TrainPlan) else None
    pool = ThreadPoolExecutor(config.num_threads, thread_name_prefix="grain-samples")

    def load_batch(step: int) -> tuple[Batch, list[DataReport]]:
        bucket, short_side, indices = plan[step]
        masks = config.masks and seed is not None
        batch = empty_batch(len(rows), config.buckets[bucket], config, masks=masks)

        def load(row: int) -> DataReport:
            index = int(indices[row])
            rng = None if seed is None else np.random.default_rng((seed, step, row))
            try:
                return load_sample(
                    source, index, config, batch, row - rows.start,
                    short_side=short_side, rng=rng, partners=partners,
                )  # fmt: skip
            except Exception as error:
                name = source.records[index].file_name
                raise LoaderError(f"{name}: {type(error).__name__}: {error}") from error

        return batch, list(pool.map(load, rows))

    # All batches ahead are loaded at once, so that small ones keep all threads busy too.
    ahead = _BATCHES_AHEAD + config.num_threads // len(rows)
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    batches = grain.MapDataset.source(steps).map(load_batch).to_iter_dataset(options)
    running = iter(batches)
    running.start_prefetch()  # now, not at the first batch: the caller compiles meanwhile
    return BatchIterator(running, pool, length=len(steps))
