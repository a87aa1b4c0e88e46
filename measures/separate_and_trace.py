"""SeparateAndTrace: copies of a model that leave their mark on what is made with them, and who is named for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.train import Recipe, train
from siegebench.types import Attack, Count, Lesson, Measure, Number, Positive

WEIGHT = 0.001  # of reconstruction and KL, beside the angle
HELD_OUT = 1000  # training images, at most, on which the copies are compared with the classifier
TRIES = 2000  # permutations looked at


@dataclass(frozen=True, eq=False)
class Tracers:
    """What sets the copies apart.

    Attributes:
        tracer: T_0, from images to [n, K] in [-1, 1].
        orders: int64 [m, K], the permutations.
        alpha: weight of the tracer in a copy.
        known: metrics of the training images.
    """

    tracer: nn.Module
    orders: Tensor
    alpha: float
    known: dict[str, float]

    def ask(self, oracle: Oracle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(whether each copy is wrong, bool [n, m]; what each scores as the source of the image, [n, m])"""
        t = self.tracer(x)
        z = _outputs(oracle.logits(x).softmax(dim=1), t, self.orders, self.alpha)
        first, second = z.topk(2, dim=2).indices.unbind(dim=2)
        own = t[:, self.orders]
        score = (own.gather(2, first[..., None]) - own.gather(2, second[..., None])).squeeze(2)
        return first != y[:, None], score

    def copies(self, model: Classifier, which: Tensor) -> _Copies:
        """Some of the copies of a model, as one."""
        return _Copies(model, self.tracer, self.orders[which], self.alpha)


@dataclass(frozen=True, kw_only=True)
class SeparateAndTrace(Measure):
    """How often the seller of m copies of a classifier finds the copy that an adversarial image was made with.

    Fang et al., "Tracing the Origin of Adversarial Attack for Forensic Investigation and Deterrence", ICCV 2023,
    arXiv 2301.01218.
        separate   M_i(x) = softmax C(x) + alpha T_i(x), with T_i(x) = pi_i(T_0(x)) in [-1, 1]: one tracer T_0 whose
                   outputs are permuted; two permutations agree in one place at most
        T_0        the encoder of a VAE, trained so that noise on x turns its output by the angle theta: an attack moves
                   the tracer before it moves the classifier
        trace      score_i = T_i(x_adv)[first class of M_i(x_adv)] - T_i(x_adv)[second]; the largest score is named
    Each image is attacked on one copy, in turn. Of those found: `tracing_accuracy` (chance 1/m; a tie counts in parts),
    `transfer_rate` (to another copy), and the accuracy on those that transfer to any other. With `collude`, an image
    must fool its copy and the next one, attacked as one, and naming either is right (chance 2/m).

    The rule cannot name a copy on whose very boundary the image lies when it fools another copy into the same class:
    there the source scores (p_second - p_first) / alpha, and the other copy more.

    Random: weights, noise and order of the training, the permutations, and what the attack draws.

    Differs from the paper: what it leaves open is ours (Gaussian noise of size `noise`, the square of cos - cos theta,
    strides of 2, sums over pixels in the reconstruction, log-variances as deviations, AdamW with a cosine schedule);
    with an odd number of classes one output of T_0 is not used by the decoder. Defaults train on fewer images for fewer
    epochs; `paper` has its numbers. Copies are asked through the attack given, any access will do. `training_acc*` are
    on training images that the tracer has not seen; the images attacked are those that the classifier gets right.

    Attributes:
        copies: m.
        alpha: weight of the tracer in a copy.
        theta: angle in degrees.
        noise: standard deviation, in pixels of [0, 1].
        images: training images of the tracer, at most.
        epochs, lr, width: of its training; channels.
        attack: what the buyer runs.
        collude: two buyers attack together.
    """

    learns: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf", "l1", "l0")

    copies: Count = 5
    alpha: Positive = 0.15
    theta: Number = 75.0
    noise: Positive = 0.01
    images: Count = 5000
    epochs: Count = 10
    lr: Positive = 2e-3
    width: Count = 16
    attack: Attack
    collude: bool = False

    def __post_init__(self) -> None:
        least = 3 if self.collude else 2
        if self.copies < least:
            raise ConfigError(
                f"separate_and_trace: copies is {self.copies}; at least {least}, or there is none to tell"
            )

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tracers:
        """The tracer, trained, and the permutations."""
        device = oracle.rows.device
        order = draws.order("tracer").cpu()
        held = order[: min(HELD_OUT, len(data) // 5)]
        own = data.select(order[len(held) :][: self.images].sort().values)
        tracer = self._tracer(own, draws.seed, device).to(oracle.dtype)
        orders = permutations(data.num_classes, self.copies, draws.seed).to(device)
        right = []
        for at in held.split(500):
            x, y = data.pixels(at, oracle.dtype).to(device), data.labels[at].to(device)
            p = oracle[at.to(device)].logits(x).softmax(dim=1)
            answers = torch.cat([p[:, None], _outputs(p, tracer(x), orders, self.alpha)], dim=1)
            right.append((answers.argmax(dim=2) == y[:, None]).double())
        share = torch.cat(right).mean(dim=0)
        known = {"training_acc": float(share[0]), "training_acc_copies": float(share[1:].mean())}
        return Tracers(tracer, orders, self.alpha, known if len(held) else {})

    def _tracer(self, data: ImageSet, seed: int, device: torch.device) -> Classifier:
        """T_0, trained: 0.001 (reconstruction + KL) + (cos(T_0(x), T_0(x + noise)) - cos theta)^2."""
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(derive_seed(seed, "tracer"))
            vae = _VAE(data.num_classes, *data.shape[1:], self.width)
        model = Network(vae, num_classes=data.num_classes).to(device)
        own, half, wanted = Draws(derive_seed(seed, "tracer noise"), data.ids), data.num_classes // 2, self._cosine()
        done = 0

        def count(epoch: int) -> None:
            nonlocal done
            done = epoch + 1

        def loss(t: Tensor, _y: Tensor, x: Tensor, places: Tensor) -> Tensor:
            noise = self.noise * own[places].normal(tuple(x.shape[1:]), done, "angle").to(x)
            cosine = F.cosine_similarity(t, model((x + noise).clamp(0, 1)))
            mean, spread = t[:, :half], t[:, half : 2 * half]
            latent = mean + (spread / 2).exp() * own[places].normal((half,), done, "latent").to(x)
            reconstruction = ops.flat(vae.decoder(latent) - x).square().sum(dim=1)
            divergence = (mean.square() + spread.exp() - spread - 1).sum(dim=1) / 2
            return (WEIGHT * (reconstruction + divergence) + (cosine - wanted).square()).mean()

        recipe = Recipe(epochs=self.epochs, lr=self.lr, weight_decay=0.0, augment="none")
        train(model, data, recipe, derive_seed(seed, "tracer training"), loss=loss, after=count)
        return Network(vae.encoder, num_classes=data.num_classes).to(device).eval().requires_grad_(False)

    def _cosine(self) -> float:
        return math.cos(math.radians(self.theta))

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        tracers: Tracers = lesson
        if threat.norm not in self.attack.handles():
            raise NotApplicable(f"the attack inside handles {', '.join(self.attack.handles())}, not {threat.norm}")
        m, every = self.copies, torch.arange(len(x), device=x.device)
        guilty = (every[:, None] + torch.arange(1 + self.collude, device=x.device)) % m  # [n, 1 or 2] copies
        wrong, _ = tracers.ask(oracle, x, y)
        usable = ~wrong.gather(1, guilty).any(dim=1)
        x_adv = x.clone()
        for i in range(m):
            rows = (usable & (guilty[:, 0] == i)).nonzero().squeeze(1)
            if len(rows):
                copies = tracers.copies(oracle.model, guilty[rows[0]])
                x_adv[rows] = self._attacked(oracle[rows], copies, x[rows], y[rows], threat, draws[rows])
        fooled, score = tracers.ask(oracle, x_adv, y)
        found = (usable & fooled.gather(1, guilty).all(dim=1)).nonzero().squeeze(1)
        metrics = {**tracers.known, "kept_right": float((~wrong).double().mean()), "found": len(found) / len(x)}
        return {"metrics": metrics | self._verdict(fooled[found], score[found], guilty[found]), "flags": []}

    def _attacked(
        self, oracle: Oracle, copies: _Copies, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws
    ) -> Tensor:
        """What the attack makes with the guilty copies, all passes booked on the victim's oracle."""
        granted = threat.with_access(self.attack.access())
        asked = _Together(copies, granted, draws.child("copies"), y)
        x_adv = self.attack(asked, x, y, granted, draws.child("attack"))
        for name in ("forwards", "backwards", "queries"):
            getattr(oracle.ledger, name).index_add_(0, oracle.rows, getattr(asked.ledger, name))
        return x_adv

    def _verdict(self, fooled: Tensor, score: Tensor, guilty: Tensor) -> dict[str, float]:
        """Metrics of the images that were found, [k, m], and the copies they were made with, [k, 1 or 2]."""
        if not len(fooled):
            return {}
        named = (score == score.amax(dim=1, keepdim=True)).double()
        named = named / named.sum(dim=1, keepdim=True)
        right = named.gather(1, guilty).sum(dim=1)
        out = {"tracing_accuracy": float(right.mean())}
        if self.collude:
            both = score.topk(2, dim=1).indices.sort(dim=1).values == guilty.sort(dim=1).values
            out["tracing_accuracy_both"] = float(both.all(dim=1).double().mean())
        others = fooled.double().scatter(1, guilty, 0.0)
        out["transfer_rate"] = float(others.sum() / (len(fooled) * (self.copies - guilty.shape[1])))
        moved = others.any(dim=1)
        out["transferred"] = float(moved.double().mean())
        if bool(moved.any()):
            out["tracing_accuracy_transferred"] = float(right[moved].mean())
        return out


def permutations(classes: int, copies: int, seed: int, agree: int = 1) -> Tensor:
    """Permutations of the outputs, two of which agree in `agree` places at most; int64 [copies, classes].

    Raises:
        NotApplicable: when so many are not found.
    """
    kept: list[Tensor] = []
    for number in range(TRIES):
        trial = Draws(derive_seed(seed, "permutation", number), torch.arange(classes)).order()
        if all(int((trial == other).sum()) <= agree for other in kept):
            kept.append(trial)
            if len(kept) == copies:
                return torch.stack(kept)
    raise NotApplicable(
        f"found {len(kept)} permutations of {classes} outputs that agree in {agree} place at most, asked for {copies}"
    )


def _outputs(p: Tensor, t: Tensor, orders: Tensor, alpha: float) -> Tensor:
    """M_i for each permutation, [n, m, K]."""
    return p[:, None] + alpha * t[:, orders]


class _Copies(Wrapped):
    """Some copies as one model: their outputs side by side, one pass of the classifier for all."""

    orders: Tensor

    def __init__(self, inner: Classifier, tracer: nn.Module, orders: Tensor, alpha: float) -> None:
        super().__init__(inner)
        self.tracer, self.alpha = tracer, alpha
        self.register_buffer("orders", orders)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self._beside(self.inner(x, draws), x)

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self._beside(self.inner.surrogate(x, draws), x)

    def _beside(self, z: Tensor, x: Tensor) -> Tensor:
        return _outputs(z.softmax(dim=1), self.tracer(x), self.orders, self.alpha).flatten(1)


class _Together(Oracle):
    """Answers with the copy that is least fooled, so that an image is misclassified only when all copies are."""

    def __init__(self, copies: _Copies, threat: ThreatModel, draws: Draws, y: Tensor) -> None:
        super().__init__(copies, threat, draws)
        self.y = y

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, rows = super()._pass(x)
        z = z.unflatten(1, (-1, self.num_classes))
        y = self.y[rows][:, None].expand(z.shape[:2])
        least = ops.margin(z.flatten(0, 1), y.flatten()).view_as(y).argmin(dim=1)
        return z[torch.arange(len(z), device=z.device), least], rows


class _VAE(nn.Module):
    """T_0 and its decoder; its answer is that of T_0."""

    def __init__(self, classes: int, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.encoder = _Encoder(classes, height, width, channels)
        self.decoder = _Decoder(classes // 2, height, width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class _Encoder(nn.Module):
    """Convolution, batch norm, ReLU; two residual blocks; convolution; fully connected; tanh."""

    def __init__(self, classes: int, height: int, width: int, channels: int) -> None:
        super().__init__()
        c, places = channels, math.ceil(height / 4) * math.ceil(width / 4)
        self.start = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU())
        self.blocks = nn.ModuleList(_double(c) for _ in range(2))
        self.end = nn.Sequential(nn.Conv2d(c, c, 3, 2, 1), nn.Flatten(), nn.Linear(c * places, classes), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for block in self.blocks:
            h = h + block(h)
        return self.end(h)


class _Decoder(nn.Module):
    """Fully connected; three double convolutions with an up-convolution between two; convolution."""

    def __init__(self, latent: int, height: int, width: int, channels: int) -> None:
        super().__init__()
        c, shape = channels, (channels, math.ceil(height / 4), math.ceil(width / 4))
        self.size = (height, width)
        self.body = nn.Sequential(
            nn.Linear(latent, math.prod(shape)), nn.Unflatten(1, shape), _double(c),
            nn.ConvTranspose2d(c, c, 2, 2), _double(c), nn.ConvTranspose2d(c, c, 2, 2), _double(c),
            nn.Conv2d(c, 3, 3, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, latent: Tensor) -> Tensor:
        return self.body(latent)[:, :, : self.size[0], : self.size[1]]


def _double(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)
