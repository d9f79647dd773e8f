"""A detector over many files: decoded ahead, batched by shape, drawn, counted, saved."""

import contextlib
import dataclasses
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from harmonic_jax.data.decode import ImageError
from harmonic_jax.files import explained, write_bytes
from harmonic_jax.inference.augmentation import TTA
from harmonic_jax.inference.detections import ImageDetections
from harmonic_jax.inference.detector import LoadedDetector, NonFiniteOutputError
from harmonic_jax.inference.inputs import is_video
from harmonic_jax.inference.output import OutputFolder
from harmonic_jax.inference.pictures import draw_detections
from harmonic_jax.inference.streams import batches_by, decoded_ahead
from harmonic_jax.inference.video import VideoReader, VideoWriter, even_size
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.report.boxes import encode_jpeg

SAVE_EVERY = 300.0  # seconds; what a machine that dies costs at most
_T = TypeVar("_T")
Track = Callable[[Iterable[_T], int, str], Iterator[_T]]


class Item(NamedTuple):
    """An image, or a frame, that was read."""

    image_id: int
    pixels: np.ndarray
    about: dict[str, Any]
    """What is noted of it besides its id and size."""


@dataclasses.dataclass
class Summary:
    """What came of the files, as it grows.

    Attributes:
      images: entries of COCO's `images`, of those that were looked at.
      found: (image id, detections).
      skipped: a line for each file that could not be read.
      cut: a line for each video of which only a part could be read.
      unwritten: a line for each picture, or file, that could not be written.
      num_pictures: pictures and videos written.
      seconds: from the first file to the last, without the first batch of every shape, in which
        the network is compiled.
      num_timed: images of those seconds.
    """

    images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    found: list[tuple[int, ImageDetections]] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    cut: list[str] = dataclasses.field(default_factory=list)
    unwritten: list[str] = dataclasses.field(default_factory=list)
    num_pictures: int = 0
    seconds: float = 0.0
    num_timed: int = 0

    def objects(self) -> Counter[str]:
        """How many of each class were found."""
        return Counter(name for _, image in self.found for name in image.names)


class Predictor:
    """Runs files through a detector and keeps what was found.

    Args:
      detector: decides the batch size.
      folder: of the output; saved to now and then, and to be saved to at the end.
      score_threshold: what scores less is left out.
      tta: look at every image several times.
      track: shows how far a loop is.
      stops: whether to end, asked before every file and batch.
      save_every: seconds between two saves; they are rarer where one takes long.

    Attributes:
      summary: what was found, so far.
      is_stopped: something was left undone because of `stops`.
    """

    def __init__(
        self,
        detector: LoadedDetector,
        *,
        folder: OutputFolder,
        score_threshold: float,
        tta: TTA | None,
        track: Track[Any],
        stops: Callable[[], bool] = lambda: False,
        save_every: float = SAVE_EVERY,
    ) -> None:
        self.summary = Summary()
        self.is_stopped = False
        self._detector, self._tta, self._track = detector, tta, track
        self._score_threshold = score_threshold
        self._folder, self._stops = folder, stops
        self._ids = itertools.count(1)
        self._compiled: set[tuple[int, int]] = set()
        self._save_every, self._save_at = save_every, time.monotonic() + save_every

    def run(self, paths: Iterable[Path]) -> None:
        """Finds objects in image files, then in videos; names and skips what cannot be read."""
        paths = list(paths)
        self._images([path for path in paths if not is_video(path)])
        for path in filter(is_video, paths):
            if self._must_stop():
                return
            self._video(path)

    def _images(self, paths: list[Path]) -> None:
        def items() -> Iterator[Item]:
            read = decoded_ahead(self._detector.read, paths)
            tracked = self._track(read, len(paths), "images")
            for path, pixels in zip(paths, tracked, strict=True):
                if self._must_stop():
                    return
                if isinstance(pixels, Exception):
                    self.summary.skipped.append(_named(path, pixels))
                else:
                    yield Item(next(self._ids), pixels, {"file_name": str(path)})

        with ThreadPoolExecutor(1) as drawing:
            waiting: deque[Future[str | None]] = deque()
            for item, found in self._detect(items()):
                target = self._folder.pictures.get(Path(item.about["file_name"]))
                if target is not None:
                    waiting.append(drawing.submit(self._draw, target, item.pixels, found))
                if len(waiting) > 2 * self._detector.batch_size:
                    self._count_picture(waiting.popleft().result())
            for future in waiting:
                self._count_picture(future.result())

    def _video(self, path: Path) -> None:
        try:
            reader = VideoReader(path, max_pixels=self._detector.config.data.max_pixels)
        except ImageError as error:
            self.summary.skipped.append(_named(path, error))
            return
        num_read = 0

        def items() -> Iterator[Item]:
            nonlocal num_read
            for number, pixels in enumerate(self._track(reader, reader.length, path.name)):
                if self._must_stop():
                    return
                num_read = number + 1
                yield Item(next(self._ids), pixels, {"file_name": str(path), "frame": number})

        target = self._folder.pictures.get(path)
        with contextlib.ExitStack() as stack:
            writer = None
            if target is not None:
                writer = stack.enter_context(VideoWriter(target, per_second=reader.per_second))
            for item, found in self._detect(items()):
                if writer is not None:
                    names = self._detector.class_names
                    writer.write(even_size(draw_detections(item.pixels, found, names)))
        if num_read < reader.length and not self.is_stopped:
            self.summary.cut.append(f"{path}: {num_read} of {reader.length} frames could be read")
        if writer is not None and num_read:
            self._count_picture(writer.problem)

    def _detect(self, items: Iterable[Item]) -> Iterator[tuple[Item, ImageDetections]]:
        """Detections of items, batch by batch; those of one shape stay in their order."""
        begun, uncounted, untimed = time.monotonic(), 0.0, 0
        total = 0
        for batch in batches_by(
            items, lambda item: self._detector.bucket_of(item.pixels), self._detector.batch_size
        ):
            if self._must_stop():
                break
            at = time.monotonic()
            bucket = self._detector.bucket_of(batch[0].pixels)
            is_new = bucket not in self._compiled
            self._save_now_and_then(before_long_work=is_new)
            found = self._detect_batch(batch)
            total += len(batch)
            if is_new:
                self._compiled.add(bucket)
                uncounted += time.monotonic() - at
                untimed += len(batch)
            for item, detections in zip(batch, found, strict=True):
                height, width = item.pixels.shape[:2]
                entry = {"id": item.image_id, "width": width, "height": height, **item.about}
                shown = detections.above(self._score_threshold)
                self.summary.images.append(entry)
                self.summary.found.append((item.image_id, shown))
                yield item, shown
        self.summary.seconds += time.monotonic() - begun - uncounted
        self.summary.num_timed += total - untimed

    def _detect_batch(self, batch: Sequence[Item]) -> list[ImageDetections]:
        try:
            return self._detector.detect_batch([item.pixels for item in batch], tta=self._tta)
        except NonFiniteOutputError as error:
            name = batch[error.row].about["file_name"]
            raise WeightsError(f"{name}: {error}") from error

    def _must_stop(self) -> bool:
        self.is_stopped = self._stops()
        return self.is_stopped

    def _save_now_and_then(self, *, before_long_work: bool) -> None:
        at = time.monotonic()
        if at < self._save_at and not (before_long_work and self.summary.found):
            return
        try:
            self._folder.save(self.summary.images, self.summary.found)
        except OSError as error:  # there may be room again at the end
            self.summary.unwritten.append(f"{error.filename}: {error.strerror} (tried again later)")
        now = time.monotonic()
        self._save_at = now + max(self._save_every, 20 * (now - at))

    def _draw(self, target: Path, pixels: np.ndarray, found: ImageDetections) -> str | None:
        """Writes a picture; returns why it could not."""
        picture = draw_detections(pixels, found, self._detector.class_names)
        try:
            write_bytes(target, encode_jpeg(picture))
        except OSError as error:
            return f"{target}: {explained(error, target)}"
        return None

    def _count_picture(self, problem: str | None) -> None:
        if problem is None:
            self.summary.num_pictures += 1
        else:
            self.summary.unwritten.append(problem)


def _named(path: Path, error: Exception) -> str:
    if isinstance(error, ImageError):
        detail = str(error).removeprefix(f"{error.reason}: ").removeprefix(f"{path}: ")
        return f"{path}: {error.reason}: {detail}"
    return f"{path}: {getattr(error, 'strerror', None) or error}"
