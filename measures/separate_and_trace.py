"""SeparateAndTrace: distinguishable copies of a model, and how often an adversarial image reveals its source copy."""

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

WEIGHT = 0.001  # of reconstruction and KL, relative to the angle
HELD_OUT = 1000  # training images, at most, on which the copies are compared with the classifier
TRIES = 2000  # permutations tried


@dataclass(frozen=True, eq=False)
class Tracers:
    """What makes the copies differ.

    Attributes:
        tracer: T_0, from images to [n, K] in [-1, 1].
        orders: int64 [m, K], the permutations.
        alpha: weight of the tracer in a copy.
        known: metrics on the training images.
    """

    tracer: nn.Module
    orders: Tensor
    alpha: float
    known: dict[str, float]

    def ask(self, oracle: Oracle, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Query the copies: (whether each copy misclassifies, bool [n, m]; the score of each as the source, [n, m])."""
        t = self.tracer(x)
        z = _outputs(oracle.logits(x).softmax(dim=1), t, self.orders, self.alpha)
        first, second = z.topk(2, dim=2).indices.unbind(dim=2)
        own = t[:, self.orders]
        score = (own.gather(2, first[..., None]) - own.gather(2, second[..., None])).squeeze(2)
        return first != y[:, None], score

    def copies(self, model: Classifier, which: Tensor) -> _Copies:
        """Some of the copies of a model, as one model."""
        return _Copies(model, self.tracer, self.orders[which], self.alpha)


@dataclass(frozen=True, kw_only=True)
class SeparateAndTrace(Measure):
    """How often the seller of m copies of a classifier can identify the copy on which an adversarial image was made.

    Fang et al., "Tracing the Origin of Adversarial Attack for Forensic Investigation and Deterrence", ICCV 2023,
    arXiv 2301.01218.
        separate   M_i(x) = softmax C(x) + alpha T_i(x), with T_i(x) = pi_i(T_0(x)) in [-1, 1]: one tracer T_0 whose
                   outputs are permuted; two permutations agree at one position at most
        T_0        the encoder of a VAE, trained so that noise on x rotates its output by the angle theta: an attack
                   changes the tracer before it changes the classifier
        trace      score_i = T_i(x_adv)[first class of M_i(x_adv)] - T_i(x_adv)[second]; the copy with the largest score
                   is named
    Each image is attacked on one copy, in turn. Over the adversarial images found: `tracing_accuracy` (chance 1/m; a
    tie counts as a fraction), `transfer_rate` (to another copy), and the tracing accuracy on those that transfer to any
    other copy. With `collude`, an image must be misclassified by its copy and the next one, attacked as one model, and
    naming either copy is correct (chance 2/m).

    The rule cannot name the source copy when the image lies exactly on its decision boundary and another copy
    misclassifies it into the same class. In that case the source scores (p_second - p_first) / alpha, and the other
    copy scores more.

    Random: weights, noise and order of the training, the permutations, and what the attack draws.

    Differs from the paper: choices that the paper leaves open are ours (Gaussian noise of size `noise`, the square of
    cos - cos theta, strides of 2, sums over pixels in the reconstruction, log-variances as deviations, AdamW with a
    cosine schedule). With an odd number of classes, the decoder does not use one output of T_0. The defaults train on
    fewer images for fewer epochs; the preset `paper` has the paper's numbers. The copies are attacked with the given
    attack, at whatever access it needs. `training_acc*` are computed on training images that the tracer has not seen.
    The images attacked are those that the classifier classifies correctly.

    Attributes:
        copies: m.
        alpha: weight of the tracer in a copy.
        theta: angle in degrees.
        noise: standard deviation, for pixels in [0, 1].
        images: number of training images of the tracer, at most.
        epochs, lr, width: of the training of the tracer; channels of its network.
        attack: the attack that the buyer runs.
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
                f"separate_and_trace: copies is {self.copies}; at least {least} are needed to tell copies apart"
            )

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Tracers:
        """Train the tracer and draw the permutations."""
        device = oracle.rows.device
        order = draws.order("tracer").cpu()
        held_out = order[: min(HELD_OUT, len(data) // 5)]
        own = data.select(order[len(held_out) :][: self.images].sort().values)
        tracer = self._tracer(own, draws.seed, device).to(oracle.dtype)
        orders = permutations(data.num_classes, self.copies, draws.seed).to(device)
        correct = []
        for index in held_out.split(500):
            x, y = data.pixels(index, oracle.dtype).to(device), data.labels[index].to(device)
            p = oracle[index.to(device)].logits(x).softmax(dim=1)
            outputs = torch.cat([p[:, None], _outputs(p, tracer(x), orders, self.alpha)], dim=1)
            correct.append((outputs.argmax(dim=2) == y[:, None]).double())
        accuracy = torch.cat(correct).mean(dim=0)
        known = {"training_acc": float(accuracy[0]), "training_acc_copies": float(accuracy[1:].mean())}
        return Tracers(tracer, orders, self.alpha, known if len(held_out) else {})

    def _tracer(self, data: ImageSet, seed: int, device: torch.device) -> Classifier:
        """T_0, trained: 0.001 (reconstruction + KL) + (cos(T_0(x), T_0(x + noise)) - cos theta)^2."""
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(derive_seed(seed, "tracer"))
            vae = _VAE(data.num_classes, data.shape, self.width)
        mean, std = (0.0,) * data.shape[0], (1.0,) * data.shape[0]
        model = Network(vae, num_classes=data.num_classes, mean=mean, std=std).to(device)
        own, half, target = Draws(derive_seed(seed, "tracer noise"), data.ids), data.num_classes // 2, self._cosine()
        done = 0

        def count(epoch: int) -> None:
            nonlocal done
            done = epoch + 1

        def loss(t: Tensor, _y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            noise = self.noise * own[index].normal(tuple(x.shape[1:]), done, "angle").to(x)
            cosine = F.cosine_similarity(t, model((x + noise).clamp(0, 1)))
            mean, log_var = t[:, :half], t[:, half : 2 * half]
            latent = mean + (log_var / 2).exp() * own[index].normal((half,), done, "latent").to(x)
            reconstruction = ops.flat(vae.decoder(latent) - x).square().sum(dim=1)
            divergence = (mean.square() + log_var.exp() - log_var - 1).sum(dim=1) / 2
            return (WEIGHT * (reconstruction + divergence) + (cosine - target).square()).mean()

        recipe = Recipe(epochs=self.epochs, lr=self.lr, weight_decay=0.0, augment="none")
        train(model, data, recipe, derive_seed(seed, "tracer training"), loss=loss, after=count)
        tracer = Network(vae.encoder, num_classes=data.num_classes, mean=mean, std=std)
        return tracer.to(device).eval().requires_grad_(False)

    def _cosine(self) -> float:
        return math.cos(math.radians(self.theta))

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        tracers: Tracers = lesson
        if threat.norm not in self.attack.handles():
            raise NotApplicable(f"the inner attack handles {', '.join(self.attack.handles())}, not {threat.norm}")
        m, every = self.copies, torch.arange(len(x), device=x.device)
        source = (every[:, None] + torch.arange(1 + self.collude, device=x.device)) % m  # [n, 1 or 2] copies
        wrong, _ = tracers.ask(oracle, x, y)
        usable = ~wrong.gather(1, source).any(dim=1)
        x_adv = x.clone()
        for i in range(m):
            rows = (usable & (source[:, 0] == i)).nonzero().squeeze(1)
            if len(rows):
                copies = tracers.copies(oracle.model, source[rows[0]])
                x_adv[rows] = self._attacked(oracle[rows], copies, x[rows], y[rows], threat, draws[rows])
        fooled, score = tracers.ask(oracle, x_adv, y)
        found = (usable & fooled.gather(1, source).all(dim=1)).nonzero().squeeze(1)
        metrics = {**tracers.known, "kept_right": float((~wrong).double().mean()), "found": len(found) / len(x)}
        return {"metrics": metrics | self._verdict(fooled[found], score[found], source[found]), "flags": []}

    def _attacked(
        self, oracle: Oracle, copies: _Copies, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws
    ) -> Tensor:
        """Images that the attack makes on the source copies; all passes are counted on the victim's oracle."""
        granted = threat.with_access(self.attack.access())
        joint = _Together(copies, granted, draws.child("copies"), y)
        x_adv = self.attack(joint, x, y, granted, draws.child("attack"))
        for name in ("forwards", "backwards", "queries"):
            getattr(oracle.ledger, name).index_add_(0, oracle.rows, getattr(joint.ledger, name))
        return x_adv

    def _verdict(self, fooled: Tensor, score: Tensor, source: Tensor) -> dict[str, float]:
        """Metrics over the adversarial images found, [k, m], and the copies they were made on, [k, 1 or 2]."""
        if not len(fooled):
            return {}
        named = (score == score.amax(dim=1, keepdim=True)).double()
        named = named / named.sum(dim=1, keepdim=True)
        correct = named.gather(1, source).sum(dim=1)
        out = {"tracing_accuracy": float(correct.mean())}
        if self.collude:
            both = score.topk(2, dim=1).indices.sort(dim=1).values == source.sort(dim=1).values
            out["tracing_accuracy_both"] = float(both.all(dim=1).double().mean())
        others = fooled.double().scatter(1, source, 0.0)
        out["transfer_rate"] = float(others.sum() / (len(fooled) * (self.copies - source.shape[1])))
        transferred = others.any(dim=1)
        out["transferred"] = float(transferred.double().mean())
        if bool(transferred.any()):
            out["tracing_accuracy_transferred"] = float(correct[transferred].mean())
        return out


def permutations(classes: int, copies: int, seed: int, agree: int = 1) -> Tensor:
    """Permutations of the outputs, any two of which agree at `agree` positions at most; int64 [copies, classes].

    Raises:
        NotApplicable: when not enough of them are found.
    """
    kept: list[Tensor] = []
    for number in range(TRIES):
        trial = Draws(derive_seed(seed, "permutation", number), torch.arange(classes)).order()
        if all(int((trial == other).sum()) <= agree for other in kept):
            kept.append(trial)
            if len(kept) == copies:
                return torch.stack(kept)
    raise NotApplicable(
        f"found {len(kept)} permutations of {classes} outputs that agree at {agree} position at most, expected {copies}"
    )


def _outputs(p: Tensor, t: Tensor, orders: Tensor, alpha: float) -> Tensor:
    """M_i for each permutation, [n, m, K]."""
    return p[:, None] + alpha * t[:, orders]


class _Copies(Wrapped):
    """Some copies as one model: the outputs of all copies, concatenated, from one forward pass of the classifier."""

    orders: Tensor

    def __init__(self, inner: Classifier, tracer: nn.Module, orders: Tensor, alpha: float) -> None:
        super().__init__(inner)
        self.tracer, self.alpha = tracer, alpha
        self.register_buffer("orders", orders)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self._concatenated(self.inner(x, draws), x)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self._concatenated(self.inner.backward_model(x, draws), x)

    def _concatenated(self, z: Tensor, x: Tensor) -> Tensor:
        return _outputs(z.softmax(dim=1), self.tracer(x), self.orders, self.alpha).flatten(1)


class _Together(Oracle):
    """Answers with the copy of the smallest margin loss, so that an image is misclassified only when all copies are."""

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
    """T_0 and its decoder; the output is that of T_0."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.encoder = _Encoder(classes, shape, width)
        self.decoder = _Decoder(classes // 2, shape, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class _Encoder(nn.Module):
    """Convolution, batch norm, ReLU; two residual blocks; convolution; fully connected; tanh."""

    def __init__(self, classes: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        c, positions = width, math.ceil(shape[1] / 4) * math.ceil(shape[2] / 4)
        self.start = nn.Sequential(nn.Conv2d(shape[0], c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU())
        self.blocks = nn.ModuleList(_double(c) for _ in range(2))
        self.end = nn.Sequential(nn.Conv2d(c, c, 3, 2, 1), nn.Flatten(), nn.Linear(c * positions, classes), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for block in self.blocks:
            h = h + block(h)
        return self.end(h)


class _Decoder(nn.Module):
    """Fully connected; three double convolutions with an up-convolution between two; convolution."""

    def __init__(self, latent: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        c, small = width, (width, math.ceil(shape[1] / 4), math.ceil(shape[2] / 4))
        self.size = shape[1:]
        self.body = nn.Sequential(
            nn.Linear(latent, math.prod(small)), nn.Unflatten(1, small), _double(c),
            nn.ConvTranspose2d(c, c, 2, 2), _double(c), nn.ConvTranspose2d(c, c, 2, 2), _double(c),
            nn.Conv2d(c, shape[0], 3, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, latent: Tensor) -> Tensor:
        return self.body(latent)[:, :, : self.size[0], : self.size[1]]


def _double(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)
