"""The collectives of a compiled program, read from its HLO text.

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
    """One instruction.

    Attributes:
      kind: one of `KINDS`.
      num_bytes: of the whole array that is combined, a device; of a reduce-scatter its input,
        of an all-gather its result.
      group_size: devices that take part together.
      num_runs: how often a step runs it.
      dtypes: of the arrays, each once.
      num_arrays: combined in this one instruction.
      source: the JAX operation it comes from, as far as the compiler kept it.
    """

    kind: str
    num_bytes: int
    group_size: int
    num_runs: int
    dtypes: tuple[str, ...]
    num_arrays: int
    source: str

    @property
    def wire_bytes(self) -> float:
        """Bytes a device sends in one run, by the ring algorithms, which are optimal in it."""
        n = self.group_size
        match self.kind:
            case "all-reduce":  # a reduce-scatter, then an all-gather
                return 2 * (n - 1) / n * self.num_bytes
            case "collective-permute" | "collective-broadcast":
                return float(self.num_bytes) if n > 1 else 0.0
            case _:
                return (n - 1) / n * self.num_bytes


def find_collectives(hlo: str) -> list[Collective]:
    """All collectives of a module, in the order of the text.

    Args:
      hlo: what `jax.stages.Compiled.as_text()` returns.

    Raises:
      HloError: a collective is written in a way that is not known here.
    """
    num_devices = _num_devices(hlo)
    computations = computations_of(hlo)
    runs = runs_of(computations)
    found = []
    for name, lines in computations.items():
        starts = {}
        for line in lines:
            instruction = INSTRUCTION.match(line)
            kind = _kind(instruction["opcode"]) if instruction else None
            if instruction is None or kind is None or runs[name] == 0:
                continue
            opcode, rest = instruction["opcode"], instruction["rest"]
            if opcode.endswith("-start"):
                starts[instruction["name"]] = rest
                continue
            if opcode.endswith("-done"):  # its type is the result, its start has the attributes
                rest = starts[_first_operand(rest)]
            found.append(_collective(kind, instruction["type"], rest, runs[name], num_devices))
    return found


def _nested(levels: int) -> str:
    inner = _nested(levels - 1) if levels else "(?!)"
    return rf"\((?:[^()]|{inner})*\)"


_TYPE = rf"(?:{_nested(3)}|[^\s(]\S*)"  # tuples of tuples of arrays whose layouts have tiles
INSTRUCTION = re.compile(
    rf"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>{_TYPE}) (?P<opcode>[\w-]+)(?P<rest>\(.*)"
)
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")  # type, shape, layout
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|called_computations)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def _kind(opcode: str) -> str | None:
    base = opcode.removesuffix("-start").removesuffix("-done")
    return base if base in KINDS else None


def _num_devices(hlo: str) -> int:
    header = hlo.split("\n", 1)[0]
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
    return math.prod(int(n) for n in counts)


def computations_of(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation by its name; the entry's is empty."""
    found: dict[str, list[str]] = {}
    name: str | None = None
    lines: list[str] = []
    for line in hlo.splitlines():
        if name is None:
            opening = _COMPUTATION.match(line)
            if opening and not line.startswith("HloModule"):
                name, lines = "" if opening["entry"] else opening["name"], []
        elif line.startswith("}"):
            found[name] = lines
            name = None
        else:
            lines.append(line)
    return found


def runs_of(computations: Mapping[str, list[str]]) -> dict[str, int]:
    """How often a step runs each computation. Loops of unknown length count as one turn."""
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in computations}
    for name, lines in computations.items():
        for line in lines:
            if re.search(r" async-(done|update)\(", line):
                continue  # names the computation that its start has called
            trips = _TRIPS.search(line)
            times = int(trips[1]) if trips and " while(" in line else 1
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            calls[name] += [(other, times) for other in called if other in computations]
    runs = dict.fromkeys(computations, 0)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for other, turns in calls[name]:
            visit(other, times * turns)

    visit("", 1)
    return runs


def _collective(kind: str, type_: str, rest: str, num_runs: int, num_devices: int) -> Collective:
    arrays = ARRAY.findall(type_)
    group_size = _group_size(rest, num_devices)
    num_bytes = sum(array_bytes(dtype, shape) for dtype, shape, _ in arrays)
    if kind == "reduce-scatter":
        num_bytes *= group_size  # its result is a part
    source = re.search(r'op_name="([^"]*)"', rest)
    return Collective(
        kind=kind,
        num_bytes=num_bytes,
        group_size=group_size,
        num_runs=num_runs,
        dtypes=tuple(sorted({dtype for dtype, _, _ in arrays})),
        num_arrays=len(arrays),
        source=source[1] if source else "",
    )


def _group_size(rest: str, num_devices: int) -> int:
    if "source_target_pairs=" in rest:
        return num_devices
    if re.search(r"replica_groups=\{\}", rest):
        return num_devices
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", rest)
    if iota:
        return int(iota[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if named:
        return _size_of_axes(named[1], named[2])
    raise HloError(f"cannot read the replica groups of {rest[:200]!r}")


def _size_of_axes(mesh: str, axes: str) -> int:
    """Devices along some axes: of the mesh `'a'=2,'b'=8` along `'a','b':(2)4` they are 2 x 4."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes)
    return math.prod(int(part) if part else sizes[name] for name, part in parts)


def array_bytes(dtype: str, shape: str) -> int:
    """Of an array as HLO writes it, such as f32 and 8,4."""
    count = math.prod(int(n) for n in shape.split(",") if n)
    bits = 8 if dtype == "pred" else re.search(r"\d+", dtype)
    if bits is None:
        return 0  # token
    return math.ceil(count * int(bits if isinstance(bits, int) else bits[0]) / 8)


def _first_operand(rest: str) -> str:
    operand = re.search(r"%([\w.-]+)", rest)
    if operand is None:
        raise HloError(f"cannot read the operand of {rest[:200]!r}")
    return operand[1]
