"""RAW pipeline: map the image to a camera's RAW recording and develop it again before the network sees it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Count, DataSource, Defense, Share

from ._camera import Camera, develop, unprocess
from ._unet import UNet, fresh
from ._wrapped import Transformed

RECIPE = Recipe(epochs=1, batch=16, lr=5e-3, augment="none")


class Pipeline(nn.Module):
    """x' = omega G(F(x)) + (1 - omega) S(F(x)) for images x [n, C, H, W] in [0, 1], C = 1 or 3."""

    def __init__(self, omega: float, width: int, unet: int) -> None:
        super().__init__()
        sizes = (3, width, width, width, width, 4)
        layers = [nn.Conv2d(a, b, 3, 1, 1) for a, b in itertools.pairwise(sizes)]
        nn.init.constant_(layers[-1].bias, 0.2)  # type: ignore[arg-type]  # the last ReLU is not dead at the start
        self.to_raw = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())])  # F
        self.learned = UNet(4, 3, unet)  # G, before its sigmoid
        self.omega = omega

    def developed(self, raw: Tensor) -> Tensor:
        """G: RGB images of recordings [n, 4, H, W]."""
        out: Tensor = self.learned(raw).sigmoid()
        return out

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        raw = self.to_raw(x.expand(-1, 3, -1, -1))
        out = self.omega * self.developed(raw) + (1 - self.omega) * develop(raw, Camera.mean(raw))
        return out if x.shape[1] == 3 else out.mean(dim=1, keepdim=True)


class _Losses(Classifier):
    """The pipeline as `train` sees it: the "logits" of an image are its losses, [n, 2]."""

    def __init__(self, pipeline: Pipeline, patch: int) -> None:
        super().__init__()
        self.pipeline, self.patch, self.randomized = pipeline, patch, True
        self.card, self.num_classes = ModelCard(name="raw_isp"), 2

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        assert draws is not None
        y = _patches(x.expand(-1, 3, -1, -1), self.patch, draws)
        r = unprocess(y, Camera.drawn(draws, y.dtype))
        strength = 0.1 * draws.normal((1, 1, 1), purpose="strength")
        noisy = y + (strength * draws.normal(tuple(y.shape[1:]), purpose="noise")).to(y.dtype)
        f = [(self.pipeline.to_raw(given) - r).square().flatten(1).mean(dim=1) for given in (y, noisy)]
        g = (self.pipeline.developed(r) - y).abs().flatten(1).mean(dim=1)
        return torch.stack([f[0] + f[1], g], dim=1)


def _patches(x: Tensor, size: int, draws: Draws) -> Tensor:
    """A random patch of each image, [n, 3, size, size], or the whole image along a side that is not longer."""
    for dim in (2, 3):
        wanted = min(size, x.shape[dim])
        start = draws.integers(x.shape[dim] - wanted + 1, purpose=f"patch {dim}")
        index = start[:, None] + torch.arange(wanted, device=x.device)
        index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
        shape = list(x.shape)
        shape[dim] = wanted
        x = x.gather(dim, index.expand(shape))
    return x


@dataclass(frozen=True, kw_only=True)
class RawISP(Defense):
    """x' = omega G(F(x)) + (1 - omega) S(F(x)): F maps RGB to RAW; G, learned, and S, classical, map RAW to RGB.

    Zhang, Dong, Heide, "All You Need is RAW: Defending Against Adversarial Attacks with Camera Image Pipelines", ECCV
    2022. The mapping to the distribution of RAW recordings is assumed to remove perturbations. No attack is used in
    training, and one trained pipeline serves every network.

        F  five 3x3 convolutions with ReLU:  min |F(y) - r|^2 + |F(y + n) - r|^2,  n of random strength
        G  a U-Net:                          min |G(r) - y|_1
        S  white balance, demosaicing (Malvar et al.), colours, gamma and tone curve of a mean camera

    All steps are differentiable, so an attacker attacks the network through them. The authors also report attacks on
    the bare network, whose images are then purified; images kept with `--save-images` and the attack `saved` show that.
    The declared attacks go through the pipeline, with its gradient, with that of the identity, and without gradients.

    Random: the initial weights, the order of the images, their patches, cameras and noise. Nothing at test time.

    Cost: one training; then F, G and S on each image.

    Differs from the paper: the authors have pairs of RAW and RGB from a telephone; here r is made from photographs by
    unprocessing (Brooks et al., CVPR 2019), enlarged twice so that the four planes have the size of the image. G is a
    U-Net without the loss on VGG features, not PyNET. The operators of S, and omega 0.7, are not in the authors' code;
    they are ours.

    Attributes:
        omega: weight of the learned pipeline.
        photos: photographs to train on; by default the training images of the data set.
        split: of the photographs.
        patch: side of the training patches.
        width, unet: channels of F, and of the first level of G (a multiple of 4).
        recipe: of the training. The default takes 3,000 steps on the 47,500 images of CIFAR-10 that train; with fewer
            images give more epochs. `full` is for a GPU.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100},
        {"name": "apgd", "loss": "ce"},
        {"name": "apgd", "loss": "dlr"},
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 100}},
        {"name": "square", "queries": 5000},
    )

    omega: Share = 0.7
    photos: DataSource | None = None
    split: str = "train"
    patch: Count = 16
    width: Count = 16
    unet: Count = 8
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        if self.unet % 4:
            raise ValueError(f"unet: {self.unet} channels; a multiple of 4 is needed")

    def identity(self) -> dict[str, Any]:
        return {} if self.photos is None else {"photos_digest": self.photos.load(self.split).digest}

    def wrap(self, model: Classifier) -> Classifier:
        like = next(model.parameters())
        pipeline = fresh(lambda: Pipeline(self.omega, self.width, self.unet), 0)  # the structure; `fit` trains it
        return Transformed(model, pipeline.to(like.device, like.dtype), smooth=True)

    def shared(self, defended: Classifier) -> nn.Module:
        assert isinstance(defended, Transformed)
        assert isinstance(defended.transform, Pipeline)
        return defended.transform

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        pipeline, seed = self.shared(defended), derive_seed(draws.seed, "raw_isp")
        assert isinstance(pipeline, Pipeline)
        weights = fresh(lambda: Pipeline(self.omega, self.width, self.unet), derive_seed(seed, "weights"))
        pipeline.load_state_dict(weights.state_dict())
        images = data.train if self.photos is None else self.photos.load(self.split)
        train(_Losses(pipeline, self.patch), images, self.recipe, seed, loss=lambda z, y, x, index: z.sum(1).mean())
