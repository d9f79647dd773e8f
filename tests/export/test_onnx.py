"""The ONNX model says, in ONNX Runtime, what the jitted function says."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from harmonic_jax.backbones.depthwise import depthwise_convolve
from harmonic_jax.cli import export as command
from harmonic_jax.export import InferenceFunction, on_canvas
from harmonic_jax.export.onnx import UnsupportedError, write_onnx
from tests.detectors.tiny import MODELS
from tests.export.conftest import CLASSES, FrameCase, drawn
from tests.training.tiny import random_batch


@pytest.fixture(scope="module")
def runtime() -> Any:
    pytest.importorskip("onnx", reason="ONNX models are written with the package onnx")
    return pytest.importorskip("onnxruntime", reason="ONNX models are run by onnxruntime")


def run(runtime: Any, path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def function_of(call: Callable, inputs: dict[str, np.ndarray]) -> InferenceFunction:
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in inputs.items()}
    return InferenceFunction(call, shapes)


def indexing(x: jax.Array, i: jax.Array) -> dict[str, jax.Array]:
    """x float32 [3 4 5], i int32 [3 2] with rows inside and outside of 0..3."""
    flat = x.reshape(-1)
    return {
        "rows": x[(i + 3) % 3],
        "columns": x[:, :, jnp.clip(i[0], 0, 4)],
        "own_rows": jax.vmap(lambda a, k: a[jnp.clip(k, 0, 3)])(x, i),
        "filled": jax.vmap(lambda a, k: a.at[k].get(mode="fill"))(x, i),
        "windows": jax.vmap(lambda a, k: lax.dynamic_slice(a, (k[0], k[1]), (2, 3)))(x, i),
        "dropped": jax.vmap(lambda a, k: a.at[k, 1:3].set(9.0, mode="drop"))(x, i),
        "columns_set": jax.vmap(lambda a, k: a.at[:, k].set(a[:, :2], mode="drop"))(x, i),
        "taken": jnp.take_along_axis(x[:, :2], jnp.clip(i, 0, 4)[:, :, None], axis=2),
        "top": lax.top_k(jnp.floor(x * 2), 3)[1],
        "labels": lax.top_k(flat.astype(jnp.int32), 7)[1],
    }


def control(x: jax.Array, i: jax.Array) -> dict[str, jax.Array]:
    def halve(row: jax.Array, limit: jax.Array) -> tuple:
        """A number of rounds of its own for each row, and a loop in the loop."""

        def body(state: tuple) -> tuple:
            row, rounds = state
            more = lax.fori_loop(0, rounds % 3, lambda k, total: total + k, 0)
            return row * 0.5 + more, rounds + 1

        return lax.while_loop(lambda s: (s[0].max() > 0.3) & (s[1] < limit), body, (row, 0))

    rows, rounds = jax.vmap(halve)(x[:, 0], i[:, 0] * i[:, 0] + 1)
    total, sums = lax.scan(lambda c, row: (c + row, (c * row).sum(0)), jnp.zeros((4, 5)), x)
    last, number = lax.while_loop(
        lambda s: s[1] < 5, lambda s: (s[0] + x[0, 0], s[1] + i[0, 0] + 1), (x[1, 1], 0)
    )
    backwards = lax.scan(lambda c, row: (c - 2 * row, c[0]), x[0], x, reverse=True)
    branch = lax.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, x)
    return {
        "rows": rows,
        "rounds": rounds,
        "total": total,
        "sums": sums,
        "last_to_first": backwards[0],
        "rows_of_it": backwards[1],
        "four_times": lax.fori_loop(0, 4, lambda k, c: c * 0.5 + k, x),
        "last": last,
        "number": number,
        "branch": branch,
        "other": lax.cond(x.sum() < 0, lambda a: a * 2, lambda a: a - 1, x),
    }


def arithmetic(x: jax.Array, i: jax.Array) -> dict[str, jax.Array]:
    odd = jnp.where(x > 0.9, jnp.nan, jnp.where(x < -0.9, jnp.inf, x))
    return {
        "is_finite": jnp.isfinite(odd),
        "chosen": jnp.where(x > 0, x > 0.5, x < -0.5),
        "compared": (odd != odd) | (x >= 0.1) & ~(x <= 0.3) & (x != 0.0),
        "integers": jnp.stack([i % 3, lax.rem(i, jnp.int32(3)), lax.div(i, jnp.int32(2))]),
        "floors": jnp.floor(x * 8) + jnp.square(x) + jnp.log2(1.5 + x) + jnp.log(2 + x),
        "roots": lax.rsqrt(1.5 + x) + jnp.sqrt(2 + x) + jnp.exp(x) - jnp.sign(x),
        "gelu": jax.nn.gelu(x * 2, approximate=False),
        "error": lax.erfc(jnp.array(x)),
        "probability": jax.nn.softmax(x, axis=1) + jax.nn.sigmoid(x),
        "greater": jnp.where((odd >= x[::-1]) | jnp.isnan(odd), odd, x[::-1]),
        "greater_than_nan": jnp.where((x >= odd[::-1]) | jnp.isnan(x), x, odd[::-1]),
        "any": (x > 0.8).any(axis=(0, 2)),
        "all": (x > -0.8).all(axis=1),
        "reduced": x.max(axis=1) - x.min(axis=1) + x.sum(axis=1),
        "running": jnp.cumsum(i, axis=0) - lax.cumsum(i, axis=0, reverse=True),
        "bytes": jnp.clip(x * 300, 0, 255).astype(jnp.uint8),
        "half": (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
        # Loops over images on CPU; in the file, the convolution that other devices run.
        "depthwise": depthwise_convolve(x[..., None], x[:2, :2, None, :1], 2),
    }


def layout(x: jax.Array, i: jax.Array) -> dict[str, jax.Array]:
    kernel = np.random.default_rng(5).normal(size=(2, 3, 5, 4)).astype(np.float32)
    images, dims = x[None], ("NHWC", "HWIO", "NHWC")
    config = ((0, -1, 0), (1, 2, 0), (-1, 1, 0))
    other = jnp.flip(x, (0, 2))
    return {
        "padded": lax.pad(x, jnp.float32(7), config),
        "stepped": x[::2, 1:, ::-1],
        "tiled": jnp.tile(x, (1, 2, 1)),
        "stacked": jnp.stack([x, other], axis=1).swapaxes(0, 2),
        "spread": jnp.broadcast_to(x[:, None, :, :1], (3, 2, 4, 6)),
        "constant": jnp.concatenate([jnp.ones((3, 4, 5000)), x], axis=2).sum(-1),
        "conv": lax.conv_general_dilated(
            images, kernel, (1, 2), ((1, 0), (2, 1)), (1, 1), (1, 2), dims
        ),
        "grouped": lax.conv_general_dilated(
            images[..., :4], kernel[:, :, :2], (1, 1), "SAME", None, None, dims, 2
        ),
        "product": jnp.einsum("abc,dbc->ad", x, other),
        "batched": jnp.einsum("abc,dbc->bda", x, other),
        "matrix": x @ kernel[0, 0],
        "point": jnp.einsum("abc,abc->", x, other),
    }


@pytest.mark.parametrize("call", [indexing, control, arithmetic, layout])
def test_operations(call: Callable, runtime: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (3, 4, 5)).astype(np.float32)
    inputs = {"x": x, "i": np.array([[1, 2], [-2, 4], [0, 3]], np.int32)}
    names = write_onnx(function_of(call, inputs), tmp_path / "model.onnx")
    found = run(runtime, tmp_path / "model.onnx", inputs)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(call)(*inputs.values())
    assert set(found) == set(names) == set(expected)
    for name in names:
        right = np.asarray(expected[name])
        assert found[name].dtype == right.dtype, name
        tolerance = 1e-2 if name == "half" else 2e-6
        np.testing.assert_allclose(
            found[name], right, rtol=tolerance, atol=tolerance / 10, err_msg=name
        )


def transposed(x: jax.Array) -> jax.Array:
    kernel = jnp.ones((2, 2, 4, 1))
    return lax.conv_general_dilated(
        x[None, None], kernel, (1, 1), ((1, 1),) * 2, (2, 2), None, ("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (jnp.sort, "JAX's operation 'sort' has no rule for ONNX"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 1)] * 2), "'pad': padding between cells"),
        (transposed, "'conv_general_dilated': groups of batches, gaps"),
        (lambda x: lax.scan(lambda c, y: (c, y.sort()), 0, x)[1], "'sort' has no rule"),
        (lambda x: lax.switch(x[0, 0].astype(int), [jnp.sin] * 3, x), "'cond': .* two branches"),
    ],
)
def test_operations_without_a_rule(
    call: Callable, words: str, runtime: Any, tmp_path: Path
) -> None:
    function = function_of(lambda x: {"y": call(x)}, {"x": np.zeros((3, 4), np.float32)})
    with pytest.raises(UnsupportedError, match=words):
        write_onnx(function, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def assert_same(found: dict[str, np.ndarray], expected: dict[str, jax.Array]) -> None:
    assert list(found) == [
        n for n in ("boxes", "scores", "labels", "valid", "masks") if n in expected
    ]
    assert np.asarray(expected["valid"]).sum() >= 10
    for name in ("labels", "valid"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], rtol=0, atol=1e-2)
    if "masks" in expected:
        np.testing.assert_allclose(found["masks"], expected["masks"], rtol=0, atol=1e-4)


def test_the_command_writes_a_retinanet_for_frames(
    frame_case: FrameCase,
    runtime: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(command, "open_detector", lambda *_, **__: frame_case.run)
    arguments = ["run", "--to", "onnx", "--out", str(tmp_path), "--frame", "128x96"]
    assert command.main([*arguments, "--batch-size", "many"]) == 2
    assert command.main(arguments) == 0
    told, model = capsys.readouterr().out, tmp_path / "detector.onnx"
    assert "inputs: images uint8[batch, 128, 96, 3]\n" in told
    assert "outputs: boxes float32[batch, 20, 4], scores float32[batch, 20], labels int32" in told
    assert f"size: {model.stat().st_size / 1e6:.1f} MB, opset 18" in told
    about = runtime.InferenceSession(model).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(CLASSES)
    assert_same(run(runtime, model, {"images": frame_case.frames}), frame_case.expected)


every_family = pytest.mark.parametrize(
    "name", ["ssd", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "ssd")]
)


def operators(graph: Any) -> set[str]:
    """Of all nodes, those of loops' bodies too."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute]
    return {node.op_type for node in graph.node}.union(*map(operators, bodies))


@every_family
def test_padded_images(name: str, runtime: Any, tmp_path: Path) -> None:
    saved, batch = drawn(name), random_batch(0, size=2)
    function = on_canvas(saved.detector, saved.variables, batch_size=2, bucket=(64, 64))
    size, scale = np.array([[64, 64], [40, 56]], np.float32), np.full((2, 2), 0.5, np.float32)
    inputs = {"images": batch.images, "image_size": size, "scale": scale}
    write_onnx(function, tmp_path / "detector.onnx")
    found = run(runtime, tmp_path / "detector.onnx", inputs)
    assert_same(found, jax.jit(function.call)(*inputs.values()))

    import onnx

    # Suppression is a loop; RT-DETR needs none, and has no other loop.
    used = operators(onnx.load(tmp_path / "detector.onnx").graph)
    assert ("Loop" in used) == (name != "rtdetr")
    assert "NonMaxSuppression" not in used


@every_family
def test_any_number_of_images(name: str, runtime: Any, tmp_path: Path) -> None:
    saved, rng = drawn(name), np.random.default_rng(3)
    for size in (1, "any"):
        function = on_canvas(saved.detector, saved.variables, batch_size=size, bucket=(64, 64))
        write_onnx(function, tmp_path / f"{size}.onnx")
    images = random_batch(0, size=7).images
    image_size, scale = (rng.uniform(*sides, (7, 2)).astype("f4") for sides in ((32, 64), (0.5, 1)))
    inputs = {"images": images, "image_size": image_size, "scale": scale}

    def first(count: int, skipped: int = 0) -> dict[str, np.ndarray]:
        return {name: array[skipped:count] for name, array in inputs.items()}

    singly = [run(runtime, tmp_path / "1.onnx", first(i + 1, i)) for i in range(7)]
    for count in (1, 2, 7):
        expected = {
            name: np.concatenate([one[name] for one in singly[:count]]) for name in singly[0]
        }
        assert_same(run(runtime, tmp_path / "any.onnx", first(count)), expected)


def test_weights_of_half_the_size(runtime: Any, tmp_path: Path) -> None:
    """Those of float16 are stored as such, and computed with in float32."""
    import onnx

    saved, batch = drawn("retinanet"), random_batch(0, size=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(saved.variables)} == {np.dtype(np.float32)}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), saved.variables)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    inputs = {
        "images": batch.images,
        "image_size": np.full((2, 2), 64, np.float32),
        "scale": np.ones((2, 2), np.float32),
    }
    exact, function = (
        on_canvas(saved.detector, variables, batch_size=size, bucket=(64, 64))
        for variables, size in ((rounded, 2), (half, "any"))
    )
    write_onnx(function, tmp_path / "half.onnx")
    expected = jax.jit(exact.call)(*inputs.values())
    assert_same(run(runtime, tmp_path / "half.onnx", inputs), expected)
    scan = next(n for n in onnx.load(tmp_path / "half.onnx").graph.node if n.op_type == "Scan")
    body = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    stored = {
        array.tobytes()
        for array in map(onnx.numpy_helper.to_array, body.initializer)
        if array.dtype == np.float16
    }
    assert stored == {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(half)}


def test_without_the_package(
    frame_case: FrameCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(command, "open_detector", lambda *_, **__: frame_case.run)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert command.main(["run", "--to", "onnx", "--out", str(tmp_path)]) == 1
    assert "pip install 'harmonic-jax[export]'" in capsys.readouterr().err
