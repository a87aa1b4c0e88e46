"""How fast: the share of the time that is spent in the victim, and how many times as long the other libraries take.

    SIEGEBENCH_DATA=FOLDER python benchmarks/speed.py [--images 200] [--only efficiency pgd square]
    SIEGEBENCH_DATA=FOLDER python benchmarks/speed.py --to-strength [--images 640] [--queries 500] [--only pgd fmn]

`efficiency` is (counted forwards and backwards x the best measured time of such a pass) / the time taken, and `inside`
the share of that time that was seen to pass inside the network: what inside leaves to 1 is the attack's own work, and
what lies between the two are passes that took longer than the best one did (small batches, other work on the machine).
`a loop` is the efficiency of a loop of nothing but forward passes over the same images, before and after the attack.
The ratios are those of conformance.py, in CPU seconds, a run of ours and then one of theirs; `a pass` divides both by
the passes they took, and `at most` is what the ratio would be if ours took nothing but its passes, the best ones.
`--to-strength` reports the CPU seconds until each has reached the robust accuracy, or the median distance, that the
other ends with (strength.py), on all images that are loaded. Rows are kept in benchmarks/speed.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from bench import Clocked, Scene, number, pass_times, run_ours
from conformance import HERE, Table, hold
from contests import contests
from peers import load
from strength import race

from siegebench.threat import ThreatModel

ROWS = HERE / "speed.json"
EFFICIENCY = {
    "pgd 8/255": ({"name": "pgd", "steps": 20, "step": "2/255"}, {"eps": "8/255"}),
    "pgd 0.5/255": ({"name": "pgd", "steps": 20}, {"eps": "0.5/255"}),
    "apgd 0.5/255": ("apgd", {"eps": "0.5/255"}),
    "cw l2": ({"name": "cw", "searches": 3}, {"norm": "l2", "eps": "0.1"}),
    "fmn l2": ("fmn", {"norm": "l2", "eps": "0.1"}),
    "square 1/255": ({"name": "square", "queries": 500}, {"eps": "1/255", "access": "score", "queries": 500}),
    "nes 1/255": ({"name": "nes", "queries": 500}, {"eps": "1/255", "access": "score", "queries": 500}),
    "signhunter 1/255": ({"name": "signhunter", "queries": 500}, {"eps": "1/255", "access": "score", "queries": 500}),
    "rays 1/255": ({"name": "rays", "queries": 500}, {"eps": "1/255", "access": "label", "queries": 500}),
    "hopskipjump l2": ({"name": "hopskipjump", "queries": 500}, {"norm": "l2", "eps": "0.1", "access": "label"}),
}
RATIOS = ("pgd", "autoattack", "square linf", "hopskipjump", "boundary", "sign_opt", "simba")


def bare_loop(scene: Scene, passes: int = 5) -> float:
    """CPU seconds an image of forward passes alone, in batches of 256."""
    clock = time.process_time()
    with torch.no_grad():
        for _ in range(passes):
            for part in scene.x.split(256):
                scene.ready(part)
    return (time.process_time() - clock) / (passes * len(scene.x))


def efficiency(scene: Scene) -> dict[str, dict[str, float]]:
    """The table of shares."""
    out = {}
    for name, (spec, given) in EFFICIENCY.items():
        threat = ThreatModel(**{**given, "eps": number(given["eps"]), "queries": given.get("queries")})  # type: ignore[arg-type]
        forward, backward = pass_times(scene.ready, scene.x)
        clocked = Clocked(scene.ready)
        loop = bare_loop(scene)
        _, cost = run_ours(spec, replace(scene, ready=clocked), threat)
        loop = (loop + bare_loop(scene)) / 2
        n = len(scene.x)
        ideal = n * (cost.forwards * forward + cost.backwards * backward)
        out[name] = {
            "efficiency": ideal / cost.cpu, "inside": clocked.inside / cost.cpu, "cpu": cost.cpu,
            "loop": forward / loop,
            "forwards": cost.forwards, "backwards": cost.backwards,
            "forward_us": 1e6 * forward, "backward_us": 1e6 * backward,
        }  # fmt: skip
        print(
            f"  {name:18} efficiency {ideal / cost.cpu:5.2f}   inside {clocked.inside / cost.cpu:5.3f}   "
            f"a loop {forward / loop:5.2f}   CPU {cost.cpu:7.2f} s   "
            f"forwards {cost.forwards:6.1f}, backwards {cost.backwards:6.1f} an image; "
            f"best pass {1e6 * forward:.0f} + {1e6 * backward:.0f} us",
            flush=True,
        )
    return out


def ratios(table: Table, scene: Scene) -> dict[str, dict[str, float]]:
    """Times ours, for each peer that ran, and how many times it could be at most."""
    mine, out = table.rows[0], {}
    forward, backward = pass_times(scene.ready, scene.x)
    least = table.images * (mine.forwards * forward + mine.backwards * backward)
    for row in table.rows[1:]:
        if row.error:
            continue
        passes = (row.forwards + row.backwards) / (mine.forwards + mine.backwards)
        out[row.who] = {"time": row.cpu / mine.cpu, "a pass": row.cpu / mine.cpu / passes, "at most": row.cpu / least}
        print(
            f"  {row.who:34} {row.cpu / mine.cpu:7.2f} times ours, {out[row.who]['a pass']:.2f} a pass; "
            f"{row.cpu / least:.2f} if ours did nothing but its passes",
            flush=True,
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=220, help="of the test set; 200 of the first 220 are right")
    parser.add_argument("--only", nargs="+", help="`efficiency`, or contests whose name begins with one of these")
    parser.add_argument(
        "--queries",
        type=int,
        help="with --to-strength: another budget of query attacks; Square in torchattacks and pyautoattack keeps 1,000",
    )
    parser.add_argument("--to-strength", action="store_true", help="CPU seconds until one is as strong as the other")
    parser.add_argument("--peers", nargs="+", help="with --to-strength: libraries whose name begins with one of these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load()
    stored = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    scene = Scene.load("cifar_resnet20", "cifar10_jpeg", args.images)
    print(f"cifar_resnet20, {len(scene.x)} rightly classified images of cifar10_jpeg, one thread", flush=True)
    wanted = tuple(args.only or ("efficiency", *RATIOS))
    if args.to_strength:
        for contest in contests():
            if contest.name.startswith(wanted) and not contest.transfer:
                if args.queries and contest.queries:
                    contest = replace(contest, queries=args.queries)
                if args.peers:
                    chosen = {who: peer for who, peer in contest.peers.items() if who.startswith(tuple(args.peers))}
                    contest = replace(contest, peers=chosen)
                print(f"{contest.name}: {contest.threat.label}", flush=True)
                stored.setdefault("to strength", {}).setdefault(contest.name, {}).update(race(contest, scene))
                ROWS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
        return
    if "efficiency" in wanted:
        stored["efficiency"] = efficiency(scene)
    for contest in contests():
        if contest.name.startswith(wanted) and not contest.transfer:
            print(f"{contest.name}: {contest.threat.label}", flush=True)
            stored[contest.name] = ratios(hold(contest, scene), scene)
        ROWS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
