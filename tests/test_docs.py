"""What the documentation shows runs: the README's code, and every docstring's example."""

import dataclasses
import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import harmonic_jax
from harmonic_jax.metrics.files import save_coco_annotations, save_coco_results
from tests.metrics.consistency import brute

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def module_names() -> list[str]:
    return [m.name for m in pkgutil.walk_packages(harmonic_jax.__path__, "harmonic_jax.")]


@pytest.mark.parametrize("name", [n for n in module_names() if not n.endswith("__main__")])
def test_docstring_examples(name: str) -> None:
    with jax.numpy_rank_promotion("allow"):  # as in a user's session
        failed, _ = doctest.testmod(importlib.import_module(name), verbose=False)
    assert failed == 0


def test_there_are_examples() -> None:
    """Guards the test above: it would pass as well if it found no example."""
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(f"harmonic_jax.{n}") for n in ("losses.harmonic", "ops.nms")]
    assert all(any(test.examples for test in finder.find(module)) for module in modules)


def test_the_readme_s_loops_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second block continues the first; both print their last loss."""
    blocks = python_blocks("README.md")
    assert len(blocks) == 2

    def final_losses(steps: int) -> list[float]:
        script = tmp_path / "page.py"
        script.write_text("\n".join(blocks).replace("range(200)", f"range({steps})"))
        with jax.numpy_rank_promotion("allow"):
            runpy.run_path(str(script))
        return [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]

    for start, end in zip(final_losses(1), final_losses(200), strict=True):
        assert end < 0.8 * start, (start, end)


def test_the_recipe_with_negatives_sees_only_what_counts() -> None:
    """NaN in the boxes of negatives and in all of a row that does not count."""
    page: dict = {}
    exec(python_blocks("docs/losses.md")[0], page)
    rng = np.random.default_rng(0)
    logits, boxes, target = (rng.uniform(1, 9, (8, n)).astype(np.float32) for n in (3, 4, 4))
    labels = np.array([0, 2, -1, 1, -1, 0, 2, -1])
    is_counted = np.arange(8) < 6
    step = jax.jit(jax.value_and_grad(page["detection_loss"], argnums=(0, 1)))
    want, gradients = step(logits[:6], boxes[:6], labels[:6], target[:6], is_counted[:6])
    logits[6:] = boxes[6:] = target[6:] = boxes[labels < 0] = target[labels < 0] = np.nan
    got, spoilt = step(logits, boxes, labels, target, is_counted)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(spoilt, gradients, strict=True):
        np.testing.assert_allclose(a[:6], b, rtol=1e-5)
        assert not np.any(a[6:])
    assert not np.any(spoilt[1][labels < 0])


def test_the_settings_of_cocos_metrics_name_the_numbers() -> None:
    page: dict = {}
    code = python_blocks("docs/metrics.md")[1]
    exec(code, page)
    assert ", ".join(page["metrics"]) == code.rpartition("# ")[2].strip()
    assert page["metrics"]["AP_tiny"] > 0.99
    assert page["metrics"]["AP_rest"] == -1  # the dog is left out


def test_the_page_on_consistency_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks one after the other, on small files."""
    truth, found = brute.detector_case(0)
    monkeypatch.chdir(tmp_path)
    save_coco_annotations("instances_val2017.json", truth)
    save_coco_results("detections.json", found, truth.category_ids)
    pictures = {i: np.zeros((640, 640, 3), np.uint8) for i in truth.image_ids.tolist()}
    worse = dataclasses.replace(found, scores=found.scores[::-1])
    page: dict = {"my_pixels": pictures, "other": worse}
    for block in python_blocks("docs/consistency.md"):
        exec(block.replace("resamples=1000", "resamples=5"), page)
    assert {path.name for path in Path("out").glob("*.html")} == {
        "comparison.html", "consistency.html",
    }  # fmt: skip


def test_the_numbers_at_one_score(capsys: pytest.CaptureFixture[str]) -> None:
    """The block continues the one before it."""
    first, code = python_blocks("docs/metrics.md")[1:]
    page: dict = {}
    exec(first, page)
    capsys.readouterr()
    exec(code, page)
    assert capsys.readouterr().out.splitlines() == re.findall(r"  # (.*)", code)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


FILES = {
    f"{path.relative_to(ROOT)}"
    for folder in ("harmonic_jax", "configs", "benchmarks", "tests", "docs", "examples")
    for path in (ROOT / folder).rglob("*.*")
}
NAMED = re.compile(r"(?<![\w/.<{-])((?:[a-z_]+/)+[\w-]+\.(?:py|md|ipynb|jsonl))")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_a_head_and_rows_of_as_many_cells(page: Path) -> None:
    """An empty line within one would end it there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for table in re.findall(r"(?:^ *\|.*\n)+", text, flags=re.MULTILINE):
        head, rule, *rows = (line.strip() for line in table.splitlines())
        assert re.fullmatch(r"\|( ?-+:? ?\|)+", rule), head
        # `|` in code, as of a norm, is written so that it ends no cell.
        assert all(len(re.findall(r"(?<!\\)\|", row)) == rule.count("|") for row in rows), head


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """By their path, or by the end of it: `detectors/ssd.py`."""
    names = set(NAMED.findall(page.read_text()))
    assert not {n for n in names if not any(f"/{file}".endswith(f"/{n}") for file in FILES)}
