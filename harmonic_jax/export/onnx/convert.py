"""From a traced JAX program, operation by operation, to ONNX nodes.

Loops and branches are graphs inside of a graph, which read the names around them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from harmonic_jax.export.onnx import indexing, operations
from harmonic_jax.export.onnx.graph import (
    Body,
    Graph,
    Node,
    Tensor,
    Value,
    is_half_weight,
    stored_dtype,
)

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
    """Adds the nodes of a program, a jaxpr with any constants, to a graph; returns its results."""
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
    if equation.primitive.name == "convert_element_type":
        return not is_half_weight(inputs[0], equation.params["new_dtype"])
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

    at_first = is_unfinished(graph, start)
    inside = Graph(graph)
    number = inside.new_tensor("number", (), np.int64)
    is_running = inside.new_tensor("is_running", (), np.bool_)
    carried = [
        inside.new_tensor("carried", x.shape, stored_dtype(x.dtype)) for x in (at_first, *start)
    ]
    running, *state = carried
    found = convert(inside, params["body_jaxpr"], [*inputs[first:second], *state])
    if running.shape:
        for i, (new, old) in enumerate(zip(found, state, strict=True)):
            ones = (1,) * (len(new.shape) - len(running.shape))
            is_row_running = inside.reshape(running, (*running.shape, *ones))
            found[i] = operations.select(inside, {}, is_row_running, old, new)
    still = is_unfinished(inside, found)
    outputs = [inside.as_tensor(x) for x in (any_of(inside, still), still, *found)]
    results = [graph.new_tensor("Loop", x.shape, x.dtype) for x in outputs[1:]]
    body = Body(inside, [number, is_running, *carried], outputs)
    names = ["", *(graph.name(value) for value in (any_of(graph, at_first), at_first, *start))]
    graph.nodes.append(Node("Loop", names, [x.name for x in results], {"body": body}))
    return list(results[1:])


def _scan(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """A loop over the rows of arrays, whose results may be collected as rows."""
    params = equation.params
    # Versions of JAX keep these numbers in different places; the body sees a row of an array.
    body = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
    arrays_in, rows_out = (
        sum(a.aval.ndim > b.aval.ndim for a, b in zip(whole, part, strict=True))
        for whole, part in ((equation.invars, body.invars), (equation.outvars, body.outvars))
    )
    second = len(inputs) - arrays_in
    first = second - (len(equation.outvars) - rows_out)
    constants, start, arrays = inputs[:first], inputs[first:second], inputs[second:]
    inside = Graph(graph, has_constants=not isinstance(params["length"], int))
    carried = [inside.new_tensor("carried", x.shape, stored_dtype(x.dtype)) for x in start]
    rows = [inside.new_tensor("row", x.shape[1:], stored_dtype(x.dtype)) for x in arrays]
    found = convert(inside, params["jaxpr"], [*constants, *carried, *rows])
    outputs = [inside.as_tensor(value) for value in found]
    results = [graph.new_tensor("Scan", x.shape, x.dtype) for x in outputs]
    for i in range(len(start), len(results)):
        results[i] = results[i]._replace(shape=(params["length"], *results[i].shape))
    if not arrays:  # ONNX counts the repetitions by the rows of one.
        arrays = [np.zeros(params["length"], np.bool_)]
        rows = [inside.new_tensor("row", (), np.bool_)]
    attributes: dict[str, Any] = {"num_scan_inputs": len(arrays)}
    if params["reverse"]:
        sides = {"scan_input_directions": len(arrays), "scan_output_directions": rows_out}
        attributes |= {side: [1] * count for side, count in sides.items() if count}
    body = Body(inside, [*carried, *rows], outputs)
    graph.emit_to(results, "Scan", *start, *arrays, body=body, **attributes)
    return list(results)


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


_CONTROL = {"while": _while, "scan": _scan, "cond": _cond}
_RULES = operations.RULES | indexing.RULES
