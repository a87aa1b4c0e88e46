"""Shared by the adapters to other libraries: arguments, random state, and the choice of the returned points."""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws, derive_seed
from siegebench.errors import BudgetExhausted, MissingExtra, did_you_mean
from siegebench.oracle import Oracle
from siegebench.threat import Access, Norm, ThreatModel, parse_number
from siegebench.types import Attack

BUDGETS = ("eps", "max_epsilon")  # the libraries' names for eps
FILLED = {  # parameters that users cannot set, and where they come from
    "model": "the victim", "estimator": "the victim", "classifier": "the victim", "n_classes": "the victim",
    "norm": "the threat model", "seed": "the cell's seed", "targeted": "the suite: attacks are untargeted",
    "verbose": "siegebench", "summary_writer": "siegebench",
}  # fmt: skip
SLACK = 1e-5  # an overshoot up to this size, or this fraction of eps, counts as rounding error of the library


class Known(NamedTuple):
    """Access and norms of a class of another library, which the library does not declare."""

    needs: Access
    norms: tuple[Norm, ...]


@contextlib.contextmanager
def contained(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all generators that other libraries use, and silence stdout; restore both at the end.

    The global generators of Python, NumPy and torch start from the seed. Generators that are made or seeded without a
    seed inside (`numpy.random.RandomState()`, `default_rng()`, `random.Random()`) start from it too, instead of from
    entropy of the operating system.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        _no_entropy(seed),
    ):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _no_entropy(seed: int) -> Iterator[None]:
    """Seed the generators that would ask the operating system for a seed.

    What they get depends on the module that makes them and on how many it has made. A module that is imported for the
    first time, and draws while it is, therefore changes nothing for the others.
    """
    made = Counter[str]()

    def bits(count: int) -> int:
        frame = sys._getframe(1)
        while (name := frame.f_globals.get("__name__", "")) in (__name__, "random") and frame.f_back is not None:
            frame = frame.f_back
        made[name] += 1
        return random.Random(f"{seed} {name} {made[name]}").getrandbits(count)

    def given(seed: Any) -> Any:
        return bits(32) if seed is None else seed

    py_seed, np_seed, method = random.seed, np.random.seed, random.Random.seed
    replaced = (
        (np.random.bit_generator, "randbits", bits),  # all of NumPy's generators get their entropy there
        (np.random, "seed", lambda seed=None: np_seed(given(seed))),
        (random, "seed", lambda a=None, version=2: py_seed(given(a), version)),
        (random.Random, "seed", lambda self, a=None, version=2: method(self, given(a), version)),
        (torch, "seed", lambda: torch.manual_seed(bits(32)).initial_seed()),
    )
    with contextlib.ExitStack() as stack:
        for where, name, new in replaced:
            stack.enter_context(mock.patch.object(where, name, new))
        yield


class Foreign(Attack):
    """An attack of another library. Adapters are dataclasses with the fields below, and write `once`.

    Attributes:
        target: the class.
        options: its parameters.
        batched: the whole batch in one call.
    """

    library: ClassVar[str]
    module: ClassVar[str]
    known: ClassVar[dict[str, Known]]

    target: str
    options: dict[str, Any]
    batched: bool

    @abstractmethod
    def once(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
        """Construct the attack and run it on these images."""

    def __post_init__(self) -> None:
        self.resolved()  # raises for unknown names before anything is computed

    def access(self) -> Access:
        return self.known[self.target].needs

    def handles(self) -> tuple[Norm, ...]:
        return self.known[self.target].norms

    def minimises(self) -> bool:
        return self.radius() is None

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "options": self.resolved()}

    def foreign(self) -> Any:
        """The class.

        Raises:
            ValueError: when it is not among the known ones, with the nearest name.
            MissingExtra: when the library is not installed.
        """
        if self.target not in self.known:
            near = did_you_mean(self.target, self.known)
            raise ValueError(f"{self.library} has no attack {self.target!r} that runs here. {near}")
        try:
            return getattr(import_module(self.module), self.target)
        except ImportError:
            raise MissingExtra(self.library, self.library, f"the attack {self.library}/{self.target}") from None

    def accepted(self) -> dict[str, Any]:
        """The parameters of the class with their defaults."""
        return {name: p.default for name, p in inspect.signature(self.foreign()).parameters.items()}

    def radius(self) -> str | None:
        """The name of the parameter that holds eps; None for an attack that minimises."""
        return next((name for name in BUDGETS if name in self.accepted()), None)

    def resolved(self) -> dict[str, Any]:
        """All parameters of the attack: those given by the user, and the defaults of the installed version.

        eps is listed only when the user gives it; otherwise it is the threat model's.

        Raises:
            ValueError: for an option that the class does not have, or that users cannot set.
        """
        accepted = self.accepted()
        free = {k: v for k, v in accepted.items() if k not in FILLED}
        for key in self.options:
            if key in accepted and key in FILLED:
                raise ValueError(f"{key} comes from {FILLED[key]}; leave it out")
            if key not in free:
                raise ValueError(f"{self.target} has no parameter {key!r}. {did_you_mean(key, free)}")
        chosen = {k: v for k, v in free.items() if k not in BUDGETS} | {
            k: _read(v, free[k]) for k, v in self.options.items()
        }
        return {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}

    def make(self, model: Any, threat: ThreatModel, norm: Any, classes: int, seed: int) -> Any:
        """The attack on a model, with all its parameters."""
        accepted, eps = self.accepted(), self.radius()
        filled = {"norm": norm, "n_classes": classes, "seed": seed % 2**31, "targeted": False, "verbose": False}
        given = {k: v for k, v in filled.items() if k in accepted}
        if eps is not None:
            given[eps] = threat.eps
        for key, value in self.resolved().items():
            given[key] = tuple(value) if isinstance(accepted[key], tuple) else value
        return self.foreign()(model, **given)

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """Run sample by sample (or on the whole batch) and return the best point that was queried.

        One more forward pass decides whether the returned point is misclassified. If it is not, or if the queries ran
        out, the nearest misclassified point that the attack queried within the budget is returned instead.
        """
        x_adv = x.clone()
        if threat.eps == 0 and not self.minimises():
            return x_adv
        every = torch.arange(len(x), device=x.device)
        for part in [every] if self.batched else every.split(1):
            view = oracle[part].watching(x[part], y[part])
            seed = derive_seed(draws.seed, self.library, *draws.ids[part].tolist())
            try:
                with contained(seed, x.device):
                    found = self.once(view, x[part].clone(), y[part].clone(), threat, seed).detach().to(x)
            except BudgetExhausted:
                found = x[part]
            x_adv[part] = self._better(view, found, y[part], threat)
        return x_adv if self.minimises() else _settled(x_adv, x, threat)

    def _better(self, view: Oracle, found: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """The returned point, or the best queried point if the returned one is not misclassified."""
        best, far = view.best()
        usable = far.isfinite() if self.minimises() else far <= threat.limit
        if not bool(usable.any()):
            return found
        try:
            failed = view.labels(found) == y
        except BudgetExhausted:
            failed = torch.ones_like(usable)
        return torch.where(ops.over(usable & failed, found), best, found)


def _read(value: Any, default: Any) -> Any:
    """Parse text such as 2/255 if the parameter is a number."""
    number = isinstance(default, (int, float)) and not isinstance(default, bool)
    return parse_number(value) if number and isinstance(value, str) else value


def _settled(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Project a rounding-sized overshoot back; leave a larger violation, which the contract then reports.

    An L1 norm is a sum over all pixels, so that its rounding error grows with eps.
    """
    low, high = x_adv.flatten(1).amin(dim=1), x_adv.flatten(1).amax(dim=1)
    near = threat.size(x_adv, x) <= threat.eps + SLACK * max(1.0, threat.eps)
    slight = near & (low >= -SLACK) & (high <= 1 + SLACK)
    return torch.where(ops.over(slight, x), threat.project(x_adv, x), x_adv)
