"""The built-in detection set: exact annotations, split hygiene, and the way through TFDS."""

import cv2
import numpy as np
import pytest

from harmonic_jax.data.scenes import (
    CROWDED,
    Scene,
    SceneOptions,
    load_items,
    render_scene,
    scene_rng,
)
from harmonic_jax.data.scenes.builder import FashionScenes, make_scene
from harmonic_jax.data.scenes.items import (
    ITEMS_FILE,
    draw_sprite,
    item_mask,
    paste,
    read_items,
)

NUM_SCENES = 120


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    pool = load_items("train")
    return [render_scene(pool, scene_rng(1, index)) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def crowded() -> list[Scene]:
    pool = load_items("validation")
    return [render_scene(pool, scene_rng(2, index), CROWDED) for index in range(40)]


def equal(a: Scene, b: Scene) -> bool:
    return all(np.array_equal(value, getattr(b, field)) for field, value in vars(a).items())


# Items


def test_train_and_held_out_items_are_disjoint_and_balanced() -> None:
    """So is what is pasted, however an item was cut out."""
    for split, number in ("train", 400), ("validation", 100):
        np.testing.assert_array_equal(np.bincount(read_items(split)[1]), [number] * 10)
    for read in (lambda split: read_items(split)[0], lambda split: load_items(split).cutouts):
        pixels = [image.tobytes() for split in ("train", "validation") for image in read(split)]
        assert len(set(pixels)) == len(pixels) == 5000


def test_what_is_shipped_is_small_and_carries_its_licence() -> None:
    folder = ITEMS_FILE.parent
    assert sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) <= 2_000_000
    licence = (folder / "LICENSE-fashion-mnist").read_text()
    assert "MIT License" in licence
    assert "Zalando SE" in licence


def test_mask_is_everything_inside_the_outline() -> None:
    image = np.zeros((28, 28), np.uint8)
    cv2.rectangle(image, (0, 4), (20, 22), 200, 1)  # bright hem around cloth that is black
    image[4, 10] = 0  # and the hem has a gap
    image[26, 26] = 90  # residue
    expected = np.zeros((28, 28), bool)
    expected[4:23, 0:21] = True
    np.testing.assert_array_equal(item_mask(image), expected)


# Rendering


def test_a_scene_depends_on_its_seed_and_index_alone(scenes: list[Scene]) -> None:
    pool = load_items("train")
    for index in (17, 3):
        assert equal(render_scene(pool, scene_rng(1, index)), scenes[index])
    assert not equal(render_scene(pool, scene_rng(4, 3)), scenes[3])
    assert len({scene.image.tobytes() for scene in scenes}) == NUM_SCENES


@pytest.mark.parametrize("kind", ["scenes", "crowded"])
def test_annotations_are_exact(kind: str, request: pytest.FixtureRequest) -> None:
    options = CROWDED if kind == "crowded" else SceneOptions()
    for scene in request.getfixturevalue(kind):
        size = options.size
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.labels) <= options.num_objects[1]
        assert scene.masks.shape == (len(scene.labels), size, size)
        assert scene.label_map.max() == len(scene.labels)
        for mask, box, area in zip(scene.masks, scene.boxes, scene.areas, strict=True):
            rows, columns = np.nonzero(mask)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_array_equal(box, tight)
            assert area == len(rows)
            assert min(box[2:] - box[:2]) >= options.min_side
        assert np.all(scene.visibility >= options.min_visible)
        assert np.all(scene.visibility <= 1.0)


def test_visibility_is_that_of_the_complete_object() -> None:
    """An object alone in a large image shows all of itself."""
    alone = SceneOptions(size=256, num_objects=(1, 1), object_size=(24, 72), num_bars=(0, 0))
    for index in range(12):
        scene = render_scene(load_items("train"), scene_rng(0, index), alone)
        x1, y1, x2, y2 = scene.boxes[0]
        if min(x1, y1) > 0 and max(x2, y2) < 256:
            assert scene.visibility[0] == 1.0


def test_what_a_bar_hides_belongs_to_no_object() -> None:
    """Bars come after the objects, so the same scene without them is the reference."""
    pool, hidden = load_items("train"), 0
    for index in range(20):
        bare, barred = (
            render_scene(pool, scene_rng(6, index), SceneOptions(num_bars=bars)).label_map
            for bars in ((0, 0), (2, 2))
        )
        assert np.all((barred == bare) | (barred == 0))
        hidden += np.count_nonzero(barred != bare)
    assert hidden > 500


def test_the_set_is_hard_in_the_ways_it_claims(scenes: list[Scene], crowded: list[Scene]) -> None:
    visibility = np.concatenate([scene.visibility for scene in scenes])
    assert 0.12 < np.mean(visibility < 0.8) < 0.35  # hidden by more than a fifth
    assert np.mean(np.concatenate([scene.visibility for scene in crowded]) < 0.8) > 0.4
    assert {2, 3, 4, 5, 6, 7, 8} == {len(scene.labels) for scene in scenes}
    assert min(len(scene.labels) for scene in crowded) >= 5
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=10)
    expected = counts.sum() / 10  # of each class
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected)), counts


def test_the_mask_is_where_the_item_is_painted() -> None:
    pool, options = load_items("train"), SceneOptions()
    white = np.full((2, 3), 255.0, np.float32)
    for index in range(30):
        rng = scene_rng(5, index)
        sprite = draw_sprite(pool, index * 100, rng, options)
        image = np.zeros((96, 96, 3), np.uint8)
        centre = rng.integers(-10, 106, 2)  # past the borders too
        paste(image, sprite, centre, white)
        expected = np.zeros((96, 96), bool)
        window, cut = sprite.window(centre, 96)
        expected[window] = sprite.opacity[cut] >= 0.5
        np.testing.assert_array_equal(image[..., 0] >= 128, expected)


@pytest.mark.parametrize(
    ("field", "value"), [("size", 16), ("num_objects", (3, 2)), ("object_size", (24, 200))]
)
def test_options_refuse_what_cannot_work(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"SceneOptions\.{field} is .* must be"):
        SceneOptions(**{field: value})  # type: ignore[arg-type]


# TFDS; tests/data/test_tfds.py reads a prepared copy


def test_version_1_1_0_stays_what_it_is() -> None:
    """Scenes of the released version, on every Python; to change them, raise VERSION first."""
    assert str(FashionScenes.VERSION) == "1.1.0"
    train, _ = make_scene(load_items("train"), "train", 0, SceneOptions())
    assert train.labels.tolist() == [7, 6, 5]
    expected = [[7, 86, 56, 118], [74, 3, 118, 55], [50, 65, 116, 96]]
    np.testing.assert_allclose(train.boxes, expected, atol=1)
    held_out, _ = make_scene(load_items("validation"), "validation", 2, SceneOptions())
    assert held_out.labels.tolist() == [9, 0, 0, 7, 3, 4]
    # One pixel: another OpenCV may round an edge differently.
    np.testing.assert_allclose(held_out.boxes[:2], [[36, 22, 80, 70], [70, 8, 120, 74]], atol=1)
