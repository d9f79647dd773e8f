"""Who may import whom. A new edge between rooms is a decision: change the table, say why."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "harmonic_jax"

# Third-party modules and sibling rooms each room may import; the standard library is free.
ANY = {"*"}
ALLOWED = {
    "losses": {"jax"},
    "structures": {"jax", "jaxtyping"},
    # What settings refuse, by name: every room's settings are checked the same way.
    "checks": set(),
    # An experiment is made of the rooms' own settings, and knows nothing else of them.
    "config": {"checks", "data", "backbones", "detectors"},
    # What the files of configs/ have in common.
    "recipes": {"config"},
    # What every room that writes for people needs: whole files, and lines on a terminal.
    "files": set(),
    "terminal": {"rich"},
    # What foreign files are called where images, annotations or weights were expected.
    "file_kinds": set(),
    # Every file of JSON is read by it, and refused in the same words.
    "json_file": {"file_kinds"},
    # The one parser of COCO's JSON: data and metrics both read it, and may not import each other.
    "coco_format": {"numpy", "msgspec", "json_file"},
    "ops": {"jax", "jaxtyping", "numpy"},
    "backbones": {"jax", "numpy", "flax", "checks"},
    "detectors": {
        "jax", "jaxtyping", "numpy", "flax", "backbones", "ops", "losses", "structures", "checks",
    },
    "pretrained": {
        "jax", "jaxtyping", "numpy", "flax", "safetensors", "huggingface_hub", "rich", "msgspec",
        "backbones", "detectors", "config", "files", "file_kinds", "json_file",
    },
    "data": {
        "numpy", "cv2", "PIL", "yaml", "simplejpeg", "tensorflow_datasets", "grain", "array_record",
        "masks", "coco_format", "checks", "structures", "files", "file_kinds", "json_file",
        "terminal",
    },
    "masks": {"numpy", "pycocotools"},
    "metrics": {
        "numpy", "pycocotools", "masks", "coco_format", "checks", "json_file", "files", "terminal",
    },
    "training": ANY,
    # Reads what the train step compiles to; training itself knows nothing of pods' figures.
    "pods": {"jax", "msgspec", "training", "structures", "config"},
    "export": {
        "jax", "jaxtyping", "numpy", "cv2", "safetensors", "onnx", "config", "data",
        "pretrained", "structures", "training", "__version__", "files",
    },
    # What a user does with a trained detector; the commands are thin around it.
    "inference": {
        "jax", "jaxtyping", "numpy", "cv2", "PIL", "config", "data", "export", "masks", "metrics",
        "ops", "structures", "training", "report", "files", "pretrained", "detectors", "checks",
        "json_file",
    },
    "cli": ANY,
    # What readers look at: pictures with boxes, charts, and the page of what metrics computed.
    "report": {"numpy", "cv2", "matplotlib", "jinja2", "metrics", "masks", "files", "terminal"},
    "__init__": {"inference"},  # `load`, imported when it is first named
    "__main__": {"cli", "__version__"},
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """Top-level third-party modules and sibling rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            module = node.module or ""
            names = [module]
            if module == "harmonic_jax":
                names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if parts[0] == "harmonic_jax" and len(parts) > 1 else parts[0])
    return found - sys.stdlib_module_names - {"harmonic_jax"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_stay_in_bounds(path: Path) -> None:
    room = room_of(path)
    assert room in ALLOWED, f"{path}: a new room needs a row in the table"
    if ALLOWED[room] == ANY:
        return
    outside = imports_of(path) - ALLOWED[room] - {room}
    assert not outside, f"{room}/ may not import {sorted(outside)}"


def test_optax_and_orbax_stay_in_training() -> None:
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) != "training":
            assert not imports_of(path) & {"optax", "orbax"}, path


def test_configs_know_the_settings_of_data_alone() -> None:
    """So that reading a config loads neither JAX nor TFDS."""
    for path in (PACKAGE / "config").glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        modules = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
        inside = {module for module in modules if module and module.startswith("harmonic_jax.data")}
        assert inside <= {"harmonic_jax.data.settings"}, path
    code = (
        "import harmonic_jax.data.settings, sys\n"
        "assert not {'jax', 'tensorflow_datasets', 'cv2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_losses_and_ops_need_jax_and_numpy_alone() -> None:
    """A foreign pipeline installs jax, copies nothing else, and can import them."""
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        blocked = {'flax', 'optax', 'orbax', 'grain', 'tensorflow_datasets', 'cv2',\n"
        "                   'jaxtyping', 'tyro', 'rich', 'matplotlib', 'PIL'}\n"
        "        if name.split('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import harmonic_jax.losses, harmonic_jax.ops\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
