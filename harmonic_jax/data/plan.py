"""Which images each step sees: a pure function of the seed and the step number.

Training. Every bucket (landscape or portrait) has an endless stream of its images: epoch after
epoch, all of them in a new random order. Consecutive pieces of `batch_size` images are its
batches. A batch belongs to the epoch in which it becomes full; what is left of an epoch opens the
bucket's first batch of the next one, so no image is lost and each occurs exactly once an epoch in
its stream. The batches of an epoch, from all buckets, are taken in random order. As batch j of a
bucket is known from j alone, so is any step, and a resumed run needs nothing but its step number.

The number of processes plays no part: a process takes its rows of the global batch.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from harmonic_jax.data.records import DataError, Record, is_trainable
from harmonic_jax.data.settings import DataConfig

# Last word of a random seed. SeedSequence fills up with zeros: a sample's (seed, step, row) is
# (seed, step, row, 0), so no purpose may use the tag 0.
_TAG_PERMUTATION, _TAG_BATCH_ORDER, _TAG_SHORT_SIDE = 1, 2, 3


class StepPlan(NamedTuple):
    """One global batch before any image is read.

    Attributes:
      bucket: position in `DataConfig.buckets`.
      indices: int64 [batch_size], positions in the records; -1 is a row without an image.
    """

    bucket: int
    short_side: int
    indices: np.ndarray


def local_rows(batch_size: int, *, process_index: int, process_count: int) -> range:
    """The rows of the global batch that a process loads: a contiguous piece, in process order.

    A ValueError where the batch cannot be divided equally.

    >>> local_rows(8, process_index=1, process_count=4)
    range(2, 4)
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a multiple of the number of processes, "
            f"{process_count}"
        )
    number = batch_size // process_count
    return range(process_index * number, (process_index + 1) * number)


class TrainPlan:
    """The training order. `plan[step]` works for every step >= 0, at the cost of one epoch's
    permutations, of which the last few are kept.

    Images without trainable objects are left out unless `config.keep_empty`; a DataError where no
    image is left. `seed` is in [0, 2**32).
    """

    def __init__(
        self, records: Sequence[Record], config: DataConfig, *, batch_size: int, seed: int
    ):
        trained = (
            (index, record)
            for index, record in enumerate(records)
            if config.keep_empty or is_trainable(record, config).any()
        )
        self._members = _group_by_bucket(trained, config)
        self.num_images = sum(map(len, self._members))
        if not self.num_images:
            raise DataError(
                f"none of the {len(records)} training images has an object to train on "
                "(data.keep_empty = True trains on images without objects)"
            )
        self._config, self._batch_size, self._seed = config, batch_size, seed
        self._batch_order = functools.lru_cache(maxsize=2)(self._draw_batch_order)
        self._permutation = functools.lru_cache(maxsize=8)(self._draw_permutation)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """The records that are trained on, int64 [num_images]."""
        return np.concatenate(self._members)

    def __getitem__(self, step: int) -> StepPlan:
        if step < 0:
            raise IndexError(f"step is {step}; it must be >= 0")
        epoch = self.epoch(step)
        bucket, batch = self._batch_order(epoch)[step - self.first_step(epoch)]
        config = self._config
        short_side = int(self._rng(step, 0, _TAG_SHORT_SIDE).choice(config.short_sides))
        rows = self._batch(int(bucket), int(batch))
        if config.resize == "warp":
            bucket = config.buckets.index(config.square(short_side))
        return StepPlan(int(bucket), short_side, rows)

    def epoch(self, step: int) -> int:
        """The epoch to which a step belongs, counted from 0."""
        # At most one batch a bucket is open at any time: the estimate is only ever too low.
        epoch = step * self._batch_size // self.num_images
        while self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch

    def first_step(self, epoch: int) -> int:
        """The first step whose batch belongs to `epoch`: all batches that became full before."""
        return sum(self._num_batches(bucket, epoch) for bucket in range(len(self._members)))

    def buckets_used(self, num_steps: int) -> tuple[int, ...]:
        """The buckets of which a batch comes before the end of the epoch of the last step."""
        if self._config.resize == "warp":
            return tuple(range(len(self._config.buckets)))
        epochs = self.epoch(num_steps - 1) + 1
        return tuple(b for b in range(len(self._members)) if self._num_batches(b, epochs))

    def _num_batches(self, bucket: int, epochs: int) -> int:
        """Batches of a bucket that are full after `epochs` epochs."""
        return epochs * len(self._members[bucket]) // self._batch_size

    def _draw_batch_order(self, epoch: int) -> np.ndarray:
        """(bucket, number of the batch in the bucket's stream) of each step of an epoch."""
        batches = [
            (bucket, batch)
            for bucket in range(len(self._members))
            for batch in range(
                self._num_batches(bucket, epoch), self._num_batches(bucket, epoch + 1)
            )
        ]
        return self._rng(epoch, 0, _TAG_BATCH_ORDER).permutation(np.array(batches))

    def _batch(self, bucket: int, batch: int) -> np.ndarray:
        positions = np.arange(batch * self._batch_size, (batch + 1) * self._batch_size)
        places = [divmod(int(position), len(self._members[bucket])) for position in positions]
        return np.array([self._permutation(bucket, epoch)[place] for epoch, place in places])

    def _draw_permutation(self, bucket: int, epoch: int) -> np.ndarray:
        return self._rng(epoch, bucket, _TAG_PERMUTATION).permutation(self._members[bucket])

    def _rng(self, first: int, second: int, tag: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, first, second, tag))


def plan_evaluation(
    records: Sequence[Record], config: DataConfig, *, batch_size: int
) -> list[StepPlan]:
    """The evaluation order: every image once, bucket after bucket, each in the records' order.

    The last batch of a bucket is filled up with -1. All processes see the same number of
    batches, and the same bucket at the same step. The short side is the last of
    `config.short_sides`.
    """
    steps = []
    for bucket, members in enumerate(_group_by_bucket(enumerate(records), config)):
        for start in range(0, len(members), batch_size):
            indices = np.full(batch_size, -1, np.int64)
            part = members[start : start + batch_size]
            indices[: len(part)] = part
            steps.append(StepPlan(bucket, config.short_sides[-1], indices))
    return steps


def _group_by_bucket(
    records: Iterable[tuple[int, Record]], config: DataConfig
) -> tuple[np.ndarray, ...]:
    """Record indices by bucket: landscape and square images in the first, portrait in the last."""
    groups: dict[tuple[int, int], list[int]] = {bucket: [] for bucket in config.buckets}
    for index, record in records:
        groups[config.bucket_of(record.height, record.width)].append(index)
    return tuple(np.array(group, np.int64) for group in groups.values())
