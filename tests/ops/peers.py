"""torch and torchvision as references, where they are installed and work."""

import warnings
from types import ModuleType

import pytest


def torchvision_or_skip() -> tuple[ModuleType, ModuleType]:
    """torch and torchvision with its compiled operators, or a skipped test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
            import torchvision
            import torchvision.models.detection
    except (ImportError, OSError, RuntimeError) as error:  # A build without its operators.
        pytest.skip(f"torchvision is not usable here: {str(error).splitlines()[0]}")
    return torch, torchvision
