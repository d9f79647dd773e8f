"""A detector over many files: decoded ahead, batched by shape, drawn, counted."""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from harmonic_jax.data.decode import ImageError
from harmonic_jax.files import write_bytes
from harmonic_jax.inference.augmentation import TTA
from harmonic_jax.inference.detections import ImageDetections
from harmonic_jax.inference.detector import LoadedDetector
from harmonic_jax.inference.inputs import unique_names
from harmonic_jax.inference.output import PICTURES
from harmonic_jax.inference.pictures import draw_detections, encode_jpeg
from harmonic_jax.inference.streams import batches_by, decoded_ahead
from harmonic_jax.inference.video import VideoReader, VideoWriter, even_size

_T = TypeVar("_T")
Track = Callable[[Iterable[_T], int, str], Iterator[_T]]


class Item(NamedTuple):
    """An image, or a frame, that was read."""

    image_id: int
    pixels: np.ndarray


@dataclasses.dataclass
class Summary:
    """What came of the files, as it grows.

    Attributes:
      images: entries of COCO's `images`.
      found: (image id, detections).
      skipped: a line for each file that could not be read.
      files: pictures and videos written.
      seconds: from the first file to the last, without the first batch of every shape, in which
        the network is compiled.
      num_timed: images of those seconds.
    """

    images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    found: list[tuple[int, ImageDetections]] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    files: list[Path] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    num_timed: int = 0

    def objects(self) -> Counter[str]:
        """How many of each class were found."""
        return Counter(name for _, image in self.found for name in image.names)


class Predictor:
    """Runs files through a detector and keeps what was found.

    Args:
      detector: decides the batch size.
      folder: of the output; None draws nothing.
      score_threshold: what scores less is left out.
      tta: look at every image several times.
      track: shows how far a loop is.
    """

    def __init__(
        self,
        detector: LoadedDetector,
        *,
        folder: Path | None,
        score_threshold: float,
        tta: TTA | None,
        track: Track[Any],
    ) -> None:
        self.summary = Summary()
        self._detector, self._tta, self._track = detector, tta, track
        self._score_threshold = score_threshold
        self._pictures = None if folder is None else folder / PICTURES
        self._ids = itertools.count(1)
        self._compiled: set[tuple[int, int]] = set()

    def images(self, paths: list[Path]) -> None:
        """Finds objects in image files; those that cannot be read are named in the summary."""
        if not paths:
            return
        names = unique_names(paths, ".jpg")
        self._make_folder()
        of_id: dict[int, tuple[Path, str]] = {}

        def items() -> Iterator[Item]:
            read = decoded_ahead(self._detector.read, paths)
            for (path, name), pixels in zip(
                zip(paths, names, strict=True), self._track(read, len(paths), "images"), strict=True
            ):
                if isinstance(pixels, Exception):
                    self.summary.skipped.append(_named(path, pixels))
                    continue
                item = Item(next(self._ids), pixels)
                self._note(item, file_name=str(path))
                of_id[item.image_id] = path, name
                yield item

        with ThreadPoolExecutor(1) as drawing:
            written: list[Future[None]] = []
            for item, found in self._detect(items()):
                _, name = of_id[item.image_id]
                if self._pictures is not None:
                    target = self._pictures / name
                    written.append(drawing.submit(self._draw, target, item.pixels, found))
                    self.summary.files.append(target)
                    if len(written) > 2 * self._detector.batch_size:
                        written.pop(0).result()
            for future in written:
                future.result()

    def video(self, path: Path, name: str) -> None:
        """Finds objects in every frame of a video, and writes one with them drawn."""
        try:
            reader = VideoReader(path, max_pixels=self._detector.config.data.max_pixels)
        except ImageError as error:
            self.summary.skipped.append(_named(path, error))
            return
        self._make_folder()

        def items() -> Iterator[Item]:
            frames = self._track(reader, reader.length, path.name)
            for number, pixels in enumerate(frames):
                item = Item(next(self._ids), pixels)
                self._note(item, file_name=str(path), frame=number)
                yield item

        if self._pictures is None:
            for _ in self._detect(items()):
                pass
            return
        target = self._pictures / name
        self.summary.files.append(target)
        with VideoWriter(target, per_second=reader.per_second) as writer:
            for item, found in self._detect(items()):
                names = self._detector.class_names
                writer.write(even_size(draw_detections(item.pixels, found, names)))

    def _detect(self, items: Iterable[Item]) -> Iterator[tuple[Item, ImageDetections]]:
        """Detections of items, batch by batch; those of one shape stay in their order."""
        begun, uncounted, untimed = time.monotonic(), 0.0, 0
        total = 0
        for batch in batches_by(
            items, lambda item: self._detector.bucket_of(item.pixels), self._detector.batch_size
        ):
            at = time.monotonic()
            bucket = self._detector.bucket_of(batch[0].pixels)
            found = self._detector.detect_batch([item.pixels for item in batch], tta=self._tta)
            total += len(batch)
            if bucket not in self._compiled:
                self._compiled.add(bucket)
                uncounted += time.monotonic() - at
                untimed += len(batch)
            for item, detections in zip(batch, found, strict=True):
                shown = detections.above(self._score_threshold)
                self.summary.found.append((item.image_id, shown))
                yield item, shown
        self.summary.seconds += time.monotonic() - begun - uncounted
        self.summary.num_timed += total - untimed

    def _note(self, item: Item, **more: Any) -> None:
        height, width = item.pixels.shape[:2]
        entry = {"id": item.image_id, "width": width, "height": height, **more}
        self.summary.images.append(entry)

    def _draw(self, target: Path, pixels: np.ndarray, found: ImageDetections) -> None:
        picture = draw_detections(pixels, found, self._detector.class_names)
        write_bytes(target, encode_jpeg(picture))

    def _make_folder(self) -> None:
        if self._pictures is not None:
            self._pictures.mkdir(exist_ok=True)


def _named(path: Path, error: Exception) -> str:
    text = str(error)
    return text if str(path) in text else f"{path}: {text}"
