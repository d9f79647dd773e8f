"""Whether JAX can start: wrong variables of the environment are said in a line.

Left alone, JAX raises whatever its backends do, and XLA ends the process with its list of flags.
"""

import functools
import os
import re
import subprocess
import sys

import jax

from harmonic_jax.config import ConfigError

# XLA reads its flags when the first client starts. A process of its own: a wrong one ends it.
_READ_FLAGS = "from jaxlib import xla_client; xla_client.make_cpu_client()"
_COMPLAINT = re.compile(
    r"^[EF]\d{4} .*?(?:command_line_flags|parse_flags_from_env)\S*\] (.*)", re.M
)


@functools.cache
def check_devices() -> None:
    """Starts JAX's devices; call it after `launch.start`, before anything that needs them.

    Raises:
      ConfigError: JAX has none; names the variable of the environment that is wrong.
    """
    check_flags()
    try:
        jax.devices()
    except Exception as error:  # whatever a backend raises, assertions among it
        reason = f" ({text.splitlines()[0]})" if (text := str(error).strip()) else ""
        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
            if value := os.environ.get(name):
                raise ConfigError(
                    f"{name} is {value!r}: JAX finds no such device{reason}; unset it to take what "
                    "there is, or set it to cpu"
                ) from error
        raise ConfigError(f"JAX finds no device to compute on{reason}") from error


@functools.cache
def check_flags() -> None:
    """
    Raises:
      ConfigError: XLA cannot read XLA_FLAGS.
    """
    flags = os.environ.get("XLA_FLAGS")
    if not flags:
        return
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _READ_FLAGS], capture_output=True, text=True, errors="replace"
        )
    except OSError:  # where no process can be started, XLA itself complains
        return
    if tried.returncode != 0 and (found := _COMPLAINT.search(tried.stderr)):
        raise ConfigError(f"XLA_FLAGS is {flags!r}: {found[1]}")
