"""Equal strength instead of equal passes: the CPU time at which one implementation reaches what the other ends with.

A network that is watched knows the nearest misclassified point of each image that it was ever shown, and when. An image
counts from that moment on, also where the implementation goes on or returns another point in the end: this favours
those that do not stop. What watching takes is not counted.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field, replace

import torch
from bench import ROUNDING, Counted, Scene, run_ours
from contests import Contest
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.threat import TOLERANCE, ThreatModel


@dataclass
class Course:
    """How strong a run was at each time.

    Attributes:
        seconds, value: CPU seconds since the start; robust accuracy in percent of all images, or the median distance.
        end, result: when it ended, and the value of what it returned.
    """

    seconds: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    end: float = math.nan
    result: float = math.inf

    def reaches(self, value: float) -> float | None:
        """CPU seconds until it was as strong as this; None if it never was."""
        for seconds, found in zip(self.seconds, self.value, strict=True):
            if found <= value * (1 + 1e-9):
                return seconds
        return self.end if self.result <= value * (1 + 1e-9) else None


class Watched(Wrapped):
    """A network that notes when it was first shown a misclassified point of each image.

    A point belongs to the image that is nearest to it in L2, because libraries reorder, drop and repeat images.
    """

    def __init__(self, inner: Classifier, scene: Scene, threat: ThreatModel, by: str) -> None:
        super().__init__(inner)
        self.scene, self.threat, self.by = scene, threat, by
        self.nearest = torch.full((len(scene.x),), math.inf)
        self.watching, self.began = 0.0, time.process_time()
        self.course = Course()

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z: Tensor = self.inner(x, draws)
        start = time.process_time()
        with torch.no_grad():
            self._watch(x.detach().float(), z.detach().argmax(dim=1), start - self.began - self.watching)
        self.watching += time.process_time() - start
        return z

    def _watch(self, x: Tensor, label: Tensor, seconds: float) -> None:
        flat, points = self.scene.x.flatten(1), x.flatten(1)
        rows = (flat.square().sum(dim=1) - 2 * points @ flat.T).argmin(dim=1)
        wrong = (label != self.scene.y[rows]) & (points.amin(dim=1) >= 0) & (points.amax(dim=1) <= 1)
        if not bool(wrong.any()):
            return
        x, rows = x[wrong], rows[wrong]
        before = self.nearest.clone()
        self.nearest.scatter_reduce_(0, rows, self.threat.size(x, self.scene.x[rows]), "amin")
        if bool((self.nearest < before).any()):
            self.course.seconds.append(seconds)
            self.course.value.append(self._value())

    def _value(self) -> float:
        if self.by == "median":
            return float(self.nearest.median())
        slack = ROUNDING if self.threat.norm == "l1" else TOLERANCE
        hit = self.nearest <= self.threat.eps + slack * max(1.0, self.threat.eps)
        return 100 * (len(hit) - int(hit.sum())) / self.scene.total

    def finish(self, x_adv: Tensor) -> Course:
        """The course, with what was returned at the end."""
        self.course.end = time.process_time() - self.began - self.watching
        score = self.scene.score(x_adv.detach(), self.threat)[0]
        value = score["robust" if self.by == "robust" else "median"]
        self.course.result = math.inf if value is None else value
        return self.course


def race(contest: Contest, scene: Scene) -> dict[str, dict[str, float | None]]:
    """Ours against each peer on all images, by time to the strength of the other; prints a line for each."""
    threat = contest.threat
    watched = Watched(scene.ready, scene, threat, contest.by)
    mine = watched.finish(run_ours(contest.ours, replace(scene, ready=watched), threat)[0])
    unit = "% robust" if contest.by == "robust" else "median"
    print(f"  ours: {mine.result:.4g} {unit} after {mine.end:.2f} s", flush=True)
    out: dict[str, dict[str, float | None]] = {}
    for who, peer in contest.peers.items():
        watched = Watched(copy.deepcopy(scene.plain), scene, threat, contest.by)
        try:
            theirs = watched.finish(peer(Counted(watched).eval(), scene.x.clone(), scene.y.clone(), threat))
        except Exception as error:  # a peer that cannot run is a result too
            print(f"  {who:34} {type(error).__name__}: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        ours_there, theirs_here = mine.reaches(theirs.result), theirs.reaches(mine.result)
        out[who] = {
            "result": theirs.result, "seconds": theirs.end, "ours reaches it after": ours_there,
            "it reaches ours after": theirs_here, "our result": mine.result, "our seconds": mine.end,
        }  # fmt: skip
        print(
            f"  {who:34} {theirs.result:.4g} {unit} after {theirs.end:.2f} s, which ours {_told(ours_there)}; "
            f"{mine.result:.4g}, which it {_told(theirs_here)}",
            flush=True,
        )
    return out


def _told(seconds: float | None) -> str:
    return "never reaches" if seconds is None else f"reaches after {seconds:.2f} s"
