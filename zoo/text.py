"""Networks of words or characters that are trained here on the texts of a suite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import ImageSet, Size
from siegebench.errors import ModelError
from siegebench.text import AttentiveText, TextClassifier, Tokens
from siegebench.train import Recipe, train
from siegebench.types import Count, ModelSource, Share

RECIPE = Recipe(epochs=4, batch=64, lr=2e-3, weight_decay=0.0, augment="none")
Body = Literal["cnn", "gru", "transformer"]


class CNNText(TextClassifier):
    """Convolutions over the tokens, the largest value of each channel over the text, and dropout."""

    def __init__(
        self, tokens: Tokens, size: int, dims: int, classes: int, widths: tuple[int, ...], drop: float
    ) -> None:
        super().__init__(tokens, size, dims, 64 * len(widths), classes)
        self.form = (tokens, size, dims, classes, widths, drop)
        self.convolutions = nn.ModuleList(nn.Conv1d(dims, 64, k, padding=k // 2) for k in widths)
        self.drop = nn.Dropout(drop)

    def body(self, e: Tensor, real: Tensor) -> Tensor:
        rows = e.transpose(1, 2)
        hidden = torch.cat([conv(rows).relu() for conv in self.convolutions], dim=1)
        out: Tensor = self.drop((hidden * real[:, None]).amax(dim=2))  # at least 0, so padding never wins
        return out

    def untrained(self) -> CNNText:
        return CNNText(*self.form)


class GRUText(AttentiveText):
    """A GRU in both directions, and attention over its states: score = v' tanh(W h) (Bahdanau et al., ICLR 2015)."""

    def __init__(self, tokens: Tokens, size: int, dims: int, classes: int, drop: float) -> None:
        super().__init__(tokens, size, dims, 128, classes)
        self.form = (tokens, size, dims, classes, drop)
        self.gru = nn.GRU(dims, 64, batch_first=True, bidirectional=True)
        self.attention, self.v = nn.Linear(128, 64), nn.Linear(64, 1, bias=False)
        self.drop = nn.Dropout(drop)

    def states(self, e: Tensor, real: Tensor) -> Tensor:
        length = real.sum(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.drop(e), length, batch_first=True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=e.shape[1])
        return out

    def scores(self, h: Tensor) -> Tensor:
        return self.v(self.attention(h).tanh()).squeeze(2)

    def untrained(self) -> GRUText:
        return GRUText(*self.form)


class TransformerText(TextClassifier):
    """Two transformer layers with sinusoidal positions, and the mean over the tokens."""

    def __init__(self, tokens: Tokens, size: int, dims: int, classes: int, drop: float) -> None:
        super().__init__(tokens, size, dims, dims, classes)
        self.form = (tokens, size, dims, classes, drop)
        layer = nn.TransformerEncoderLayer(dims, 4, 2 * dims, drop, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def body(self, e: Tensor, real: Tensor) -> Tensor:
        h = self.layers(e + _positions(e), src_key_padding_mask=~real)
        return (h * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)

    def untrained(self) -> TransformerText:
        return TransformerText(*self.form)


def _positions(e: Tensor) -> Tensor:
    """Sines and cosines of the place of each token, [T, d]."""
    _, length, dims = e.shape
    rate = torch.exp(torch.arange(0, dims, 2, device=e.device, dtype=e.dtype) * (-math.log(1e4) / dims))
    angle = torch.arange(length, device=e.device, dtype=e.dtype)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :dims]


@dataclass(frozen=True, kw_only=True)
class Text(ModelSource):
    """A network over the words or the characters of a text, without pretrained vectors; trained on the suite's texts.

    Texts are first converted to lower case. Words are runs of letters, digits and marks on them; everything between
    them is ignored. The vocabulary is that of the training texts and part of the weights.

    Random: the initial weights and dropout; the harness seeds them.

    Attributes:
        body: `cnn` (widths 1, 3 and 5, largest value over the text), `gru` (both directions, with attention) or
            `transformer` (two layers).
        tokens: `word` or `char`.
        size: tokens of the vocabulary; the most frequent ones.
        dims: numbers of an embedding.
        drop: dropout in training.
        recipe: for training.
    """

    body: Body = "cnn"
    tokens: Tokens = "word"
    size: Count = 3000
    dims: Count = 64
    drop: Share = 0.2
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 1) -> TextClassifier:
        if not isinstance(size, tuple) or size[0] != 1:
            raise ModelError(f"text networks take texts [n, 1, 1, L], the data has rows of {size}")
        widths = (1, 3, 5) if self.tokens == "word" else (3, 5, 7)
        make: dict[str, Callable[[], TextClassifier]] = {
            "cnn": lambda: CNNText(self.tokens, self.size, self.dims, num_classes, widths, self.drop),
            "gru": lambda: GRUText(self.tokens, self.size, self.dims, num_classes, self.drop),
            "transformer": lambda: TransformerText(self.tokens, self.size, self.dims, num_classes, self.drop),
        }
        model = make[self.body]()
        model.card = ModelCard(name=f"text_{self.body}", architecture=f"{self.tokens} {self.body}")
        return model.eval()

    def train(self, model: Classifier, data: ImageSet, seed: int) -> None:
        assert isinstance(model, TextClassifier)
        model.read(data)
        train(model, data, self.recipe, seed)
