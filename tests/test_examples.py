"""The notebooks of examples/: their code runs from top to bottom, each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[str]:
    content = json.loads(path.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == kind]


def run(name: str, folder: Path, **replaced: str) -> str:
    """What the code cells print; `replaced` sets constants to other values."""
    code = "\n\n".join(cells(ROOT / "examples" / f"{name}.ipynb", "code"))
    for constant, value in replaced.items():
        code, count = re.subn(rf"\b{constant}( ?= ?)\w+", rf"{constant}\g<1>{value}", code)
        assert count == 1, f"{name} has no constant {constant}"
    script = folder / "notebook.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_notebooks_are_stored_without_outputs() -> None:
    assert len(EXAMPLES) == 3
    for path in EXAMPLES:
        content = json.loads(path.read_text())
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), path.name
        assert content["nbformat"] == 4
        assert cells(path, "markdown")[0].startswith("# ")


def test_the_losses_train_in_foreign_loops(tmp_path: Path) -> None:
    """Frameworks that are not installed say so; Linen is, with the package."""
    out = run("losses_in_your_loop", tmp_path)
    histories = re.findall(r"(\w+): ([\d.]+) -> ([\d.]+)", out)
    assert len(histories) + out.count("skipped") == 3, out
    assert "Linen" in [name for name, _, _ in histories]
    for name, first, last in histories:
        assert float(last) < 0.6 * float(first), name


def test_two_results_files_are_compared(tmp_path: Path) -> None:
    out = run("compare_two_results", tmp_path, NUM_IMAGES="20")
    numbers = re.search(r"Pearson correlation +(\S+) +(\S+)", out)
    assert numbers is not None, out
    assert float(numbers[1]) < 0.3 < 0.8 < float(numbers[2])  # the scores of A know nothing


@pytest.mark.slow
def test_a_folder_in_coco_layout_is_trained_on(tmp_path: Path) -> None:
    out = run("train_on_your_own_coco_json", tmp_path)
    assert float(re.findall(r"AP50 ([\d.]+)", out)[-1]) > 0.5
    assert "found: " in out
