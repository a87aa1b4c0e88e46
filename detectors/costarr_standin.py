"""Stand-in for COSTARR: cosine to the mean of a class, of features before and after the weights of the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.types import Count, InputDetector, Scorer

from ._fitting import some


@dataclass(frozen=True, kw_only=True)
class CostarrStandin(InputDetector):
    """Score = -cos(u(x), mean u of the predicted class) * max logit; u = [g / |g|; g W_y / |g W_y|].

    The idea of Rabinowitz et al. (ICCV 2025, arXiv 2508.01087): small weights of the head attenuate features, whose
    information is then lost in the logits. Therefore both the features g before the weights of the predicted class y
    and the product g W_y after them are compared with those of training images. The max logit is scaled to [0, 1] by
    the range on training images.

    Random: which training images are used. Cost: one forward pass per image.

    Attributes:
        parts: the features that are compared: before the weights (`pre`), after them (`post`), or both.
        logit: multiply by the scaled max logit.
        images: training images that are used.

    Differs from the paper: this is a stand-in. The paper's formula could not be read and its code was not found; the
    score above is ours, built on the idea of its abstract.
    """

    parts: Literal["both", "pre", "post"] = "both"
    logit: bool = True
    images: Count = 4000

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.num_classes]
        if not head:
            raise NotApplicable(f"{model.card.name} has no linear head with {model.num_classes} outputs")
        weight, bias = head[-1].weight.detach(), head[-1].bias
        offset = torch.zeros(len(weight)) if bias is None else bias.detach()
        x, y = some(data.train, self.images, draws)

        def parts_of(x: Tensor) -> tuple[Tensor, Tensor]:
            g = model.features(x)
            z = g @ weight.to(g).T + offset.to(g)
            return g, z

        with torch.no_grad():
            device = next(model.parameters()).device
            pairs = [parts_of(x[i].to(device)) for i in batches(x, device)]
        g, z = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        label = z.argmax(dim=1)
        right = label.cpu() == y
        u = self._joined(g, weight[label])
        means = torch.zeros(len(weight), u.shape[1], dtype=u.dtype, device=u.device)
        means.index_add_(0, label[right], u[right])  # the direction of the mean: its length does not matter
        empty = means.abs().sum(dim=1) == 0  # a class without a correctly classified image: the mean of all
        means[empty] = u.mean(dim=0)
        top = z.amax(dim=1)
        low, span = float(top.min()), max(float(top.max() - top.min()), 1e-12)

        def score(x: Tensor, draws: Draws) -> Tensor:
            g, z = parts_of(x)
            best, label = z.max(dim=1)
            near = F.cosine_similarity(self._joined(g, weight.to(g)[label]), means.to(g)[label], dim=1)
            return -near * ((best - low) / span if self.logit else 1.0)

        return Scorer(score)

    def _joined(self, g: Tensor, w: Tensor) -> Tensor:
        """u of features g [n, d] with the weights w [n, d] of the predicted classes."""
        before, after = F.normalize(g, dim=1), F.normalize(g * w, dim=1)
        return {"pre": before, "post": after, "both": torch.cat([before, after], dim=1)}[self.parts]
