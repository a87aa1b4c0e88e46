"""AutoAttack plus beside the standard ensemble: robust accuracy, passes and seconds on networks of other people.

    SIEGEBENCH_DATA=FOLDER python benchmarks/plus.py --networks cnn_a --eps 2/255 8/255 --images 500 --seeds 0 1 2

The images are the first of `cifar10_jpeg`; those that are wrong from the start are not attacked. A fresh pass of the
network decides success. `differ`: images whose outcome is not the same in every seed.
"""

from __future__ import annotations

import argparse

import torch
from bench import number, run_ours
from networks import NETWORKS

from siegebench.threat import ThreatModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["cnn_a"], choices=list(NETWORKS))
    parser.add_argument("--eps", nargs="+", default=["2/255", "8/255"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for network in args.networks:
        scene = NETWORKS[network](args.images)
        for eps in args.eps:
            threat = ThreatModel(norm="linf", eps=number(eps), text=eps)
            for variant in ("standard", "plus"):
                outcomes = []
                for seed in args.seeds:
                    x_adv, cost = run_ours({"name": "autoattack", "variant": variant}, scene, threat, seed)
                    _, hit = scene.score(x_adv, threat)
                    outcomes.append(hit)
                    robust = 100 * int((~hit).sum()) / scene.total
                    print(
                        f"{network:9} {eps:8} seed {seed}  {variant:8}  robust {robust:5.1f} % of {scene.total}  "
                        f"forwards {cost.forwards:7.1f}  backwards {cost.backwards:7.1f}  CPU {cost.cpu:6.1f} s",
                        flush=True,
                    )
                found = torch.stack(outcomes)
                differ = int((found.any(dim=0) & ~found.all(dim=0)).sum())
                print(f"{network:9} {eps:8} {variant:8}  differ: {differ}", flush=True)


if __name__ == "__main__":
    main()
