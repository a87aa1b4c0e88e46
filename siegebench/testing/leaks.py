"""The contract of leaks, one function per clause; on a small network whose first layer is linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.per_image import per_image
from siegebench.testing import specimens
from siegebench.testing.specimens import CLASSES, Case, images, other_global_numbers, require, state_of
from siegebench.types import Recovered, Shared, Sharing

SIZE, M = 8, 5  # of the images, and clients of one image each


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(specimens.KIND.channels * SIZE * SIZE, 24), nn.Sigmoid(), nn.Linear(24, CLASSES)
    )


def network() -> Classifier:
    """A smooth network whose first layer is linear with a bias."""
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        net = _net()
    made = Network(
        net,
        num_classes=CLASSES,
        mean=(0.0,) * specimens.KIND.channels,
        std=(1.0,) * specimens.KIND.channels,
        rebuild=_net,
    )
    return made.fresh(0).eval().requires_grad_(False)


def private() -> tuple[Tensor, Tensor]:
    """(images [M, C, H, W], labels [M])"""
    return images(M + 2, SIZE)[2:], torch.arange(M) % CLASSES


def shared(model: Classifier, index: Tensor, sharing: str = "plain") -> Shared:
    """What some of the clients release."""
    x, y = private()
    x, y = x[index], y[index]
    rule = registry.build(Sharing, sharing)
    each = per_image(model, x, torch.nn.functional.one_hot(y, CLASSES).float())
    released = rule({k: g[:, None] for k, g in each.items()}, Draws(0, index))
    mean = images(40, SIZE)[M + 2 :].mean(dim=0)
    return Shared(released, model, rule, 1, (specimens.KIND.channels, SIZE, SIZE), mean)


def _found(case: Case, index: Tensor, scale: float = 1.0) -> Recovered:
    of = shared(network(), index)
    of.released = {k: scale * g.roll(1, 0) if scale != 1 else g for k, g in of.released.items()}
    out: Recovered = case.quick(of, Draws(0, index))
    return out


def _far(a: Recovered, b: Recovered) -> float:
    pairs = ((a.images, b.images), (a.labels, b.labels))
    return max(float((p - q).abs().max()) for p, q in pairs if p is not None and q is not None)


EVERY = torch.arange(M)


def returns_images_or_labels_of_the_right_form(case: Case) -> None:
    case.kept["found"] = _found(case, EVERY)  # its __call__ checks the rest


def gives_the_same_result_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        far = _far(_found(case, EVERY), case.kept["found"])
    require(far == 0, f"a second run differs by {far:.2g}")


def treats_a_client_alone_as_among_others(case: Case) -> None:
    found = case.kept["found"]
    for index in (torch.tensor([3]), torch.tensor([4, 1])):
        images, labels = (None if v is None else v[index] for v in (found.images, found.labels))
        far = _far(_found(case, index), Recovered(images, labels))
        require(far < 1e-2, f"the result of client {int(index[0])} differs by {far:.2g} among other clients")


def uses_what_was_released(case: Case) -> None:
    if case.control:
        return
    far = _far(_found(case, EVERY, scale=2.0), case.kept["found"])
    require(far > 1e-3, "other gradients give the same images and labels")


def leaves_the_model_as_found(case: Case) -> None:
    model = network()
    before = state_of(model)
    case.quick(shared(model, EVERY), Draws(0, EVERY))
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the model")


CLAUSES = (
    returns_images_or_labels_of_the_right_form,
    gives_the_same_result_for_the_same_draws,
    treats_a_client_alone_as_among_others,
    uses_what_was_released,
    leaves_the_model_as_found,
)
