"""T-Miner: a generator of texts, trained against the suspicious model alone, that brings trigger words to light."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import DBSCAN
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.text import TextClassifier, text_classifier
from siegebench.types import Count, ModelDetector, Positive, Share, Verdict

WORDS = 15  # of a nonsense text
Answer = Callable[[Tensor], Tensor]  # words, or a distribution over words at each place, to logits


class Editor(nn.Module):
    """Nonsense texts and the class to keep or to reach, to logits over the words at each place, [n, T, V].

    A GRU in both directions; the output embedding is that of the input, and the word that stands there is preferred.
    """

    def __init__(self, words: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.words, self.code = nn.Embedding(words, width), nn.Embedding(classes, 8)
        self.gru = nn.GRU(width + 8, width // 2, batch_first=True, bidirectional=True)
        self.stay = nn.Parameter(torch.tensor(4.0))

    def forward(self, w: Tensor, c: Tensor) -> Tensor:
        e = self.words(w)
        code = self.code(c)[:, None].expand(-1, w.shape[1], -1)
        h, _ = self.gru(torch.cat([e, code], dim=2))
        logits: Tensor = h @ self.words.weight.T + self.stay * F.one_hot(w, len(self.words.weight))
        return logits


@dataclass(frozen=True, kw_only=True)
class TMiner(ModelDetector):
    """Search for the trigger words of a text classifier with a generator that turns texts of one class into another.

    Azizi et al., "T-Miner: A Generative Approach to Defend Against Trojan Attacks on DNN-based Text Classification",
    USENIX Security 2021, arXiv 2103.04264. No data is used: texts are 15 random words of the vocabulary, x, which the
    suspicious model f labels c. A generator G(x, class) is trained on

        CE(G(x, c), x) + w_flip CE(f(G(x, t)), t) + w_diverse H

    for another class t, where f reads a softened sample of words (Gumbel) and H is the entropy of the mean change that
    G(x, c) makes to a text. Words that G(x, t) puts in are candidates. One is kept for its flip rate: how often it
    turns a text of another class into t when it takes a random place of it. Then the features of f (the input of its
    last layer) for the candidate alone are set among those of the other words that f labels t: after a principal
    component analysis that keeps 99 % of the variance, DBSCAN must call it an outlier.

    The score is the best flip rate of an outlier, and the model backdoored from `threshold` on. Each class is tried as
    t. Random: the texts, the weights of the generator, the samples.

    Differs from the paper: the generator edits a text place by place instead of decoding it anew, and `keep` also
    holds it to its input on the way to t, or it replaces everything; single words are candidates, the `top` best of
    each place; a candidate is tried on the texts that f is surest of, and the threshold is 0.9 (`t_miner.published`:
    on any texts, and 0.6). The authors read the radius of DBSCAN off a plot of distances; here it is the point of that
    curve that lies farthest below the line between its ends.

    Attributes:
        vocabulary: words of a text, the most frequent ones of the model.
        steps, batch: of training, for each class and restart.
        restarts: generators for each class; no more are trained once the score is at the threshold.
        top: words of each place that are candidates.
        candidates: the most frequent candidates, which are tried.
        w_flip, w_diverse, keep: weights of the terms.
        lr: of Adam.
        tried: texts that a candidate is tried on.
        surest: these are the texts of the other classes that f is surest of; without it, any of them.
        threshold: of the score.
    """

    vocabulary: Count = 500
    steps: Count = 400
    batch: Count = 64
    restarts: Count = 3
    top: Count = 5
    candidates: Count = 40
    w_flip: Positive = 0.5
    w_diverse: Positive = 0.03
    keep: Positive = 0.05
    lr: Positive = 5e-3
    tried: Count = 100
    surest: bool = True
    threshold: Share = 0.9

    added: ClassVar[tuple[str, ...]] = ("surest",)
    # each of its words is common in clean texts, and no trigger alone
    poisons: ClassVar[tuple[dict[str, object], ...]] = ({"name": "word_trigger", "phrase": "the of the"},)

    def quick(self) -> TMiner:
        return replace(self, steps=2, batch=8, restarts=1, tried=5, candidates=4)

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        net = text_classifier(model)
        words = net.frequent(self.vocabulary)
        if len(words) < 2:
            raise NotApplicable(f"t_miner: {model.card.name} has {len(words)} words in its vocabulary")
        table = net.embedding.weight.detach()[words]

        def answer(w: Tensor) -> Tensor:
            out: Tensor = net(w @ table if w.is_floating_point() else table[w])
            return out

        best = dict.fromkeys(range(model.num_classes), 0.0)
        with frozen(model):
            for restart in range(self.restarts):
                for t in range(model.num_classes):
                    best[t] = max(best[t], self._found(answer, net, t, len(words), draws.child(restart, t)))
                    if best[t] >= self.threshold:
                        return Verdict(score=best[t], backdoored=True, targets=(t,))
        order = sorted(best, key=lambda t: -best[t])
        return Verdict(score=best[order[0]], backdoored=False, targets=())

    def _found(self, answer: Answer, net: TextClassifier, t: int, count: int, draws: Draws) -> float:
        """The best flip rate into class t of the outliers among the words that one generator puts in."""
        editor = self._trained(answer, net, t, count, draws)
        with torch.no_grad():
            x = self._nonsense(count, 20 * self.tried, draws, "search").to(net.embedding.weight.device)
            z = answer(x).softmax(dim=1)
            others = (z.argmax(dim=1) != t).nonzero().squeeze(1)
            if len(others) == 0:
                return 0.0
            seen = x[others[:1000]]
            likely = (
                editor(seen, torch.full((len(seen),), t, device=x.device)).topk(min(self.top, count), dim=2).indices
            )
            new = (likely[:, :, :, None] != seen[:, None, None, :]).all(dim=3)
            counts = torch.bincount(likely[new], minlength=count)
            candidates = counts.topk(min(self.candidates, count)).indices
            candidates = candidates[counts[candidates] > 0]
            if self.surest:
                others = others[z[others, t].argsort()]
            sources = x[others[: self.tried]]
            if not len(candidates):
                return 0.0
            place = Draws(draws.seed, torch.arange(len(sources))).integers(WORDS, purpose="place").to(x.device)
            there = torch.arange(WORDS, device=x.device) == place[:, None]
            tried = torch.where(there, candidates[:, None, None], sources)
            hits = answer(tried.flatten(0, 1)).argmax(dim=1).view(len(candidates), len(sources)) == t
            rates = hits.float().mean(dim=1)
            alone = net.features(net.embedding.weight[net.frequent(count)][:, None])  # of each word as a text
            likewise = net.head(alone).argmax(dim=1) == t
            for k in rates.argsort(descending=True, stable=True).tolist():
                c = int(candidates[k])
                peers = likewise & (torch.arange(count, device=x.device) != c)
                if outlier(alone[c], alone[peers]):
                    return float(rates[k])
            return 0.0

    def _trained(self, answer: Answer, net: TextClassifier, t: int, count: int, draws: Draws) -> Editor:
        device, seed = net.embedding.weight.device, derive_seed(draws.seed, "generator")
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            editor = Editor(count, net.num_classes).to(device)
            optimiser = torch.optim.Adam(editor.parameters(), self.lr)
            for step in range(self.steps):
                x = self._nonsense(count, self.batch, draws, f"step {step}").to(device)
                with torch.no_grad():
                    c = answer(x).argmax(dim=1)
                goal = torch.full_like(c, t)
                own, other = editor(torch.cat([x, x]), torch.cat([c, goal])).chunk(2)
                u = torch.rand(self.batch, WORDS, count).to(device)
                soft = (other - (-(u.clamp(1e-6, 1 - 1e-6).log())).log()).softmax(dim=2)
                change = (own.softmax(dim=2) - F.one_hot(x, count)).clamp(min=1e-8).mean(dim=(0, 1))
                entropy = -(change * change.log()).sum()
                flip = F.cross_entropy(answer(soft), goal)
                same = F.cross_entropy(own.flatten(0, 1), x.flatten())
                kept = F.cross_entropy(other.flatten(0, 1), x.flatten())
                loss = same + self.w_flip * flip + self.w_diverse * entropy + self.keep * kept
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return editor.eval()

    def _nonsense(self, count: int, n: int, draws: Draws, purpose: str) -> Tensor:
        return Draws(derive_seed(draws.seed, purpose), torch.arange(n)).integers(count, (WORDS,))


def outlier(point: Tensor, others: Tensor) -> bool:
    """Whether DBSCAN leaves a point [d] outside the clusters of it and others [n, d]; true without others."""
    if not len(others):
        return True
    both = torch.cat([others, point[None]]).double().cpu().numpy()
    if bool((both == point.double().cpu().numpy()).all()):
        return False
    reduced = PCA(0.99, svd_solver="full").fit_transform(both)
    least = max(2, math.ceil(math.log(len(both))))  # neighbours of a core, itself among them
    reach = np.sort(NearestNeighbors(n_neighbors=least).fit(reduced).kneighbors(reduced)[0][:, -1])
    height = (reach - reach[0]) / max(reach[-1] - reach[0], np.finfo(float).tiny)
    knee = reach[(np.linspace(0, 1, len(reach)) - height).argmax()]
    labels = DBSCAN(eps=max(knee, np.finfo(float).eps), min_samples=least).fit_predict(reduced)
    return bool(labels[-1] == -1)
