"""The identity of a model passed from Python: equal for the same model anywhere, another for other code or state."""

from __future__ import annotations

import copy
import functools
import importlib.util
import operator
import os
import random
import re
import subprocess
import sys
import textwrap
import warnings
from collections import defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench import given, identity, inputs
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ModelError
from tests import kit, runs

SOURCE = """
import torch
from torch import nn

LEVELS = 255

def rounded(x):
    return (x * LEVELS).round() / LEVELS

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        with torch.no_grad():
            for p in self.parameters():
                p.fill_(0.5)

    def forward(self, x):
        return self.head(rounded(x).flatten(1)) + self.shift
"""


def net(folder: Path, name: str = "mine", source: str = SOURCE) -> nn.Module:
    """The module of a source, as another process would import it."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: nn.Module = module.Net()
    return made


def test_comments_names_of_files_and_copies_do_not_count(tmp_path: Path) -> None:
    code = identity.code_of(net(tmp_path))
    assert identity.code_of(net(tmp_path)) == code
    assert identity.code_of(copy.deepcopy(net(tmp_path))) == code
    commented = "# a comment\n\n" + SOURCE.replace("return (x", "# another\n\n    return (x")
    assert identity.code_of(net(tmp_path, "elsewhere", commented)) == code


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.head(rounded(x)", "self.head((x)"),  # the method
        (".round()", ".floor()"),  # a function that it calls
        ("LEVELS = 255", "LEVELS = 16"),  # a value that the function reads
        ("def forward", "@torch.no_grad()\n    def forward"),  # a decorator
        ("torch.zeros(1)", "torch.ones(1)"),  # a buffer that is not saved
        ("super().__init__()", "super().__init__()\n        self.bits = 5"),  # an attribute
        ("+ self.shift", "+ getattr(self, 'shift')"),
        ("def rounded(x)", "def rounded(x, scale=1)"),
    ],
)
def test_any_change_of_the_code_counts(old: str, new: str, tmp_path: Path) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert identity.code_of(net(tmp_path)) != identity.code_of(net(tmp_path, "changed", changed))


class Holder(nn.Module):
    """A module with one thing inside."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


class Plain:
    """An object with attributes, as a transform is."""

    def __init__(self, value: Any) -> None:
        self.value = value


def closed(value: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x * value


def hooked(*hooks: Any) -> nn.Module:
    model = nn.Sequential(nn.ReLU())
    for hook in hooks:
        model[0].register_forward_hook(hook)
    return model


def scripted(scale: float) -> nn.Module:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(Scaled(), torch.ones(1, 3))  # type: ignore[no-any-return]


def patched(method: Any) -> nn.Module:
    model = nn.Sequential(nn.ReLU())
    model[0].forward = method.__get__(model[0])
    return model


def meta(value: float) -> Any:
    class Meta(type):
        @property
        def scale(cls) -> float:
            return value

    return Meta("Made", (), {})


def double(self: Any, x: Tensor) -> Tensor:
    return 2 * x


def triple(self: Any, x: Tensor) -> Tensor:
    return 3 * x


class Round(torch.autograd.Function):
    """Its class carries a counter of the process, which must not count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return grad[0]


DIFFERENT: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "numbers": lambda: (Holder(1), Holder(2)),
    "a number and a flag": lambda: (Holder(1), Holder(True)),
    "texts in a list": lambda: (Holder(["a", "b"]), Holder(["b", "a"])),
    "functions of torch": lambda: (Holder(torch.tanh), Holder(torch.relu)),
    "functions of numpy": lambda: (Holder(np.tanh), Holder(np.sin)),
    "functionals": lambda: (Holder(nn.functional.max_pool2d), Holder(nn.functional.max_pool1d)),
    "lambdas": lambda: (Holder(lambda x: x + 1), Holder(lambda x: x + 2)),
    "closures": lambda: (Holder(closed(2)), Holder(closed(3))),
    "partials": lambda: (Holder(functools.partial(closed, value=2)), Holder(functools.partial(closed, value=3))),
    "objects": lambda: (Holder(Plain(2)), Holder(Plain(3))),
    "objects in objects": lambda: (Holder(Plain([Plain(2)])), Holder(Plain([Plain(3)]))),
    "tensors": lambda: (Holder(torch.zeros(3)), Holder(torch.ones(3))),
    "arrays": lambda: (Holder(np.zeros(3)), Holder(np.ones(3))),
    "modules in a list": lambda: (Holder([nn.ReLU()]), Holder([nn.Tanh()])),
    "kinds of layers": lambda: (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())),
    "settings of layers": lambda: (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
    "orders of layers": lambda: (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
    "hooks": lambda: (hooked(), hooked(lambda m, a, z: 2 * z)),
    "other hooks": lambda: (hooked(lambda m, a, z: 3 * z), hooked(lambda m, a, z: 2 * z)),
    "patched methods": lambda: (patched(double), patched(triple)),
    "maxlen": lambda: (Holder(deque([1], 2)), Holder(deque([1], 3))),
    "defaults of a dict": lambda: (Holder(defaultdict(int)), Holder(defaultdict(list))),
    "decimals": lambda: (Holder(Decimal("1")), Holder(Decimal("2"))),
    "patterns": lambda: (Holder(re.compile("a")), Holder(re.compile("b"))),
    "states of random": lambda: (Holder(random.Random(1)), Holder(random.Random(2))),
    "states of numpy": lambda: (Holder(np.random.RandomState(1)), Holder(np.random.RandomState(2))),
    "states of torch": lambda: (Holder(torch.Generator()), Holder(torch.Generator().manual_seed(2))),
    "bytes that change": lambda: (Holder(bytearray(b"a")), Holder(bytearray(b"b"))),
    "getters": lambda: (Holder(operator.itemgetter(1)), Holder(operator.itemgetter(2))),
    "metaclasses": lambda: (Holder(meta(2)), Holder(meta(3))),
    "traced code": lambda: (scripted(2.0), scripted(3.0)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_state_is_different(what: str) -> None:
    one, other = DIFFERENT[what]()
    again, _ = DIFFERENT[what]()
    assert identity.code_of(one) != identity.code_of(other)
    assert identity.code_of(one) == identity.code_of(again), "the same thing made again is another"
    assert identity.code_of(one) == identity.code_of(copy.deepcopy(one))


@pytest.mark.parametrize("owner", [torch, nn.functional, Tensor])
def test_functions_of_torch_that_were_replaced_count(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.ReLU())
    before = identity.code_of(model)
    monkeypatch.setattr(owner, "relu", lambda x, inplace=False: x)
    assert identity.code_of(model) != before
    monkeypatch.undo()
    assert identity.code_of(model) == before
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, z: 2 * z)
    try:
        assert identity.code_of(model) != before
    finally:
        handle.remove()


def test_cycles_end_and_counters_of_the_process_do_not_count() -> None:
    cycle = Holder(None)
    cycle.thing = [cycle, {"self": cycle}]
    assert identity.code_of(cycle) == identity.code_of(copy.deepcopy(cycle))
    before = identity.code_of(Holder(Round))

    class Other(torch.autograd.Function):
        pass

    assert identity.code_of(Holder(Round)) == before


def test_code_without_a_file_counts() -> None:
    def made(body: str) -> nn.Module:
        space: dict[str, Any] = {"nn": nn}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", space)
        model: nn.Module = space["Net"]()
        return model

    assert identity.code_of(made("x")) == identity.code_of(made("x"))
    assert identity.code_of(made("x")) != identity.code_of(made("2 * x"))


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    here = [identity.code_of(net(tmp_path)), identity.code_of(kit.cnn_model())]
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import mine
        from siegebench import identity
        from tests import kit
        print(identity.code_of(mine.Net()), identity.code_of(kit.cnn_model()))
    """
    env = {**os.environ, "PYTHONPATH": str(runs.ROOT), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == here


# -------------------------------------------------------------------------------------------------------------- answers


def images(n: int = 10) -> ImageSet:
    x = (kit.grey_images(n, size=8) * 255).round().byte()
    return ImageSet(x, torch.zeros(n, dtype=torch.long), torch.arange(n), 3, "grey")


class Linear(nn.Module):
    """A linear model that rounds its input, or answers without a gradient."""

    def __init__(self, levels: int | None = None, blind: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(Draws(0, torch.arange(3)).normal((3 * 64,)), requires_grad=False)
        self.levels, self.blind = levels, blind

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.levels is None else (x * self.levels).round() / self.levels
        return (x.detach() if self.blind else x).flatten(1) @ self.weight.T


def answers(model: nn.Module) -> str:
    return identity.answers_of(sb.Network(model, num_classes=3), images())


def test_answers_tell_what_clean_images_do_not_show() -> None:
    plain, rounds, blind = Linear(), Linear(255), Linear(blind=True)
    x = images().pixels()
    torch.testing.assert_close(plain(x), rounds(x), atol=1e-5, rtol=0)
    assert len({answers(plain), answers(rounds), answers(blind)}) == 3


def test_answers_do_not_depend_on_rounding() -> None:
    """Other threads and processors add in another order: a relative change of 1e-6 in the weights."""
    one, other = Linear(), Linear()
    with torch.no_grad():
        other.weight.mul_(1 + 3e-7)
    assert not torch.equal(one.weight, other.weight)
    assert answers(one) == answers(other)


def test_a_module_that_draws_from_the_global_generator_has_stable_answers() -> None:
    class Noisy(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    before = torch.random.get_rng_state()
    assert answers(Noisy()) == answers(Noisy())
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator has moved"


# ------------------------------------------------------------------------------------------------------------- own copy


def test_a_model_made_in_inference_mode_or_with_a_graph_is_copied() -> None:
    with torch.inference_mode():
        inside = Linear()
        kept = Holder([torch.ones(3)])
    with inputs.gradients():
        for model in (inside, kept):
            own, _ = given.own(model, "mine", 3)
            assert not any(t.is_inference() for t in own.state_dict().values())
        x = images().pixels().requires_grad_(True)
        (g,) = torch.autograd.grad(given.own(inside, "mine", 3)[0](x).sum(), x)
    assert bool(g.any())
    graph = Linear()
    graph.seen = graph(images().pixels().requires_grad_(True))  # type: ignore[assignment]
    own, _ = given.own(graph, "mine", 3)
    assert own.net.seen.is_leaf  # type: ignore[union-attr, operator]


def test_a_model_that_cannot_be_copied_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="cannot be copied \\(TypeError"):
        given.own(Holder(i for i in range(3)), "mine", 3)


def test_the_callers_modes_are_left_and_come_back() -> None:
    x = torch.ones(2, 2)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with inputs.gradients():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.is_inference_mode_enabled()
        assert (x @ x).dtype == torch.bfloat16
