"""ONNX nodes under construction, and the operations on them that every rule needs.

A value is a NumPy array as long as it depends on no input, and a `Tensor` from there on. The
methods here take and return both: what is known is computed at once and never becomes a node.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
_TESTS = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
_TESTS |= {"Not", "And", "Or", "Xor", "IsNaN", "IsInf"}


class Tensor(NamedTuple):
    """A result of a node, or an input."""

    name: str
    shape: Shape
    dtype: np.dtype


Value = Tensor | np.ndarray


class Node(NamedTuple):
    """One operation. Of the attributes, a type is a `np.dtype` and a graph a `Body`."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Graph:
    """The nodes of a graph or of the body of a loop.

    Args:
      outer: of the body of a loop, the graph that the loop is in.
      has_constants: whether the constants of a body are its own, and not those of the graph around.
        ONNX Runtime 1.32 took 1.4 times as long where the weights were another graph's.
    """

    def __init__(self, outer: "Graph | None" = None, *, has_constants: bool = False) -> None:
        self.nodes: list[Node] = []
        self.root: Graph = outer.root if outer else self
        self.constants: dict[str, np.ndarray] = {}
        self.keeper: Graph = self if outer is None or has_constants else outer.keeper
        if outer is None:
            self.makers: dict[str, Node] = {}  # of every output
            self.numbers = itertools.count()

    def new_tensor(self, hint: str, shape: Sequence[int], dtype: np.dtype | type) -> Tensor:
        """A tensor under a name of its own, which a node is to make."""
        name = f"{hint}_{next(self.root.numbers)}"
        return Tensor(name, tuple(map(int, shape)), np.dtype(dtype))

    def name(self, value: Value) -> str:
        """The name under which a node reads the value."""
        if isinstance(value, Tensor):
            return value.name
        return self.keep(np.asarray(value, stored_dtype(value.dtype)))

    def keep(self, array: np.ndarray) -> str:
        """The name of a constant, of any type."""
        array = np.asarray(array, order="C")
        content = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        hint = "constant" if self.keeper is self.root else "body_constant"
        name = f"{hint}_{hashlib.sha256(content).hexdigest()[:16]}"
        self.keeper.constants.setdefault(name, array)
        return name

    def emit(
        self,
        operator: str,
        *inputs: Value,
        shape: Sequence[int] | None = None,
        dtype: np.dtype | type | None = None,
        **attributes: Any,
    ) -> Tensor:
        """Adds a node with one output.

        Args:
          shape: of the output; None: that of an operation of one element at a time, whose inputs
            are of one shape, or scalars, which ONNX broadcasts as JAX does.
          dtype: of the output; None: of the first input, bool for a test.
        """
        if shape is None:
            shape = np.broadcast_shapes(*(x.shape for x in inputs))
        if dtype is None:
            dtype = np.bool_ if operator in _TESTS else stored_dtype(inputs[0].dtype)
        out = self.new_tensor(operator, shape, dtype)
        self.emit_to([out], operator, *inputs, **attributes)
        return out

    def emit_to(
        self, outputs: Sequence[Tensor], operator: str, *inputs: Value, **attributes: Any
    ) -> None:
        """Adds a node with the given outputs."""
        names = [self.name(value) for value in inputs]
        self.nodes.append(Node(operator, names, [out.name for out in outputs], attributes))
        self.root.makers |= {out.name: self.nodes[-1] for out in outputs}

    def as_tensor(self, value: Value) -> Tensor:
        """The value as the output of a node of this very graph, which is what a graph returns."""
        return self.emit("Identity", value)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        shape = tuple(map(int, shape))
        if x.shape == shape:
            return x
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        return self.emit("Reshape", x, ints(shape), shape=shape)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return x
        if isinstance(x, np.ndarray):
            return np.ascontiguousarray(x.transpose(order))
        return self.emit("Transpose", x, shape=[x.shape[axis] for axis in order], perm=order)

    def cast(self, x: Value, dtype: np.dtype | type) -> Value:
        dtype = stored_dtype(np.dtype(dtype))
        if x.dtype == dtype:
            return x
        if isinstance(x, np.ndarray):
            if not is_half_weight(x, dtype):
                return x.astype(dtype)
            x = Tensor(self.keep(x), x.shape, x.dtype)
        return self.emit("Cast", x, dtype=dtype, to=dtype)

    def slice(
        self,
        x: Value,
        starts: Sequence[int],
        limits: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> Value:
        """x[start:limit:step] along every axis, steps > 0."""
        steps = [1] * len(x.shape) if steps is None else list(map(int, steps))
        parts = list(zip(starts, limits, steps, strict=True))
        shape = tuple(math.ceil((limit - start) / step) for start, limit, step in parts)
        if shape == x.shape:
            return x
        if isinstance(x, np.ndarray):
            return x[tuple(slice(*part) for part in parts)]
        axes = [
            i for i, (part, n) in enumerate(zip(parts, x.shape, strict=True)) if part != (0, n, 1)
        ]
        first, last, by = (ints([parts[axis][which] for axis in axes]) for which in range(3))
        return self.emit("Slice", x, first, last, ints(axes), by, shape=shape)

    def concatenate(self, parts: Sequence[Value], axis: int) -> Value:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.emit("Concat", *parts, shape=shape, axis=int(axis))

    def reduce(self, operator: str, x: Value, axes: Sequence[int]) -> Value:
        """`ReduceSum` and others over some axes, which go; of bool, `ReduceMax` is any."""
        if not axes:
            return x
        if x.dtype == np.bool_:
            return self.cast(self.reduce(operator, self.cast(x, np.int32), axes), np.bool_)
        shape = [n for axis, n in enumerate(x.shape) if axis not in axes]
        return self.emit(operator, x, ints(axes), shape=shape, keepdims=0)


class Body(NamedTuple):
    """The graph of a loop or of a branch: what it is given, what it returns."""

    graph: Graph
    inputs: list[Tensor]
    outputs: list[Tensor]


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """The type in the model: what is float16 or bfloat16 here is float32 there."""
    is_half = dtype in (np.dtype(np.float16), np.dtype(jnp.bfloat16))
    return np.dtype(np.float32) if is_half else np.dtype(dtype)


def is_half_weight(x: Value, dtype: np.dtype) -> bool:
    """Whether an array is to be stored in float16, and computed with in float32."""
    return isinstance(x, np.ndarray) and x.dtype == np.float16 and dtype == np.float32


def ints(values: Sequence[int]) -> np.ndarray:
    """Shapes and axes, which ONNX wants as int64."""
    return np.asarray(values, np.int64).reshape(-1)
