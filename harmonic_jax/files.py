"""Files that a user keeps: each is whole or not there, and the one before stays until then."""

import codecs
import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives the name of an empty file beside `path`, which takes its place if the block ends well.

    Its bytes are on the disk before it does. What `path` was stays as it is until then, and where
    the block fails. A link is replaced; what it points to is not touched. A pipe or a device
    (/dev/stdout) is written to as it is.

    The OSError of a file that cannot be written names `path`, and the space that is left where the
    disk is full.
    """
    path = Path(path)
    if _is_special(path):
        with named_errors(path):
            yield path
        return
    partial = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}{path.suffix[:20]}")
    with named_errors(path):
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            flush_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Has the disk keep the names in a folder: a rename is lost with the power until then."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write to a folder without reading it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, data: bytes | bytearray) -> None:
    """Writes a file whole; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text whole, in UTF-8 whatever the locale; see `replacing`.

    What UTF-8 cannot say (half of a surrogate pair, from a file name that is no text) is written
    as an escape.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_lines(path: str | Path, *, errors: str = "strict") -> list[str]:
    """The lines of a text, without their ends, from whatever system it comes.

    UTF-8, with or without a mark at its start, or UTF-16 with one, as Windows writes it. Only line
    ends end a line: names may hold what else Python's `splitlines` takes for one.

    Bytes that are no such text are a ValueError that names the file and the line; `errors` is as in
    `bytes.decode`.
    """
    data = Path(path).read_bytes()
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_wide else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if is_wide else "UTF-8"
        raise ValueError(f"{path} is not {encoding} text: {error.reason} in line {line}") from error
    if "\0" in text and errors == "strict":
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path} is no text: it has a zero byte in line {line}; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def append(descriptor: int, data: bytes) -> None:
    """Hands all bytes to the system: a disk that is nearly full takes a part first."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def check_writable(path: str | Path) -> None:
    """Tries whether a file can be written, before the work of making it; an OSError names it."""
    path = Path(path)
    if _is_special(path):
        return
    with named_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        tempfile.TemporaryFile(dir=path.parent).close()


def make_folder(path: str | Path) -> None:
    """Makes a folder if absent, and tries to write files there; an OSError names it."""
    with named_errors(path):
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def cache_folder() -> Path | None:
    """Where this package keeps what it can make again; None for a user without a home folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "harmonic_jax" if os.path.isabs(base) else None


@contextlib.contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Gives an OSError of the block, which may name another file or none, the name `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, explained(error, path), str(path)) from error


def explained(error: OSError, path: str | Path) -> str:
    """What the system says of an error, and the space that is left where the disk is full."""
    text = error.strerror or str(error) or type(error).__name__
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or "free" in text:
        return text
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return f"{text}, {shutil.disk_usage(folder).free / 2**20:.1f} MiB free"


def _is_special(path: Path) -> bool:
    """Whether there is something that is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
