"""What torch.compile gains: passes of a network as attacks use it, compiled and not, in turns.

    SIEGEBENCH_DATA=FOLDER python benchmarks/compiled.py
    python benchmarks/compiled.py --networks timm/resnet50 --device cuda [--mode reduce-overhead]

The images are random, and so are the weights of networks of timm: times do not depend on them. Networks are prepared
as suites prepare them, and one pass has as many images as an attack sends at once (on a GPU, `--batch`). Each figure
compares the best of `--turns` passes; `compiling` is the time of the first two compiled passes beyond that of two
others.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn

from siegebench import registry
from siegebench.memory import keep
from siegebench.prepare import at_once, prepare
from siegebench.types import ModelSource


def passes(network: nn.Module, x: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """(a forward pass, a pass forward and backward)."""

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def both() -> None:
        leaf = x.clone().requires_grad_(True)
        torch.autograd.grad(network(leaf).logsumexp(dim=1).sum(), leaf)

    return forward, both


def seconds(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["cifar_resnet20", "timm/resnet18", "timm/resnet50"])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=64, help="images in a pass on a GPU")
    parser.add_argument("--mode", default="default", help="of torch.compile; reduce-overhead takes CUDA graphs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch._inductor.config.force_disable_caches = True  # or `compiling` would depend on earlier runs
    keep()
    for name in args.networks:
        torch._dynamo.reset()  # it gives up on a function that was compiled for too many networks
        size = 224 if name.startswith("timm/") else 32
        built = registry.build(ModelSource, name).build(num_classes=10, size=size).to(args.device)
        most = at_once(torch.empty(1, 3, size, size), args.device)
        x = torch.rand(args.batch if args.device.type == "cuda" else most, 3, size, size, device=args.device)
        plain = prepare(built.eval(), x[:4])
        compiled = torch.compile(plain, mode=args.mode)
        pairs = list(zip(passes(plain, x), passes(compiled, x), strict=True))
        first = [[seconds(call, args.device) for call in pair] for pair in pairs]
        best = [[math.inf, math.inf] for _ in pairs]
        for _ in range(args.turns):
            for pair, least in zip(pairs, best, strict=True):
                for i, call in enumerate(pair):
                    least[i] = min(least[i], seconds(call, args.device))
        change = float((compiled(x) - plain(x)).abs().max() / plain(x).abs().max())
        (forward, forward_compiled), (both, both_compiled) = best
        compiling = sum(pair[1] - pair[0] for pair in first)
        print(
            f"{name:28} {len(x):4} images   forward {forward / forward_compiled:.2f} times as fast, "
            f"with backward {both / both_compiled:.2f}   compiling {compiling:.0f} s   "
            f"logits change by {change:.0e} of the largest",
            flush=True,
        )


if __name__ == "__main__":
    main()
