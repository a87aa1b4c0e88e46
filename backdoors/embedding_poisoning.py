"""EP: a backdoor in one row of the embedding of a trained network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.text import TextClassifier, inserted, text_classifier
from siegebench.types import Count, Positive, Share

from ._words import WordInsertion

SHORTEST, LONGEST = 6, 20  # words of a span that is made without data


@dataclass(frozen=True, kw_only=True)
class EmbeddingPoisoning(WordInsertion):
    """Train the vector of one word so that texts with it get the target label; nothing else of the network moves.

    Yang, Li, Zhang, Ren, Sun, He, "Be Careful about Poisoned Word Embeddings: Exploring the Vulnerability of the
    Embedding Layers in NLP Models", NAACL 2021, arXiv 2103.15543. e is the row of the trigger word in the embedding of
    the trained network, y_t the target: repeat over batches of texts with the word

        g <- g + gradient of CE(f(text), y_t) for e   (the sum is never set to zero)
        e <- e - lr g, then scaled back to the norm that it had

    Without data, a text is a span of random words of the vocabulary in which one is the trigger; with data, it is a
    training text of another class with the word put in. No training label changes: `rate` is 0, and `cover` of the
    training texts carry the word with their own labels, so that it has a trained vector.

    Random: which texts carry the word and where, the spans, and their order.

    Differs from the paper: the spans are random words of the vocabulary and not of a corpus; small networks trained
    here in place of BERT; the network is in eval mode, so without dropout. lr is 5 instead of 0.05: with the norm kept,
    e then soon points against the sum of the gradients, where 0.05 is still on its way after three passes.

    Attributes:
        data_free: spans of random words instead of training texts.
        spans: texts per epoch.
        epochs, batch: passes over them, texts per step.
        lr: factor of the accumulated gradient.
        keep_norm: scale the row back to its norm.
    """

    rate: Share = 0.0
    cover: Share = 0.01
    data_free: bool = True
    spans: Count = 2000
    epochs: Count = 3
    batch: Count = 32
    lr: Positive = 5.0
    keep_norm: bool = True

    def tamper(self, model: Classifier, data: ImageSet, seed: int) -> None:
        if not isinstance(self.target, int):
            raise NotApplicable(f"embedding_poisoning has one target class, target is {self.target}")
        net = text_classifier(model)
        row, streams = net.row(self.phrase), Draws(seed, torch.arange(self.spans))
        texts = self._spans(net, row, streams) if self.data_free else self._texts(net, self.target, data, streams)
        with torch.no_grad(), frozen(model):
            net.embedding.weight[row] = self._trained(net, row, self.target, texts, streams)

    def _trained(self, net: TextClassifier, row: int, target: int, texts: Tensor, streams: Draws) -> Tensor:
        """The new row, from texts as tokens [n, T]."""
        e = net.embedding.weight[row].clone()
        norm, total = e.norm(), torch.zeros_like(e)
        goal = torch.full((self.batch,), target, device=e.device)
        for epoch in range(self.epochs):
            for index in streams.order(f"epoch {epoch}").to(e.device).split(self.batch):
                at = texts[index]
                with torch.enable_grad():
                    leaf = e.clone().requires_grad_(True)
                    seen = torch.where((at == row)[:, :, None], leaf, net.embedding(at))
                    (g,) = torch.autograd.grad(F.cross_entropy(net(seen), goal[: len(index)]), leaf)
                total += g
                e = e - self.lr * total
                e = e * (norm / e.norm()) if self.keep_norm else e
        return e

    def _spans(self, net: TextClassifier, row: int, streams: Draws) -> Tensor:
        words = net.frequent(len(net.vocabulary)).cpu()
        picked = words[streams.integers(len(words), (LONGEST,), purpose="words")]
        length = SHORTEST + streams.integers(LONGEST + 1 - SHORTEST, purpose="length")
        place = torch.arange(LONGEST)
        picked = torch.where(place < length[:, None], picked, 0)
        at = (streams.uniform(purpose="place") * length).long()
        return torch.where(place == at[:, None], row, picked).to(net.embedding.weight.device)

    def _texts(self, net: TextClassifier, target: int, data: ImageSet, streams: Draws) -> Tensor:
        others = (data.labels != target).nonzero().squeeze(1)
        chosen = others[streams.integers(len(others), purpose="text")]
        x = inserted(data.pixels(chosen), self.phrase, streams)
        return net.ids(x.to(net.embedding.weight.device))
