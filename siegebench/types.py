"""The base class of each kind of entry.

Images are float32 NCHW RGB in [0, 1]; labels are int64. Entries are frozen keyword-only dataclasses whose fields are
their parameters. Authors write `run`, `wrap` and `fit`, `trigger`, `score`; the final methods enforce the contract.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, final

import torch
from pydantic import BeforeValidator, ConfigDict, Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import BALLS, NORMS, TOLERANCE, Access, Norm, ThreatModel, parse_number

# Types for the fields of entries: checked when an entry is built from a suite, a card or the command line.
Count = Annotated[int, Field(ge=1, strict=True)]
Class = Annotated[int, Field(ge=0, strict=True)]  # a label
Number = Annotated[float, BeforeValidator(parse_number)]  # also text such as 2/255
Positive = Annotated[float, BeforeValidator(parse_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(parse_number), Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Entry(ABC):
    """A registered thing. Its fields are its parameters; the constructor only stores them.

    Class attributes:
        places: fields that say where something lies (a folder, a file). They do not decide a number and stay out of
            keys and rows; what they point to goes in by its hash.
    """

    places: ClassVar[tuple[str, ...]] = ()

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def parameters(self) -> dict[str, Any]:
        """The fields as plain data, nested entries by name, as they go into a key and a row."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in self.places}


def _plain(value: Any) -> Any:
    if isinstance(value, Entry):
        return {"name": getattr(value, "_name", type(value).__name__), **value.parameters()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


# --------------------------------------------------------------------------------------------------------- attacks


class Probe(Entry):
    """What is run on a victim through an Oracle: an Attack or a Measure.

    Class attributes:
        learns: it looks at training images of its own before it runs, once for all the images of a cell.
    """

    learns: ClassVar[bool] = False

    def learning(self) -> bool:
        """Whether this instance learns (wrappers ask the attack inside)."""
        return self.learns

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Self:
        """The same entry with what it has learnt; only for `learns = True`.

        Args:
            oracle: the model, as far as the threat model grants it; it speaks for the images of `data`.
            data: the training split.
            threat: the budget.
            draws: the only source of randomness, one stream for each image of `data`.
        """
        raise ContractError(f"{self!r} declares learns = True and does not define learn")


class Attack(Probe):
    """Finds images within a budget that the model gets wrong.

    Class attributes:
        needs: the least access it works with.
        norms: the constraints it handles.
        minimal: it returns the smallest perturbation it finds, whatever eps is; the harness reads off all budgets.
        for_others: made for transfer, at the price of strength on the network attacked, which is then not asked for.
        narrow: it reaches a part of the ball only (light, one pattern for all images), so that what holds for the whole
            ball is not asked of it.
    """

    needs: ClassVar[Access] = "gradient"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    minimal: ClassVar[bool] = False
    for_others: ClassVar[bool] = False
    narrow: ClassVar[bool] = False

    def access(self) -> Access:
        """The least access this instance works with (wrappers ask the attack inside)."""
        return self.needs

    def handles(self) -> tuple[Norm, ...]:
        """The norms this instance handles."""
        return self.norms

    def minimises(self) -> bool:
        """Whether this instance looks for the smallest perturbation instead of keeping to eps."""
        return self.minimal

    @abstractmethod
    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """Adversarial images for a batch; the clean image where none was found (or the best attempt).

        Args:
            oracle: the model, as far as the threat model grants it; `oracle[index]` speaks for some of the samples.
            x: [n, 3, H, W] in [0, 1], correctly classified.
            y: int64 [n], true labels.
            threat: the budget.
            draws: the only source of randomness.
        """

    @final
    def __call__(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """Run, then check the contract: shape, type, finite, in [0, 1], within eps.

        Raises:
            ContractError: naming the attack, the sample and the size of the violation.
        """
        if not threat.grants(self.access()):
            raise ContractError(f"{self!r} needs {self.access()} access; the threat model grants {threat.access}")
        if threat.norm not in self.handles():
            raise ContractError(
                f"{self!r} handles {', '.join(self.handles())}; the threat model asks for {threat.norm}"
            )
        x_adv = self.run(oracle, x, y, threat, draws)
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
            raise ContractError(f"{self!r} returned {x_adv.dtype} {tuple(x_adv.shape)} for {x.dtype} {tuple(x.shape)}")
        x_adv = x_adv.detach()
        if not bool(torch.isfinite(x_adv).all()):
            raise ContractError(f"{self!r} returned NaN or infinite pixels")
        if bool((x_adv.amin() < -TOLERANCE) | (x_adv.amax() > 1 + TOLERANCE)):
            raise ContractError(f"{self!r} returned pixels in [{x_adv.amin():.4f}, {x_adv.amax():.4f}], not in [0, 1]")
        if not self.minimises():
            far = threat.size(x_adv, x)
            slack = TOLERANCE * max(1.0, threat.eps)
            if bool((far > threat.eps + slack).any()):
                worst = int(far.argmax())
                raise ContractError(
                    f"{self!r}: sample {worst} is {far[worst]:.6g} from its original in {threat.norm}, "
                    f"budget {threat.eps:.6g}"
                )
        return x_adv


class MinimalAttack(Attack):
    """Finds the smallest perturbation that the model gets wrong; returns the clean image where it finds none."""

    minimal: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class WrappingAttack(Attack):
    """Changes what another attack is shown; access, norms and aim are those of the attack inside.

    Attributes:
        attack: what runs inside.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack

    def access(self) -> Access:
        return self.attack.access()

    def handles(self) -> tuple[Norm, ...]:
        return self.attack.handles()

    def minimises(self) -> bool:
        return self.attack.minimises()

    def learning(self) -> bool:
        return self.attack.learning()

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Self:
        return replace(self, attack=self.attack.learn(oracle, data, threat, draws))


class Measure(Probe):
    """A diagnosis of a victim that is stored beside its robustness: metrics and flags, never a rank."""

    norms: ClassVar[tuple[Norm, ...]] = BALLS

    @abstractmethod
    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        """`{"metrics": {name: number}, "flags": [Flag.as_dict(), ...]}` for correctly classified images."""


# -------------------------------------------------------------------------------------------------------- defenses


class Defense(Entry):
    """Turns a classifier into a defended one.

    Class attributes:
        trains: `fit` changes weights; the result is stored as an artifact.
        randomized: two looks at one image may differ; success is then judged by a majority of fresh passes.
        differentiable: useful gradients pass through `forward`; otherwise the wrapped classifier has a `surrogate`.
        adaptive: attacks (specs as in a suite) that know the defense; a row without them is not ranked. The wrappers
            eot and bpda compose with any attack.
        tracks: where it may be ranked.
    """

    trains: ClassVar[bool] = False
    randomized: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ()
    tracks: ClassVar[tuple[str, ...]] = ("white_box", "query", "transfer", "patch")

    @abstractmethod
    def wrap(self, model: Classifier) -> Classifier:
        """The defended structure around (or instead of) the model. May hold the given model, must not change it."""

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        """Train the defended classifier in place; only for `trains = True`. It is a copy: nothing else sees it."""
        raise ContractError(f"{self!r} declares trains = True and does not define fit")

    @final
    def structure(self, model: Classifier) -> Classifier:
        """The defended classifier before training, around a copy where it trains; takes weights trained before."""
        defended = self.wrap(copy.deepcopy(model) if self.trains else model)
        defended.randomized = defended.randomized or self.randomized
        return defended.eval()

    @final
    def apply(self, model: Classifier, data: Granted, draws: Draws) -> Classifier:
        """Wrap, and train where the defense trains. The given model is never changed.

        Raises:
            ContractError: when the entry changed the model it was given.
        """
        before = {k: v.clone() for k, v in model.state_dict().items()}
        defended = self.structure(model)
        if self.trains:
            self.fit(defended, data, draws)
        after = model.state_dict()
        changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
        if changed:
            raise ContractError(f"{self!r} changed the model it was given ({changed[0]})")
        return defended.eval()


# ------------------------------------------------------------------------------------------------------- backdoors


@dataclass(frozen=True, eq=False)
class Poisoned:
    """A poisoned training set and, for the evaluator's eyes only, which images were touched."""

    data: ImageSet
    index: Tensor  # places of the poisoned images, sorted


@dataclass(frozen=True, kw_only=True)
class BackdoorAttack(Entry):
    """Poisons a share of the training set so that a trigger controls the model.

    Attributes:
        rate: share of the whole training set that is poisoned (also for clean-label attacks).
        target: label map. A class for all-to-one, `next` for all-to-all (y + 1), or `{source: target}` pairs.
    """

    clean_label: ClassVar[bool] = False  # poisons images of the target class only and keeps their labels

    rate: Share = 0.1
    target: Class | Literal["next"] | dict[Class, Class] = 0

    @abstractmethod
    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        """Images with the trigger, [n, 3, H, W] in [0, 1]. Must not change x."""

    def wanted(self, y: Tensor, num_classes: int) -> Tensor:
        """The label the attacker wants for each true label; -1 where the map leaves a class alone."""
        if self.target == "next":
            return (y + 1) % num_classes
        if isinstance(self.target, int):
            return torch.full_like(y, self.target)
        table = torch.full((num_classes,), -1, dtype=torch.long, device=y.device)
        for source, target in self.target.items():
            table[source] = target
        return table[y]

    @final
    def eligible(self, data: ImageSet) -> Tensor:
        """Places of the images that may be poisoned, at least as many as `rate` asks for.

        Raises:
            ContractError: when a target is not one of the classes.
            NotApplicable: when fewer images are eligible than the rate asks for.
        """
        self.check(data.num_classes)
        wanted = self.wanted(data.labels, data.num_classes)
        fits = (wanted == data.labels) if self.clean_label else torch.ones_like(wanted, dtype=torch.bool)
        pool = ((wanted >= 0) & fits).nonzero().squeeze(1)
        count = round(self.rate * len(data))
        if count > len(pool):
            raise NotApplicable(
                f"{self!r}: {count} of {len(data)} images to poison, {len(pool)} eligible; "
                f"at most rate {math.floor(1000 * len(pool) / len(data)) / 1000:.3f}"
            )
        return pool

    @final
    def poison(self, data: ImageSet, seed: int) -> Poisoned:
        """Replace `rate` of the images by triggered ones, with the labels of the map. The source stays unchanged.

        Raises:
            ContractError, NotApplicable: as `eligible` does.
        """
        pool = self.eligible(data)
        wanted = self.wanted(data.labels, data.num_classes)
        count = round(self.rate * len(data))
        draws = Draws(seed, data.ids)
        order = Draws(seed, data.ids[pool]).order("poison")
        index = pool[order[:count]].sort().values
        images, labels = data.images.clone(), data.labels.clone()
        if count:
            stamped = self.stamp(data.pixels(index), draws[index])
            images[index] = (stamped * 255).round().to(torch.uint8)
            labels[index] = wanted[index]
        return Poisoned(replace(data, images=images, labels=labels, name=f"{data.name} poisoned"), index)

    @final
    def stamp(self, x: Tensor, draws: Draws) -> Tensor:
        """`trigger`, with its contract checked."""
        before = x.clone()
        out = self.trigger(x, draws)
        if not torch.equal(before, x):
            raise ContractError(f"{self!r}: trigger changed its input in place")
        if out.shape != x.shape or out.dtype != x.dtype or not bool(((out >= 0) & (out <= 1)).all()):
            raise ContractError(f"{self!r}: trigger must return {x.dtype} {tuple(x.shape)} in [0, 1]")
        return out

    def check(self, num_classes: int) -> None:
        """Refuse targets outside the classes.

        Raises:
            ContractError: naming the class.
        """
        if self.target == "next":
            used: set[int] = set()
        else:
            used = {self.target} if isinstance(self.target, int) else {*self.target.keys(), *self.target.values()}
        bad = [c for c in used if not 0 <= c < num_classes]
        if bad:
            raise ContractError(f"{self!r}: class {bad[0]} does not exist, the dataset has 0..{num_classes - 1}")


@dataclass(frozen=True)
class Verdict:
    """What a model-level detector says of one model. Larger score = more suspicious."""

    score: float
    backdoored: bool  # at the published threshold
    targets: tuple[int, ...] = ()


class Detector(Entry):
    """Says which inputs, training images or models look backdoored or adversarial. Larger = more suspicious.

    Thresholds are the evaluator's affair, except for the published one inside a model-level Verdict.
    """


class InputDetector(Detector):
    """Scores single inputs at test time."""

    @abstractmethod
    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Callable[[Tensor, Draws], Tensor]:
        """Look at the model and the granted data once; return a function from images [n, 3, H, W] to scores [n]."""


class DatasetDetector(Detector):
    """Scores the images of a training set, given the model trained on it."""

    @abstractmethod
    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        """Scores [N] of `data.train`, in its order."""


class ModelDetector(Detector):
    """Judges whole models."""

    @abstractmethod
    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        """A verdict on one model."""


# ----------------------------------------------------------------------------------------------------- zoo entries


class DataSource(Entry):
    """Where images come from."""

    @abstractmethod
    def load(self, split: str) -> ImageSet:
        """All images of `train` or `test`.

        Raises:
            DataError: when they are missing or corrupt; says where it looked and what to type.
        """


class ModelSource(Entry):
    """Where a network comes from: an architecture, with published weights or a recipe to train it."""

    @abstractmethod
    def build(self, *, num_classes: int, size: int) -> Classifier:
        """The network for images of this size, with its published weights when it has some.

        Raises:
            ModelError: when weights are missing, corrupt, not finite or of another shape.
        """

    def pretrained(self) -> bool:
        """Whether `build` brings trained weights; otherwise the harness trains with `recipe`."""
        return False

    def identity(self) -> dict[str, Any]:
        """What decides the weights besides the parameters, such as the sha256 of a checkpoint."""
        return {}
