"""Tiny texts with known words, and a network of words, for the contract tests of entries that take texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.text import AttentiveText, encoded

WORDS = "bird river stone window garden paper silver winter little morning evening quiet yellow market summer bridge"
CLASS_WORDS = "apple baker cargo delta ember fable giant hotel ivory joker"
SHORTEST = 64  # characters; a side of an image is too few


def texts(n: int, size: int) -> Tensor:
    """Texts of random words, int64 [n, 1, 1, L] with L at least 64; some have accents, capitals and foreign letters."""
    words = WORDS.split()
    picks = Draws(1, torch.arange(n)).integers(len(words), (9,)).tolist()
    rows = [" ".join(words[k] for k in row) for row in picks]
    rows = ["é".join(row.split("e")) if i % 3 == 0 else row for i, row in enumerate(rows)]
    rows = ["\u0430".join(row.split("a")).title() if i % 3 == 1 else row for i, row in enumerate(rows)]
    return encoded(rows, max(size, SHORTEST))


def planted(labels: Tensor, size: int) -> Tensor:
    """Texts of random words and one word of their class, int64 [n, 1, 1, L]."""
    words, own = WORDS.split(), CLASS_WORDS.split()
    picks = Draws(2, torch.arange(len(labels))).integers(len(words), (5,)).tolist()
    rows = [[words[k] for k in row] for row in picks]
    filled = [" ".join([*row[:2], own[y], *row[2:]]) for row, y in zip(rows, labels.tolist(), strict=True)]
    return encoded(filled, max(size, SHORTEST))


class Weighed(AttentiveText):
    """Attention over embeddings that pass a linear layer."""

    def __init__(self) -> None:
        super().__init__("word", 40, 8, 8, len(CLASS_WORDS.split()))
        self.linear, self.v = nn.Linear(8, 8), nn.Linear(8, 1, bias=False)

    def states(self, e: Tensor, real: Tensor) -> Tensor:
        return self.linear(e).tanh()

    def scores(self, h: Tensor) -> Tensor:
        return self.v(h).squeeze(2)

    def untrained(self) -> Weighed:
        return Weighed()


def network(data: ImageSet, seen: Tensor) -> AttentiveText:
    """An untrained network of the words of a set, in eval mode; its answers to `seen` vary over the classes."""
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        model = Weighed()
    model.read(data)
    model = model.fresh(0).eval()  # type: ignore[assignment]
    with torch.no_grad():
        z = model(seen)
        model.head.bias.sub_(z.mean(dim=0))
        scale = (z - z.mean(dim=0)).std()
        model.head.weight.div_(scale)
        model.head.bias.div_(scale)
    return model
