"""Gradients of the weights for each image by itself, by torch.func: what a client computes, and what DP-SGD clips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from siegebench.classifier import Classifier
from siegebench.errors import NotApplicable

Gradients = dict[str, Tensor]  # by the name of the parameter


def weights_of(model: Classifier) -> Gradients:
    """The parameters whose gradients are shared, detached."""
    return {name: p.detach() for name, p in model.named_parameters()}


def soft_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """-sum_k y_k log softmax(z)_k, the mean over the images; y [n, classes] are probabilities."""
    return -(y * F.log_softmax(z, dim=1)).sum(dim=1).mean()


def per_image(model: Classifier, x: Tensor, y: Tensor) -> Gradients:
    """Gradients of the cross-entropy of each image, `{parameter: [n, ...]}`; differentiable in x and y.

    Args:
        model: in eval mode, so that batch norms use their running statistics and no image touches another's gradient.
        x: images [n, C, H, W].
        y: probabilities [n, classes].
    """
    return batched(model, x[:, None], y[:, None])


def batched(model: Classifier, x: Tensor, y: Tensor) -> Gradients:
    """Mean gradients of m batches, `{parameter: [m, ...]}`; differentiable in x and y.

    Args:
        x: m batches of n images, [m, n, C, H, W].
        y: [m, n, classes].

    Raises:
        NotApplicable: when the network has no weights, or torch.func cannot follow it.
    """
    if not weights_of(model):
        raise NotApplicable(f"{model.card.name} has no weights whose gradients a client could share")
    buffers = dict(model.named_buffers())

    def loss(weights: Gradients, images: Tensor, labels: Tensor) -> Tensor:
        return soft_cross_entropy(functional_call(model, (weights, buffers), (images,)), labels)

    try:
        with sdpa_kernel(SDPBackend.MATH):  # other attentions have no second derivative
            found: Gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights_of(model), x, y)
    except RuntimeError as error:
        raise NotApplicable(f"{model.card.name}: per-image gradients fail in torch.func: {str(error)[:200]}") from error
    return found


def flat(gradients: Gradients) -> Tensor:
    """All entries of m gradients as rows, [m, P], in the order of the parameters."""
    return torch.cat([g.flatten(1) for g in gradients.values()], dim=1)


def scaled(gradients: Gradients, by: Tensor) -> Gradients:
    """Each gradient times its factor; `by` is [m], or [m, n] for leaves [m, n, ...]."""
    return {k: g * by.view(*by.shape, *[1] * (g.dim() - by.dim())) for k, g in gradients.items()}


def clipped(per_image: Gradients, norm: float) -> Gradients:
    """g_i min(1, norm / |g_i|), over all parameters together, for leaves [m, n, ...]."""
    sizes = torch.stack([g.flatten(2).square().sum(dim=2) for g in per_image.values()]).sum(dim=0).sqrt()
    return scaled(per_image, (norm / sizes.clamp(min=1e-12)).clamp(max=1.0))
