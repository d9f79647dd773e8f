"""The collectives of a compiled program, read from its HLO text, and what they send.

Counted is what runs: a collective inside of a loop as often as the loop turns, the two halves of
an asynchronous one once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)


class HloError(ValueError):
    """A line of HLO text that this parser does not know."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction of the program."""

    kind: str  # one of `KINDS`
    num_bytes: int  # of a device's array before a reduction, after a gather
    group_size: int  # devices that take part together
    num_runs: int  # in a step
    dtypes: tuple[str, ...]  # of the arrays, each once
    num_arrays: int
    source: str  # the JAX operation it comes from, as far as the compiler kept it

    @property
    def sent_bytes(self) -> float:
        """What a device sends in one run, by the ring algorithms, which are optimal in it."""
        match self.kind:
            case "all-reduce":
                return ring_all_reduce_bytes(self.num_bytes, self.group_size)
            case "collective-permute" | "collective-broadcast":
                return float(self.num_bytes) if self.group_size > 1 else 0.0
            case _:
                return (self.group_size - 1) / self.group_size * self.num_bytes


def ring_all_reduce_bytes(num_bytes: float, group_size: int) -> float:
    """Bytes that each of n devices sends to sum an array in a ring: 2 (n - 1) / n of it.

    >>> ring_all_reduce_bytes(100, 4)
    150.0
    """
    return 2 * (group_size - 1) / group_size * num_bytes


def find_collectives(hlo: str) -> list[Collective]:
    """All collectives of a module, in the order of the text, `jax.stages.Compiled.as_text()`.

    Raises:
      HloError: a collective is written in a way that is not known here.
    """
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", hlo.partition("\n")[0])
    num_devices = math.prod(map(int, counts))
    computations = _computations(hlo)
    runs = _count_runs(computations)
    found = []
    for name, lines in computations.items():
        starts = {}
        for instruction in filter(None, map(_INSTRUCTION.match, lines)):
            attributes = instruction["attributes"]
            if instruction["half"] == "-start":
                starts[instruction["name"]] = attributes
            elif runs[name]:
                if (
                    instruction["half"] == "-done"
                ):  # its type is the result, the rest is its start's
                    attributes = starts[attributes[1:].partition(")")[0].rpartition("%")[2]]
                found.append(_collective(instruction, attributes, runs[name], num_devices))
    return found


_INSTRUCTION = re.compile(
    r'\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>[^%"]+?) '
    rf"(?P<kind>{'|'.join(KINDS)})(?P<half>-start|-done)?(?P<attributes>\(.*)"
)
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
_ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|called_computations)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def _computations(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation by its name; the entry's is empty."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in hlo.splitlines()[1:]:
        opening = _COMPUTATION.match(line)
        if lines is None and opening:
            lines = found["" if opening["entry"] else opening["name"]] = []
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return found


def _count_runs(computations: Mapping[str, list[str]]) -> dict[str, int]:
    """How often a step runs each computation. Loops of unknown length count as one turn."""
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            if re.search(r" async-(done|update)\(", line):
                continue  # names the computation that its start has called
            trips = _TRIPS.search(line) if " while(" in line else None
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            turns = int(trips[1]) if trips else 1
            calls[name] += [(other, turns) for other in called if other in computations]
    runs = dict.fromkeys(computations, 0)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for other, turns in calls[name]:
            visit(other, times * turns)

    visit("", 1)
    return runs


def _collective(
    instruction: re.Match[str], attributes: str, num_runs: int, num_devices: int
) -> Collective:
    kind, arrays = instruction["kind"], _ARRAY.findall(instruction["type"])
    group_size = _group_size(attributes, num_devices)
    num_bytes = sum(_array_bytes(dtype, shape) for dtype, shape in arrays)
    if kind == "reduce-scatter":
        num_bytes *= group_size  # its result is a part
    dtypes = tuple(sorted({dtype for dtype, _ in arrays}))
    source = "".join(re.findall(r'op_name="([^"]*)"', attributes)[:1])
    return Collective(kind, num_bytes, group_size, num_runs, dtypes, len(arrays), source)


def _group_size(attributes: str, num_devices: int) -> int:
    if "source_target_pairs=" in attributes or "replica_groups={}" in attributes:
        return num_devices
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", attributes):
        return int(iota[1])
    # Along the axes 'a','b':(2)4 of the mesh 'a'=2,'b'=8 are 2 x 4 devices.
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    raise HloError(f"cannot read the replica groups of {attributes[:200]!r}")


def _array_bytes(dtype: str, shape: str) -> int:
    """Of an array as HLO writes it, such as f32 and 8,4; a token has none."""
    bits = "8" if dtype == "pred" else "".join(re.findall(r"\d+", dtype)[:1]) or "0"
    return math.ceil(math.prod(int(n) for n in shape.split(",") if n) * int(bits) / 8)
