"""Arguments and models that nobody expects: refused in one line by name, or attacked, and always left as they were."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench import state
from siegebench.errors import ConfigError, ModelError
from tests.test_inputs import Around, N, batch, pgd, victim


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"x": batch()[0].to("meta")}, "images: expected a plain dense tensor, found one that is meta"),
        ({"x": batch()[0].to_sparse()}, "images: expected a plain dense tensor, found one that is torch.sparse_coo"),
        (
            {"x": batch()[0].numpy().astype(object)},
            "images: expected a tensor or a numpy array, found numpy obj",
        ),
        ({"x": [torch.rand(3, 8, 8), torch.rand(3, 8, 4)]}, "images: expected tensors of one shape"),
        (
            {"x": batch()[0][:, :, :0]},
            "images: expected float [n, C, H, W] in [0, 1], found torch.float32 (6, 3, 0, 8)",
        ),
        (
            {"x": batch()[0].clamp(max=0.5) + 0.5 + 1e-6},
            "to 1.00000095; that is rounding: use x.clamp",
        ),
        ({"queries": 1}, "attack 'pgd' does not work within queries=1: leave queries out"),
        ({"seed": "a"}, "seed: expected an integer, found 'a'"),
        ({"seed": 1.5}, "seed: expected an integer, found 1.5"),
        ({"y": batch()[1].float()}, "labels: expected 6 integers, found torch.float32 (6,); use y.long()"),
        ({"y": batch()[1][:, None]}, "labels: expected 6 integers, found torch.int64 (6, 1); use y.flatten()"),
        ({"y": batch()[1].to("meta")}, "labels: expected a plain dense tensor"),
        ({"ids": [1, 2]}, "ids: expected 6 integers"),
        ({"x": batch()[0].index_fill(0, torch.tensor([1, 4]), torch.nan)}, "in [0, 1], found NaN in 2 of 6 images"),
        ({"start": batch()[0] + 1}, "start: expected pixels in [0, 1]"),
        ({"eps": "a/b"}, "eps: expected a number or a fraction such as 8/255, found 'a/b'"),
        ({"eps": torch.tensor(0.1)}, "eps: expected a number or a fraction"),
        ({"queries": "10"}, "threat: queries is '10'; an integer"),
        ({"queries": 2.5}, "threat: queries is 2.5; an integer"),
        ({"target": np.ones(6)}, "target: expected 6 integers, found torch.float64"),
        ({"target": [10] * 6}, "target: the model has the classes 0..9"),
    ],
)
def test_other_arguments_are_refused_by_name(more: dict[str, Any], words: str) -> None:
    x, y = batch()
    given = {"x": x, "y": y, "eps": "8/255", **more}
    with pytest.raises(ConfigError) as error:
        sb.attack("pgd", steps=1)(victim(), **given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_images_labels_and_budgets_come_in_many_forms() -> None:
    x, y = batch()
    expected = pgd(victim(), x, y)
    swapped = x.numpy().astype(">f4")
    for images in (list(x), [i.clone().requires_grad_() for i in x], swapped, x.numpy()[::-1][::-1]):
        assert torch.equal(pgd(victim(), images, y), expected)
    assert torch.equal(pgd(victim(), x, y.numpy().astype(">i4")), expected)
    assert torch.equal(pgd(victim(), x, list(y)), expected)
    assert pgd(victim(), x[:0], []).shape == (0, 3, 8, 8)
    small = sb.attack("fgsm")(victim(), x, y, eps=np.float32(0.25))
    assert torch.equal(small, sb.attack("fgsm")(victim(), x, y, eps=0.25))
    aim = pgd(victim(), x, y, target=torch.full((N,), 3))
    for target in ([3] * N, np.full(N, 3), np.int64(3), 3):
        assert torch.equal(pgd(victim(), x, y, target=target), aim)


class Counts(nn.Module):
    """Counts its passes in a buffer, and takes statistics of the batch in eval mode too."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = victim(), nn.BatchNorm2d(3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        self.norm.train()(x)
        return self.net(x)  # type: ignore[no-any-return]


def test_buffers_that_a_model_changes_are_put_back() -> None:
    x, y = batch()
    model = Counts()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(pgd(model, x, y), pgd(victim(), x, y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_threads_share_a_model_and_leave_it_as_it_was() -> None:
    x, y = batch()
    model = victim().train()
    expected = pgd(model, x, y)
    both = threading.Barrier(2)

    def slow(net: nn.Module, x: Tensor) -> Any:
        if not both.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.2)
        return net(x)

    shared = Around(slow, model)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: pgd(shared, x, y), range(4)))
    assert all(torch.equal(f, expected) for f in found)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_what_threads_wait_on_is_left_alone() -> None:
    """A barrier that another thread has reached in the meantime is not set back: the thread would wait forever."""
    barrier, answered = threading.Barrier(2), victim()

    def waits(net: nn.Module, x: Tensor) -> Any:
        return net(x) if barrier else None

    with state.kept(Around(waits, answered)):
        other = threading.Thread(target=barrier.wait, args=(30,), daemon=True)
        other.start()
        while barrier.n_waiting == 0:
            time.sleep(0.01)
    assert barrier.n_waiting == 1
    barrier.wait(timeout=10)
    other.join(timeout=10)
    assert not other.is_alive()


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


def test_a_model_that_fails_later_is_blamed_in_one_line() -> None:
    x, y = batch()

    def late(net: nn.Module, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyError("first\nsecond")
        return net(x)  # type: ignore[no-any-return]

    for change, words in (
        (late, "the model fails on images (6, 3, 8, 8), torch.float32 in [0, 1]: KeyError: 'first"),
        (lambda net, x: net(torch.from_numpy(x.numpy())), "Use tensor.detach().numpy()"),
        (lambda net, x: net(NoBackward.apply(x)), "a score attack such as square needs none"),
    ):
        with pytest.raises(ModelError) as error:
            pgd(Around(change), x, y)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert sb.attack("square", queries=3)(Around(late), x, y, eps="1/255").shape == x.shape


def test_models_without_numbers_are_refused() -> None:
    x, y = batch()
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(ModelError, match=r"the model's 1.weight has no shape yet \(a lazy module\)"):
        pgd(lazy, x, y)
    with pytest.raises(ModelError, match=r"the model's layer.weight is on the device meta"):
        pgd(victim().to("meta"), x, y)
    for shape, words in (
        (lambda z: z.to("meta"), "returns meta torch"),
        (lambda z: z.to_sparse(), "returns torch.sparse"),
    ):
        with pytest.raises(ModelError, match=words):
            pgd(Around(lambda net, x, s=shape: s(net(x))), x, y)
