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

ROWS_AT_ONCE = 16_384  # bounds the memory of what is computed from a data set's run lengths
_SUMMED_AT_ONCE = 255  # pycocotools 2.0.11 keeps the length of a list in one byte, in `area`
_MAX_CHARACTERS = 7  # of one number: 35 bits, more than any image has pixels


class Rle(TypedDict):
    """One mask as pycocotools takes it."""

    size: list[int]  # height, width
    counts: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class RleTable(Sequence[Rle]):
    """Masks of n objects, stored flat and read-only; rows are `Rle`.

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
    def from_bytes(cls, rows: Sequence[bytes], sizes: np.ndarray) -> "RleTable":
        """Joins the compressed counts of n masks, of the heights and widths int [n, 2]."""
        return cls(
            counts=np.frombuffer(b"".join(rows), np.uint8),
            offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
            sizes=np.asarray(sizes, np.int32).reshape(-1, 2).copy(),
        )

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
            return self.take(np.arange(*index.indices(len(self))))
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
        import pycocotools.mask

        pixels: np.ndarray = pycocotools.mask.decode(self[row])
        return pixels.astype(bool)

    @functools.cached_property
    def _summary(self) -> np.ndarray:
        """Area and xyxy box of each mask, int64 [n, 5]."""
        import pycocotools.mask

        summaries = [np.zeros((0, 5), np.int64)]
        for start in range(0, len(self), _SUMMED_AT_ONCE):
            rles = list(self[start : start + _SUMMED_AT_ONCE])
            x, y, width, height = pycocotools.mask.toBbox(rles).T
            columns = pycocotools.mask.area(rles), x, y, x + width, y + height
            summaries.append(np.stack(columns, axis=1).astype(np.int64))
        return np.concatenate(summaries)


def encode_masks(masks: np.ndarray) -> RleTable:
    """Compresses pixels [n, h, w], where anything but 0 is the object."""
    import pycocotools.mask

    pixels = np.asfortranarray(np.moveaxis(masks != 0, 0, -1).astype(np.uint8))
    rows = [rle["counts"] for rle in pycocotools.mask.encode(pixels)] if len(masks) else []
    return RleTable.from_bytes(rows, np.tile(masks.shape[1:], (len(masks), 1)))


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


def find_malformed(table: RleTable) -> np.ndarray:
    """Which rows are no run lengths of an image of their height and width, bool [n].

    pycocotools would read past the end of such a row, or draw another mask than was meant.
    """
    parts = [np.zeros(0, bool)]
    for start in range(0, len(table), ROWS_AT_ONCE):
        part = table[start : start + ROWS_AT_ONCE]
        bad = _has_bad_characters(part.counts, part.offsets)
        good = part.take(~bad)
        runs, bounds = good.runs()
        total, negative = (np.append(0, np.cumsum(column)) for column in (runs, runs < 0))
        wrong_sum = np.diff(total[bounds]) != good.sizes.astype(np.int64).prod(axis=1)
        bad[~bad] = wrong_sum | (np.diff(negative[bounds]) > 0)
        parts.append(bad)
    return np.concatenate(parts)


def _has_bad_characters(counts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rows that are empty, end within a number, or hold characters or numbers out of range."""
    is_bad = (counts < 48) | (counts > 111)
    goes_on = ((counts - np.uint8(48)) & 32) > 0
    in_run = np.concatenate([[0], np.cumsum(goes_on)])
    ends = np.arange(_MAX_CHARACTERS, len(counts) + 1)
    is_bad[ends - 1] |= in_run[ends] - in_run[ends - _MAX_CHARACTERS] == _MAX_CHARACTERS
    seen = np.concatenate([[0], np.cumsum(is_bad)])
    lengths = np.diff(offsets)
    bad = (lengths == 0) | (seen[offsets[1:]] > seen[offsets[:-1]])
    bad[lengths > 0] |= goes_on[offsets[1:][lengths > 0] - 1]
    return bad


def decode_runs(counts: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths int64 [r] and the bounds int64 [n + 1] of each row's, of well-formed rows."""
    bits = counts.astype(np.int64) - 48
    last = np.flatnonzero((bits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    width = last - first + 1
    place = np.arange(len(bits)) - np.repeat(first, width)
    runs = np.add.reduceat((bits & 31) << (5 * place), first) if len(first) else first
    runs = runs - np.where(bits[last] & 16, np.left_shift(1, 5 * width), 0)  # two's complement
    bounds = np.searchsorted(last, offsets)
    index = _index_in_row(bounds)
    for parity in (0, 1):
        chosen = np.flatnonzero((index % 2 == parity) & (index > 0))
        total = np.cumsum(runs[chosen])
        starts = np.flatnonzero(index[chosen] == 2 - parity)
        before = (total - runs[chosen])[starts]
        runs[chosen] = total - np.repeat(before, np.diff(np.append(starts, len(chosen))))
    return runs, bounds


def encode_runs(runs: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compressed bytes uint8 [bytes] and the offsets int64 [n + 1] of each row's.

    Args:
      runs: int64 [r], run lengths >= 0, zeros first.
      bounds: int64 [n + 1], the bounds of each row's runs; no row without any.
    """
    later = np.flatnonzero(_index_in_row(bounds) >= 3)
    numbers = runs.astype(np.int64)
    numbers[later] = runs[later] - runs[later - 2]
    width = np.ones(len(numbers), np.int64)
    for bit in range(4, 5 * _MAX_CHARACTERS, 5):
        width += (numbers >= 1 << bit) | (numbers < -(1 << bit))
    ends = np.cumsum(width)
    place = np.arange(width.sum()) - np.repeat(ends - width, width)
    bits = (np.repeat(numbers, width) >> (5 * place)) & 31
    bits += np.where(place + 1 < np.repeat(width, width), 32, 0)
    return (bits + 48).astype(np.uint8), np.concatenate([[0], ends])[bounds]


def _index_in_row(bounds: np.ndarray) -> np.ndarray:
    return np.arange(bounds[-1]) - np.repeat(bounds[:-1], np.diff(bounds))
