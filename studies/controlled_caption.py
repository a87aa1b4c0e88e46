"""Controlled captions: an image with the encoder features of another image gets that image's caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from siegebench import ops
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.types import Count, Figures, Number, Positive, Study

from ._generator import Generator, fitted

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RELATIONS = ("left of", "right of", "above", "below")
WORDS = ["<start>", "<end>", "a", *NAMES, "left", "right", "of", "above", "below"]
LENGTH = 7  # words of a caption and its end: a five left of a two
SIDE, DIGIT = 40, 16
KEYWORDS = slice(3, 3 + len(NAMES))  # rows of WORDS that name a digit


def caption(first: Tensor, second: Tensor, relation: Tensor) -> Tensor:
    """Captions as rows of WORDS, int64 [n, 7], for digits and relations [n]."""
    a, of, end = (WORDS.index(word) for word in ("a", "of", "<end>"))
    word = torch.tensor([WORDS.index(r.split()[0]) for r in RELATIONS])[relation]
    long = (relation < 2)[:, None]
    rest = torch.stack([torch.full_like(first, a), second + KEYWORDS.start], dim=1)
    ends = torch.full((len(first), 2), end)
    tail = torch.where(long, torch.cat([torch.full_like(rest[:, :1], of), rest, ends[:, :1]], 1),
                       torch.cat([rest, ends], 1))  # fmt: skip
    return torch.cat([torch.full_like(word, a)[:, None], first[:, None] + KEYWORDS.start, word[:, None], tail], dim=1)


def scenes(digits: ImageSet, n: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """(n images [n, 1, 40, 40] of two digits on a dim canvas, their captions)."""
    own = Draws(draws.seed, torch.arange(n))
    pick = own.integers(len(digits), (2,), purpose="digits")
    relation = own.integers(len(RELATIONS), purpose="relation")
    grey = digits.pixels()[:, :1]
    small = F.interpolate(grey, (DIGIT, DIGIT), mode="bilinear", antialias=True)
    out = 0.15 * own.uniform((1, SIDE, SIDE), purpose="canvas")
    shift = own.integers(5, (2, 2), purpose="shift") - 2
    # centres (row, column) of the first digit; the second is opposite
    places = torch.tensor([[20, 11], [20, 29], [11, 20], [29, 20]])[relation]
    line = torch.arange(SIDE)
    for k, centre in enumerate((places, SIDE - places)):
        rows, columns = (line - (centre + shift[:, k])[:, i, None] + DIGIT // 2 for i in (0, 1))
        inside = ((rows >= 0) & (rows < DIGIT))[:, :, None] & ((columns >= 0) & (columns < DIGIT))[:, None]
        at = rows.clamp(0, DIGIT - 1)[:, :, None], columns.clamp(0, DIGIT - 1)[:, None]
        seen = small[pick[:, k]][torch.arange(n)[:, None, None], 0, at[0], at[1]]
        out = torch.where(inside[:, None], torch.maximum(out, 0.9 * seen[:, None]), out)
    labels = digits.labels[pick]
    return out, caption(labels[:, 0], labels[:, 1], relation)


class Captioner(nn.Module):
    """A convolutional encoder to 96 features, and a GRU that says words from them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Flatten(), nn.Linear(48 * 25, 96),
        )  # fmt: skip
        self.decoder = Decoder()

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """Logits of each word of a caption, given those before it."""
        found: Tensor = self.decoder(self.encoder(x), words)
        return found


class Decoder(nn.Module):
    """Features and the words so far to logits over the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 32)
        self.gru = nn.GRU(32, 96, batch_first=True)
        self.say = nn.Linear(96, len(WORDS))

    def forward(self, h: Tensor, words: Tensor) -> Tensor:
        before = F.pad(words, (1, 0))[:, :-1]  # <start> is word 0
        out: Tensor = self.say(self.gru(self.words(before), h[None].contiguous())[0])
        return out

    @torch.no_grad()
    def says(self, h: Tensor) -> Tensor:
        """The greedy caption, int64 [n, 7]; after the end, the end is repeated."""
        word = torch.zeros(len(h), dtype=torch.long)
        state, out, over = h[None].contiguous(), [], torch.zeros(len(h), dtype=torch.bool)
        for _ in range(LENGTH):
            step, state = self.gru(self.words(word[:, None]), state)
            word = torch.where(over, 1, self.say(step[:, 0]).argmax(dim=1))
            over = over | (word == 1)
            out.append(word)
        return torch.stack(out, dim=1)


@dataclass(frozen=True, kw_only=True)
class ControlledCaption(Study):
    """Images with a small change whose caption is that of a chosen other image, or has its keywords.

    Aafaq, Akhtar, Liu, Shah, Mian, "Controlled Caption Generation for Images Through Adversarial Attacks", 2021,
    arXiv 2107.03050. x_t is an image with the wanted caption and f the encoder. Within a linf ball around x,

        `feature`: minimise ||f(x') - f(x_t)||^2, without the language model
        `decoder`: minimise the cross-entropy of the wanted caption, through the language model

    by projected gradient descent; and, if `generator_steps` are given, for the largest ball with a network G that makes
    x' = G(x, x_t) in one pass,

        `generator`: minimise ||f(G(x, x_t)) - f(x_t)||^2 over pairs of training scenes

    The captioner is trained here on scenes of two real digits, and the wanted caption is its output for x_t;
    `true_clean` counts captions that are true. `fresh` figures are those of a second language model on the same
    encoder, and `fresh_exact_target` counts how often its output for x_t is the wanted caption: if the features agree,
    no language model is needed. `exact` counts captions that are the wanted one, `keywords` its digits at their
    places, `own` captions that do not change. Baselines: unrelated pairs, and noise of the same size.

    Random: the weights, the scenes and the pairs.

    Differs from the paper: the generator is small and has no discriminator, a bound on the change takes its place; the
    authors' networks, norms and tables were not read.

    Attributes:
        eps: sizes of the change, in the units of pixels.
        steps: of the descent, of length eps / 8.
        scenes, epochs, lr: of training; new scenes in each epoch.
        tested: pairs.
        generator_steps, generator_batch: of the training of G, with the same lr; 0 steps leave it out
            (`controlled_caption.generator` has 3000).
    """

    added: ClassVar[tuple[str, ...]] = ("generator_steps", "generator_batch")

    eps: Annotated[tuple[Number, ...], Field(min_length=1)] = (16 / 255, 32 / 255)
    steps: Count = 40
    scenes: Count = 4000
    epochs: Count = 8
    lr: Positive = 2e-3
    tested: Count = 100
    generator_steps: Annotated[int, Field(ge=0, strict=True)] = 0
    generator_batch: Count = 32

    def quick(self) -> ControlledCaption:
        return replace(self, steps=2, scenes=64, epochs=1, tested=4, eps=self.eps[:1], generator_steps=2)

    def run(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        model, fresh = self._trained(data.train, draws)
        x, words = scenes(images, 2 * self.tested, draws.child("test"))
        start, goal = x[::2], x[1::2]

        def right(said: Tensor, truth: Tensor) -> tuple[int, int]:
            return int((said == truth).all(dim=1).sum()), len(said)

        with torch.no_grad():
            before, target = model.decoder.says(model.encoder(x)), model.encoder(goal)
        said, wanted = before[::2], before[1::2]  # what it says of x, and of x_t
        own = said
        out: Figures = {"true_clean": right(before, words), "fresh_exact_target": right(fresh.says(target), wanted)}
        out |= {"exact_baseline_unrelated": right(said, wanted), "keywords_baseline_unrelated": _keywords(said, wanted)}

        def near(z: Tensor) -> Tensor:
            return (model.encoder(z) - target).square().sum(dim=1)

        def spoken(z: Tensor) -> Tensor:
            return F.cross_entropy(model(z, wanted).transpose(1, 2), wanted, reduction="none").sum(dim=1)

        for eps in self.eps:
            noise = (start + eps * Draws(draws.seed, torch.arange(len(start))).sign((1, SIDE, SIDE))).clamp(0, 1)
            made = {"feature": self._descended(near, start, eps), "decoder": self._descended(spoken, start, eps)}
            if self.generator_steps and eps == max(self.eps):
                made["generator"] = self._generated(model, start, goal, eps, data.train, draws)
            for name, found in {**made, "baseline_noise": noise}.items():
                with torch.no_grad():
                    h = model.encoder(found)
                said, mark = model.decoder.says(h), f"{name}@{round(255 * eps)}"
                out |= {f"exact_{mark}": right(said, wanted), f"keywords_{mark}": _keywords(said, wanted)}
                out |= {f"own_{mark}": right(said, own), f"fresh_exact_{mark}": right(fresh.says(h), wanted)}
        # a captioner that hardly learnt may name no digit, and then there are no keywords to count
        return {name: value for name, value in out.items() if not isinstance(value, tuple) or value[1]}

    def _descended(self, loss: Callable[[Tensor], Tensor], x: Tensor, eps: float) -> Tensor:
        z = x.clone()
        for _ in range(self.steps):
            with torch.enable_grad():
                z.requires_grad_(True)
                (g,) = torch.autograd.grad(loss(z).sum(), z)
            z = ops.project(z.detach() - eps / 8 * g.sign(), x, "linf", eps)
        return z

    def _generated(
        self, model: Captioner, x: Tensor, goal: Tensor, eps: float, digits: ImageSet, draws: Draws
    ) -> Tensor:
        def more(asked: int) -> Tensor:
            return scenes(digits, self.scenes, draws.child("generator", asked))[0]

        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(draws.seed, "generator"))
            generator, batch = Generator(eps), min(self.generator_batch, self.scenes // 2)
            fitted(generator, model.encoder, more, self.generator_steps, batch, self.lr)
        with torch.no_grad():
            made: Tensor = generator(x, goal)
        return made

    def _trained(self, digits: ImageSet, draws: Draws) -> tuple[Captioner, Decoder]:
        """A captioner, and another language model that was trained on its encoder afterwards."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(draws.seed, "weights"))
            model, fresh = Captioner(), Decoder()
            self._fit(model, model, digits, draws.child("first"))
            model.eval().requires_grad_(False)
            self._fit(fresh, lambda x, words: fresh(model.encoder(x), words), digits, draws.child("fresh"))
        return model.eval(), fresh.eval()

    def _fit(self, module: nn.Module, logits: Callable[..., Tensor], digits: ImageSet, draws: Draws) -> None:
        """Train on new scenes in each epoch; the learning rate falls to zero."""
        optimiser = torch.optim.Adam(module.train().parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: 1 - epoch / self.epochs)
        for epoch in range(self.epochs):
            x, words = scenes(digits, self.scenes, draws.child(epoch))
            for at in torch.arange(self.scenes).split(64):
                loss = F.cross_entropy(logits(x[at], words[at]).transpose(1, 2), words[at])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            schedule.step()


def _keywords(said: Tensor, wanted: Tensor) -> tuple[int, int]:
    """(how many digits of the wanted captions are said in their places, how many there are)"""
    digit = (wanted >= KEYWORDS.start) & (wanted < KEYWORDS.stop)
    return int((digit & (said == wanted)).sum()), int(digit.sum())
