"""Our AutoAttack against the reference implementation (PyPI pyautoattack): same model, images, budget and threads.

    SIEGEBENCH_DATA=FOLDER python benchmarks/autoattack_conformance.py --images 200 --eps 8/255 1/255 0.5/255

Both attack the same prepared model (batch norms folded, weights frozen), so the ratio of times is that of the attacks
alone; `--plain` gives the reference the network as it is loaded. Every returned image is scored by a fresh pass of the
plain network and counts only within eps. The speed-up is that of CPU seconds of this process, which tell more than wall
time on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.registry import build
from siegebench.threat import TOLERANCE, ThreatModel
from siegebench.types import Classifier


class Counted(nn.Module):
    """Counts the images that pass forwards and backwards."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        z: Tensor = self.model(x)
        if z.requires_grad:
            z.register_hook(self._book)  # type: ignore[no-untyped-call]
        return z

    def _book(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """(result, wall seconds, CPU seconds of this process)."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = run()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def victim(name: str, dataset: str, images: int) -> tuple[Classifier, Tensor, Tensor]:
    """A model of the zoo with the first images of a test set."""
    data = build("dataset", dataset).load("test")  # type: ignore[attr-defined]
    data = data.select(torch.arange(images))
    size = data.images.shape[-1]
    model = build("model", name).build(num_classes=data.num_classes, size=size)  # type: ignore[attr-defined]
    return model.eval().requires_grad_(False), data.pixels(), data.labels


def compare(
    plain: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int = 0, plain_reference: bool = False
) -> dict[str, Any]:
    """Run both once; robust accuracies, agreement, costs."""
    from pyautoattack.autoattack import AutoAttack as Reference  # type: ignore[import-untyped]

    ready = prepare(plain, x[:8])

    def ours() -> Tensor:
        with torch.no_grad():
            right = (ready(x).argmax(dim=1) == y).nonzero().squeeze(1)
        draws = Draws(seed, right)
        oracle = Oracle(ready, threat, draws)
        x_adv = x.clone()
        x_adv[right] = build("attack", "autoattack")(oracle, x[right], y[right], threat, draws)  # type: ignore[operator]
        cost.update(forwards=len(x) + int(oracle.ledger.forwards.sum()), backwards=int(oracle.ledger.backwards.sum()))
        return x_adv

    def theirs() -> Tensor:
        norm = threat.norm.capitalize()
        attack = Reference(counted, norm=norm, eps=threat.eps, seed=seed, version="standard", device=str(x.device))
        x_adv: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return x_adv

    @torch.no_grad()
    def robust(x_adv: Tensor) -> Tensor:
        inside = threat.size(x_adv, x) <= threat.eps + TOLERANCE
        held: Tensor = (plain(x).argmax(dim=1) == y) & ((plain(x_adv).argmax(dim=1) == y) | ~inside)
        return held

    cost: dict[str, int] = {}
    counted = Counted(plain if plain_reference else ready)
    our_adv, our_wall, our_cpu = timed(ours)
    their_adv, their_wall, their_cpu = timed(theirs)
    held, held_there = robust(our_adv), robust(their_adv)
    with torch.no_grad():
        clean = float((plain(x).argmax(dim=1) == y).double().mean())
    return {
        "eps": threat.label,
        "images": len(x),
        "clean": clean,
        "ours": {
            "robust": float(held.double().mean()), "wall_s": our_wall, "cpu_s": our_cpu, **cost,
        },
        "reference": {
            "robust": float(held_there.double().mean()), "wall_s": their_wall, "cpu_s": their_cpu,
            "forwards": counted.forwards, "backwards": counted.backwards,
        },
        "disagree": int((held != held_there).sum()),
        "only_ours_breaks": int((~held & held_there).sum()),
        "only_reference_breaks": int((held & ~held_there).sum()),
        "speedup_wall": their_wall / our_wall,
        "speedup_cpu": their_cpu / our_cpu,
    }  # fmt: skip


def number(text: str) -> float:
    """`0.5/255` or `0.002`."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--eps", nargs="+", default=["8/255"], help="budgets, as numbers or fractions")
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--data", default="cifar10_jpeg")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="the reference attacks the network without preparation")
    parser.add_argument("--json", action="store_true", help="one JSON line a budget on stdout")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, x, y = victim(args.model, args.data, args.images)
    columns = f"{'budget':>14} {'robust %':>17} {'disagree':>8} {'wall s':>15} {'CPU s':>15} {'speed-up':>8}"
    table = sys.stderr if args.json else sys.stdout
    print(f"{args.model}, {args.images} images of {args.data}, {args.threads} threads; ours / reference", file=table)
    print(columns + f" {'forwards':>15} {'backwards':>13}", file=table)
    for eps in args.eps:
        threat = ThreatModel(norm=args.norm, eps=number(eps), text=eps)
        row = compare(model, x, y, threat, seed=args.seed, plain_reference=args.plain)
        ours, reference = row["ours"], row["reference"]
        print(
            f"{row['eps']:>14} {100 * ours['robust']:8.2f}/{100 * reference['robust']:8.2f} {row['disagree']:8d} "
            f"{ours['wall_s']:7.1f}/{reference['wall_s']:7.1f} {ours['cpu_s']:7.1f}/{reference['cpu_s']:7.1f} "
            f"{row['speedup_cpu']:7.1f}x {ours['forwards']:7d}/{reference['forwards']:7d} "
            f"{ours['backwards']:6d}/{reference['backwards']:6d}",
            file=table, flush=True,
        )  # fmt: skip
        if args.json:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
