"""`harmonic_jax.load(RUN)`: a trained detector that takes images as they are."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import numpy as np

from harmonic_jax.checks import check_count, check_number
from harmonic_jax.config import BATCH_SIZES, Config
from harmonic_jax.detectors.parts.selection import non_finite_images
from harmonic_jax.inference.augmentation import TTA, AugmentedPredict
from harmonic_jax.inference.detections import ImageDetections, detections_of
from harmonic_jax.inference.images import ImageLike, make_batch, read_image, shapes_at
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.saved_run import SavedRun, open_detector
from harmonic_jax.training.sharding import put_batch, replicated, single_mesh
from harmonic_jax.training.state import Detector, build_detector
from harmonic_jax.training.step import make_predict_step

_T = TypeVar("_T")


def load(
    run: str | os.PathLike[str],
    *,
    last: bool = False,
    nms: str | None = None,
    nms_sigma: float | None = None,
    batch_size: int = 1,
    upright: bool = True,
) -> "LoadedDetector":
    """Opens a run, trained here or imported, to be used on images.

        detector = harmonic_jax.load("runs/ssd_vgg_scenes")
        found = detector("photo.jpg")
        for box, score, name in zip(found.boxes, found.scores, found.names): ...

    Args:
      run: the folder of the run, what `export-weights` wrote of one, or a name:
        `retinanet_lite0_voc` comes with this package, `hf:OWNER/NAME` is on the Hub.
      last: the newest checkpoint instead of the best one.
      nms: another suppression than the run's: class, agnostic, soft_linear, soft_gaussian, matrix
        or weighted.
      nms_sigma: how soft soft_gaussian and matrix are; None: as in the run, by default 0.5.
      batch_size: images that the network takes at a time, >= 1.
      upright: turn image files as their EXIF orientation says.

    Raises:
      ConfigError: the folder holds no run, or a value is not legal.
      WeightsError: the file holds no detector, or a weight is NaN or inf.
      CheckpointError: the run has no undamaged checkpoint of that kind.
    """
    check_count("batch_size", batch_size, BATCH_SIZES)
    opened = open_detector(Path(run), sharding=replicated(single_mesh()), last=last)
    opened = with_nms(opened, nms, nms_sigma)
    return LoadedDetector(opened, batch_size=batch_size, upright=upright)


def with_nms(run: SavedRun, nms: str | None, sigma: float | None) -> SavedRun:
    """A run whose detector ends in another suppression; None: as it was.

    Raises:
      ConfigError: a value is not legal.
    """
    changes: dict[str, Any] = {"nms": nms, "nms_sigma": sigma}
    given = {name: value for name, value in changes.items() if value is not None}
    return with_postprocess(run, **given) if given else run


def with_postprocess(run: SavedRun, **changes: Any) -> SavedRun:
    """A run whose detector has other settings of what follows the network."""
    model: Any = run.config.model  # whichever: all have them
    settings = dataclasses.replace(model.postprocess, **changes)
    config = dataclasses.replace(run.config, model=dataclasses.replace(model, postprocess=settings))
    detector = build_detector(config, len(run.class_names))
    return dataclasses.replace(run, config=config, detector=detector)


class NonFiniteOutputError(WeightsError):
    """The network says NaN or infinity for an image: there is no telling what it shows.

    Attributes:
      row: of the image in its batch.
    """

    def __init__(self, row: int, num_images: int, step: int) -> None:
        super().__init__(
            f"the network says NaN or inf for image {row + 1} of {num_images}: its weights, of "
            f"step {step}, are broken, or grow too large"
        )
        self.row = row


class LoadedDetector:
    """A detector with its variables, called on images; made by `load`.

    It compiles once for each shape of the padded images: two at most, landscape and portrait,
    times the scales of test-time augmentation.

    Attributes:
      class_names: of the labels 0..k-1.
      category_ids: the id of each class in files in COCO format.
      config: of the run.
      step: of the training, at which the variables were saved.
      batch_size: images that the network takes at a time.
    """

    def __init__(self, run: SavedRun, *, batch_size: int = 1, upright: bool = True) -> None:
        self.class_names = run.class_names
        known = run.metadata.get("category_ids")
        self.category_ids = tuple(known or range(1, len(run.class_names) + 1))
        self.config: Config = run.config
        self.step = run.step
        self.batch_size = batch_size
        self._upright = upright
        self._detector: Detector = run.detector
        self._variables = run.variables
        self._mesh = single_mesh()
        self._predict_step = make_predict_step(run.detector, self._mesh)
        self._augmented: dict[TTA, AugmentedPredict] = {}

    @overload
    def __call__(
        self, images: list[ImageLike] | tuple[ImageLike, ...], *, score_threshold: float = ...,
        tta: TTA | None = ...,
    ) -> list[ImageDetections]: ...  # fmt: skip
    @overload
    def __call__(
        self, images: ImageLike, *, score_threshold: float = ..., tta: TTA | None = ...
    ) -> ImageDetections: ...
    def __call__(self, images: Any, *, score_threshold: float = 0.0, tta: TTA | None = None) -> Any:
        """Finds the objects of an image, or of each of a list of images.

        Args:
          images: a path, a PIL image, an array (see `inference.images.read_image`), or a list of
            them, of any sizes.
          score_threshold: leaves out what scores less; the run's own threshold acts before it.
          tta: look at every image several times.

        Returns:
          `ImageDetections`, boxes in pixels of the image; for a list, a list.

        Raises:
          ConfigError: score_threshold is not in [0, 1].
          ImageError, OSError, TypeError, ValueError: as `inference.images.read_image`.
          NonFiniteOutputError: the network says NaN or infinity for an image.
        """
        check_number("score_threshold", float(score_threshold), "[0, 1]")
        is_many = isinstance(images, list | tuple)
        pixels = [self.read(image) for image in (images if is_many else [images])]
        found: list[ImageDetections | None] = [None] * len(pixels)
        numbered = enumerate(pixels)
        for batch in batches_by(numbered, lambda n: self.bucket_of(n[1]), self.batch_size):
            detected = self.detect_batch([image for _, image in batch], tta=tta)
            for (index, _), image_found in zip(batch, detected, strict=True):
                found[index] = image_found.above(score_threshold)
        return found if is_many else found[0]

    def read(self, image: ImageLike) -> np.ndarray:
        """The pixels of an image, uint8 RGB [h, w, 3]; see `inference.images.read_image`."""
        return read_image(image, max_pixels=self.config.data.max_pixels, upright=self._upright)

    def bucket_of(self, image: np.ndarray) -> tuple[int, int]:
        """The padded shape in which the network sees an image."""
        return self.config.data.bucket_of(*image.shape[:2])

    def detect_batch(
        self, images: Sequence[np.ndarray], *, tta: TTA | None = None
    ) -> list[ImageDetections]:
        """The detections of at most `batch_size` images of one bucket, in their order.

        Args:
          images: uint8 RGB [h, w, 3].
          tta: look at every image several times.

        Raises:
          NonFiniteOutputError: the network says NaN or infinity for an image.
        """
        buckets = {self.bucket_of(image) for image in images}
        if len(buckets) != 1 or len(images) > self.batch_size:
            raise ValueError(
                f"{len(images)} images of the shapes {sorted(buckets)}; a batch is of one, and of "
                f"{self.batch_size} images at most"
            )
        found = self._run(images, buckets.pop(), tta)
        rows = non_finite_images(found)  # of the batch, whose other rows are empty
        if len(rows):
            raise NonFiniteOutputError(int(rows[0]), len(images), self.step)
        return [
            detections_of(found, row, (image.shape[0], image.shape[1]), self.class_names)
            for row, image in enumerate(images)
        ]

    def _run(
        self, images: Sequence[np.ndarray], bucket: tuple[int, int], tta: TTA | None
    ) -> Detections:
        """Padded detections on the host."""

        def batch_at(scale: float) -> Batch:
            shapes = shapes_at(self.config.data, bucket, scale)
            return put_batch(make_batch(images, *shapes, batch_size=self.batch_size), self._mesh)

        if tta is None:
            return jax.device_get(self._predict_step(self._variables, batch_at(1.0))[0])
        if tta not in self._augmented:
            self._augmented[tta] = AugmentedPredict(self._detector, self._mesh, tta)
        return jax.device_get(self._augmented[tta](self._variables, batch_at)[0])


def batches_by(items: Iterable[_T], key: Callable[[_T], Any], size: int) -> Iterator[list[_T]]:
    """Batches of items of one key, each as soon as it is full, the rest at the end.

    >>> list(batches_by([1, 2, 3, 5, 4, 7], lambda n: n % 2, 2))
    [[1, 3], [2, 4], [5, 7]]
    """
    waiting: dict[Any, list[_T]] = {}
    for item in items:
        batch = waiting.setdefault(key(item), [])
        batch.append(item)
        if len(batch) == size:
            yield waiting.pop(key(item))
    yield from waiting.values()
