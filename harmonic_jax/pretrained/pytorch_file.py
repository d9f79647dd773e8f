"""PyTorch's files without PyTorch, and without running anything that is in them.

A `.pth` holds a pickle, which is a program, and the numbers behind it. Here the pickle is read as a
list of instructions (`pickletools`) that are followed by a machine that knows plain containers,
numbers, texts and the few names by which PyTorch describes a tensor; any other name is refused. So
a file can claim what it likes, and nothing of it is imported or called.

Since PyTorch 1.6 a file is a zip archive: the pickle is `NAME/data.pkl`, numbers `NAME/data/KEY`.
Before, five pickles stand behind each other (a magic number, a version, the machine, the object,
the keys), then for each key its length and its numbers.
"""

import dataclasses
import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

_MOST_PICKLE_BYTES = 2**26  # a detector's has a thousandth
_MOST_VALUES = 2**20  # a list may hold another one many times, and so on
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("f8"),
    "FloatStorage": np.dtype("f4"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DICTS = ("collections.OrderedDict", "collections.defaultdict")
_OPTIONS = "argparse.Namespace"  # what torchvision's training script saves beside the weights
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES"),
    *("BINSTRING", "SHORT_BINSTRING"),
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PyTorchFileError(ValueError):
    """A file that is damaged, or holds more than tensors and plain containers."""


def _printable(name: str) -> str:
    return ascii(name[:100])[1:-1]


@dataclasses.dataclass(frozen=True)
class _Name:
    """Something of Python's that a pickle names; it is never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers of one type, which several tensors may share."""

    dtype: np.dtype
    key: str
    size: int

    @property
    def width(self) -> int:
        return self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A part of a storage, all lengths in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pytorch_file(path: Path) -> Any:
    """The object that `torch.save` wrote, with its tensors as arrays.

    Returns:
        Dicts, lists, tuples, numbers and texts as they are; tensors as NumPy arrays, bfloat16 as
        JAX has it; what it holds of command line options as a dict.

    Raises:
        PyTorchFileError: cut, damaged, or something else is in it; the message says what.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        try:
            return _read_zip(file, size) if is_zip else _read_legacy(file, size)
        except PyTorchFileError:
            raise
        except Exception as error:  # whatever zipfile, pickletools and NumPy say of damage
            raise PyTorchFileError("it is cut or damaged, or no file of PyTorch's") from error


def _read_zip(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if "constants.pkl" in members:
            raise PyTorchFileError(
                "it is a TorchScript program, not a state dict. Save model.state_dict() instead, "
                "best as .safetensors"
            )
        if "data.pkl" not in members:
            what = (
                "NumPy's (.npz)" if any(m.endswith(".npy") for m in members.values()) else "a zip"
            )
            raise PyTorchFileError(f"it is {what} archive, not PyTorch's")
        if sum(member.file_size for member in archive.infolist()) > size:
            raise PyTorchFileError("it is cut or damaged: it claims more bytes than it has")
        order = "<"
        if "byteorder" in members and archive.read(members["byteorder"]).strip() == b"big":
            order = ">"
        if archive.getinfo(members["data.pkl"]).file_size > _MOST_PICKLE_BYTES:
            raise PyTorchFileError("it is cut or damaged: it describes too much")
        content = _follow(io.BytesIO(archive.read(members["data.pkl"])))
        storages: dict[str, np.ndarray] = {}

        def array_of(tensor: _Tensor) -> np.ndarray:
            key = tensor.storage.key
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(members[f"data/{key}"]), np.uint8)
            return _array(tensor, storages[key], order)

        return _mapped(content, array_of)


def _read_legacy(file: BinaryIO, size: int) -> Any:
    head = io.BytesIO(file.read(_MOST_PICKLE_BYTES))
    if _follow(head) != _LEGACY_MAGIC:
        raise PyTorchFileError("it is a pickle, but not PyTorch's")
    _, machine, content, keys = (_follow(head) for _ in range(4))
    order = "<" if machine["little_endian"] else ">"
    file.seek(head.tell())
    widths: dict[str, int] = {}
    _mapped(content, lambda tensor: widths.update({tensor.storage.key: tensor.storage.width}))
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        (length,) = struct.unpack(f"{order}q", file.read(8))
        num_bytes = length * widths[key]
        if not 0 <= num_bytes <= size:
            raise PyTorchFileError("it is cut or damaged: it claims more bytes than it has")
        storages[key] = np.frombuffer(file.read(num_bytes), np.uint8)
    return _mapped(content, lambda tensor: _array(tensor, storages[tensor.storage.key], order))


def _mapped(content: Any, array_of: Callable[[_Tensor], Any]) -> Any:
    """The same containers with something in place of each tensor."""
    num_values = 0

    def mapped(value: Any) -> Any:
        nonlocal num_values
        num_values += 1
        if num_values > _MOST_VALUES:
            raise PyTorchFileError("it is cut or damaged: it describes too much")
        if isinstance(value, _Tensor):
            return array_of(value)
        if isinstance(value, dict):
            return {key: mapped(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(mapped(item) for item in value)
        return value

    return mapped(content)


def _array(tensor: _Tensor, data: np.ndarray, order: str) -> np.ndarray:
    """A view of a storage's bytes, which tensors may share."""
    dtype, count = tensor.storage.dtype, math.prod(tensor.shape)
    num_numbers = min(tensor.storage.size, data.size // dtype.itemsize)
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    is_within = min(tensor.offset, *tensor.shape, *tensor.strides, 0) >= 0 and (
        count == 0 or tensor.offset + reach < num_numbers
    )
    if not is_within or count > num_numbers:
        raise PyTorchFileError("it is cut or damaged: a tensor claims more numbers than there are")
    data = data[: num_numbers * dtype.itemsize]
    if order == ">":
        data = data.reshape(-1, dtype.itemsize)[:, ::-1].reshape(-1).copy()
    strides = [step * dtype.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        data.view(dtype)[tensor.offset :], tensor.shape, strides, writeable=False
    )


def _follow(stream: io.BytesIO) -> Any:
    """Follows one pickle to its end and returns what it describes."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        name = opcode.name
        if name in _NUMBERS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("TUPLE", "LIST"):
            items, stack = stack, marks.pop()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            _extend(stack[-1], items)
        elif name in ("APPEND", "SETITEM"):
            items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)]
            _extend(stack[-1], items[::-1])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                module_and_name = [stack.pop(), stack.pop()]
                arg = " ".join(reversed(module_and_name))
            stack.append(_Name(arg.replace(" ", ".", 1)))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            args = stack.pop()
            stack.append(_made(stack.pop(), args))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Name) and stack[-1].name == _OPTIONS:
                stack[-1] = dict(state)
            elif not isinstance(stack[-1], dict):  # of an OrderedDict: `_metadata`, not needed
                raise PyTorchFileError("it holds an object that is no tensor")
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if arg is None else arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[arg])
        elif name in ("POP", "POP_MARK", "DUP"):
            raise PyTorchFileError("it is cut or damaged, or no file of PyTorch's")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise PyTorchFileError(f"it holds more than tensors ({name})")
    (result,) = stack
    return result


def _extend(container: Any, items: list[Any]) -> None:
    if isinstance(container, dict):
        container.update(zip(items[::2], items[1::2], strict=True))
    elif isinstance(container, list):
        container.extend(items)
    else:
        raise PyTorchFileError("it is cut or damaged, or no file of PyTorch's")


def _storage(described: tuple[Any, ...]) -> _Storage:
    _, kind, key, _, size = described[:5]
    type_name = kind.name.rpartition(".")[2]
    if not kind.name.startswith("torch.") or type_name not in _DTYPES:
        raise PyTorchFileError(
            f"it holds a tensor that is no plain array ({_printable(kind.name)})"
        )
    if not isinstance(size, int) or size < 0:
        raise PyTorchFileError("it is cut or damaged")
    return _Storage(_DTYPES[type_name], str(key), size)


def _made(what: Any, args: tuple[Any, ...]) -> Any:
    """What a call would give; of names that are not PyTorch's for a tensor there is none."""
    name = what.name
    if name in _DICTS:
        return dict(args[0]) if args and isinstance(args[0], (list, dict)) else {}
    if name == _OPTIONS:
        return what
    if name == _TENSOR:
        storage, offset, shape, strides = args[:4]
        if not isinstance(storage, _Storage) or not all(
            isinstance(number, int) for number in (offset, *shape, *strides)
        ):
            raise PyTorchFileError("it is cut or damaged: a tensor without numbers")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))
    if name == _PARAMETER:
        return args[0]
    if name.startswith(("torch._", "torch.serialization.")):  # sparse, say
        raise PyTorchFileError(f"it holds a tensor that is no plain array ({_printable(name)})")
    raise PyTorchFileError(
        f"it holds {_printable(name)}, which is no tensor, and to read it would run code. Ask for "
        "a file of model.state_dict() alone, best as .safetensors"
    )
