"""How the annotations of arrays are checked while tests run: see `conftest.py`."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import config


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """With its arguments and results checked; but settings refuse wrong values by themselves."""
    return function if function.__name__ == "__init__" else beartype(function)


def unchecked(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Calls a function as others do: without the tests' checks of annotations."""
    config.update("jaxtyping_disable", True)
    try:
        return function(*args, **options)
    finally:
        config.update("jaxtyping_disable", False)
