"""Bytes between HBM and a chip in a step, read from the HLO text of a program for TPUs.

The compiler decides which arrays live in the chip's own memory (VMEM, space 1 of a layout) and
writes it into every type. `cost_analysis()` counts those arrays like all others: for RetinaNet-R50,
30 GB a step and image, of which 4 GB reach HBM.
"""

import re

from harmonic_jax.pods.hlo import ARRAY, INSTRUCTION, array_bytes, computations_of, runs_of

# These move nothing: names for arrays, and instructions whose parts are counted on their own.
_FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "opt-barrier", "partition-id", "replica-id", "while", "conditional", "call",
    }
)  # fmt: skip
_FREE_CALL = re.compile(r'custom_call_target="(?:AllocateBuffer|ConcatBitcast)"')
_INNER = re.compile(r"(?: fusion\(.*?calls|to_apply)=%?([\w.-]+)")


def hbm_bytes(hlo: str) -> int:
    """Reads and writes of HBM, each instruction's operands and results once.

    More than a run moves where an instruction uses a part of an operand, less where it reads one
    several times.
    """
    computations = computations_of(hlo)
    runs = runs_of(computations)
    inner = set(_INNER.findall(hlo))  # of these only the fusion as a whole touches memory
    return sum(
        runs[name] * _moved(lines)
        for name, lines in computations.items()
        if runs[name] and name not in inner
    )


def _moved(lines: list[str]) -> int:
    instructions = [found for found in map(INSTRUCTION.match, lines) if found]
    sizes = {found["name"]: _hbm_size(found["type"]) for found in instructions}
    moved = 0
    for found in instructions:
        opcode, rest = found["opcode"], found["rest"]
        if opcode == "slice-done":  # a part that is read ahead: as large as what comes out
            moved += _size(found["type"]) + sizes[found["name"]]
        elif opcode == "copy-start":  # its type is of source and destination
            moved += sizes[found["name"]]
        elif not (_is_free(opcode) or _FREE_CALL.search(rest)):
            operands = re.findall(r"%([\w.-]+)", rest.split("), ", 1)[0])
            moved += sizes[found["name"]] + sum(sizes.get(operand, 0) for operand in operands)
    return moved


def _is_free(opcode: str) -> bool:
    return opcode in _FREE or opcode == "slice-start" or opcode.endswith("-done")


def _size(type_: str) -> int:
    return sum(array_bytes(dtype, shape) for dtype, shape, _ in ARRAY.findall(type_))


def _hbm_size(type_: str) -> int:
    """Bytes of a type's arrays that are in HBM."""
    return sum(
        array_bytes(dtype, shape)
        for dtype, shape, layout in ARRAY.findall(type_)
        if not re.search(r"S\([1-9]", layout)
    )
