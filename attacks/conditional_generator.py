"""ConditionalGenerator: one network that generates a perturbation of any image towards any class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import augmented
from siegebench.types import Attack, Count, Lesson, Positive

from ._autoencoder import Residual, arranged, down, fresh, stem, up

CODE, TOKENS = 16, 4  # channels that encode the class at each pixel; class vectors for cross-attention
GREY = (0.299, 0.587, 0.114)


class Generator(nn.Module):
    """G(x, c) in [-1, 1]: a residual encoder and decoder, conditioned on the class at every level."""

    blur: Tensor

    def __init__(self, classes: int, width: int, blocks: int, channels: int = 3) -> None:
        super().__init__()
        deep = 4 * width
        self.classes = classes
        self.code = nn.utils.parametrizations.spectral_norm(nn.Linear(classes, CODE, bias=False))
        self.levels = nn.ModuleList(
            [stem(channels + CODE, width), down(width + CODE, 2 * width), down(2 * width + CODE, deep)]
        )
        self.tokens = nn.Sequential(nn.Linear(classes, TOKENS * deep), nn.Unflatten(1, (TOKENS, deep)))
        self.blocks = nn.ModuleList(Residual(deep) for _ in range(blocks))
        self.attention = nn.ModuleList(nn.MultiheadAttention(deep, 1, batch_first=True) for _ in range(blocks // 2))
        self.decoder = nn.Sequential(
            up(deep, 2 * width), up(2 * width, width), nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7)
        )
        row = torch.tensor([-0.5, 0.0, -0.5]).exp()  # normal density at -1, 0, 1
        kernel = row[:, None] * row
        self.register_buffer("blur", (kernel / kernel.sum()).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        one_hot = F.one_hot(c, self.classes).to(x.dtype)
        code, tokens, h = self.code(one_hot)[:, :, None, None], self.tokens(one_hot), x
        for level in self.levels:
            h = level(torch.cat([h, code.expand(-1, -1, *h.shape[2:])], dim=1))
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i % 2 == 1:
                pixels = h.flatten(2).transpose(1, 2)
                attended, _ = self.attention[i // 2](pixels, tokens, tokens, need_weights=False)
                h = h + attended.transpose(1, 2).view_as(h)
        out = self.decoder(h)[:, :, : x.shape[2], : x.shape[3]].tanh()
        return F.conv2d(out, self.blur, padding=1, groups=x.shape[1])


@dataclass(frozen=True, kw_only=True)
class ConditionalGenerator(Attack):
    """x' = clip(x + eps G(x, c)): G is trained once on a surrogate, then attacks any image towards any c in one pass.

    After CGNC: Fang, Kong, Chen, Dai, Wu, Xia, "CLIP-guided generative networks for transferable targeted adversarial
    attacks", ECCV 2024, arXiv 2407.10179. G minimises CE(f(x'), c), with a random class c for each image and epoch. The
    loss is summed over the image, a rotated copy and an augmented copy (crop, flip, brightness, contrast, saturation,
    greyscale), each with its own perturbation. The class enters in two ways: through a spectrally normalised linear
    map, tiled and concatenated to the image and to the maps of the encoder, and through cross-attention after every
    second residual block. G ends with tanh and a 3x3 Gaussian filter. In `run`, c is the target of the threat; without
    a target it is any class but the true one, and any wrong answer is a success.

    Random: which training images are used, weights, order, classes and copies; for each attacked sample, its target
    class. Cost of training: 3 x epochs forward and as many backward passes of the surrogate per image; none when it
    runs.

    Differs from the paper: c is a one-hot vector, where CGNC uses the CLIP embedding of a sentence with the class's
    name. That embedding is a single vector, so attention to it is the same at every pixel; here each class has four
    vectors, and each pixel attends to them separately. No self-attention, no dropout, no hue in the augmentation, crops
    without a change of scale, no fine-tuning for one class under masks. Batch, width, images and learning rate are for
    small images; `paper` has the authors' numbers, which were used with all of ImageNet.

    Attributes:
        images: number of training images; all when null.
        epochs, batch, lr: training of G, by Adam with betas 0.5 and 0.999.
        width: channels of the first level of G; the residual blocks have four times as many.
        blocks: number of residual blocks.
    """

    restricted: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    images: Count | None = 1000
    epochs: Count = 10
    batch: Count = 20
    lr: Positive = 1e-3
    width: Count = 16
    blocks: Count = 4

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Generator:
        """Train G."""
        device, classes = oracle.rows.device, oracle.num_classes
        seed = derive_seed(draws.seed, "conditional_generator")
        net = fresh(lambda: Generator(classes, self.width, self.blocks, data.shape[0]), seed).to(device, oracle.dtype)
        adam = torch.optim.Adam(net.parameters(), self.lr, betas=(0.5, 0.999))
        own = draws.order("images to learn from")[: self.images]
        for epoch in range(self.epochs):
            for batch in own[draws[own].order(f"epoch {epoch}")].split(self.batch):
                streams = draws[batch]
                x = data.pixels(batch.cpu(), oracle.dtype).to(device)
                c = streams.integers(classes, (), epoch, "class").repeat(3)
                turned = arranged(x, "rotation", streams.integers(4, (), epoch, "rotation"))
                copies = torch.cat([x, turned, changed(x, streams, epoch)])
                x_adv = (copies + threat.eps * net(copies, c)).clamp(0, 1)
                g, _, _ = oracle[batch.repeat(3)].gradient(x_adv, partial(ops.cross_entropy, y=c))
                adam.zero_grad(set_to_none=True)
                x_adv.backward(g / len(batch))
                adam.step()
        return net.eval().requires_grad_(False)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        net: Generator = lesson
        with torch.no_grad():
            c = targets(y, oracle.num_classes, draws) if oracle.goal is None else oracle.goal
            return threat.project(x + threat.eps * net(x, c), x)


def targets(y: Tensor, classes: int, draws: Draws) -> Tensor:
    """A random target class for each image, other than its own."""
    return (y + 1 + draws.integers(classes - 1, (), purpose="target class")) % classes


def changed(x: Tensor, draws: Draws, epoch: int) -> Tensor:
    """Random crop and flip; colour jitter (without hue) with probability 0.8; greyscale with probability 0.2."""
    x = augmented(x, "crop_flip", draws, epoch)
    u = draws.uniform((5,), epoch, "colours").to(x.dtype)
    brightness, contrast, saturation = (ops.over(0.2 + 1.6 * u[:, i], x) for i in range(3))
    vivid = (x * brightness).clamp(0, 1)
    middle = _grey(vivid).mean(dim=(1, 2, 3), keepdim=True)
    vivid = (middle + contrast * (vivid - middle)).clamp(0, 1)
    grey = _grey(vivid)
    vivid = (grey + saturation * (vivid - grey)).clamp(0, 1)
    x = torch.where(ops.over(u[:, 3] < 0.8, x), vivid, x)
    return torch.where(ops.over(u[:, 4] < 0.2, x), _grey(x), x)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    return (x * torch.tensor(GREY).to(x).view(3, 1, 1)).sum(dim=1, keepdim=True).expand_as(x)
