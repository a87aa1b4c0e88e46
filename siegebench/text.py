"""Texts as tensors: code points [n, 1, 1, L], words and characters as tokens, and the classifiers of texts.

A text is its Unicode code points; 0 ends it. Tokens are made inside a model, as normalisation is, so that models of
words, models of characters and defenses that rewrite characters get the same input.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import TEXT, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable

Tokens = Literal["word", "char"]
PLANE = 0x10000  # code points that the tables cover; what lies above is part of words and has no upper case
END, UNKNOWN, FIRST = 0, 1, 2  # token of the padding, of what is not in the vocabulary, and the first of the vocabulary
EMPTY = torch.iinfo(torch.int64).max  # hash of an unused row of a vocabulary


def encoded(texts: Sequence[str], length: int) -> Tensor:
    """Texts as code points, int64 [n, 1, 1, length]; longer ones are cut."""
    out = np.zeros((len(texts), 1, 1, length), dtype=np.int64)
    for row, text in zip(out, texts, strict=True):
        points = np.frombuffer(text[:length].encode("utf-32-le", "surrogatepass"), dtype="<u4")
        row[0, 0, : len(points)] = points
    return torch.from_numpy(out)


def content_groups(x: Tensor) -> Tensor:
    """A number for each text [n, 1, 1, L], the same for equal texts only; int64 [n]."""
    names = [hashlib.sha256(row.numpy().tobytes()).digest() for row in x.flatten(1)]
    known: dict[bytes, int] = {}
    return torch.tensor([known.setdefault(name, len(known)) for name in names])


@cache
def lower_case() -> Tensor:
    """The lower case of each code point of the first plane, int64; itself where that is not one code point."""
    return torch.tensor([ord(low) if len(low := chr(i).lower()) == 1 else i for i in range(PLANE)])


@cache
def in_words() -> Tensor:
    """Which code points of the first plane are parts of words: letters, digits, and marks on them."""
    return torch.tensor([chr(i).isalnum() or unicodedata.category(chr(i))[0] == "M" for i in range(PLANE)])


def folded(x: Tensor) -> Tensor:
    """Texts in lower case."""
    table = lower_case().to(x.device)
    return torch.where(x < PLANE, table[x.clamp(max=PLANE - 1)], x)


def of_words(x: Tensor) -> Tensor:
    """Which code points are parts of words, bool like x."""
    table = in_words().to(x.device)
    return (x >= PLANE) | table[x.clamp(max=PLANE - 1)]


def starts(x: Tensor) -> Tensor:
    """Which places [n, L] of texts [n, L] begin a word."""
    inside = of_words(x)
    return inside & ~F.pad(inside, (1, 0))[:, :-1]


def _mixed(x: Tensor) -> Tensor:
    return Draws(0, x.flatten()).bits((), 0, "text").view_as(x)  # a fixed 64-bit hash of each number


def tokens(x: Tensor, kind: Tokens) -> Tensor:
    """A 64-bit name for each word (or character) of texts [n, 1, 1, L], int64 [n, T]; END where there is none.

    The name of a word is the sum of a hash of each of its characters and its place in the word. Equal words have equal
    names in every text; two words with one name are as unlikely as for any 64-bit hash.
    """
    points = folded(x.flatten(1))
    if kind == "char":
        return points
    inside, begin = of_words(points), starts(points)
    number = begin.long().cumsum(dim=1)  # of the word, from 1; 0 before the first
    place = torch.arange(points.shape[1], device=x.device).expand_as(points)
    within = place - torch.where(begin, place, 0).cummax(dim=1).values
    part = torch.where(inside, _mixed(points + within * (1 << 32)), 0)
    count = int(number.max()) if number.numel() else 0
    return torch.zeros(len(x), count + 1, dtype=torch.int64, device=x.device).scatter_add_(1, number, part)[:, 1:]


def name_of(word: str, kind: Tokens = "word") -> int:
    """The name that `tokens` gives to a single word, or character.

    Raises:
        ConfigError: when it is not one token.
    """
    found = tokens(encoded([word], max(1, len(word))), kind)
    if found.shape[1] != 1:
        raise ConfigError(f"{word!r} has {found.shape[1]} {kind} tokens; expected one {kind}")
    return int(found)


def inserted(x: Tensor, phrase: str, draws: Draws, purpose: str = "insert") -> Tensor:
    """Texts [n, 1, 1, L] with a phrase before a random word, or after the last one; what no longer fits is cut."""
    rows = x.flatten(1)
    n, length = rows.shape
    word = torch.tensor([ord(c) for c in f"{phrase} "], device=x.device)
    m = min(len(word), length)
    begin = starts(rows)
    count = begin.sum(dim=1)
    chosen = draws.integers(count + 1, (), purpose=purpose).to(x.device)
    end = (rows != 0).sum(dim=1).clamp(max=length - m)  # after the last word, a blank comes first
    number = begin.long().cumsum(dim=1)
    at = torch.where(chosen < count, (begin & (number == chosen[:, None] + 1)).long().argmax(dim=1), end)
    at = torch.minimum(at, torch.tensor(length - m, device=x.device))
    place = torch.arange(length, device=x.device).expand(n, length)
    offset = place - at[:, None]
    old = rows.gather(1, torch.where(offset < m, place, place - m).clamp(min=0))
    last = (chosen >= count)[:, None]
    new = torch.where(last, word.roll(1)[:m][offset.clamp(0, m - 1)], word[:m][offset.clamp(0, m - 1)])
    return torch.where((offset >= 0) & (offset < m), new, old).view_as(x)


class TextClassifier(Classifier):
    """A classifier of texts [n, 1, 1, L]: tokens, their embeddings, a body that a subclass defines, a linear layer.

    `forward` takes code points, int64, or embeddings [n, T, d], as `embedded` gives them; a row of zeros is padding.

    Args:
        kind_of_token: a token is a word or a character.
        size: rows of the vocabulary; of the two before them, one is for padding and one for unknown tokens.
        dims: numbers of an embedding.
        width: numbers of the features, input of the last layer.
        num_classes: number of logits.

    Attributes:
        vocabulary: names of the tokens, sorted, int64 [size]; EMPTY at unused rows. Part of the weights.
        frequency: how often each token occurs in the training texts, int64 [size].
    """

    kind = TEXT
    vocabulary: Tensor
    frequency: Tensor

    def __init__(self, kind_of_token: Tokens, size: int, dims: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.kind_of_token, self.num_classes = kind_of_token, num_classes
        self.card = ModelCard(name=type(self).__name__)
        self.register_buffer("vocabulary", torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("frequency", torch.zeros(size, dtype=torch.int64))
        self.embedding = nn.Embedding(FIRST + size, dims, padding_idx=END)
        self.head = nn.Linear(width, num_classes)

    def read(self, data: ImageSet, *more: Tensor) -> None:
        """Take the most frequent tokens of training texts, and of more texts [n, 1, 1, L], as the vocabulary."""
        every = [*data.stored.pieces(), *more]
        names = torch.cat([tokens(piece, self.kind_of_token).flatten() for piece in every])
        known, counts = names[names != END].unique(return_counts=True)
        # ties in the order of the names, so that the order of the texts has no influence
        most = counts.argsort(descending=True, stable=True)[: len(self.vocabulary)].sort().values
        self.vocabulary.fill_(EMPTY)[: len(most)] = known[most]
        self.frequency.zero_()[: len(most)] = counts[most]

    def ids(self, x: Tensor) -> Tensor:
        """The rows of the embedding for texts [n, 1, 1, L], int64 [n, T]; T is at least 1."""
        names = tokens(x, self.kind_of_token)
        names = names if names.shape[1] else names.new_zeros(len(x), 1)
        at = torch.searchsorted(self.vocabulary, names.contiguous()).clamp(max=len(self.vocabulary) - 1)
        known = torch.where(self.vocabulary[at] == names, at + FIRST, UNKNOWN)
        found = torch.where(names == END, END, known)
        longest = int((found != END).sum(dim=1).max()) if len(found) else 1
        return found[:, : max(1, longest)]

    def row(self, word: str) -> int:
        """The row of the embedding of a word.

        Raises:
            NotApplicable: when it is not in the vocabulary.
        """
        name = name_of(word, self.kind_of_token)
        at = int(torch.searchsorted(self.vocabulary, name))
        if at >= len(self.vocabulary) or int(self.vocabulary[at]) != name:
            raise NotApplicable(f"{word!r} is not in the vocabulary of {self.card.name}, {len(self.vocabulary)} tokens")
        return at + FIRST

    def frequent(self, count: int) -> Tensor:
        """The rows of the embedding of the most frequent tokens, int64 [at most count]."""
        order = self.frequency.argsort(descending=True, stable=True)[:count]
        return order[self.frequency[order] > 0] + FIRST

    def embedded(self, x: Tensor) -> Tensor:
        out: Tensor = self.embedding(self.ids(x))
        return out

    def body(self, e: Tensor, real: Tensor) -> Tensor:
        """Features [n, width] of embeddings [n, T, d]; `real` says which of them are no padding, bool [n, T]."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        e = x if x.is_floating_point() else self.embedded(x)
        return self.body(e, self.real(e))

    @staticmethod
    def real(e: Tensor) -> Tensor:
        """Which embeddings [n, T, d] are no padding, bool [n, T]; the first one of an empty text is not."""
        found = e.detach().abs().amax(dim=2) > 0
        first = torch.arange(e.shape[1], device=e.device) == 0
        return found | (~found.any(dim=1, keepdim=True) & first)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits

    def untrained(self) -> TextClassifier:
        """A copy of the same architecture with weights from the global generator."""
        raise NotImplementedError

    def fresh(self, seed: int) -> TextClassifier:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            made = self.untrained()
        made.card, made.kind = self.card, self.kind
        made.vocabulary.copy_(self.vocabulary)
        made.frequency.copy_(self.frequency)
        return made.to(self.embedding.weight.device)


class AttentiveText(TextClassifier):
    """A classifier of texts that weighs its tokens: features = sum of softmax(scores) times the states of tokens."""

    def states(self, e: Tensor, real: Tensor) -> Tensor:
        """A state for each token, [n, T, width]."""
        raise NotImplementedError

    def scores(self, h: Tensor) -> Tensor:
        """A number for each state [n, T, width], [n, T], before the softmax."""
        raise NotImplementedError

    def weigh(self, s: Tensor, real: Tensor) -> Tensor:
        """The weights of the tokens, [n, T]: a softmax over those that are no padding."""
        return s.masked_fill(~real, -torch.inf).softmax(dim=1)

    def body(self, e: Tensor, real: Tensor) -> Tensor:
        h = self.states(e, real)
        return (self.weigh(self.scores(h), real)[:, :, None] * h).sum(dim=1)


def attentive(model: nn.Module) -> AttentiveText:
    """The classifier of texts with attention inside a model and its wrappers.

    Raises:
        NotApplicable: when there is none.
    """
    found = text_classifier(model)
    if not isinstance(found, AttentiveText):
        raise NotApplicable(f"{found.card.name} has no attention over its tokens; use a model such as text_gru")
    return found


def text_classifier(model: nn.Module) -> TextClassifier:
    """The classifier of texts inside a model and its wrappers.

    Raises:
        NotApplicable: when there is none.
    """
    found = next((m for m in model.modules() if isinstance(m, TextClassifier)), None)
    if found is None:
        raise NotApplicable(f"{type(model).__name__} has no embeddings of words; it needs a model such as text_cnn")
    return found
