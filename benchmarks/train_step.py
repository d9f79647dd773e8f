"""One training step of whole detectors against torchvision: same weights, images and objects.

    python -m benchmarks.train_step [NAME ..] [--size 128] [--batch 4]

Forward, matching, loss, backward and the SGD update; batch norms are constants and everything else
is trained on both sides. Checked first: the losses, which agree only nearly, because two-stage
detectors sample at random. The step with HarDet is timed against torchvision's plain one as well:
what the loss costs shows there.
"""

import argparse
from collections.abc import Callable

import jax
import torch

from benchmarks.side_by_side import compare
from benchmarks.torchvision_pairs import NAMES, Pair, make_pair
from harmonic_jax.cli.command import prepare_processor
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import init_state
from harmonic_jax.training.step import make_train_step

MOST_APART = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], default=[])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    prepare_processor()
    print(
        f"{args.batch} images of {args.size} x {args.size} (SSD: 300), {jax.devices()[0].platform}"
    )
    for name in args.names or NAMES:
        for hardet in (False, True):
            pair = make_pair(name, batch_size=args.batch, size=args.size, hardet=hardet)
            ours, peer = our_step(pair), _peer_step(pair)
            mine, other = float(ours()["loss"]), float(peer())
            if not hardet and abs(mine / other - 1) > MOST_APART:
                raise SystemExit(f"{name}: no agreement: loss {mine:.4f} against {other:.4f}")
            agree = "another loss" if hardet else f"losses {mine:.3f} and {other:.3f}"
            label = f"{name}{', HarDet' if hardet else ''}"
            compare(label, ours, peer, repeats=args.repeats, agree=agree)


def _peer_step(pair: Pair) -> Callable[[], torch.Tensor]:
    model = pair.peer.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(model(pair.peer_images, pair.peer_targets).values())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_step(pair: Pair) -> Callable[[], dict[str, jax.Array]]:
    mesh = data_mesh()
    config = pair.detector.config
    optimizer = make_optimizer(config.optim, config.train)
    step = make_train_step(pair.detector, optimizer, mesh)
    current = [init_state(pair.variables, optimizer, ema=False, sharding=replicated(mesh))]
    on_device = put_batch(pair.batch, mesh)

    def run() -> dict[str, jax.Array]:
        current[0], metrics = step(current[0], on_device)
        return metrics

    return run


if __name__ == "__main__":
    main()
