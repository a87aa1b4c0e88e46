"""`siegebench new KIND NAME`: a working entry to start from, one Python file and one card."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from siegebench import registry
from siegebench.errors import ConfigError, did_you_mean
from siegebench.kinds import KINDS

CHECKLIST = """
# Before the pull request, then delete these lines:
# - The docstring of the class says what it does, names the paper, says what is random, explains every parameter under
#   Attributes, and lists all differences from the paper under "Differs from the paper:".
# - Every random number comes from `draws`, keyed by step and purpose; no sample depends on the others in the batch.
# - The card: summary in terms a user knows, paper with venue and year${card_hint}.
# - `siegebench check ${name}` passes.
# - `siegebench run try --set ${kind}=${name}` evaluates it.
# - A test that would fail if the method were wrong: a closed form, a planted optimum, a property.
# - If the method has a paper: a page in docs/replications, named like this file, and its line in the README there.
# - `make check` is clean, `make docs` is run, and CHANGELOG.md has a line.
"""

ATTACK = '''"""${title}: TODO say in one line what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Positive


@dataclass(frozen=True, kw_only=True)
class ${cls}(Attack):
    """One step of steepest ascent on the margin of the logits.

    Nothing is random. Cost: one forward and one backward pass per sample.

    Differs from the paper: TODO say in what, or delete this line if there is no paper.

    Attributes:
        step: length of the step, as a multiple of eps.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    step: Positive = 1.0

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        gradient, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return threat.project(x + self.step * threat.eps * ops.normalise(gradient, threat.norm), x)
'''

DEFENSE = '''"""${title}: TODO say in one line what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.types import Defense, Share


class ${cls}Model(Wrapped):
    """A classifier that lowers the contrast of its input."""

    def __init__(self, inner: Classifier, contrast: float) -> None:
        super().__init__(inner)
        self.contrast = contrast

    def transform(self, x: Tensor) -> Tensor:
        return 0.5 + self.contrast * (x - 0.5)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.inner(self.transform(x), draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.backward_model(self.transform(x), draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.transform(x))


@dataclass(frozen=True, kw_only=True)
class ${cls}(Defense):
    """Lower the contrast of every image: x' = 1/2 + c (x - 1/2).

    Nothing is random.

    Differs from the paper: TODO say in what, or delete this line if there is no paper.

    Attributes:
        contrast: c.
    """

    trains: ClassVar[bool] = False  # true: write `fit`, and list the data it uses in the card
    randomized: ClassVar[bool] = False  # true: draw the noise from `draws`; average over it in an adaptive attack
    differentiable: ClassVar[bool] = True  # false: give the model a `backward_model`; use it in an adaptive attack
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50},)

    contrast: Share = 0.9

    def wrap(self, model: Classifier) -> Classifier:
        return ${cls}Model(model, self.contrast)
'''

BACKDOOR = '''"""${title}: TODO say in one line what it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import BackdoorAttack, Share


@dataclass(frozen=True, kw_only=True)
class ${cls}(BackdoorAttack):
    """Tint every pixel: x' = (1 - a) x + a c, with the colour c = (1, 0, 1).

    Nothing is random besides the choice of the poisoned images.

    Differs from the paper: TODO say in what, or delete this line if there is no paper.

    Attributes:
        strength: a.
    """

    strength: Share = 0.2

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        colour = x.new_tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
        return (1 - self.strength) * x + self.strength * colour
'''

DETECTOR = '''"""${title}: TODO say in one line what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.types import InputDetector, Positive


@dataclass(frozen=True, kw_only=True)
class ${cls}(InputDetector):
    """Score an input by the confidence of the model: max_k softmax(z / T)_k. Larger is more suspicious.

    Nothing is random. A detector of training images derives from DatasetDetector, one of models from ModelDetector.

    Differs from the paper: TODO say in what, or delete this line if there is no paper.

    Attributes:
        temperature: T.
    """

    temperature: Positive = 1.0

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Callable[[Tensor, Draws], Tensor]:
        @torch.no_grad()
        def score(x: Tensor, draws: Draws) -> Tensor:
            z = model(x, draws if model.randomized else None)
            return (z / self.temperature).softmax(dim=1).amax(dim=1)

        return score
'''

CAMOUFLAGE = '''"""${title}: TODO say in one line what it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from siegebench.draws import Draws
from siegebench.types import Camouflage, Positive
from siegebench.types.camouflages import Stage, Texture


@dataclass(frozen=True, kw_only=True)
class ${cls}(Camouflage):
    """One flat colour: the corner of the RGB cube under which the mean score for vehicle is lowest.

    Nothing is random. A texture that is made without the victim declares `needs = "none"`.

    Differs from the paper: TODO say in what, or delete this line if there is no paper.

    Attributes:
        period: metres after which the texture repeats.
    """

    period: Positive = 1.0

    def paint(self, stage: Stage, draws: Draws) -> Texture:
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        textures = [Texture(corner.view(3, 1, 1), self.period) for corner in corners]
        scores = [float(stage.sighted(texture.on(stage.maps)).mean()) for texture in textures]
        return textures[scores.index(min(scores))]
'''

CERTIFIER = '''"""${title}: TODO say in one line what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from siegebench.bounds import Ball, intervals, margins
from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws
from siegebench.threat import Norm
from siegebench.traced import operations
from siegebench.types import Certificate, Certifier, Positive


@dataclass(frozen=True, kw_only=True)
class ${cls}(Certifier):
    """Interval bounds of the margins z_y - z_k; an image is certified if all of them are above the rounding.

    Nothing is random. Cost: about three forward passes per radius, in float64.

    Differs from the paper: TODO say in what, or delete this line if there is no paper.

    Attributes:
        rounding: of a network in float32, as a multiple of its largest logit.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    rounding: Positive = 1e-5

    def certify(self, model: Classifier, x: Tensor, norm: Norm, radii: Sequence[float], draws: Draws) -> Certificate:
        z = model(x)
        y = z.argmax(dim=1)
        slack = self.rounding * z.abs().amax(dim=1).clamp(min=1).double()
        ops = operations(copied(model).double(), x.double())
        balls = [Ball(x.double(), norm, radius, model.kind.low, model.kind.high) for radius in radii]
        low = [margins(ops, intervals(ops, ball), y).amin(dim=1) for ball in balls]
        holds = torch.stack([bound > slack for bound in low])
        return Certificate(y, holds.cummin(dim=0).values)  # what holds at a radius holds at all smaller ones
'''

CARD = """name: ${name}
kind: ${kind}
entry: ${name}:${cls}
version: 1
summary: TODO say in one sentence what a user gets from it.
paper: "TODO Authors, Title, Venue year (arXiv id); delete this line if there is no paper."
"""
SEES = "sees: []  # the splits it uses: train, clean, val\n"

LEFT = ("TODO ", "Before the pull request, then delete these lines")  # texts of a skeleton that its author replaces

LONGEST = 40  # letters of a name: it is used in file names, table cells and lines of code
CODE = {
    "attack": ATTACK, "defense": DEFENSE, "backdoor": BACKDOOR, "detector": DETECTOR, "camouflage": CAMOUFLAGE,
    "certifier": CERTIFIER,
}  # fmt: skip
HINTS = {
    "attack": "",
    "defense": ", and the data that it uses",
    "backdoor": "",
    "camouflage": "",
    "certifier": "",
    "detector": ", and the data that it uses",
}


def write(kind: str, name: str, folder: Path | None = None) -> list[Path]:
    """Write NAME.py and NAME.yaml; returns the two paths.

    Args:
        kind: attack, defense, backdoor, detector, camouflage or certifier.
        name: snake_case; the name of the files and of the entry.
        folder: target folder; by default the folder of that kind.

    Raises:
        ConfigError: unknown kind, a name that is not snake_case or is taken, a file that exists.
    """
    if kind not in CODE:
        raise ConfigError(f"there is no skeleton for kind {kind!r}. {did_you_mean(kind, CODE)}")
    if not _good(name):
        raise ConfigError(
            f"the name {name!r} is not snake_case of at most {LONGEST} letters; try {_snake(name, kind)!r}"
        )
    if name in registry.names(kind):
        raise ConfigError(f"{kind} {name!r} is already registered by {registry.find(kind, name)[0].path}")
    target = folder if folder is not None else _home(kind)
    if not target.is_dir():
        raise ConfigError(f"{target}: no such folder; create it first, or give another --folder")
    code, card = target / f"{name}.py", target / f"{name}.yaml"
    for path in (code, card):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another name")
    words = {
        "name": name,
        "kind": kind,
        "cls": "".join(w[:1].upper() + w[1:] for w in name.split("_")),
        "title": name.replace("_", " ").capitalize(),
        "card_hint": HINTS[kind],
    }
    code.write_text(Template(CODE[kind] + "\n" + CHECKLIST).substitute(words), encoding="utf-8")
    sees = SEES if kind in ("defense", "detector") else ""
    card.write_text(Template(CARD + sees).substitute(words), encoding="utf-8")
    return [code, card]


def _home(kind: str) -> Path:
    """The folder of a kind in the checkout."""
    spec = importlib.util.find_spec(f"siegebench.{KINDS[kind].folder}")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder).parent / "pyproject.toml").is_file():
            return Path(folder)
    raise ConfigError("siegebench runs from an installed package, not from a checkout; give a folder with --folder")


def _good(name: str) -> bool:
    return (
        re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) is not None
        and not keyword.iskeyword(name)
        and len(name) <= LONGEST
    )


def _snake(name: str, kind: str) -> str:
    """The nearest valid name."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    near = re.sub(r"[^a-z0-9]+", "_", split.lower())
    near = re.sub(r"^[0-9_]+", "", near).rstrip("_")
    return near if _good(near) else f"my_{kind}"
