"""The detector that comes with this package: small, described, and as good as its card says."""

import re
from pathlib import Path

import numpy as np
import pytest

import harmonic_jax
from harmonic_jax.__main__ import main
from harmonic_jax.pretrained import hub

NAME = hub.DEFAULT_DETECTOR
FOLDER = hub.SHIPPED / NAME


def test_it_is_small_and_has_a_card() -> None:
    assert (FOLDER / hub.WEIGHTS_FILE).stat().st_size <= 12e6
    card = (FOLDER / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\n')
    assert "Flickr" in card
    assert not re.search(r"(^|[\s'\"(])/\w+/", card)  # no path of a machine


def test_it_opens_by_name_and_detects() -> None:
    detector = harmonic_jax.load(NAME)
    assert len(detector.class_names) == 20
    assert {"person", "cat", "car"} <= set(detector.class_names)
    image = np.full((240, 320, 3), 127, np.uint8)
    found = detector(image, score_threshold=0.3)
    assert len(found.scores) == 0  # there is nothing on grey


@pytest.mark.slow
def test_its_card_tells_the_truth(voc2007: Path, tmp_path: Path, capfd) -> None:
    """The numbers come again, to the three places that are printed."""
    out = tmp_path / "out"
    assert main(["eval", NAME, "--data.root", str(voc2007), "--out", str(out)]) == 0
    shown = capfd.readouterr().out
    card = (FOLDER / "README.md").read_text()
    rows = re.findall(r"^(?:AP|AR|VOC|\w+ +0\.\d+ ).*$", card, re.MULTILINE)
    assert rows
    for row in rows:
        assert row in shown
