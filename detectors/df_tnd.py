"""DF-TND: an input that excites some neurons as far as possible raises the logit of a backdoored class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.types import Count, ModelDetector, Positive, Verdict

from ._inversion import clipped


@dataclass(frozen=True, kw_only=True)
class DFTND(ModelDetector):
    """Data-free TrojanNet detector (Wang et al., ECCV 2020).

    For `images` images x_i, a perturbation d_i in [-eps, eps], a mask m_i in [0, 1] (both of the shape of the image)
    and one weight w of the penultimate features h on the probability simplex, maximise

        mean_i w . h(clip((1 - m_i) x_i + m_i d_i, 0, 1)) - gamma sum_i |m_i|_1

    by `steps` sign steps; the l1 term also acts through soft thresholding. Then d and m are replaced by their means
    over the images, and as many steps follow in which all images share the same d and m. R_t is the mean increase of
    logit t over the images. The model is called backdoored when some R_t exceeds `threshold`; the targets are all such
    classes.

    The score is max R_t minus the median of R_t: a threshold on logits depends on the scale of the network, so compare
    the scores with those of clean models.

    Random: which images are used, or the noise.

    Cost: 2 x steps x images forward and backward passes, however many classes there are.

    Attributes:
        start: `images` from the clean set, as in the published code, or uniform `noise`, which needs no data.
        images: number of x_i.
        steps: of each of the two phases.
        step: size of a sign step, for d, m and w.
        eps: bound of |d|.
        gamma: weight of the mask's size.
        threshold: on R_t; 100 is published for a ResNet-50 on CIFAR-10.

    Differs from the paper: in the second phase the gradients of d and m are averaged over the images, so that they stay
    shared; in the published code only their start is. m starts at 0.5; in the published code at 0, where a pixel can
    only become darker, since the gradient of d vanishes with m. The score is ours.
    """

    # the trigger raises no logit on its own: another one for each class
    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "badnets.all_to_all"},)

    start: Literal["images", "noise"] = "images"
    images: Count = 10
    steps: Count = 1000
    step: Positive = 0.1
    eps: Positive = 1.0
    gamma: Positive = 1e-3
    threshold: Positive = 100.0

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        if model.num_classes < 2:
            raise NotApplicable(f"{self!r}: needs at least 2 classes, not {model.num_classes}")
        with frozen(model):
            x = self._starts(model, data.clean, derive_seed(draws.seed, "df-tnd"))
            r, d, m = self.increase(model, x)
        found = (r > self.threshold).nonzero().squeeze(1).tolist()
        picture = ((1 - m) * 0.5 + m * d).clamp(0, 1).cpu()
        shown = found or [int(r.argmax())]
        return Verdict(float(r.max() - r.median()), bool(found), tuple(found), dict.fromkeys(shown, picture))

    def _starts(self, model: Classifier, clean: ImageSet, seed: int) -> Tensor:
        parameter = next(model.parameters())
        n = self.images if self.start == "noise" else min(self.images, len(clean))
        if self.start == "noise":
            x = Draws(seed, torch.arange(n)).uniform(clean.shape, purpose="noise")
        else:
            x = clean.pixels(Draws(seed, clean.ids).order("images")[:n])
        return x.to(parameter.device, parameter.dtype)

    def increase(self, model: Classifier, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R_t [classes] float64, the shared d and m [C, H, W]) from images x [n, C, H, W]."""
        with torch.no_grad():
            before, width = model(x, _noise(model, x)), model.features(x).shape[1]
        d, m = torch.zeros_like(x), torch.full_like(x, 0.5)
        w = torch.full((width,), 1 / width, device=x.device, dtype=x.dtype)
        for phase in range(2):
            if phase == 1:
                d, m = d.mean(dim=0, keepdim=True), m.mean(dim=0, keepdim=True)
            centre = d  # the second phase keeps within eps of where it starts, as in the published code
            for _ in range(self.steps):
                gd, gm, gw = self._gradients(model, x, d, m, w)
                with torch.no_grad():
                    d = centre + (d + self.step * gd.sign() - centre).clamp(-self.eps, self.eps)
                    m = (m + self.step * gm.sign() - self.step * self.gamma).clamp(0, 1)
                    w = simplex(w + self.step * gw.sign())
        with torch.no_grad():
            raised = model(((1 - m) * x + m * d).clamp(0, 1), _noise(model, x)) - before
        return raised.double().mean(dim=0).cpu(), d[0], m[0]

    def _gradients(self, model: Classifier, x: Tensor, d: Tensor, m: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        leaves = [v.detach().requires_grad_(True) for v in (d, m, w)]
        d, m, w = leaves
        h = model.features(clipped((1 - m) * x + m * d))
        value = (h @ w).mean() - self.gamma * m.abs().sum()
        return torch.autograd.grad(value, leaves)


def simplex(v: Tensor) -> Tensor:
    """The nearest point of the probability simplex to v [n]."""
    u = v.sort(descending=True).values
    excess = u.cumsum(dim=0) - 1
    k = int((u * torch.arange(1, len(u) + 1, device=u.device) > excess).sum())
    return (v - excess[k - 1] / k).clamp(min=0)


def _noise(model: Classifier, x: Tensor) -> Draws | None:
    return Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None
