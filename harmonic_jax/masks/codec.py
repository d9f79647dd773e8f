"""Compressed run lengths to numbers and back, for any number of masks at once.

pycocotools does this too, mask by mask and through Python lists; here a data set is one array.
"""

import numpy as np

ROWS_AT_ONCE = 16_384  # bounds the memory of what is computed from a data set's run lengths
_MAX_CHARACTERS = 7  # of one number: 35 bits, more than any image has pixels


def find_malformed(counts: np.ndarray, offsets: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Which rows are no run lengths of an image of `areas` pixels, bool [n].

    pycocotools would read past the end of such a row, or draw another mask than was meant.

    Args:
      counts: uint8 [bytes], the rows one after another.
      offsets: int64 [n + 1], their bounds.
      areas: int64 [n], height times width.
    """
    starts = range(0, len(areas), ROWS_AT_ONCE)
    pieces = ((offsets[i : i + ROWS_AT_ONCE + 1], areas[i : i + ROWS_AT_ONCE]) for i in starts)
    bad = [_are_malformed(counts[own[0] : own[-1]], own - own[0], area) for own, area in pieces]
    return np.concatenate([np.zeros(0, bool), *bad])


def _are_malformed(counts: np.ndarray, offsets: np.ndarray, areas: np.ndarray) -> np.ndarray:
    bad = _has_bad_characters(counts, offsets)
    good = np.flatnonzero(~bad)
    lengths = np.diff(offsets)[good]
    ends = np.cumsum(lengths)
    places = np.arange(lengths.sum()) + np.repeat(offsets[good] - (ends - lengths), lengths)
    runs, bounds = decode_runs(counts[places], np.concatenate([[0], ends]))
    total = np.concatenate([[0], np.cumsum(runs)])
    negative = np.concatenate([[0], np.cumsum(runs < 0)])
    bad[good] = (total[bounds[1:]] - total[bounds[:-1]] != areas[good]) | (
        negative[bounds[1:]] > negative[bounds[:-1]]
    )
    return bad


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
