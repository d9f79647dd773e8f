"""From a TFDS name to data that were prepared before; TensorFlow is never needed.

TFDS is imported inside the functions: it takes a second, and folders do without it.
"""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path
from typing import Any

from harmonic_jax.data.records import DataError
from harmonic_jax.data.tfds_files import INFO, named_damage, open_prepared
from harmonic_jax.files import make_folder
from harmonic_jax.terminal import Terminal

SCENES = "fashion_scenes"


def open_builders(name: str, root: str | None) -> dict[str, Any]:
    """Opens the prepared data of a name.

    Args:
      name: a TFDS name such as "coco/2017" or "coco/2017:1.1.0"; "voc/2007+2012" is two.
      root: the TFDS data directory; None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets (in the
        current folder for a user without a home).

    Returns:
      TFDS builders by configuration ("2007", "2012"; "" where the name has none).

    Raises:
      DataError: if it is not prepared there; the message has the command that prepares it.
    """
    data_dir = _data_dir(root)
    base, _, configs = name.partition("/")
    if not re.fullmatch(r"[a-z]\w*(/[\w.+-]+)?(:[\d.]+)?", name):
        raise DataError(f"data.name is {name!r}; it must be a TFDS name such as 'coco/2017'")
    if base == SCENES:
        return {configs: _prepare_scenes(configs, data_dir)}
    return {config: _open(base, config, data_dir) for config in configs.split("+")}


def _data_dir(root: str | None) -> Path:
    folder = root or os.environ.get("TFDS_DATA_DIR")
    if folder is None and os.path.expanduser("~") == "~":
        return Path("tensorflow_datasets")
    return Path(os.path.expanduser(folder or "~/tensorflow_datasets"))


def _prepare_scenes(config: str, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds

    from harmonic_jax.data.scenes.builder import FashionScenes

    hint = f"delete {data_dir / SCENES}: it is drawn anew"
    with named_damage(data_dir / SCENES, hint):
        builder = FashionScenes(data_dir=data_dir, config=config or None)
    if not _is_prepared(Path(builder.data_dir)):
        _check_folder(data_dir)
        console = Terminal(stderr=True)
        status = console.status(f"Drawing the data set {SCENES} into {data_dir}, once")
        # TFDS announces a download on stdout; there is none.
        with status, contextlib.redirect_stdout(io.StringIO()):
            tfds.disable_progress_bar()
            try:
                builder.download_and_prepare()
            except Exception:
                # Another process may have finished the same work first and own the folder now.
                if not _is_prepared(Path(builder.data_dir)):
                    raise
            finally:
                tfds.enable_progress_bar()
    return open_prepared(Path(builder.data_dir), hint=hint)


def _check_folder(data_dir: Path) -> None:
    try:
        make_folder(data_dir)
    except OSError as error:
        raise DataError(
            f"the data set {SCENES} cannot be drawn into {data_dir}: {error.strerror}; name "
            "another folder with data.root (--data.root DIR)"
        ) from error


def _open(base: str, config: str, data_dir: Path) -> Any:
    config, _, version = config.partition(":")
    folder = data_dir / base / config
    found = {path.name: path for path in folder.glob("*") if _is_prepared(path)}
    if version in found:
        return open_prepared(found[version])
    # Not what an interrupted `tfds build` left: "incomplete.ABC_1.0.0".
    numbered = [name for name in found if re.fullmatch(r"\d+(\.\d+)*", name)]
    if version or not numbered:
        raise _not_prepared(f"{base}/{config}".rstrip("/"), version, data_dir)
    return open_prepared(found[max(numbered, key=lambda name: [*map(int, name.split("."))])])


def _is_prepared(folder: Path) -> bool:
    return (folder / INFO).is_file()


def _not_prepared(name: str, version: str, data_dir: Path) -> DataError:
    wanted = f"{name}:{version}" if version else name
    return DataError(
        f"TFDS data set {wanted!r} is not prepared under {data_dir} (data.root). Prepare it once, "
        "in any environment that has TensorFlow (training needs none): "
        f"tfds build {wanted} --file_format=array_record --data_dir={shlex.quote(str(data_dir))}"
    )


def not_random_access(name: str, builder: Any) -> DataError:
    """The error for data that were prepared in a format without random access."""
    where = builder.data_dir
    return DataError(
        f"TFDS data set {name!r} in {where} has no array_record files. Add them once, in any "
        "environment that has TensorFlow: "
        f"tfds convert_format --dataset_version_dir={shlex.quote(str(where))} "
        "--out_file_format=array_record"
    )
