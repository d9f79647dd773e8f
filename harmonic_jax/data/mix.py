"""Training images of another scale, and several in one: mosaic, copy-paste, mixup."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np

from harmonic_jax.data.augment import Sample, has_centre_in
from harmonic_jax.data.resize import fill_around, resize_image
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.masks import encode_masks, join_tables

MOSAIC_CENTRE = (0.25, 0.75)  # where the four images meet, in parts of the mosaic: YOLOv5's
PASTED = 0.5  # of the other image's objects
MIN_SEEN = 0.1  # of an object's pixels, else it is hidden; our choice
MIXUP_BETA = 32.0  # YOLOv5's: near one half, as the objects of both images count in full


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Makes one training image out of one or several, at the size in which the network sees it: so
    each file is resized once. Objects whose centre is seen stay, as in `random_crop`.

    Attributes:
      size: int [2], height and width of the new image.
      lost: gets the number of objects that are not kept, by rule: cropped_away, pasted_over.

    Source: Ghiasi et al. 2021, "Simple Copy-Paste" (scale jitter too); Bochkovskiy et al. 2020,
    "YOLOv4" (mosaic); Zhang et al. 2019, "Bag of Freebies" (mixup in detection).
    """

    size: np.ndarray
    config: DataConfig
    rng: np.random.Generator
    lost: Counter[str]

    def mix(self, sample: Sample, read_partner: Callable[[], Sample | None]) -> Sample:
        """Mosaic or the image alone, its scale jittered, then copy-paste, then mixup; the sample as
        it is where nothing is to be done. `read_partner` reads another, None where it cannot."""
        changes = self.config.augment
        chances = changes.mosaic, changes.copy_paste, changes.mixup
        # Where all are off nothing is drawn: runs without them keep their random numbers.
        is_on = self.rng.random(3) < chances if any(chances) else np.zeros(3, bool)
        if changes.large_scale_jitter is None and not is_on.any():
            return sample
        if is_on[0]:
            sample = self.mosaic([sample, *(read_partner() for _ in range(3))])
        else:
            sample = self.jitter(sample)
        for combine, is_used in (self.copy_paste, is_on[1]), (self.mixup, is_on[2]):
            if is_used and (partner := read_partner()) is not None:
                sample = combine(sample, self.jitter(partner))
        return sample

    def jitter(self, sample: Sample) -> Sample:
        """Scales an image, from as large as fits, by a random factor, then cuts or pads it."""
        extent = self._fit(sample, self.size * self._draw_factor())
        return self._draw(self._blank(), sample, self._draw_corner(extent), extent)

    def mosaic(self, samples: Iterable[Sample | None]) -> Sample:
        """Joins four images, each as large as fits into half of the size, at a random point.

        The whole is scaled by a random factor, then cut or padded. A None leaves its place blank.
        """
        whole = np.maximum(2, np.rint(self.size * self._draw_factor()).astype(int))
        corner = self._draw_corner(whole)
        centre = corner + (whole * self.rng.uniform(*MOSAIC_CENTRE, 2)).astype(int)
        canvas, parts = self._blank(), []
        for place, sample in zip(np.ndindex(2, 2), samples, strict=True):
            if sample is not None:
                extent = self._fit(sample, whole / 2)
                start = centre - extent * (1 - np.array(place))
                parts.append(self._draw(canvas, sample, start, extent))
        return _join(parts, canvas)

    def copy_paste(self, below: Sample, above: Sample) -> Sample:
        """Pastes each object of one sample, with probability 1/2, over another, by its mask.

        Masks below lose what is hidden, and their boxes become tight on the rest; an object goes
        where less than `MIN_SEEN` of it is left. One whose mask is unknown is never pasted; below,
        its box counts as its mask, and stays as it is.
        """
        assert above.masks is not None  # DataConfig holds copy_paste to data.masks
        chosen = (above.masks.areas() > 0) & (self.rng.random(len(above.boxes)) < PASTED)
        above = above.take(np.flatnonzero(chosen))
        covered = np.zeros(below.image.shape[:2], np.uint8)
        for row in range(len(above.boxes)):
            covered[_place(above, row)] |= _pixels(above, row)
        image = cv2.copyTo(above.image, covered, below.image.copy())
        return _join([self._hide(below, covered > 0), above], image)

    def mixup(self, one: Sample, other: Sample) -> Sample:
        """The weighted mean of two images, the weight from Beta(32, 32), with the objects of both:
        ground truth has no weights, so both should be seen about equally well."""
        weight = self.rng.beta(MIXUP_BETA, MIXUP_BETA)
        return _join([one, other], cv2.addWeighted(one.image, weight, other.image, 1 - weight, 0))

    def _draw_factor(self) -> float:
        return self.rng.uniform(*(self.config.augment.large_scale_jitter or (1.0, 1.0)))

    def _draw_corner(self, extent: np.ndarray) -> np.ndarray:
        """The top left corner, y and x <= 0, of what is larger than the size; else 0."""
        return -self.rng.integers(np.maximum(extent - self.size, 0) + 1)

    def _fit(self, sample: Sample, bounds: np.ndarray) -> np.ndarray:
        """The largest height and width within bounds, of the image's shape or warped."""
        sides = np.array(sample.image.shape[:2])
        if self.config.resize == "fit":
            bounds = sides * (bounds / sides).min()
        return np.maximum(1, np.rint(bounds).astype(int))

    def _blank(self) -> np.ndarray:
        canvas = np.empty((*self.size, 3), np.uint8)
        fill_around(canvas, (0, 0))
        return canvas

    def _draw(
        self, canvas: np.ndarray, sample: Sample, start: np.ndarray, extent: np.ndarray
    ) -> Sample:
        """Draws what is seen of an image that is resized to `extent` and begins at `start` (y, x);
        gives the objects, in pixels of the canvas."""
        low = np.maximum(start, 0)
        high = np.maximum(np.minimum(start + extent, self.size), low)
        # Whole pixels of the image are resized to whole pixels of the canvas.
        sides = np.array(sample.image.shape[:2])
        first = ((low - start) * sides // extent).clip(0, sides - 1)
        last = (-((start - high) * sides // extent)).clip(first + 1, sides)
        place = canvas[low[0] : high[0], low[1] : high[1]]
        if place.size:
            part = sample.image[first[0] : last[0], first[1] : last[1]]
            averages = self.config.resizing != "torchvision"
            resize_image(part, place.shape[:2], averages_areas=averages, out=place)
        scale = ((high - low) / (last - first))[[1, 0, 1, 0]]
        low, high, first = (point[[1, 0, 1, 0]] for point in (low, high, first))
        moved = (sample.boxes - first) * scale + low
        kept = np.flatnonzero(has_centre_in((*low[:2], *high[:2]), moved))
        self.lost["cropped_away"] += len(moved) - len(kept)
        moved, sample = moved[kept], sample.take(kept)
        boxes = np.clip(moved, low, high)
        # Of the masks, too, only what is seen goes on.
        cuts = (sample.cuts + (boxes - moved) / scale).astype(np.float32)
        boxes = boxes.astype(np.float32)
        return sample._replace(image=canvas, boxes=boxes, frames=boxes, cuts=cuts)

    def _hide(self, sample: Sample, covered: np.ndarray) -> Sample:
        """Takes the covered pixels, bool [h, w], from the objects."""
        assert sample.masks is not None
        boxes, cuts = sample.boxes.copy(), sample.cuts.copy()
        masks, kept = [sample.masks[row : row + 1] for row in range(len(boxes))], []
        for row in range(len(boxes)):
            place = _place(sample, row)
            own = _pixels(sample, row) if covered[place].any() else np.zeros(0, bool)
            whole = own if own.any() else np.ones(covered[place].shape, bool)
            seen = whole & ~covered[place]
            if seen.sum() < MIN_SEEN * whole.sum():
                continue
            kept.append(row)
            if own.any() and (seen != own).any():
                ys, xs = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
                y1, x1, y2, x2 = ys[0], xs[0], ys[-1] + 1, xs[-1] + 1
                masks[row] = encode_masks(seen[None, y1:y2, x1:x2])
                cuts[row] = 0, 0, x2 - x1, y2 - y1
                corner = place[1].start + x1, place[0].start + y1
                boxes[row] = cuts[row] + np.tile(corner, 2)
        self.lost["pasted_over"] += len(boxes) - len(kept)
        changed = sample._replace(boxes=boxes, frames=boxes, cuts=cuts, masks=join_tables(masks))
        return changed.take(np.array(kept, np.int64))


def _join(parts: Sequence[Sample], image: np.ndarray) -> Sample:
    """One image with the objects of all parts."""
    tables = [part.masks for part in parts if part.masks is not None]
    boxes, labels, frames, cuts = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("boxes", "labels", "frames", "cuts")
    )
    return Sample(image, boxes, labels, frames, join_tables(tables) if tables else None, cuts)


def _place(sample: Sample, row: int) -> tuple[slice, slice]:
    """The whole pixels, lines and columns, that an object's box touches."""
    x1, y1 = np.floor(sample.boxes[row, :2]).astype(int).tolist()
    x2, y2 = np.ceil(sample.boxes[row, 2:]).astype(int).tolist()
    return slice(y1, y2), slice(x1, x2)


def _pixels(sample: Sample, row: int) -> np.ndarray:
    """Those of `_place` whose centre is in the object's mask, bool [h, w]."""
    assert sample.masks is not None
    mask, indices = sample.masks.decode(row), []
    for axis, place in enumerate(_place(sample, row)):
        box, cut = (
            boxes[row, 1 - axis :: 2].astype(np.float64) for boxes in (sample.boxes, sample.cuts)
        )
        centres = np.arange(place.start, place.stop) + 0.5
        source = (centres - box[0]) * ((cut[1] - cut[0]) / (box[1] - box[0])) + cut[0]
        indices.append(np.floor(source).astype(int).clip(0, mask.shape[axis] - 1))
    return mask[np.ix_(*indices)]
