"""How the annotations of arrays are checked while tests run: see `conftest.py`."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """With its arguments and results checked; but settings refuse wrong values by themselves."""
    return function if function.__name__ == "__init__" else beartype(function)
