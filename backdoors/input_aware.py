"""Input-aware dynamic backdoor: generated triggers that work on the image they were made for, and on no other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import BackdoorAttack, Count, Material, Number, Positive, Share
from siegebench.types.base import lowered

from . import _surrogate

RECIPE = Recipe(epochs=50, batch=64, lr=5e-3)
BETAS = (0.5, 0.9)  # of Adam for the generators, as the authors have them


class Generator(nn.Module):
    """A convolutional auto-encoder: images [n, C, H, W] to [n, out, H, W] in (0, 1).

    It has no batch norm: the trigger of an image must not depend on the other images.
    """

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.up = nn.Sequential(nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU())
        self.last = nn.Conv2d(width, out, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(self.down(x - 0.5), scale_factor=2)
        return (self.last(F.interpolate(self.up(h), x.shape[-2:])).tanh() + 1) / 2


def binary(m: Tensor) -> Tensor:
    """Masks in (0, 1), moved towards 0 and 1."""
    return ((20 * m - 10).tanh() + 1) / 2


def sameness(x: Tensor, x_j: Tensor, out: Tensor, out_j: Tensor) -> Tensor:
    """rms(x - x_j) / rms(out - out_j), a mean over the pairs: large if similar things are made for different images."""

    def rms(d: Tensor) -> Tensor:
        return (d.square().flatten(1).mean(dim=1) + 1e-12).sqrt()  # with a finite gradient at zero

    return (rms(x - x_j) / (rms(out - out_j) + 1e-3)).mean()


@dataclass(frozen=True, kw_only=True)
class InputAware(BackdoorAttack):
    """x' = x + (g(x) - x) m(x): a generator g makes a pattern for each image, and another one, m, its mask.

    Nguyen, Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, arXiv 2010.08138.

        mask      min_m  sparsity mean relu(m(x) - density) + diversity D(m)
        pattern   min_{g, f}  CE(f(x'), t) + CE(f(x + (g(x_j) - x) m(x_j)), y) + CE(f(x), y) + diversity D(g)
        D(h)      mean |x - x_j| / |h(x) - h(x_j)|,   x_j another image of the batch

    The mask is trained first. Then the network f learns that an image with its own trigger has the label t, and that an
    image with the trigger of another image (the cross images) keeps its label y. f and g are trained together: the
    attacker controls the training and hands f over as the victim. With `control: false` the attacker only poisons data:
    `rate` of the images get their own trigger and t, `cover` of them the trigger of another image and keep y, and the
    user trains the victim.

    `stamp(..., role="cover")` gives cross images; they must not get the label t.

    Random: which images are poisoned or covered, the weights of f, g and m, the order and augmentation of the images,
    and which image's trigger a cover image gets.

    Cost: a training of the network with twice the work of a usual step, and one of the mask.

    Differs from the paper: larger shares of a batch get a trigger (`share`), masks are larger (`sparsity`), and the
    auto-encoders are smaller and have no batch norm; the preset `paper` has the authors' shares and weights. The
    learning rate of g falls as that of f does. With `control`, the poisoned set is one that the attacker could have
    published: a network that a defense trains on it learns the triggers less well than the victim has. The code of
    others was not used.

    Attributes:
        rate, cover: fractions of the training set that get their own trigger, or that of another image.
        control: whether the attacker trains the victim.
        share: fraction of a batch that gets its own trigger, and fraction that gets another image's, while f and g are
            trained; 0.1 in the paper.
        density: value of a pixel of the mask above which it costs.
        diversity, sparsity: weights of the losses; the authors' sparsity is 100.
        width: channels of the first layer of g and m.
        lr: of Adam for g and m.
        mask_epochs: passes over the data for m.
        donors: training images that are kept, whose triggers cover images get.
        recipe: how f is trained, and how long g is.
    """

    learns: ClassVar[bool] = True

    rate: Share = 0.1
    cover: Share = 0.1
    control: bool = True
    share: Share = 0.25
    density: Positive = 0.032
    diversity: Number = 1.0
    sparsity: Number = 25.0
    width: Count = 16
    lr: Positive = 0.01
    mask_epochs: Count = 8
    donors: Count = 256
    recipe: Recipe = RECIPE

    def quick(self) -> Self:
        return replace(lowered(self), mask_epochs=1)

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(derive_seed(seed, "input-aware"))
            nets = self._nets(data.shape[0]).to(next(surrogate.parameters()).device)
        self._train_mask(nets["mask"], data, seed)
        self._train_pattern(nets, data, seed, surrogate)
        kept = Draws(seed, data.ids).order("donors")[: self.donors]
        made = {"ids": data.ids[kept], "images": data.images[kept]}
        for of, module in (("nets", nets), ("victim", surrogate if self.control else nn.Module())):
            made |= {f"{of}.{name}": tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        return made

    def network(self, material: Material | None) -> Material | None:
        return _part(material, "victim") if self.control and material is not None else None

    def _nets(self, channels: int) -> nn.ModuleDict:
        return nn.ModuleDict(
            {"pattern": Generator(channels, channels, self.width), "mask": Generator(channels, 1, self.width)}
        )

    def _train_mask(self, m: nn.Module, data: ImageSet, seed: int) -> None:
        device, draws = next(m.parameters()).device, Draws(seed, data.ids)
        optimiser = torch.optim.Adam(m.parameters(), self.lr, betas=BETAS)
        for epoch in range(self.mask_epochs):
            for at in draws.order(f"mask {epoch}").split(self.recipe.batch):
                x = data.pixels(at).to(device)
                x_j, mask = x.roll(1, 0), binary(m(x))
                loss = self.sparsity * (mask - self.density).relu().mean()
                loss = loss + self.diversity * sameness(x, x_j, mask, mask.roll(1, 0))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        m.requires_grad_(False)

    def _train_pattern(self, nets: nn.ModuleDict, data: ImageSet, seed: int, f: Classifier) -> None:
        optimiser = torch.optim.Adam(nets["pattern"].parameters(), self.lr, betas=BETAS)
        alike: list[Tensor] = []  # D(g) of the batch

        def batch(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            falling = (1 + math.cos(math.pi * epoch / self.recipe.epochs)) / 2  # as that of f
            optimiser.param_groups[0]["lr"] = self.lr * falling
            own, crossed, rest = self._parts(x)
            other = x.roll(1, 0)[len(own) : len(own) + len(crossed)]
            p, p_j = nets["pattern"](own), nets["pattern"](other)
            k = len(other)  # one less than `own` in the smallest batches
            alike[:] = [sameness(own[:k], other, p[:k], p_j)] if k else [p.sum() * 0]
            return torch.cat([_over(own, p, nets["mask"](own)), _over(crossed, p_j, nets["mask"](other)), rest])

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            own, *others = self._parts(y)
            t = self.wanted(own, data.num_classes)
            goal = torch.cat([torch.where(t >= 0, t, own), *others])
            return F.cross_entropy(z, goal) + self.diversity * alike[0]

        def step() -> None:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        train(f, data, self.recipe, derive_seed(seed, "joint"), images=batch, loss=loss, gradients=step)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch in three parts: with its own trigger, with that of another image, and clean."""
        k = max(1, round(self.share * len(x)))
        return x[:k], x[k : 2 * k], x[2 * k :]

    def _with_trigger_of(self, other: Tensor, x: Tensor, material: Material) -> Tensor:
        """x [n, C, H, W] with the triggers that are generated for the images `other`."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            nets = self._nets(x.shape[1])
            nets.load_state_dict(_part(material, "nets"))
            nets.to(x.device, x.dtype)
            return _over(x, nets["pattern"](other), nets["mask"](other)).clamp(0, 1)

    def trigger(self, x: Tensor, draws: Draws, material: Material | None = None) -> Tensor:
        assert material is not None
        return self._with_trigger_of(x, x, material)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        kept: Material = material["material"]
        ids, own = kept["ids"], draws.ids.cpu()
        j = draws.integers(len(ids), purpose="donor").cpu()
        j = torch.where(ids[j] == own, (j + 1) % len(ids), j)
        return self._with_trigger_of(_surrogate.remembered(kept, ids[j], x), x, kept)


def _over(x: Tensor, pattern: Tensor, m: Tensor) -> Tensor:
    return x + (pattern - x) * binary(m)


def _part(material: Material, of: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{of}."): tensor for name, tensor in material.items() if name.startswith(f"{of}.")}
