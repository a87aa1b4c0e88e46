"""Measure one attack, or one measure, on one victim.

Correctly classified images are attacked; the results are scored with new forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siegebench import ops, shards, sources
from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Flag, Result, bits, digest, rate
from siegebench.cells import pack as pack_bits
from siegebench.classifier import Classifier, refuse_gradients
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError
from siegebench.ledger import Ledger
from siegebench.metrics import QUERY_MARKS
from siegebench.oracle import Oracle
from siegebench.prepare import at_once, slices
from siegebench.threat import ThreatModel
from siegebench.tracks.conduct import conduct_flags
from siegebench.tracks.conventions import convention_flags
from siegebench.tracks.judging import clean_outcome, fresh_passes, gradient_flags, majority, right
from siegebench.tracks.targets import Aim, aim
from siegebench.types import Attack, Lesson, Measure, Probe
from siegebench.workspace import Workspace, data_key

DIAGNOSED = 128  # largest number of images for a measure
NEARER = 1 - 1e-6  # of eps: rounding in float32 must not carry an image out of the ball of a certificate
COMPARED = 256  # attacked images whose similarity to the clean image is measured


Refutes = Callable[[Tensor, Tensor, Draws], Tensor]  # (images, labels, draws) to bool [n]


def measure_attack(cell: Cell, ws: Workspace, refutes: Refutes | None = None) -> Result:
    """One row of the white_box, query, transfer or patch track, or of an attack on the certified track.

    Args:
        refutes: whether an adversarial image breaks a certificate of its label; asked of successes within eps.
    """
    assert cell.threat is not None
    data, victim = ws.evaluated(cell.data), ws.victim(cell)
    threat = ThreatModel(**cell.threat)
    if threat.access == "gradient":  # also for attacks on this board that need less
        refuse_gradients(victim if cell.surrogates is None else ws.surrogate(cell))
    clean = clean_outcome(ws, cell, victim, data)
    weights = fingerprint(victim)
    if cell.measure is not None:
        result = _diagnose(cell, ws, victim, data, clean.nonzero().squeeze(1), threat)
    else:
        seen = victim if cell.surrogates is None else ws.surrogate(cell)
        result = _attack(cell, ws, victim, seen, data, threat, clean, refutes)
    of_victim = [*convention_flags(ws, cell, victim, data, clean), *conduct_flags(ws, cell, victim, data)]
    named = {f["id"] for f in result.flags}
    result.flags += [f.as_dict() for f in of_victim if f.id not in named]
    if fingerprint(victim) != weights or any(m.training for m in victim.modules()):
        raise ContractError(f"{cell.title}: the model was changed by what was run on it")
    result.weights = weights
    return result


def _attack(
    cell: Cell,
    ws: Workspace,
    victim: Classifier,
    seen: Classifier,
    data: ImageSet,
    threat: ThreatModel,
    clean: Tensor,
    refutes: Refutes | None,
) -> Result:
    attack, aimed = ws.entry(Attack, cell.attack), aim(ws, cell, victim, data, threat)
    # images that already have the target class are not attacked
    indices = (clean if aimed is None else clean & (aimed.goal != data.labels)).nonzero().squeeze(1)
    streams = Draws(derive_seed(cell.seed, "attack"), data.ids)

    def few(count: int) -> tuple[Tensor, Tensor, Draws, Tensor | None]:
        rows = indices[:count]
        goal = None if aimed is None else aimed.goal[rows].to(ws.device)
        return ws.pixels(data, rows), data.labels[rows].to(ws.device), streams[rows].to(ws.device), goal

    if attack.exploring() and len(indices):
        lesson, spent = explored(attack, seen, threat, *few(attack.explored()))
    else:
        lesson, spent = lesson_of(attack, cell, ws, seen, threat)
    most = len(indices) if ws.settings.save_images == 0 else ws.settings.save_images or 0
    together, in_pass = ws.together(data.stored)

    def found(at: slice, x: Tensor, y: Tensor, draws: Draws, goal: Tensor | None) -> tuple[Tensor, Ledger]:
        def make() -> tuple[Tensor, Ledger]:
            oracle = Oracle(seen, threat, draws, goal=goal, most=in_pass)
            return attack(oracle, x, y, threat, draws, lesson), oracle.ledger

        if not attack.minimises():
            return make()
        # the smallest perturbation does not depend on eps: one run is used for all eps of the norm
        what = [{k: v for k, v in cell.as_dict().items() if k != "threat"}, replace(threat, eps=0, text="").describe()]
        return ws.remember(("minimal", digest(what), at.start, at.stop), make)

    def part(at: slice) -> dict[str, Tensor]:
        rows = indices[at]
        x, y = ws.pixels(data, rows), data.labels[rows].to(ws.device)
        draws = streams[rows].to(ws.device)
        goal = None if aimed is None else aimed.goal[rows].to(ws.device)
        x_adv, ledger = found(at, x, y, draws, goal)
        z = fresh_passes(victim, x_adv, draws, "adversarial")
        hits = right(z, y)
        far = threat.size(x_adv, x)
        inside = far <= threat.limit  # minimum-norm attacks may end outside
        some = slice(0, max(0, most - at.start))  # adversarial images to keep; outside the budget nothing was found
        out = {
            "shown": torch.where(inside[some].view(-1, 1, 1, 1), x_adv[some], x[some]).detach().cpu().float(),
            "robust": majority(hits) | ~inside,
            "expected": torch.where(inside, hits.double().mean(dim=0), 1.0),
            "never": hits.all(dim=0) | ~inside,
            "finite": torch.isfinite(z).all(dim=2).all(dim=0),
            "wrong": ~majority(hits),
            "distance": far,
            "moved": ops.size(x_adv - x, "linf") > 1e-6,
            "forwards": ledger.forwards,
            "backwards": ledger.backwards,
            "queries": ledger.queries,
            "blind": ledger.blind,
            "undefined": ledger.undefined,
        }
        if data.kind.name == "image":  # the first images, so that the batch size has no influence
            first = slice(0, max(0, COMPARED - at.start))
            out["ssim"] = torch.full_like(far, torch.nan)
            out["ssim"][first] = ops.ssim(x[first], x_adv[first]).to(far.dtype)
        if refutes is not None:
            out["refuted"] = _refuted(refutes, x_adv, x, y, ~out["robust"], threat, draws.child("refutes"))
        if goal is not None:
            out["became"] = majority(right(z, goal)) & inside
        if data.kind.grid is not None:
            rounded = threat.project(data.kind.load(data.kind.store(x_adv), x_adv.dtype), x)
            out["robust_8bit"] = majority(right(fresh_passes(victim, rounded, draws, "8bit"), y)) | ~inside
        return out

    whose = digest([sources.of(cell), fingerprint(victim), fingerprint(seen), ws.settings.dtype, most])
    left = shards.folder(ws.store.root, cell.key, whose)
    parts = shards.by_parts(part, len(indices), together, left)
    got = {k: torch.cat([p[k] for p in parts]).cpu() for k in parts[0]} if parts else {}
    row = _row(cell, data, indices, threat, clean, victim, attack, got, aimed)
    row.counts.update(spent)
    row.flags += [flag.as_dict() for flag in attack.findings(lesson)]
    if ws.settings.save_images is not None:
        first = indices[:most]
        shown = got["shown"] if got else ws.pixels(data, first).cpu().float()
        row.images = {"images": shown, "ids": data.ids[first], "labels": data.labels[first]}
        row.images = {name: value.numpy() for name, value in row.images.items()}
    return row


def _refuted(
    refutes: Refutes, x_adv: Tensor, x: Tensor, y: Tensor, lost: Tensor, threat: ThreatModel, draws: Draws
) -> Tensor:
    """Which of the lost images break a certificate at eps, bool [n]; a little nearer than eps, whatever is rounded."""
    out = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    rows = lost.nonzero().squeeze(1)
    if len(rows):
        far = threat.size(x_adv[rows], x[rows]).clamp(min=1e-12)
        near = x[rows] + (NEARER * threat.eps / far).clamp(max=1.0).view(-1, 1, 1, 1) * (x_adv[rows] - x[rows])
        parts = slices(len(rows), at_once(x, x.device))
        out[rows] = torch.cat([refutes(near[at], y[rows[at]], draws[rows[at]]) for at in parts])
    return out


def explored(
    attack: Attack,
    seen: Classifier,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    goal: Tensor | None = None,
) -> tuple[Lesson, dict[str, float]]:
    """(what the attack learns from these images, the first of those that it will attack; what that costs)"""
    oracle = Oracle(seen, threat, draws.child("explore"), goal=goal)
    lesson = attack.explore(oracle, x, y, threat, draws.child("explore"))
    return lesson, _cost(oracle.ledger)


def lesson_of(
    probe: Probe, cell: Cell, ws: Workspace, seen: Classifier, threat: ThreatModel
) -> tuple[Lesson, dict[str, float]]:
    """(what the entry learns from the training images, or None; the cost of learning)"""
    if not probe.learning():
        return None, {}

    def make() -> tuple[Lesson, dict[str, float]]:
        own = ws.splits(cell.data)[0]
        draws = Draws(derive_seed(cell.seed, "learn"), own.ids).to(ws.device)
        oracle = Oracle(seen, replace(threat, queries=None), draws)
        lesson = probe.learn(oracle, own, threat, draws)
        return lesson, _cost(oracle.ledger)

    what: list[Any] = [cell.attack, cell.measure, data_key(cell.data), cell.seed]
    if threat.access != "none":  # with no access, the lesson depends neither on the victim nor on the budget
        what += [cell.threat, cell.surrogates or {"model": cell.model, "defense": cell.defense}]
    learnt: tuple[Lesson, dict[str, float]] = ws.remember(("learnt", digest(what)), make)
    return learnt


def _cost(ledger: Ledger) -> dict[str, float]:
    return {
        "learning_forwards": int(ledger.forwards.sum()),
        "learning_backwards": int(ledger.backwards.sum()),
    }


def _row(
    cell: Cell,
    data: ImageSet,
    indices: Tensor,
    threat: ThreatModel,
    clean: Tensor,
    victim: Classifier,
    attack: Attack,
    got: dict[str, Tensor],
    aimed: Aim | None,
) -> Result:
    n = len(data)
    attacked = torch.zeros(n, dtype=torch.bool)
    attacked[indices] = True

    def over_all(name: str, accuracy: bool = False) -> Tensor:
        """Values of all images; images not attacked get 0, or for `accuracy` 1 if correctly classified."""
        full = (clean & ~attacked & accuracy).double()
        if got:
            full[indices] = got[name].double()
        return full

    robust = over_all("robust", accuracy=True).bool()
    metrics: dict[str, dict[str, float]] = {
        "clean_acc": rate(int(clean.sum()), n),
        "robust_acc": rate(int(robust.sum()), n),
    }
    if data.kind.grid is not None:
        metrics["robust_acc_8bit"] = rate(float(over_all("robust_8bit", accuracy=True).sum()), n)
    samples = {"n": n, "clean": pack_bits(clean), "robust": pack_bits(robust), **bits("label", data.labels)}
    if data.groups is not None:
        samples |= bits("group", torch.unique(data.groups, return_inverse=True)[1])
    if aimed is not None:
        others = aimed.goal != data.labels
        samples |= {"attacked": pack_bits(attacked), "target": pack_bits(over_all("became").bool())}
        if bool(others.any()):
            metrics["target_rate_clean"] = rate(int((aimed.clean & others).sum()), int(others.sum()))
            metrics["target_rate_noise"] = rate(int((aimed.noise & others).sum()), int(others.sum()))
        if got:
            metrics["target_rate"] = rate(int(got["became"].sum()), len(indices))
    flags: list[Flag] = []
    counts: dict[str, float] = {"attacked": len(indices)}
    arrays: dict[str, Any] = {"ids": data.ids.numpy()}
    if got:
        if "refuted" in got:
            samples["refuted"] = pack_bits(over_all("refuted").bool())
        broken = ~got["robust"].bool()
        metrics["asr"] = rate(int(broken.sum()), len(indices))
        if victim.randomized:
            metrics["expected_acc"] = {"value": float(over_all("expected", accuracy=True).mean())}
            metrics["any_hit_acc"] = rate(float(over_all("never", accuracy=True).sum()), n)
        won = broken if aimed is None else got["became"].bool()
        if "ssim" in got and bool((won & got["ssim"].isfinite()).any()):
            metrics["ssim"] = {"value": float(got["ssim"][won].nanmean())}
        if attack.minimises() and bool(got["wrong"].any()):
            metrics["median_distance"] = {"value": float(got["distance"][got["wrong"].bool()].median())}
        if threat.access in ("score", "label"):
            queries = got["queries"]
            if bool(won.any()):
                metrics["median_queries"] = {"value": float(queries[won].double().median())}
                metrics["mean_queries"] = {"value": float(queries[won].double().mean())}
            for mark in QUERY_MARKS if aimed is None else ():
                if threat.queries is None or mark <= threat.queries:
                    lost = broken & (queries <= mark)
                    metrics[f"robust_acc@{mark}"] = rate(int(clean.sum()) - int(lost.sum()), n)
        for name in ("forwards", "backwards", "queries"):
            counts[name] = int(got[name].sum())
            counts[f"{name}_per_sample"] = float(got[name].double().mean())
            arrays[name] = over_all(name).long().numpy()
        arrays["distance"] = np.where(clean.numpy(), over_all("distance").numpy(), 0.0)
        flags += _flags(cell.labels["model"], attack, threat, got, len(indices))
    return Result(
        cell=cell,
        metrics=metrics,
        samples=samples,
        counts=counts,
        arrays=arrays,
        flags=[f.as_dict() for f in flags],
    )


def _flags(model: str, attack: Attack, threat: ThreatModel, got: dict[str, Tensor], n: int) -> list[Flag]:
    """Checks of a single attack; the leaderboard has the checks that compare rows."""
    out = []
    moved = int(got["moved"].sum())
    if moved == 0 and threat.eps > 0:
        out.append(Flag("noop_attack", "flag", f"the attack changed none of {n} images"))
    elif moved < n and attack.access() == "none":  # stored images, for example, may lack some or exceed eps
        out.append(Flag("unchanged", "info", f"the attack has no image within eps for {n - moved} of {n} images"))
    out += gradient_flags(model, *(int(got[name].sum()) for name in ("backwards", "blind", "undefined")))
    bad = n - int(got["finite"].sum())
    if bad:
        out.append(Flag("nan", "fail", f"{bad} of {n} adversarial images have logits that are not finite"))
    lost = int((~got["robust"].bool()).sum())
    lost_8bit = int((~got["robust_8bit"].bool()).sum()) if "robust_8bit" in got else lost
    if lost - lost_8bit > 0.02 * n:
        out.append(
            Flag("rounding_helps", "info", f"{lost - lost_8bit} of {n} images are correct again after 8-bit rounding")
        )
    return out


def _diagnose(
    cell: Cell, ws: Workspace, victim: Classifier, data: ImageSet, indices: Tensor, threat: ThreatModel
) -> Result:
    measure = ws.entry(Measure, cell.measure)
    if measure.every:
        indices = torch.arange(len(data))
    if len(indices) == 0:
        return Result(cell=cell, status="not_applicable", error={"message": "no image is classified correctly"})
    rows = (
        indices if measure.every else indices[:DIAGNOSED]
    )  # independent of the batch size, which must not change a result
    x, y = ws.pixels(data, rows), data.labels[rows].to(ws.device)
    draws = Draws(derive_seed(cell.seed, "measure"), data.ids[rows]).to(ws.device)
    lesson, spent = lesson_of(measure, cell, ws, victim, threat)
    oracle = Oracle(victim, threat, draws)
    found = measure(oracle, x, y, threat, draws, lesson)
    return Result(
        cell=cell,
        metrics={k: {"value": float(v)} for k, v in found["metrics"].items()},
        flags=found["flags"],
        arrays=_beside(found, data.ids[rows]),
        images=_shown(found),
        counts={
            "forwards": int(oracle.ledger.forwards.sum()),
            "backwards": int(oracle.ledger.backwards.sum()),
            "queries": int(oracle.ledger.queries.sum()),
            **spent,
        },
    )


def _beside(found: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """The numbers of a measure for each image, with the ids of the images; empty where it returns none."""
    arrays = found.get("arrays", {})
    return {"ids": ids.numpy(), **{name: a.cpu().numpy() for name, a in arrays.items()}} if arrays else {}


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """The pictures of a measure, numbered in their order."""
    pictures = found.get("pictures")
    if pictures is None or not len(pictures):
        return {}
    number = np.arange(len(pictures))
    return {"images": pictures.detach().cpu().float().numpy(), "ids": number, "labels": number}
