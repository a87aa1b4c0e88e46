"""DAM: merge the models of several tasks, and mask the weights that carry a backdoor into the merged model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, train
from siegebench.types import Count, DataSource, Defense, Number, Positive
from siegebench.types.base import lowered

from . import _merging
from ._merging import Weights

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class DAM(Defense):
    """theta = theta_0 + sum_t lambda_t tau_t m / mean(m): task vectors of several models, with one mask for all.

    Yang, Tang, Zhu, Chen, Shen, Wu, "Mitigating the Backdoor Effect for Multi-Task Model Merging via Safety-Aware
    Subspace", ICLR 2025, arXiv 2410.13910.

    The models have one start theta_0, a backbone, and a head each; tau_t is how training on task t moved the backbone.
    The victim is one of them, and the merged backbone with its head is the defended model. With the entropy H of the
    softmax of f_t, the merged model with the head of task t, each of `steps` steps

        draws     m = sigmoid((w + logistic noise) / temperature), a relaxed Bernoulli variable
        lambda    = scale - inner grad sum_t H(f_t(x)), in one step from `scale`
        d_t       one step of Adam that ascends CE(f_t(x + d_t), argmax f_t(x)), a perturbation for all images of a task
        w         one step of Adam on  sum_t H(f_t(x)) + safety H(f_t(x + d_t))

    Then m = sigmoid(w / temperature), and lambda is adapted by Adam on sum_t H(f_t(x)) (AdaMerging). No label is used
    for merging. `mask: false` leaves the mask out; `adapt: false` keeps lambda at `scale` (task arithmetic).

    Where the models come from: theta_0 is trained here on another data set, `other`, and then trained on groups of its
    classes, the other tasks, and on the given training set. With `pretraining: null` the victim itself is merged: its
    network must be one that is fine-tuned from published weights (`finetune: true` of timm), which are then theta_0.

    Random: the initial weights, the order and augmentation of the images, the mask.

    Cost: the training of theta_0 and of one network for each task; 4 passes for each step and task; one network at
    inference.

    Differs from the paper: the authors merge six CLIP models and adapt to unlabelled test images (transductive). Here
    the images are the clean budget, without labels, and images of the other tasks that no model was trained on: no test
    image is seen. lambda makes a plain gradient step; x + d_t is clipped to the box. The batch norms normalise with the
    batch while m and lambda are found, and then get the statistics of the clean budget.

    Attributes:
        other: the data set of the other tasks; it must not have the images of the victim's task.
        tasks: into how many tasks its classes are divided.
        images: number of its images that are used, at most; a tenth of them for merging.
        pretraining: how theta_0 is trained on `other`; null for networks that start from published weights.
        recipe: how each model is trained from theta_0.
        mask: whether there is a mask.
        adapt: whether lambda is adapted; else it stays at `scale`.
        scale: lambda at the start.
        inner: step size for lambda while w is trained.
        steps, mask_lr: of Adam on w.
        safety: weight of the perturbed images.
        temperature: of the mask.
        perturbation_lr: of Adam on d_t.
        merging_steps, merging_lr: of Adam on lambda.
        batch: images of each task in a step.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    other: DataSource = field(default_factory=lambda: registry.build(DataSource, "digits"))
    tasks: Count = 2
    images: Count = 2000
    pretraining: Recipe | None = RECIPE
    recipe: Recipe = RECIPE
    mask: bool = True
    adapt: bool = True
    scale: Positive = 0.3
    inner: Number = 0.1
    steps: Count = 100
    mask_lr: Positive = 0.05
    safety: Number = 0.1
    temperature: Positive = 0.5
    perturbation_lr: Positive = 0.01
    merging_steps: Count = 100
    merging_lr: Positive = 0.01
    batch: Count = 32

    def identity(self) -> dict[str, Any]:
        found = self.other.identity()
        return {"other": found} if found else {}

    def quick(self) -> Self:
        return replace(lowered(self), merging_steps=6, images=100)

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "dam")
        merging = Merging(self.models(defended, data, seed), seed, self)
        weights = merging.weights()
        defended.load_state_dict({**merging.tasks[0].model.state_dict(), **weights})
        _merging.measure_statistics(defended, data.clean, self.batch)

    def models(self, victim: Classifier, data: Granted, seed: int) -> tuple[Weights, list[Task]]:
        """(theta_0, the model of the victim's task and those of the other tasks)."""
        whole = self.other.scan("train")
        if data.train.name.startswith(whole.name):
            raise NotApplicable(f"dam: the data set is {whole.name}, as that of the other tasks; set another `other`")
        others = _merging.like(data.train, whole, self.images, seed)
        start = victim.fresh(derive_seed(seed, "weights")).requires_grad_(True)
        if self.pretraining is None:
            self._check_start(victim, start)
        else:
            base = _merging.with_head(start, others.num_classes, derive_seed(seed, "start"))
            train(base, others, self.pretraining, derive_seed(seed, "start"))
            _merging.take_over(start, base.state_dict())
        own = copy.deepcopy(victim if self.pretraining is None else start).requires_grad_(True)
        if self.pretraining is not None:
            train(own, data.train, self.recipe, derive_seed(seed, "task", 0))
        made = [Task(own, data.clean)]
        for t, part in enumerate(_merging.class_groups(others, self.tasks), start=1):
            held = max(1, len(part) // 10)
            order = Draws(seed, part.ids).order("held out")
            model = _merging.with_head(start, part.num_classes, derive_seed(seed, "head", t))
            train(model, part.select(order[held:]), self.recipe, derive_seed(seed, "task", t))
            made.append(Task(model, part.select(order[:held])))
        return _merging.backbone(start), made

    def _check_start(self, victim: Classifier, start: Classifier) -> None:
        one, two = (_merging.backbone(m) for m in (start, victim.fresh(1)))
        if not all(torch.equal(one[name], two[name]) for name in one):
            raise NotApplicable(
                f"dam: {victim.card.name} starts from random weights, so its task vector is not known; give "
                "`pretraining`, or use a network with `finetune: true`"
            )


@dataclass
class Task:
    """A model of one task, and images of the task that it was not trained on."""

    model: Classifier
    images: ImageSet

    def logits(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Of the model with other backbone weights; batch norms normalise with the batch."""
        with _merging.statistics_of_the_batch(self.model):
            z: Tensor = functional_call(self.model, dict(weights), (x,))
        return z


class Merging:
    """Finds the mask and the scales."""

    def __init__(self, models: tuple[Weights, list[Task]], seed: int, how: DAM) -> None:
        self.start, self.tasks = models
        self.seed, self.how = seed, how
        self.vectors = [
            {name: weights - self.start[name] for name, weights in _merging.backbone(task.model).items()}
            for task in self.tasks
        ]
        like = next(iter(self.start.values()))
        self.scales = torch.full((len(self.tasks),), how.scale, dtype=like.dtype, device=like.device)

    def weights(self) -> Weights:
        """The merged backbone."""
        mask = self.found_mask() if self.how.mask else None
        if self.how.adapt:
            self.adapt(mask)
        return {k: v.detach() for k, v in self.at(self.scales, mask).items()}

    def at(self, scales: Tensor, mask: Mapping[str, Tensor] | None) -> Weights:
        return _merging.merged(self.start, self.vectors, scales, mask)

    def batches(self, purpose: str) -> Iterator[list[Tensor]]:
        """A batch of images of every task, for ever."""

        def of(t: int, task: Task) -> Iterator[Tensor]:
            draws = Draws(derive_seed(self.seed, purpose, t), task.images.ids)
            for epoch in itertools.count():
                for index in draws.order(f"epoch {epoch}").split(self.how.batch):
                    if len(index) > 1 or len(task.images) == 1:  # batch norms need two
                        yield task.images.pixels(index, self.scales.dtype).to(self.scales.device)

        return (list(x) for x in zip(*(of(t, task) for t, task in enumerate(self.tasks)), strict=True))

    def entropy(self, weights: Weights, batch: Sequence[Tensor]) -> Tensor:
        """sum_t H(f_t(x))."""
        return torch.stack([entropy(task.logits(weights, x)) for task, x in zip(self.tasks, batch, strict=True)]).sum()

    def found_mask(self) -> Weights:
        how, like = self.how, self.scales
        w = {name: torch.zeros_like(p, requires_grad=True) for name, p in self.start.items()}
        d = [torch.zeros_like(task.images.pixels(slice(0, 1)).to(like), requires_grad=True) for task in self.tasks]
        on_w, on_d = torch.optim.Adam(w.values(), how.mask_lr), torch.optim.Adam(d, how.perturbation_lr)
        random = torch.Generator().manual_seed(derive_seed(self.seed, "mask"))

        def drawn() -> Weights:
            noise = {name: torch.rand(p.shape, generator=random).clamp(1e-6, 1 - 1e-6).logit() for name, p in w.items()}
            return {name: ((p + noise[name].to(p)) / how.temperature).sigmoid() for name, p in w.items()}

        for batch in itertools.islice(self.batches("mask"), how.steps):
            m = drawn()
            fixed = {name: value.detach() for name, value in m.items()}
            scales = self.scales.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(self.entropy(self.at(scales, fixed), batch), scales)
            scales = (scales - how.inner * g).detach()
            self.perturb(self.at(scales, fixed), batch, d, on_d)
            weights = self.at(scales, m)
            loss = self.entropy(weights, batch) + how.safety * self.entropy(weights, moved(batch, d))
            on_w.zero_grad(set_to_none=True)
            loss.backward()
            on_w.step()
        return {name: (p / how.temperature).sigmoid().detach() for name, p in w.items()}

    def perturb(self, weights: Weights, batch: Sequence[Tensor], d: list[Tensor], step: torch.optim.Optimizer) -> None:
        """One ascent step of every d_t."""
        loss = torch.zeros((), device=self.scales.device)
        for task, x, x_d in zip(self.tasks, batch, moved(batch, d), strict=True):
            with torch.no_grad():
                own = task.logits(weights, x).argmax(dim=1)
            loss = loss - F.cross_entropy(task.logits(weights, x_d), own)
        step.zero_grad(set_to_none=True)
        loss.backward()
        step.step()

    def adapt(self, mask: Weights | None) -> None:
        """AdaMerging: lambda by Adam on the entropies."""
        scales = self.scales.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([scales], self.how.merging_lr)
        for batch in itertools.islice(self.batches("scales"), self.how.merging_steps):
            optimiser.zero_grad(set_to_none=True)
            self.entropy(self.at(scales, mask), batch).backward()
            optimiser.step()
        self.scales = scales.detach()


def moved(batch: Sequence[Tensor], d: Sequence[Tensor]) -> list[Tensor]:
    """x + d_t, in the box."""
    return [(x + d_t).clamp(0, 1) for x, d_t in zip(batch, d, strict=True)]


def entropy(z: Tensor) -> Tensor:
    """H of the softmax of logits [n, classes], a mean over the images."""
    return -(z.softmax(dim=1) * z.log_softmax(dim=1)).sum(dim=1).mean()
