"""How PyTorch writes a model: one table of rules, from which import and export both follow.

A rule says where PyTorch keeps the arrays of one of our modules, and how they are laid out there.
`pretrained.torchvision` has the tables.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

import numpy as np

from harmonic_jax.pretrained.files import WeightsError

Path = tuple[str | int, ...]

# Our array -> PyTorch's, of a convolution, a linear layer, GroupNorm and batch norm.
ARRAY_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_ARRAYS = "|".join(ARRAY_NAMES)
_PLACEHOLDER = re.compile(r"\{(\d*)([a-z])([+-]\d+)?\}")


@dataclasses.dataclass(frozen=True)
class Transform:
    """An array of PyTorch's <-> ours. No value is ever computed.

    Attributes:
        to_ours: PyTorch's array -> ours; a permutation of its elements (or a part of them).
        to_torch: ours -> PyTorch's; zeros where ours has no such element.
    """

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]

    def then(self, other: "Transform") -> "Transform":
        """First this, then another, on the way from PyTorch to us."""
        return Transform(
            lambda a: other.to_ours(self.to_ours(a)), lambda a: self.to_torch(other.to_torch(a))
        )

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape there of an array that has this shape here."""
        return self.to_torch(np.broadcast_to(np.int8(0), shape)).shape


SAME = Transform(lambda a: a, lambda a: a)


def permuted(*axes: int) -> Transform:
    """`to_ours(a) = a.transpose(axes)`."""
    back = tuple(int(i) for i in np.argsort(axes))
    return Transform(lambda a: a.transpose(axes), lambda a: a.transpose(back))


# A convolution (grouped ones too): OIHW <-> HWIO.
CONV_KERNEL = permuted(2, 3, 1, 0)
# A linear layer: `[o i]` <-> `[i o]`.
LINEAR_KERNEL = permuted(1, 0)
# A transposed convolution: `[i o h w]` <-> `[h w i o]`, not flipped. Tap (y, x) of an input cell
# (r, c) adds to the output cell (stride r + y, stride c + x) on both sides.
TRANSPOSED_CONV_KERNEL = permuted(2, 3, 0, 1)


def flattened_linear_kernel(height: int, width: int) -> Transform:
    """A linear layer on a flattened map: `[o (c h w)]` <-> `[(h w c) o]`.

    Example:
        >>> flattened_linear_kernel(7, 7).to_ours(np.zeros((1024, 256 * 49))).shape
        (12544, 1024)
    """
    return Transform(
        lambda a: (
            a.reshape(a.shape[0], -1, height, width).transpose(2, 3, 1, 0).reshape(-1, a.shape[0])
        ),
        lambda a: (
            a.reshape(height, width, -1, a.shape[-1]).transpose(3, 2, 0, 1).reshape(a.shape[-1], -1)
        ),
    )


def whole_map(side: int) -> Transform:
    """A convolution of a whole `side` x `side` map <-> the linear layer that it is."""
    return Transform(
        lambda a: a.reshape(a.shape[0], -1), lambda a: a.reshape(a.shape[0], -1, side, side)
    )


def subsampled_linear_kernel(*, side: int, every_cell: int, every_input: int) -> Transform:
    """A linear layer on a `side` x `side` map -> a convolution that keeps a part of its inputs.

    `[o (c h w)]` <-> `[h' w' c' o]`: the inputs that the layer below keeps, and rows and columns
    from the first to the last; the convolution's holes keep what it sees. The way back writes
    zeros in the gaps.

    Args:
        every_cell: distance of the rows and columns that are kept.
        every_input: distance of the inputs that are kept.

    Example:
        >>> fc6 = subsampled_linear_kernel(side=7, every_cell=3, every_input=1)
        >>> fc6.to_ours(np.zeros((4096, 512 * 49))).shape
        (3, 3, 512, 4096)

    Source:
        ParseNet (Liu et al. 2015), for VGG-16's fc6 and fc7.
    """
    cells = slice(None, None, every_cell)
    kept = (slice(None), slice(None, None, every_input), cells, cells)

    def to_ours(array: np.ndarray) -> np.ndarray:
        kernel = array.reshape(array.shape[0], -1, side, side)
        return kernel[kept].transpose(2, 3, 1, 0)

    def to_torch(array: np.ndarray) -> np.ndarray:
        num_in, num_out = array.shape[2:]
        kernel = np.zeros((num_out, every_input * num_in, side, side), array.dtype)
        kernel[kept] = array.transpose(3, 2, 0, 1)
        return kernel.reshape(num_out, -1)

    return Transform(to_ours, to_torch)


def every_output(distance: int) -> Transform:
    """Of PyTorch's outputs every second, third, .. on our last axis; zeros on the way back.

    Example:
        >>> every_output(4).to_ours(np.arange(8)).tolist()
        [0, 4]
        >>> every_output(4).to_torch(np.array([5, 7])).tolist()
        [5, 0, 0, 0, 7, 0, 0, 0]
    """

    def to_torch(array: np.ndarray) -> np.ndarray:
        spread = np.zeros((*array.shape[:-1], distance * array.shape[-1]), array.dtype)
        spread[..., ::distance] = array
        return spread

    return Transform(lambda a: a[..., ::distance], to_torch)


def background_last(num_classes: int, *, per_class: int = 1) -> Transform:
    """Background from the first place among the classes (PyTorch) to the last (ours).

    It orders our last axis, the outputs', which is `[a * (num_classes + 1) * per_class]`: an SSD
    head has a group of classes for each anchor, and class-wise box deltas have 4 numbers a class.

    Example:
        >>> background_last(3).to_ours(np.arange(8)).tolist()  # two anchors
        [1, 2, 3, 0, 5, 6, 7, 4]
        >>> background_last(1, per_class=4).to_torch(np.array([4, 5, 6, 7, 0, 1, 2, 3])).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def rolled(array: np.ndarray, by: int) -> np.ndarray:
        groups = array.reshape(*array.shape[:-1], -1, num_classes + 1, per_class)
        return np.roll(groups, by, axis=-2).reshape(array.shape)

    return Transform(lambda a: rolled(a, -1), lambda a: rolled(a, 1))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where PyTorch keeps the arrays of a module of ours, and how they are laid out there.

    Attributes:
        ours: path of the module, in which `{i}` stands for a number. One that ends in the name of
            an array (`l2_norms/0/scale`) stands for that array alone.
        theirs: its name there, of the same numbers: `{i}`, `{i+1}`, `{2i}`, `{2i+5}`.
        kernel: layout of the kernel; None: by its rank.
        outputs: how our last axis is ordered there, of kernel and bias.

    Example:
        >>> rule = Rule("stages/{i}/{j}/norms/{k}", "layer{i+1}.{j}.bn{k+1}")
        >>> rule.name_of("stages/3/0/norms/1/var")
        'layer4.0.bn2.running_var'
    """

    ours: str
    theirs: str
    kernel: Transform | None = None
    outputs: Transform = SAME

    def name_of(self, path: str) -> str | None:
        """PyTorch's name of an array of ours; None: the rule is not of that array."""
        found = _pattern(self.ours).fullmatch(path)
        if found is None:
            return None
        values = found.groupdict()

        def filled(placeholder: re.Match[str]) -> str:
            factor, letter, offset = placeholder.groups()
            return str(int(factor or 1) * int(values[letter]) + int(offset or 0))

        name = _PLACEHOLDER.sub(filled, self.theirs)
        return f"{name}.{ARRAY_NAMES[values['array']]}" if "array" in values else name

    def transform(self, array: str, ndim: int) -> Transform:
        """The layout of an array by its name here and its rank."""
        if array != "kernel":
            return self.outputs
        by_rank = {4: CONV_KERNEL, 2: LINEAR_KERNEL}
        return (self.kernel or by_rank.get(ndim, SAME)).then(self.outputs)


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    numbers = re.sub(r"\{([a-z])\}", r"(?P<\1>\\d+)", ours)
    is_array = ours.rpartition("/")[2] in ARRAY_NAMES
    return re.compile(numbers if is_array else f"{numbers}/(?P<array>{_ARRAYS})")


def prefixed(rules: tuple[Rule, ...], ours: str, theirs: str) -> tuple[Rule, ...]:
    """The rules of a part of a model, as rules of the model.

    Example:
        >>> prefixed((Rule("conv", "conv1"),), "backbone/", "backbone.body.")[0].theirs
        'backbone.body.conv1'
    """
    return tuple(
        dataclasses.replace(rule, ours=ours + rule.ours, theirs=theirs + rule.theirs)
        for rule in rules
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is written in PyTorch's state dict.

    Attributes:
        rules: of each array the first that is of it counts.
        is_partial: arrays without a rule stay as they are; otherwise PyTorch has no such model.
        ignored: prefixes of names there that our model has no use for.
        renamed: a name in a file of another version -> the name here. Names it does not know it
            returns as they are.
        constants: arrays that are always written, and never read.
    """

    rules: tuple[Rule, ...]
    is_partial: bool = False
    ignored: tuple[str, ...] = ()
    renamed: Callable[[str], str] = str
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def entry(self, path: Path, ndim: int) -> tuple[str, Transform] | None:
        """Name and layout there of an array of ours; None: the file has nothing for it.

        Raises:
            WeightsError: there is no rule for it.
        """
        joined = "/".join(map(str, path))
        for rule in self.rules:
            name = rule.name_of(joined)
            if name is not None:
                return name, rule.transform(str(path[-1]), ndim)
        if self.is_partial:
            return None
        raise WeightsError(f"PyTorch's model has no place for {joined}")
