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


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree, arrays, by their path, parts joined by `/`, in the tree's order.

    Two leaves of one name are a ValueError.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in leaves:
            raise ValueError(f"two leaves are called {name!r}")
        leaves[name] = leaf
    return leaves


def describe(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every leaf, as JSON."""
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
    more = next((name for name in saved if name not in wanted), None)
    return None if more is None else f"leaf {more!r} of the checkpoint is not in the state"


def first_not_finite(leaves: Mapping[str, Any]) -> str | None:
    """Names the first leaf of which this process has a number that is NaN or infinite.

    Of several processes with the same numbers, one looks.
    """
    for name, leaf in leaves.items():
        if not jax.dtypes.issubdtype(leaf.dtype, np.inexact):
            continue
        parts = [leaf]
        if isinstance(leaf, jax.Array):
            parts = [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]
        if not all(np.isfinite(np.asarray(part)).all() for part in parts):
            return name
    return None


def write(folder: Path, leaves: Mapping[str, Any]) -> ocp.AsyncResponse[None]:
    """Starts to write arrays to a new folder; every process calls it.

    Orbax copies the arrays before it returns, so they may be donated or changed at once.
    """
    context = ocp.Context()
    # zstd takes 8 % off float32 weights and doubles the processor time of a save.
    context.array.saving.use_compression = False
    # A full disk must show here, not as a timeout of a thread that waits for the folder.
    context.asynchronous.create_directories_asynchronously = False
    # A numpy scalar is stored as the array it is, not as a Python number.
    stored = {
        name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        for name, leaf in leaves.items()
    }
    with context:
        return ocp.save_async(_Folder(folder), stored)


def check_stored(folder: Path, description: Mapping[str, dict[str, Any]]) -> None:
    """Checks that all leaves can be found again, with their shapes and dtypes; reads no numbers.

    A ValueError names the first one that cannot.
    """
    found = ocp.metadata(_Folder(folder)).metadata
    if not isinstance(found, dict):
        raise ValueError("no array can be found again")
    difference = first_difference(describe(found), description)
    if difference is not None:
        raise ValueError(f"not all arrays can be found again: {difference}")


def read(folder: Path, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Reads arrays onto the shardings of `leaves`; every process calls it.

    A numpy array in `leaves` gives a numpy array; anything else a jax.Array on its sharding,
    or on the first local device where it has none. Names, shapes and dtypes must be those that
    were written: orbax would cast.
    """

    def target(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray | np.generic):
            return np.empty(leaf.shape, leaf.dtype)
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        sharding = getattr(leaf, "sharding", None) or default
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    stored = ocp.load(_Folder(folder), {name: target(leaf) for name, leaf in leaves.items()})
    return {name: stored[name] for name in leaves}
