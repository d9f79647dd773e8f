"""A detector over many files: decoded ahead, batched by shape, drawn, counted, saved."""

import dataclasses
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from harmonic_jax.data.decode import ImageError
from harmonic_jax.files import explained, write_bytes
from harmonic_jax.inference.augmentation import TTA
from harmonic_jax.inference.detections import ImageDetections, draw_detections
from harmonic_jax.inference.detector import LoadedDetector, NonFiniteOutputError, batches_by
from harmonic_jax.inference.inputs import is_video
from harmonic_jax.inference.output import OutputFolder
from harmonic_jax.inference.video import VideoReader, VideoWriter
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.report.boxes import encode_jpeg

SAVE_EVERY = 300.0  # seconds; what a machine that dies costs at most
_T = TypeVar("_T")
_R = TypeVar("_R")
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
    """

    images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    found: list[tuple[int, ImageDetections]] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    cut: list[str] = dataclasses.field(default_factory=list)
    unwritten: list[str] = dataclasses.field(default_factory=list)
    num_pictures: int = 0

    def objects(self) -> Counter[str]:
        """How many of each class were found."""
        return Counter(name for _, image in self.found for name in image.names)


class Predictor:
    """Runs files through a detector and keeps what was found.

    Args:
      detector: decides the batch size.
      folder: of the output; saved to now and then, and to be saved to at the end.
      stops: whether to end, asked before every file and batch.

    Attributes:
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
    ) -> None:
        self.summary = Summary()
        self.is_stopped = False
        self._detector, self._tta, self._track = detector, tta, track
        self._score_threshold = score_threshold
        self._folder, self._stops = folder, stops
        self._ids = itertools.count(1)
        self._save_at = time.monotonic() + SAVE_EVERY

    def run(self, paths: Iterable[Path]) -> None:
        """Finds objects in image files, then in videos; names and skips what cannot be read."""
        paths = list(paths)
        self._images([path for path in paths if not is_video(path)])
        videos = list(filter(is_video, paths))
        if videos:  # a codec that crashes must not cost what is there
            self._save_at = time.monotonic()
        for path in videos:
            if self._must_stop():
                return
            self._save_now_and_then()
            self._video(path)

    def _images(self, paths: list[Path]) -> None:
        def read(path: Path) -> np.ndarray | ImageError | OSError:
            try:
                return self._detector.read(path)
            except (ImageError, OSError) as error:
                return error

        def items() -> Iterator[Item]:
            pixels_of = map_ahead(read, paths, threads=2, ahead=8)
            tracked = self._track(pixels_of, len(paths), "images")
            for path, pixels in zip(paths, tracked, strict=True):
                if self._must_stop():
                    return
                if isinstance(pixels, np.ndarray):
                    yield Item(next(self._ids), pixels, {"file_name": str(path)})
                else:
                    self.summary.skipped.append(_named(path, pixels))

        def draw(item_and_found: tuple[Item, ImageDetections]) -> str | None:
            """Writes a picture; returns why it could not."""
            item, found = item_and_found
            target = self._folder.pictures[Path(item.about["file_name"])]
            picture = draw_detections(item.pixels, found, self._detector.class_names)
            try:
                write_bytes(target, encode_jpeg(picture))
            except OSError as error:
                return f"{target}: {explained(error, target)}"
            return None

        detected = self._detect(items())
        if not self._folder.pictures:
            deque(detected, maxlen=0)
            return
        for problem in map_ahead(draw, detected, threads=1, ahead=2 * self._detector.batch_size):
            self._count_picture(problem)

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
        if target is None:
            deque(self._detect(items()), maxlen=0)
        else:
            with VideoWriter(target, per_second=reader.per_second) as writer:
                for item, found in self._detect(items()):
                    picture = draw_detections(item.pixels, found, self._detector.class_names)
                    writer.write(picture)
            if num_read:
                self._count_picture(writer.problem)
        if num_read < reader.length and not self.is_stopped:
            self.summary.cut.append(f"{path}: {num_read} of {reader.length} frames could be read")

    def _detect(self, items: Iterable[Item]) -> Iterator[tuple[Item, ImageDetections]]:
        """Detections of items, batch by batch; those of one shape stay in their order."""
        for batch in batches_by(
            items, lambda item: self._detector.bucket_of(item.pixels), self._detector.batch_size
        ):
            if self._must_stop():
                break
            self._save_now_and_then()
            try:
                found = self._detector.detect_batch([i.pixels for i in batch], tta=self._tta)
            except NonFiniteOutputError as error:
                name = batch[error.row].about["file_name"]
                raise WeightsError(f"{name}: {error}") from error
            for item, detections in zip(batch, found, strict=True):
                height, width = item.pixels.shape[:2]
                entry = {"id": item.image_id, "width": width, "height": height, **item.about}
                shown = detections.above(self._score_threshold)
                self.summary.images.append(entry)
                self.summary.found.append((item.image_id, shown))
                yield item, shown

    def _must_stop(self) -> bool:
        self.is_stopped = self._stops()
        return self.is_stopped

    def _save_now_and_then(self) -> None:
        at = time.monotonic()
        if at < self._save_at:
            return
        try:
            self._folder.save(self.summary.images, self.summary.found)
        except OSError as error:  # there may be room again at the end
            self.summary.unwritten.append(f"{error.filename}: {error.strerror} (tried again later)")
        now = time.monotonic()
        self._save_at = now + max(SAVE_EVERY, 20 * (now - at))  # rarer where one takes long

    def _count_picture(self, problem: str | None) -> None:
        self.summary.num_pictures += problem is None
        self.summary.unwritten += [problem] if problem else []


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], *, threads: int, ahead: int
) -> Iterator[_R]:
    """The function of each item in turn, computed in threads, for some items in advance."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _named(path: Path, error: ImageError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    detail = str(error).removeprefix(f"{error.reason}: ").removeprefix(f"{path}: ")
    return f"{path}: {error.reason}: {detail}"
