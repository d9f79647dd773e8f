"""The built-in data set "fashion scenes": rendered detection images with exact boxes and masks."""

from harmonic_jax.data.scenes.items import CLASS_NAMES, ItemPool, load_items
from harmonic_jax.data.scenes.options import CROWDED, SceneOptions
from harmonic_jax.data.scenes.render import Scene, render_scene, scene_rng

__all__ = [
    "CLASS_NAMES",
    "CROWDED",
    "ItemPool",
    "Scene",
    "SceneOptions",
    "load_items",
    "render_scene",
    "scene_rng",
]
