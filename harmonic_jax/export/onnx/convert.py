"""From a traced JAX program, operation by operation, to ONNX nodes.

Loops and branches are graphs inside of a graph, which read the names around them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from harmonic_jax.export.onnx import indexing, operations
from harmonic_jax.export.onnx.graph import Body, Graph, Node, Tensor, Value, stored_dtype

# Operations that are a program of their own, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_FOLDED = 2**14  # Known arrays of more elements are not stored, if a node makes them of fewer.


class UnsupportedError(ValueError):
    """An operation has no counterpart here, or not in this form."""


def convert(graph: Graph, program: Any, inputs: Sequence[Value]) -> list[Value]:
    """Adds the nodes of a program to a graph.

    Args:
      graph: where they go.
      program: a jaxpr, with its constants where it has any.
      inputs: its arguments.

    Returns:
      Its results.

    Raises:
      UnsupportedError: an operation that is not known here.
    """
    jaxpr = getattr(program, "jaxpr", program)
    known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    constants = [np.asarray(constant) for constant in getattr(program, "consts", ())]
    known |= zip(jaxpr.constvars, constants, strict=True)

    def read(atom: Any) -> Value:
        is_literal = isinstance(atom, core.Literal)
        return np.asarray(atom.val, atom.aval.dtype) if is_literal else known[atom]

    for equation in jaxpr.eqns:
        results = _apply(graph, equation, [read(atom) for atom in equation.invars])
        for out, result in zip(equation.outvars, results, strict=True):
            assert result.shape == out.aval.shape, (equation.primitive, result.shape, out.aval)
            known[out] = result
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, equation: Any, inputs: list[Value]) -> Sequence[Value]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return convert(graph, params[_CALLS[name]], inputs)
    if name == "platform_index":  # of `jax.lax.platform_dependent`: the way of no platform
        return [np.array(params["platforms"].index(None), np.int32)]
    if _is_foldable(equation, inputs):
        arrays = [
            np.asarray(x, atom.aval.dtype) for x, atom in zip(inputs, equation.invars, strict=True)
        ]
        found = equation.primitive.bind(*arrays, **params)
        return [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]
    if name not in _RULES and name not in _CONTROL:
        raise UnsupportedError(f"JAX's operation {name!r} has no rule for ONNX")
    try:
        if name in _CONTROL:
            return _CONTROL[name](graph, equation, inputs)
        found = _RULES[name](graph, params, *inputs)
    except UnsupportedError:  # of the body of a loop
        raise
    except ValueError as error:
        raise UnsupportedError(f"JAX's operation {name!r}: {error}") from error
    return [found] if isinstance(found, Tensor | np.ndarray) else list(found)


def _is_foldable(equation: Any, inputs: list[Value]) -> bool:
    """Whether all is known, and the result not much larger than what it is made of."""
    if equation.primitive.name == "iota":
        return True
    if not all(isinstance(x, np.ndarray) for x in inputs) or equation.primitive.name in _CONTROL:
        return False
    size = sum(out.aval.size for out in equation.outvars)
    return size <= max([_FOLDED, *(atom.aval.size for atom in equation.invars)])


def _while(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """A loop until the condition is false.

    With `jax.vmap` there is a condition for each row: the loop runs as long as one of them holds,
    and rows whose condition does not hold stay as they are.
    """
    params = equation.params
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    start = inputs[second:]

    def is_unfinished(inside: Graph, state: Sequence[Value]) -> Value:
        return convert(inside, params["cond_jaxpr"], [*inputs[:first], *state])[0]

    def any_of(inside: Graph, rows: Value) -> Value:
        return inside.reduce("ReduceMax", rows, range(len(rows.shape)))

    def step(inside: Graph, _: Tensor, carried: list[Tensor]) -> list[Value]:
        running, *state = carried
        found = convert(inside, params["body_jaxpr"], [*inputs[first:second], *state])
        if running.shape:
            for i, (new, old) in enumerate(zip(found, state, strict=True)):
                ones = (1,) * (len(new.shape) - len(running.shape))
                is_row_running = inside.reshape(running, (*running.shape, *ones))
                found[i] = operations.select(inside, {}, is_row_running, old, new)
        still = is_unfinished(inside, found)
        return [any_of(inside, still), still, *found]

    running = is_unfinished(graph, start)
    return _loop(graph, step, [running, *start], running=any_of(graph, running))[1:]


def _scan(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """A loop over the rows of arrays, whose results may be collected as rows."""
    params = equation.params
    if params["reverse"]:
        raise ValueError("scanning backwards is not supported")
    # Versions of JAX keep these numbers in different places; the body sees a row of an array.
    body = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
    arrays_in, rows_out = (
        sum(a.aval.ndim > b.aval.ndim for a, b in zip(whole, part, strict=True))
        for whole, part in ((equation.invars, body.invars), (equation.outvars, body.outvars))
    )
    second = len(inputs) - arrays_in
    first = second - (len(equation.outvars) - rows_out)
    constants, start, arrays = inputs[:first], inputs[first:second], inputs[second:]

    def step(inside: Graph, number: Tensor, carried: list[Tensor]) -> list[Value]:
        rows = [inside.emit("Gather", x, number, shape=x.shape[1:], axis=0) for x in arrays]
        found = convert(inside, params["jaxpr"], [*constants, *carried, *rows])
        return [np.array(True), *found]

    return _loop(graph, step, start, length=params["length"])


def _cond(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """One of two branches."""
    which, *operands = inputs
    if isinstance(which, np.ndarray):
        return convert(graph, equation.params["branches"][int(which)], operands)
    if len(equation.params["branches"]) != 2:
        raise ValueError("a choice between more than two branches is not supported")
    branches, outputs = {}, []
    for name, branch in zip(
        ("else_branch", "then_branch"), equation.params["branches"], strict=True
    ):
        inside = Graph(graph)
        outputs = [inside.as_tensor(value) for value in convert(inside, branch, operands)]
        branches[name] = Body(inside, [], outputs)
    results = [graph.new_tensor("If", out.shape, out.dtype) for out in outputs]
    graph.emit_to(results, "If", graph.cast(which, np.bool_), **branches)
    return list(results)


def _loop(
    graph: Graph,
    step: Callable[[Graph, Tensor, list[Tensor]], list[Value]],
    start: Sequence[Value],
    *,
    running: Value | None = None,
    length: int | None = None,
) -> list[Value]:
    """A loop, at most `length` times.

    Args:
      graph: that it goes to.
      step: given the body, the number of the repetition and what is carried, returns whether to go
        on, what is carried on, and then results that are stacked over the repetitions.
      start: what is carried at first.
      running: whether there is a first time (None: there is).
      length: None where `step` decides alone.
    """
    inside = Graph(graph)
    number = inside.new_tensor("number", (), np.int64)
    is_running = inside.new_tensor("is_running", (), np.bool_)
    carried = [inside.new_tensor("carried", x.shape, stored_dtype(x.dtype)) for x in start]
    outputs = [inside.as_tensor(value) for value in step(inside, number, carried)]
    results = [graph.new_tensor("Loop", x.shape, x.dtype) for x in outputs[1:]]
    for i in range(len(start), len(results)):
        results[i] = results[i]._replace(shape=(length or 0, *results[i].shape))
    body = Body(inside, [number, is_running, *carried], outputs)
    condition = np.array(True) if running is None else running
    names = ["" if length is None else graph.name(np.array(length, np.int64))]
    names += [graph.name(value) for value in (condition, *start)]
    graph.nodes.append(Node("Loop", names, [x.name for x in results], {"body": body}))
    return list(results)


_CONTROL = {"while": _while, "scan": _scan, "cond": _cond}
_RULES = operations.RULES | indexing.RULES
