"""SCALE-UP: the prediction of an image with a trigger does not change when all pixels are multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.train import predict
from siegebench.types import InputDetector, Positive, Scorer

from ._fitting import logits


@dataclass(frozen=True, kw_only=True)
class ScaleUp(InputDetector):
    """SPC(x) = mean over s in S of [argmax f(clip(s x)) = argmax f(x)] (Guo, Li, Chen, Guo, Sun, Liu, ICLR 2023).

    SPC: scaled prediction consistency. It needs labels only. With `clean_data` the score is (SPC - m_c) / s_c with the
    mean and standard deviation of the clean images that the model gives the same label c. A label with fewer than
    two of them takes those of all clean images; s_c is at least 1 / (2 |S|), half a step of SPC.

    Nothing is random, except a randomised model. Cost: |S| + 1 forward passes per image. Attacks get the gradient of
    the mean probability of the predicted label in place of SPC.

    Bright images give false alarms, since scaling saturates them to white.

    Attributes:
        scales: S.
        clean_data: whether scores are relative to clean images (the paper's variant with limited data); without it no
            data are used.

    Differs from the paper: no threshold is set (theirs without clean data: SPC >= 0.5). The image itself is not
    counted among the scaled ones. The lower bound of s_c and the rule for rare labels are ours.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "badnets", "rate": 0.02},)  # learnt less firmly

    scales: tuple[Positive, ...] = (3.0, 5.0, 7.0, 9.0, 11.0)
    clean_data: bool = False

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        mean, std = torch.zeros(model.num_classes), torch.ones(model.num_classes)
        if self.clean_data:
            mean, std = self._clean(model, data)

        def score(x: Tensor, draws: Draws) -> Tensor:
            label = logits(model, x, draws).argmax(dim=1)
            kept = torch.stack([z.argmax(dim=1) == label for z in self._scaled(model, x, draws)])
            spc = kept.double().mean(dim=0)
            return (spc - mean.to(spc)[label]) / std.to(spc)[label]

        def backward_model(x: Tensor, draws: Draws) -> Tensor:
            label = logits(model, x, draws).argmax(dim=1, keepdim=True)
            p = [z.softmax(dim=1).gather(1, label)[:, 0] for z in self._scaled(model, x, draws)]
            return torch.stack(p).mean(dim=0) / std.to(x)[label[:, 0]]

        return Scorer(score, backward_model)

    def _scaled(self, model: Classifier, x: Tensor, draws: Draws) -> list[Tensor]:
        """Logits of the scaled images, one [n, classes] for each scale."""
        return [logits(model, (s * x).clamp(0, 1), draws, k + 1) for k, s in enumerate(self.scales)]

    def _clean(self, model: Classifier, data: Granted) -> tuple[Tensor, Tensor]:
        """(m, s) [classes]: mean and standard deviation of the SPC of clean images, by predicted label."""
        clean = data.clean
        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        draws = Draws(0, clean.ids)
        label = predict(model, clean, draws=draws if model.randomized else None).argmax(dim=1)
        parts = []
        with torch.no_grad():
            for i in torch.arange(len(clean)).split(128):
                zs = self._scaled(model, clean.pixels(i, dtype).to(device), draws[i].to(device))
                parts.append(torch.stack([z.argmax(dim=1).cpu() == label[i] for z in zs]).double().mean(dim=0))
        spc, least = torch.cat(parts), 1 / (2 * len(self.scales))
        mean = torch.full((model.num_classes,), float(spc.mean()))
        std = torch.full((model.num_classes,), float(spc.std(correction=0)))
        for c in label.unique().tolist():
            own = spc[label == c]
            if len(own) > 1:
                mean[c], std[c] = own.mean(), own.std(correction=0)
        return mean, std.clamp(min=least)
