"""A predict step with test-time augmentation, for `training.evaluation.evaluate`."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sample import empty_batch, load_sample
from harmonic_jax.inference.augmentation import TTA, make_merge, make_view_step
from harmonic_jax.inference.batches import shapes_at
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.sharding import put_batch
from harmonic_jax.training.state import Detector, Variables


class AugmentedPredictions:
    """Looks at the images of a batch at every scale, each loaded anew from its file.

    It may be called like what `training.step.make_predict_step` makes, with the batches of
    `evaluate`, on every process alike.

    Args:
      detector: the model and its config.
      mesh: all devices.
      source: where the images of the batches come from.
      tta: the looks, and how they are merged.

    Raises:
      ConfigError: the detector cannot be looked through like that.
    """

    def __init__(self, detector: Detector, mesh: Mesh, source: DetectionSource, tta: TTA) -> None:
        self._mesh, self._source, self._tta = mesh, source, tta
        self._data = detector.config.data
        for bucket in self._data.buckets:
            for scale in tta.scales:
                shapes_at(self._data, bucket, scale)  # refuses now what cannot be
        self._step = make_view_step(detector, mesh)
        self._merge = make_merge(tta, detector.config, mesh)

    def __call__(self, variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        views = []
        for scale in self._tta.scales:
            looked_at = batch if scale == 1.0 else self._load(batch, scale)
            views += [self._step(variables, looked_at, flip) for flip in self._tta.flips]
        return self._merge(views, batch.record_index)

    def _load(self, batch: Batch, scale: float) -> Batch:
        """The same images at another size."""
        _, height, width, _ = batch.images.shape
        shapes = shapes_at(self._data, (height, width), scale)
        indices = _local_rows(batch.record_index)
        loaded = empty_batch(len(indices), shapes.bucket, self._data)

        def load(row: int) -> None:
            load_sample(
                self._source,
                int(indices[row]),
                shapes.data,
                loaded,
                row,
                short_side=shapes.data.short_sides[-1],
                rng=None,
            )

        with ThreadPoolExecutor(self._data.num_threads) as pool:
            list(pool.map(load, range(len(indices))))
        return put_batch(loaded, self._mesh)


def _local_rows(record_index: jax.Array) -> np.ndarray:
    """The record indices of the rows that this process holds, in their order."""
    shards = {shard.index[0].start or 0: shard.data for shard in record_index.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
