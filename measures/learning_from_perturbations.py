"""LearningFromPerturbations: a network trained with wrong labels only learns the right ones from perturbations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.prepare import at_once
from siegebench.threat import Norm, ThreatModel
from siegebench.train import Recipe, augmented, train
from siegebench.types import Attack, Count, Lesson, Measure

RECIPE = Recipe(epochs=8, augment="none")


@dataclass(frozen=True, eq=False)
class Pupils:
    """Two networks with the same weights at first, trained on the same wrong labels.

    Attributes:
        pupil: trained on the perturbed images.
        control: trained on the images without the perturbations.
        known: metrics of the training images.
    """

    pupil: Classifier
    control: Classifier
    known: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LearningFromPerturbations(Measure):
    """Test accuracy of a network trained on adversarial images that are labelled with their target class.

    Kumano, Kera, Yamasaki, "Theoretical Understanding of Learning from Adversarial Perturbations", ICLR 2024; the
    experiment is that of Ilyas et al., "Adversarial Examples Are Not Bugs, They Are Features", NeurIPS 2019, arXiv
    1905.02175. Each training image x is moved within the ball of the threat model towards a class t, not its own, and
    labelled t. A fresh network of the victim's architecture is trained on these pairs and tested on clean images.
        acc             the share of their true labels that it gives
        acc_control     the same of a network trained on the pairs (x, t), without the perturbations
        acc_next, ...   the share of images that it gives the class after the true one, what `next` would teach
    `target_hit` is the share of moved images that the victim classifies as t, `acc_victim` its accuracy,
    `largest_class` the share of the most frequent true label. If the perturbations contain features of t that
    generalise to clean images, acc is above acc_control.

    Random: the training images, the targets, the weights and the order of the training; what the attack draws.

    Cost: the attack on each training image, two trainings, and two passes for each image given.

    Differs from the paper: the recipe and the number of images are ours. Accuracy is that after the last epoch; the
    authors' figure for noise images shows the largest over the epochs.

    Attributes:
        images: number of training images, at most; number of noise images.
        source: `data` for training images, `noise` for images whose pixels are uniform random numbers.
        targets: `random` for any wrong class (any class for noise), `next` for the class after the true one.
        attack: what moves the images; it must be able to aim.
        recipe: of both trainings.
    """

    learns: ClassVar[bool] = True
    every: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    images: Count = 6000
    source: Literal["data", "noise"] = "data"
    targets: Literal["random", "next"] = "random"
    attack: Attack
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        if not self.attack.can_aim() or self.attack.learning() or self.attack.exploring():
            name = getattr(self.attack, "_name", type(self.attack).__name__)
            raise ConfigError(
                f"learning_from_perturbations: attack {name!r} cannot aim at a class, or learns first; use pgd"
            )
        if self.source == "noise" and self.targets == "next":
            raise ConfigError("learning_from_perturbations: noise has no true class; use targets: random")

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Pupils:
        """Move the images, and train both networks."""
        if threat.norm not in self.attack.handles():
            raise NotApplicable(f"the inner attack handles {', '.join(self.attack.handles())}, not {threat.norm}")
        where = oracle.rows.device
        chosen = draws.order("pupils").cpu()[: self.images].sort().values
        own, asked, streams = data.select(chosen), oracle[chosen.to(where)], draws[chosen.to(where)]
        clean, target = self._start(own, streams, oracle)
        moved, hit = torch.empty_like(clean), []
        for index in torch.arange(len(own)).split(at_once(clean, where)):
            at = index.to(where)
            x, goal = clean[index].to(where), target[index].to(where)
            y = asked[at].labels(x) if self.source == "noise" else own.labels[index].to(where)
            aimed = Oracle(oracle.model, threat, streams[at].child("pupils"), goal=goal)
            found = self.attack(aimed, x, y, threat, streams[at].child("attack"))
            found = torch.where(threat.size(found, x).view(-1, 1, 1, 1) <= threat.limit, found, x)
            hit.append(aimed.labels(found) == goal)
            for name in ("forwards", "backwards", "queries"):
                getattr(oracle.ledger, name).index_add_(0, asked.rows[at], getattr(aimed.ledger, name))
            moved[index] = found.cpu()
        known = {"target_hit": float(torch.cat(hit).double().mean()), "pairs": float(len(own))}
        labelled = replace(own, labels=target)
        pupil, control = (self._trained(oracle.model, labelled, x, draws.seed) for x in (moved, clean))
        return Pupils(pupil, control, known)

    def _start(self, own: ImageSet, draws: Draws, oracle: Oracle) -> tuple[Tensor, Tensor]:
        """(images [n, ...] before they are moved, the class that each is moved to), on the CPU"""
        draws, classes = draws.to("cpu"), own.num_classes
        if self.source == "noise":
            x = own.kind.low + (own.kind.high - own.kind.low) * draws.uniform(own.shape, purpose="noise")
            return x.to(oracle.dtype), draws.integers(classes, purpose="target")
        step = draws.integers(classes - 1, purpose="target") if self.targets == "random" else 0
        return own.pixels(dtype=oracle.dtype), (own.labels + 1 + step) % classes

    def _trained(self, victim: Classifier, labelled: ImageSet, x: Tensor, seed: int) -> Classifier:
        """A fresh network, trained on images x [n, ...] and the labels of the set."""
        device = next(victim.parameters()).device
        model = victim.fresh(derive_seed(seed, "pupil")).to(device, x.dtype)
        streams = Draws(derive_seed(seed, "crops"), labelled.ids)

        def shown(_x: Tensor, _y: Tensor, index: Tensor, epoch: int) -> Tensor:
            return augmented(x[index], self.recipe.augment, streams[index], epoch, labelled.kind).to(device)

        train(model, labelled, self.recipe, derive_seed(seed, "pupil"), images=shown)
        return model.requires_grad_(False)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        pupils: Pupils = lesson
        counts = y.bincount(minlength=oracle.num_classes)
        metrics = {**pupils.known, "largest_class": float(counts.max()) / len(y)}
        metrics["acc_victim"] = float((oracle.labels(x) == y).double().mean())
        for model, end in ((pupils.pupil, ""), (pupils.control, "_control")):
            label = oracle.of(model).labels(x)
            metrics[f"acc{end}"] = float((label == y).double().mean())
            metrics[f"acc_next{end}"] = float((label == (y + 1) % oracle.num_classes).double().mean())
        return {"metrics": metrics, "flags": []}
