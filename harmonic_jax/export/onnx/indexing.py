"""Gathers and scatters of XLA, of any dimension numbers, as ONNX's along one flat axis.

The cells of an array that an index chooses are numbered in row-major order; the number is the sum
of a part that is known (windows, batches) and of one that is not (where the windows start).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from harmonic_jax.export.onnx.graph import Graph, Shape, Value, ints, stored_dtype
from harmonic_jax.export.onnx.operations import Rule

_Mode = jax.lax.GatherScatterMode


def _gather(graph: Graph, params: dict[str, Any], x: Value, starts: Value) -> Value:
    dims, sizes = params["dimension_numbers"], [int(size) for size in params["slice_sizes"]]
    is_filled = params["mode"] == _Mode.FILL_OR_DROP
    dropped = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    lead = len(x.shape)  # the axes from here on are taken whole, and in one piece
    while lead > 0 and sizes[lead - 1] == x.shape[lead - 1] and lead - 1 not in dropped:
        lead -= 1
    numbers = _cells(
        graph,
        starts,
        shape=x.shape[:lead],
        window=sizes[:lead],
        dropped=dropped,
        start_axes=dims.start_index_map,
        batch_axes=zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True),
        clip=not is_filled,  # Also where nothing is promised to lie outside: so does XLA.
    )
    rows = graph.reshape(x, [math.prod(x.shape[:lead]), *x.shape[lead:]])
    if is_filled:
        row = np.full((1, *x.shape[lead:]), _fill_value(x, params["fill_value"]))
        rows = graph.concatenate([rows, row.astype(stored_dtype(x.dtype))], axis=0)
    shape = (*numbers.shape, *x.shape[lead:])
    found = graph.emit("Gather", rows, numbers, shape=shape, axis=0)
    # Now batches come first and windows last; in the result they may be mixed.
    batch, window = itertools.count(), itertools.count(len(starts.shape) - 1)
    order = [next(window if axis in dims.offset_dims else batch) for axis in range(len(shape))]
    return graph.transpose(found, order)


def _fill_value(x: Value, given: Any) -> Any:
    """What JAX reads outside of an array, if it is not told."""
    if given is not None:
        return given
    if np.issubdtype(stored_dtype(x.dtype), np.floating):
        return np.nan
    if np.issubdtype(x.dtype, np.signedinteger):
        return np.iinfo(x.dtype).min
    raise ValueError(f"what fills an array of {x.dtype} is not known")


def _scatter(graph: Graph, params: dict[str, Any], x: Value, starts: Value, new: Value) -> Value:
    dims = params["dimension_numbers"]
    dropped = {*dims.inserted_window_dims, *dims.operand_batching_dims}
    sizes = iter([new.shape[axis] for axis in dims.update_window_dims])
    window = [1 if axis in dropped else next(sizes) for axis in range(len(x.shape))]
    numbers = _cells(
        graph,
        starts,
        shape=x.shape,
        window=window,
        dropped=dropped,
        start_axes=dims.scatter_dims_to_operand_dims,
        batch_axes=zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims, strict=True),
        clip=params["mode"] == _Mode.CLIP,
    )
    is_batch = [axis for axis in range(len(new.shape)) if axis not in dims.update_window_dims]
    new = graph.transpose(new, [*is_batch, *dims.update_window_dims])
    size, count = math.prod(x.shape), math.prod(new.shape)
    # What falls outside is written to one cell more, which is cut off again.
    spare = np.zeros(1, stored_dtype(x.dtype))
    flat = graph.concatenate([graph.reshape(x, [size]), spare], axis=0)
    flat = graph.emit(
        "ScatterND",
        flat,
        graph.reshape(graph.cast(numbers, np.int64), [count, 1]),
        graph.reshape(new, [count]),
        shape=[size + 1],
    )
    return graph.reshape(graph.slice(flat, [0], [size]), x.shape)


def _cells(
    graph: Graph,
    starts: Value,
    *,
    shape: Shape,
    window: Sequence[int],
    dropped: set[int],
    start_axes: Sequence[int],
    batch_axes: Any,
    clip: bool,
) -> Value:
    """Numbers of the chosen cells, int32 [*batch, *window] without the dropped axes.

    Args:
      starts: `[*batch s]`, where windows start along each of `start_axes`.
      window: its size along each axis of the array.
      dropped: axes of the array that the result does not have.
      start_axes: axes of the array; those after `shape` are taken whole, and start at 0.
      batch_axes: pairs of an axis of the array and the axis of `starts` that goes with it.
      clip: move windows inside; otherwise a window that lies outside has the number after the
        last cell.
    """
    batch = starts.shape[:-1]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    rank = len(batch) + len(kept)
    known = np.zeros((1,) * rank, np.int32)
    for axis, place in batch_axes:
        known = known + _along(np.arange(shape[axis]) * strides[axis], place, rank)
    for place, axis in enumerate(kept):
        known = known + _along(np.arange(window[axis]) * strides[axis], len(batch) + place, rank)
    column = [i for i, axis in enumerate(start_axes) if axis < len(shape)]
    axes = [start_axes[i] for i in column]
    full = (*batch, *(window[axis] for axis in kept))
    if not axes:
        return np.broadcast_to(known, full).astype(np.int32)
    if len(column) < len(start_axes):
        shape_of_starts = (*batch, len(column))
        starts = graph.emit("Gather", starts, ints(column), shape=shape_of_starts, axis=len(batch))
    last = np.array([shape[axis] - window[axis] for axis in axes], np.int32)
    inside = graph.emit("Min", graph.emit("Max", starts, np.array(0, np.int32)), last)
    scaled = graph.emit("Mul", inside, np.array([strides[axis] for axis in axes], np.int32))
    of_window = (*batch, *(1,) * len(kept))
    first = graph.reshape(graph.reduce("ReduceSum", scaled, (len(batch),)), of_window)
    numbers = graph.emit("Add", first, known.astype(np.int32), shape=full)
    if clip:
        return numbers
    is_inside = graph.reduce("ReduceMin", graph.emit("Equal", starts, inside), (len(batch),))
    is_inside = graph.reshape(is_inside, of_window)
    outside = np.array(math.prod(shape), np.int32)
    return graph.emit("Where", is_inside, numbers, outside, shape=full, dtype=np.int32)


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


RULES: dict[str, Rule] = {"gather": _gather, "scatter": _scatter}
