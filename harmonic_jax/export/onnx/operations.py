"""How each operation of JAX is written in ONNX: one operator, or a few.

A rule is given the graph, the parameters of the operation and its inputs, and returns its result
(or results). Gathers and scatters are in `indexing`, loops and branches in `convert`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harmonic_jax.export.onnx.graph import Graph, Tensor, Value, ints, stored_dtype

Params = dict[str, Any]
Rule = Callable[..., Any]


def one_operator(operator: str) -> Rule:
    """The rule of an operation of one element at a time that ONNX has too."""
    return lambda graph, params, *inputs: graph.emit(operator, *inputs)


def logical(on_bools: str, on_integers: str) -> Rule:
    return lambda graph, params, *x: graph.emit(
        on_bools if x[0].dtype == np.bool_ else on_integers, *x
    )


def reduction(operator: str) -> Rule:
    return lambda graph, params, x: graph.reduce(operator, x, params["axes"])


def unchanged(graph: Graph, params: Params, x: Value) -> Value:
    return x


def not_equal(graph: Graph, params: Params, a: Value, b: Value) -> Value:
    if a is b and np.issubdtype(a.dtype, np.floating):
        return graph.emit("IsNaN", a)
    return graph.emit("Not", graph.emit("Equal", a, b))


def is_finite(graph: Graph, params: Params, x: Value) -> Value:
    return graph.emit("Not", graph.emit("Or", graph.emit("IsNaN", x), graph.emit("IsInf", x)))


def select(graph: Graph, params: Params, which: Value, *cases: Value) -> Value:
    if which.dtype != np.bool_ or len(cases) != 2:
        raise ValueError("a choice between more than two arrays is not supported")
    no, yes = cases
    if no.dtype == np.bool_:  # ONNX Runtime's Where knows no bool.
        no, yes = graph.cast(no, np.uint8), graph.cast(yes, np.uint8)
        return graph.cast(select(graph, params, which, no, yes), np.bool_)
    if _is_maximum(graph, which, no, yes):
        return graph.emit("Max", yes, no)
    shape = np.broadcast_shapes(which.shape, no.shape)
    return graph.emit("Where", which, yes, no, shape=shape, dtype=stored_dtype(no.dtype))


def _is_maximum(graph: Graph, which: Value, no: Value, yes: Value) -> bool:
    """Whether it is `where((a >= b) | isnan(a), a, b)`, as in max pooling: far faster as Max."""
    if not all(isinstance(x, Tensor) for x in (which, no, yes)):
        return False
    makers, a, b = graph.root.makers, graph.name(yes), graph.name(no)
    either = makers.get(graph.name(which))
    if either is None or either.operator != "Or":
        return False
    parts = [makers[name] for name in either.inputs if name in makers]
    tests = {(part.operator, *part.inputs) for part in parts}
    return tests == {("GreaterOrEqual", a, b), ("IsNaN", a)}


def cumulative_sum(graph: Graph, params: Params, x: Value) -> Value:
    axis = np.asarray(params["axis"], np.int64)
    return graph.emit("CumSum", x, axis, shape=x.shape, reverse=int(params["reverse"]))


def top_k(graph: Graph, params: Params, x: Value) -> tuple[Value, Value]:
    """Both give of equals the one with the lower index first."""
    axis, k = int(params.get("axis", len(x.shape) - 1)), int(params["k"])
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    values = graph.new_tensor("TopK", shape, stored_dtype(x.dtype))
    indices = graph.new_tensor("TopKIndex", shape, np.int64)
    graph.emit_to([values, indices], "TopK", x, ints([k]), axis=axis)
    return values, graph.cast(indices, np.int32)


def broadcast(graph: Graph, params: Params, x: Value) -> Value:
    shape = tuple(map(int, params["shape"]))
    aligned = [1] * len(shape)
    for place, size in zip(params["broadcast_dimensions"], x.shape, strict=True):
        aligned[place] = size
    x = graph.reshape(x, aligned)
    return x if x.shape == shape else graph.emit("Expand", x, ints(shape), shape=shape)


def reshape(graph: Graph, params: Params, x: Value) -> Value:
    if params.get("dimensions") is not None:
        raise ValueError("a reshape of another order of axes is not supported")
    return graph.reshape(x, params["new_sizes"])


def squeeze(graph: Graph, params: Params, x: Value) -> Value:
    return graph.reshape(x, [n for i, n in enumerate(x.shape) if i not in params["dimensions"]])


def stack(graph: Graph, params: Params, *parts: Value) -> Value:
    axis = params["axis"]
    shape = (*parts[0].shape[:axis], 1, *parts[0].shape[axis:])
    return graph.concatenate([graph.reshape(part, shape) for part in parts], axis)


def unstack(graph: Graph, params: Params, x: Value) -> list[Value]:
    axis = params["axis"]
    parts = split(graph, x, axis, [1] * x.shape[axis])
    return [graph.reshape(part, x.shape[:axis] + x.shape[axis + 1 :]) for part in parts]


def split(graph: Graph, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    parts = []
    for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        starts, limits = [0] * len(x.shape), list(x.shape)
        starts[axis], limits[axis] = end - size, end
        parts.append(graph.slice(x, starts, limits))
    return parts


def tile(graph: Graph, params: Params, x: Value) -> Value:
    shape = [n * rep for n, rep in zip(x.shape, params["reps"], strict=True)]
    return graph.emit("Tile", x, ints(params["reps"]), shape=shape)


def reverse(graph: Graph, params: Params, x: Value) -> Value:
    axes = ints(params["dimensions"])
    from_last, to_first = np.full_like(axes, -1), np.full_like(axes, np.iinfo(np.int64).min)
    return graph.emit("Slice", x, from_last, to_first, axes, from_last, shape=x.shape)


def pad(graph: Graph, params: Params, x: Value, fill: Value) -> Value:
    """Cells before and after; if negative, cells are cut off."""
    config = [(int(low), int(high)) for low, high, _ in params["padding_config"]]
    if any(between for _, _, between in params["padding_config"]):
        raise ValueError("padding between cells is not supported")
    starts = [max(-low, 0) for low, _ in config]
    limits = [n - max(-high, 0) for n, (_, high) in zip(x.shape, config, strict=True)]
    x = graph.slice(x, starts, limits)
    lows, highs = ([max(sides[i], 0) for sides in config] for i in (0, 1))
    if not any(lows + highs):
        return x
    shape = [low + n + high for low, n, high in zip(lows, x.shape, highs, strict=True)]
    return graph.emit("Pad", x, ints(lows + highs), fill, shape=shape)


def convolve(graph: Graph, params: Params, x: Value, kernel: Value) -> Value:
    """ONNX knows channels first; its runtime cancels the transpositions of neighbours."""
    padding = [(int(low), int(high)) for low, high in params["padding"]]
    is_plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
    if not is_plain or min(map(min, padding)) < 0:
        raise ValueError("groups of batches, gaps in the input and cropping are not supported")
    dims = params["dimension_numbers"]
    x, kernel = graph.transpose(x, dims.lhs_spec), graph.transpose(kernel, dims.rhs_spec)
    steps = list(map(int, params["window_strides"]))
    dilations = list(map(int, params["rhs_dilation"]))
    window = kernel.shape[2:]
    cells = [
        (n + low + high - gap * (side - 1) - 1) // step + 1
        for n, (low, high), gap, side, step in zip(
            x.shape[2:], padding, dilations, window, steps, strict=True
        )
    ]
    out = graph.emit(
        "Conv",
        x,
        kernel,
        shape=(x.shape[0], kernel.shape[0], *cells),
        strides=steps,
        pads=[low for low, _ in padding] + [high for _, high in padding],
        dilations=dilations,
        kernel_shape=list(window),
        group=int(params["feature_group_count"]),
    )
    return graph.transpose(out, np.argsort(dims.out_spec).tolist())


def matrix_product(graph: Graph, params: Params, a: Value, b: Value) -> Value:
    """Both as stacks of matrices: [batch, free, summed] x [batch, summed, free]."""
    (summed_a, summed_b), (batch_a, batch_b) = params["dimension_numbers"]
    free_a, free_b = (
        [axis for axis in range(len(x.shape)) if axis not in (*summed, *batch)]
        for x, summed, batch in ((a, summed_a, batch_a), (b, summed_b, batch_b))
    )
    batch = [a.shape[axis] for axis in batch_a]
    rows, columns = [a.shape[axis] for axis in free_a], [b.shape[axis] for axis in free_b]
    inner = math.prod(a.shape[axis] for axis in summed_a)
    stack = [math.prod(batch)] if batch else []
    a = graph.transpose(a, [*batch_a, *free_a, *summed_a])
    a = graph.reshape(a, [*stack, math.prod(rows), inner])
    b = graph.transpose(b, [*batch_b, *summed_b, *free_b])
    b = graph.reshape(b, [*stack, inner, math.prod(columns)])
    product = graph.emit("MatMul", a, b, shape=[*stack, math.prod(rows), math.prod(columns)])
    return graph.reshape(product, [*batch, *rows, *columns])


RULES: dict[str, Rule] = {
    "add": one_operator("Add"),
    "and": logical("And", "BitwiseAnd"),
    "broadcast_in_dim": broadcast,
    "clamp": lambda graph, params, low, x, high: graph.emit("Min", graph.emit("Max", x, low), high),
    "concatenate": lambda graph, params, *x: graph.concatenate(x, params["dimension"]),
    "conv_general_dilated": convolve,
    "convert_element_type": lambda graph, params, x: graph.cast(x, params["new_dtype"]),
    "copy": unchanged,
    "cumsum": cumulative_sum,
    "div": one_operator("Div"),
    "dot_general": matrix_product,
    "eq": one_operator("Equal"),
    "erfc": lambda graph, params, x: graph.emit("Sub", np.float32(1), graph.emit("Erf", x)),
    "exp": one_operator("Exp"),
    "floor": one_operator("Floor"),
    "ge": one_operator("GreaterOrEqual"),
    "gt": one_operator("Greater"),
    "is_finite": is_finite,
    "le": one_operator("LessOrEqual"),
    "log": one_operator("Log"),
    "log2": lambda graph, params, x: graph.emit("Div", graph.emit("Log", x), np.log(np.float32(2))),
    "logistic": one_operator("Sigmoid"),
    "lt": one_operator("Less"),
    "max": one_operator("Max"),
    "min": one_operator("Min"),
    "mul": one_operator("Mul"),
    "ne": not_equal,
    "neg": one_operator("Neg"),
    "not": logical("Not", "BitwiseNot"),
    "optimization_barrier": unchanged,
    "or": logical("Or", "BitwiseOr"),
    "pad": pad,
    "reduce_and": reduction("ReduceMin"),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "reduce_or": reduction("ReduceMax"),
    "reduce_sum": reduction("ReduceSum"),
    # Of the dividend's sign, as in C.
    "rem": lambda graph, params, a, b: graph.emit("Mod", a, b, fmod=1),
    "reshape": reshape,
    "rev": reverse,
    "rsqrt": lambda graph, params, x: graph.emit("Reciprocal", graph.emit("Sqrt", x)),
    "select_n": select,
    "sign": one_operator("Sign"),
    "slice": lambda graph, params, x: graph.slice(
        x, params["start_indices"], params["limit_indices"], params["strides"]
    ),
    "split": lambda graph, params, x: split(graph, x, params["axis"], params["sizes"]),
    "sqrt": one_operator("Sqrt"),
    "square": lambda graph, params, x: graph.emit("Mul", x, x),
    "squeeze": squeeze,
    "stack": stack,
    "stop_gradient": unchanged,
    "sub": one_operator("Sub"),
    "tile": tile,
    "top_k": top_k,
    "transpose": lambda graph, params, x: graph.transpose(x, params["permutation"]),
    "unstack": unstack,
}
