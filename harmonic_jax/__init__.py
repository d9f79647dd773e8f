"""Object detection in JAX and Flax around the losses of HarmonicDet (ICCV 2021).

Importing this package imports nothing else: `import harmonic_jax.losses` needs jax alone.
`harmonic_jax.load(RUN)` opens a trained detector; what it needs is imported when it is first named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harmonic_jax.inference import load as load

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from harmonic_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "load"])
