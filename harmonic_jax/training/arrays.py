"""A pytree's leaves by name, and their way to and from the disk; orbax is seen here alone.

Leaves are stored as one flat dict `{"params/head/kernel": array}`: what is on the disk does not
depend on the classes that hold the arrays (optax's named tuples, flax's states, dataclasses), and
a leaf that does not fit can be named.
"""

import glob
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils.epath.gpath import PosixGPath
from orbax.checkpoint import v1 as ocp

PyTree = Any
_DEPTH = 250  # bytes of the longest name within a folder of checkpoints

# What fails in orbax comes as an exception, told in one line. Its log, and that of its tasks, tell
# it again, pages long.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda r: "never retrieved" not in r.getMessage())


class _Folder(PosixGPath):
    """A folder with any name: orbax finds what it has written by `glob`, with the name in the
    pattern, and takes /gs/x for a bucket."""

    _uri_scheme = None

    def glob(self, pattern: str) -> "Iterator[_Folder]":
        for path in glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)):
            yield type(self)(path)


def check_folder(folder: Path) -> None:
    """Checks that orbax can use folders within this one, with names of a few letters.

    Raises:
      ValueError: says why not.
    """
    path = str(folder)
    # TensorStore reads a backslash as a slash, and orbax "eggs:/" as the beginning of a bucket.
    unusable = next((part for part in ("\\", "gs:/") if part in f"{path}/"), None)
    if unusable is not None:
        raise ValueError(f"has {unusable} in its name; checkpoints need a folder without")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8; checkpoints need a folder that is") from None
    most = os.pathconf("/", "PC_PATH_MAX") - _DEPTH
    if length > most:
        raise ValueError(f"has {length} bytes; checkpoints need a folder with at most {most}")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a pytree by their path, parts joined by `/`, in the tree's order.

    Raises:
      ValueError: two leaves have one name, a leaf is neither an array nor described like one, or
        there is none with elements.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in leaves:
            raise ValueError(f"two leaves are called {name!r}")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(f"leaf {name!r} is a {type(leaf).__name__}; it must be an array")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(f"leaf {name!r} is {leaf.dtype}; store jax.random.key_data(key)")
        leaves[name] = leaf
    if not _non_empty(leaves):
        raise ValueError("the state has no leaf with elements")
    return leaves


def describe(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns shape and dtype of every leaf, as JSON."""
    return {
        name: {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
        for name, leaf in leaves.items()
    }


def first_difference(
    saved: Mapping[str, dict[str, Any]], wanted: Mapping[str, dict[str, Any]]
) -> str | None:
    """Says, in one line, where two descriptions differ first; None where they agree.

    >>> kernel = {"shape": [3, 4], "dtype": "float32"}
    >>> first_difference({"kernel": kernel}, {"kernel": kernel | {"dtype": "bfloat16"}})
    "leaf 'kernel' has dtype float32 in the checkpoint and bfloat16 in the state"
    """
    for name, leaf in wanted.items():
        if name not in saved:
            return f"leaf {name!r} of the state is not in the checkpoint"
        for what in ("shape", "dtype"):
            if saved[name][what] != leaf[what]:
                return (
                    f"leaf {name!r} has {what} {saved[name][what]} in the checkpoint"
                    f" and {leaf[what]} in the state"
                )
    for name in saved:
        if name not in wanted:
            return f"leaf {name!r} of the checkpoint is not in the state"
    return None


def first_not_finite(leaves: Mapping[str, Any]) -> str | None:
    """Names the first leaf of which this process has a number that is NaN or infinite.

    Of several processes with the same numbers, one looks.
    """
    for name, leaf in leaves.items():
        if jax.dtypes.issubdtype(leaf.dtype, np.inexact):
            is_finite = (np.isfinite(part).all() for part in _own_parts(leaf))
            if not all(is_finite):
                return name
    return None


def _own_parts(leaf: Any) -> Iterator[np.ndarray]:
    if not isinstance(leaf, jax.Array):
        yield np.asarray(leaf)
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield np.asarray(shard.data)


def write(folder: Path, leaves: Mapping[str, Any]) -> ocp.AsyncResponse[None]:
    """Starts to write arrays to a new folder; every process calls it.

    Orbax copies the arrays before it returns, so they may be donated or changed at once.
    """
    # A numpy scalar is stored as the array it is, not as a Python number.
    stored = {
        name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        for name, leaf in _non_empty(leaves)
    }
    with _context():
        return ocp.save_async(_Folder(folder), stored)


def check_stored(folder: Path, description: Mapping[str, dict[str, Any]]) -> None:
    """Checks that all leaves can be found again, with their shapes and dtypes; reads no numbers.

    Raises:
      ValueError: names the first one that cannot.
    """
    found = ocp.metadata(_Folder(folder)).metadata
    if not isinstance(found, dict):
        raise ValueError("no array can be found again")
    wanted = {name: leaf for name, leaf in description.items() if 0 not in leaf["shape"]}
    difference = first_difference(describe(found), wanted)
    if difference is not None:
        raise ValueError(f"not all arrays can be found again: {difference}")


def read(folder: Path, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Reads arrays onto the shardings of `leaves`; every process calls it.

    A numpy array in `leaves` gives a numpy array; anything else a jax.Array on its sharding,
    or on the first local device where it has none. Names, shapes and dtypes must be those that
    were written: orbax would cast.
    """
    stored = ocp.load(_Folder(folder), {name: _target(leaf) for name, leaf in _non_empty(leaves)})
    return {name: stored[name] if name in stored else _empty(leaves[name]) for name in leaves}


def _context() -> ocp.Context:
    context = ocp.Context()
    # zstd takes 8 % off float32 weights and doubles the processor time of a save.
    context.array.saving.use_compression = False
    # A full disk must show here, not as a timeout of a thread that waits for the folder.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _non_empty(leaves: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Orbax refuses arrays without elements; their description in the manifest is enough."""
    return [(name, leaf) for name, leaf in leaves.items() if 0 not in leaf.shape]


def _target(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _empty(leaf: Any) -> Any:
    empty = np.empty(leaf.shape, leaf.dtype)
    return empty if isinstance(leaf, np.ndarray) else jax.device_put(empty, _sharding(leaf))
