"""Many masks as COCO's compressed run lengths, in one buffer.

A mask is cut into runs of equal pixels, column after column, the first run of zeros (it may be
empty). A run from the fourth on is stored as its difference from the one two before it, a number
as characters of five bits each, lowest first: `48 + bits`, plus 32 where more follow.

Source: the format is defined by pycocotools (maskApi.c) and used by COCO's annotation files.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import TypedDict, overload

import numpy as np
import pycocotools.mask

from harmonic_jax.masks.codec import decode_runs, encode_runs, find_malformed

_ROWS_AT_ONCE = 255  # pycocotools 2.0.11 keeps the length of a list in one byte, in `area`


class Rle(TypedDict):
    """One mask as pycocotools takes it."""

    size: list[int]  # height, width
    counts: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class RleTable(Sequence[Rle]):
    """Masks of n objects, stored flat and read-only; rows are `Rle`, slices are views.

    Attributes:
      counts: uint8 [bytes], the compressed run lengths of all masks.
      offsets: int64 [n + 1], starting with 0: mask i is `counts[offsets[i]:offsets[i + 1]]`.
      sizes: int32 [n, 2], height and width of the image of each.

    Example:
      >>> table = encode_masks(np.array([[[0, 1], [0, 1]], [[1, 1], [1, 1]]]))
      >>> table[0], len(table), table.areas().tolist()
      ({'size': [2, 2], 'counts': b'22'}, 2, [2, 4])
    """

    counts: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.counts, self.offsets, self.sizes):
            array.setflags(write=False)

    @classmethod
    def from_bytes(
        cls, rows: Sequence[bytes], sizes: np.ndarray, *, checked: bool = False
    ) -> "RleTable":
        """Joins the compressed counts of masks.

        Args:
          rows: n masks.
          sizes: int [n, 2], height and width of each.
          checked: they are known to be what they should.

        Raises:
          ValueError: a row that is no compressed mask of its size.
        """
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        table = cls(
            counts=np.frombuffer(b"".join(rows), np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            sizes=np.asarray(sizes, np.int32).reshape(-1, 2).copy(),
        )
        if not checked:
            table._check()
        return table

    @classmethod
    def from_runs(cls, runs: np.ndarray, bounds: np.ndarray, size: tuple[int, int]) -> "RleTable":
        """Compresses masks of one image; the run lengths of mask i end where bounds[i + 1] says."""
        counts, offsets = encode_runs(runs, bounds)
        return cls(counts, offsets, np.tile(np.array(size, np.int32), (len(bounds) - 1, 1)))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Rle: ...
    @overload
    def __getitem__(self, index: slice) -> "RleTable": ...
    def __getitem__(self, index: int | slice) -> "Rle | RleTable":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            low, high = self.offsets[start], self.offsets[max(start, stop)]
            offsets = self.offsets[start : max(start, stop) + 1] - low
            return RleTable(self.counts[low:high], offsets, self.sizes[start:stop])
        row = range(len(self))[index]  # resolves negative indices, raises IndexError
        counts = self.counts[self.offsets[row] : self.offsets[row + 1]].tobytes()
        return {"size": self.sizes[row].tolist(), "counts": counts}

    def take(self, rows: np.ndarray) -> "RleTable":
        """The masks of some rows, int or bool [k], in that order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return RleTable(self.counts[places], offsets, self.sizes[rows])

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Run lengths int64 [r] of all masks, zeros first, and their bounds int64 [n + 1]."""
        return decode_runs(self.counts, self.offsets)

    def areas(self) -> np.ndarray:
        """Pixels of each mask, int64 [n]."""
        return self._summary[:, 0]

    def boxes(self) -> np.ndarray:
        """Tight xyxy box of each mask, int64 [n, 4]; zeros where a mask is empty."""
        return self._summary[:, 1:]

    def decode(self, row: int) -> np.ndarray:
        """The pixels of one mask, bool [h, w]."""
        pixels: np.ndarray = pycocotools.mask.decode(self[row])
        return pixels.astype(bool)

    def _check(self) -> None:
        bad = find_malformed(self.counts, self.offsets, self.sizes.astype(np.int64).prod(axis=1))
        if bad.any():
            row = int(np.argmax(bad))
            height, width = self.sizes[row]
            counts = self[row]["counts"]
            raise ValueError(
                f"mask {row} has counts {counts[:40]!r}; they must be compressed run lengths that "
                f"add up to its size, {height} x {width}"
            )

    @functools.cached_property
    def _summary(self) -> np.ndarray:
        """Area and xyxy box of each mask, int64 [n, 5]."""
        starts = range(0, len(self), _ROWS_AT_ONCE)
        parts = [_summaries(list(self[start : start + _ROWS_AT_ONCE])) for start in starts]
        return np.concatenate([np.zeros((0, 5), np.int64), *parts])


def encode_masks(masks: np.ndarray) -> RleTable:
    """Compresses pixels [n, h, w], where anything but 0 is the object."""
    pixels = np.asfortranarray(np.moveaxis(masks != 0, 0, -1).astype(np.uint8))
    rows = [rle["counts"] for rle in pycocotools.mask.encode(pixels)] if len(masks) else []
    return RleTable.from_bytes(rows, np.tile(masks.shape[1:], (len(masks), 1)), checked=True)


def join_tables(tables: Iterable[RleTable]) -> RleTable:
    """One table with the rows of all, in their order."""
    tables = tuple(tables)
    starts = np.cumsum([0, *(len(table.counts) for table in tables)])
    offsets = [table.offsets[1:] + start for table, start in zip(tables, starts, strict=False)]
    return RleTable(
        counts=np.concatenate([np.zeros(0, np.uint8), *(table.counts for table in tables)]),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        sizes=np.concatenate([np.zeros((0, 2), np.int32), *(table.sizes for table in tables)]),
    )


def _summaries(rles: list[Rle]) -> np.ndarray:
    x, y, width, height = pycocotools.mask.toBbox(rles).T
    area = pycocotools.mask.area(rles)
    return np.stack([area, x, y, x + width, y + height], axis=1).astype(np.int64)
