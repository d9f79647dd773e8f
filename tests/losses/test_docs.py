"""The code of docs/losses.md runs from top to bottom, and its loops learn."""

import re
import runpy
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "losses.md"


def test_code_blocks_run(tmp_path, capsys):
    pytest.importorskip("flax", reason="the second example is a flax Linen loop")
    pytest.importorskip("optax", reason="the second example updates with optax")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert all(len(block.splitlines()) < 25 for block in blocks)

    def final_losses(steps):
        script = tmp_path / "page.py"
        script.write_text("\n".join(blocks).replace("range(200)", f"range({steps})"))
        with jax.numpy_rank_promotion("allow"):  # a user's own code broadcasts as it likes
            runpy.run_path(str(script))
        return [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]

    for start, end in zip(final_losses(1), final_losses(200), strict=True):
        assert end < 0.8 * start, (start, end)
