"""Batch sizes against devices and memory: refused, or rounded up, before anything is read."""

import dataclasses
from typing import Any

import pytest
from jax.sharding import AbstractMesh

from harmonic_jax.cli import evaluate, train
from harmonic_jax.config import Config, ConfigError, DataConfig, TrainConfig
from harmonic_jax.inference import load
from harmonic_jax.training.sharding import check_batch_sizes, eval_batch_size
from tests.training.tiny import tiny_config


def mesh_of(size: int) -> Any:
    return AbstractMesh((size,), ("data",))


def with_batch(size: int, **fields: Any) -> Config:
    return tiny_config(train=TrainConfig(batch_size=size, **fields))


@pytest.mark.parametrize(
    ("size", "parts", "words"),
    [
        (6, 1, r"train.batch_size is 6; it must be a multiple of 4: 4 devices .*\(4 or 8\)"),
        (3, 1, r"train.batch_size is 3; it must be a multiple of 4: .*\(4\)"),
        (20, 2, r"train.batch_size is 20; .* of 8: 4 devices x 2 accumulation parts \(16 or 24\)"),
    ],
)
def test_a_batch_that_the_devices_do_not_divide(size: int, parts: int, words: str) -> None:
    config = with_batch(size)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=parts))
    with pytest.raises(ConfigError, match=words):
        check_batch_sizes(config, mesh_of(4))


def test_a_batch_of_evaluation_is_rounded_up() -> None:
    sizes = [eval_batch_size(with_batch(8, eval_batch_size=n), mesh_of(4)) for n in (1, 4, 5, 9)]
    assert sizes == [4, 4, 8, 12]
    assert eval_batch_size(with_batch(6), mesh_of(4)) == 8
    check_batch_sizes(with_batch(8, eval_batch_size=3), mesh_of(4))


@pytest.mark.parametrize("field", ["batch_size", "eval_batch_size"])
def test_a_batch_that_no_memory_holds(field: str) -> None:
    large = DataConfig(short_sides=(4096,), max_side=16384)
    train_config = TrainConfig(**{"batch_size": 2, field: 65536})
    config = Config("x", data=large, train=train_config)
    with pytest.raises(ConfigError, match=rf"train.{field} is too large: .* GiB.*; at most \d+ im"):
        check_batch_sizes(config, mesh_of(2))


def test_train_says_so_before_it_reads_the_data(monkeypatch, capsys) -> None:
    monkeypatch.setattr(train, "data_mesh", lambda: mesh_of(4))
    args = [
        "retinanet_r18_scenes",
        "--data.format",
        "coco",
        "--data.root",
        "/nowhere",
        "--train.batch-size",
        "6",
    ]
    assert train.main(args) == 1
    shown = capsys.readouterr()
    assert "train.batch_size is 6; it must be a multiple of 4" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("size", [0, -1, 10**9, True, 1.0])
def test_load_checks_the_batch_size_first(size: Any) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size is {size}; it must be a whole number in"):
        load("/nowhere", batch_size=size)


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_eval_checks_its_option(capsys, size: int) -> None:
    """0 is not the config's own size."""
    assert evaluate.main(["/nowhere", "--batch-size", str(size)]) == 2
    shown = capsys.readouterr()
    assert f"--batch-size is {size}; it must be a whole number in [1, 65536]" in shown.err
    assert shown.err.count("\n") == 1
