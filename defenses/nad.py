"""NAD: the network learns the attention maps of a fine-tuned copy of itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.layers import Layers
from siegebench.train import Recipe, train
from siegebench.types import Defense, Positive

from ._repair import passed, sample

TEACHER = Recipe(epochs=20, batch=64, optimiser="sgd", lr=0.03)
STUDENT = Recipe(epochs=50, batch=64, optimiser="sgd", lr=0.03)


@dataclass(frozen=True, kw_only=True)
class NeuralAttentionDistillation(Defense):
    """Train the network on clean images to have the attention maps of a fine-tuned copy of itself.

    Li, Lyu, Koren, Lyu, Li, Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks",
    ICLR 2021.

    1. The teacher is a copy of the network, fine-tuned on the clean images.
    2. min CE + sum_l beta_l MSE(A_l / ||A_l||, A_l^T / ||A_l^T||), where A_l = sum_c |F_c|^p is the attention map of
       the feature maps F of stage l of the network, A_l^T that of the teacher.

    Random: the order of the images and their augmentation.

    Cost: about that of `fine_tuning`, and one more forward pass in each step.

    Differs from the paper: the stages are the last feature maps of each of the last sizes, so that it works with any
    convolutional network; the authors name three stages of a wide ResNet. One cosine schedule.

    Attributes:
        beta: weights of the stages, the last being that of the last stage; a network with fewer stages uses the last
            ones. The authors use 500, 1000, 1000 for maps of 32, 16 and 8 pixels, with which the training of a small
            network on smaller maps is not stable.
        power: p.
        teacher, student: how both are trained.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    beta: tuple[float, ...] = (20.0, 50.0, 50.0)
    power: Positive = 2.0
    teacher: Recipe = TEACHER
    student: Recipe = STUDENT

    def __post_init__(self) -> None:
        if not self.beta:
            raise ValueError("beta: no weights; give one for each stage")

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        stages = self.stages(defended, sample(defended, data.clean))
        seed = derive_seed(draws.seed, "nad")
        teacher = copy.deepcopy(defended).requires_grad_(True)
        train(teacher, data.clean, self.teacher, derive_seed(seed, "teacher"))
        teacher.requires_grad_(False)
        theirs, ours = Maps(teacher, stages), Maps(defended.requires_grad_(True), stages)

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            teacher(x)
            pairs = zip(self.beta[-len(stages) :], ours.seen, theirs.seen, strict=True)
            distance = sum(b * F.mse_loss(self.attention(f), self.attention(t)) for b, f, t in pairs)
            return F.cross_entropy(z, y) + distance

        try:
            train(defended, data.clean, self.student, derive_seed(seed, "student"), loss=loss)
        finally:
            ours.close()

    def stages(self, model: Classifier, x: Tensor) -> list[str]:
        """Names of the modules that give the last feature maps of each size; of one pixel, attention says nothing.

        Raises:
            NotApplicable: when there are none.
        """
        maps = Maps(model, Layers(model, x).names)
        passed(model, x)
        maps.close()
        names = [name for name, f in zip(maps.names, maps.seen, strict=True) if f[0, 0].numel() > 1]
        if not names:
            raise NotApplicable(f"{model.card.name} has no feature maps; use a convolutional network")
        return names[-len(self.beta) :]

    def attention(self, f: Tensor) -> Tensor:
        """Attention maps [n, H W] of unit length of feature maps [n, C, H, W]."""
        return F.normalize(f.abs().pow(self.power).sum(dim=1).flatten(1), dim=1)


class Maps:
    """The feature maps of some modules in the last forward pass of a network, in the order of the names."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._found: dict[str, Tensor] = {}
        self.names = names
        self._handles = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
            self._found[name] = out

        return hook

    @property
    def seen(self) -> list[Tensor]:
        return [self._found[name] for name in self.names]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
