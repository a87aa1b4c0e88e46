"""What `adaptive_search` makes of planted fakes: defenses that hide gradients and protect against nothing.

    SIEGEBENCH_DATA=FOLDER python benchmarks/fakes.py --network marabou --images 64 --eps 2/255

The fakes are those of `tests/fakes.py`. For each, the accuracy on clean images, under targeted APGD on it as it stands,
and under the search; and the attack that the search found strongest. Images that the network without a fake classifies
wrongly count as wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from bench import number
from networks import NETWORKS
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.inputs import restored
from siegebench.oracle import Oracle
from siegebench.registry import build
from siegebench.threat import ThreatModel
from siegebench.tracks.attacking import explored
from siegebench.types import Attack

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes import FAKES


def attacked(attack: Attack, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[int, int, str]:
    """(correctly classified images, those that stay so at a fresh pass, what the search says of its choice)"""
    model = restored(model.eval(), x)
    with torch.no_grad():
        right = model(x).argmax(dim=1) == y
    x, y = x[right], y[right]
    draws = Draws(0, torch.arange(len(x)))
    k = attack.explored()
    lesson = explored(attack, model, threat, x[:k], y[:k], draws[:k])[0] if k else None
    x_adv = attack(Oracle(model, threat, draws), x, y, threat, draws, lesson)
    with torch.no_grad():
        kept = int((model(x_adv).argmax(dim=1) == y).sum())
    told = [flag.evidence for flag in attack.findings(lesson) if flag.id == "search_choice"]
    return len(x), kept, told[0] if told else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="marabou", choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--fakes", nargs="+", default=["none", *FAKES], choices=["none", *FAKES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    scene = NETWORKS[args.network](args.images)
    threat = ThreatModel(norm="linf", eps=number(args.eps), text=args.eps)
    apgd = build(Attack, {"name": "apgd", "loss": "targeted_dlr", "steps": 50})
    search = build(Attack, "adaptive_search")
    for name in args.fakes:
        model = scene.plain if name == "none" else FAKES[name](scene.plain)
        clean, plain, _ = attacked(apgd, model, scene.x, scene.y, threat)
        _, found, choice = attacked(search, model, scene.x, scene.y, threat)
        rates = [f"{100 * n / scene.total:5.1f}" for n in (clean, plain, found)]
        print(f"{name:14} clean {rates[0]}  apgd {rates[1]}  adaptive_search {rates[2]} %  {choice}", flush=True)


if __name__ == "__main__":
    main()
