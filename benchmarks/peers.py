"""How the other libraries on PyPI are called, each as its documentation says, with the budget of ours.

A peer is a function of (model, x, y, threat) that returns adversarial images. Those under a query budget run through
our Oracle, which cuts them off at the budget and keeps their best point; the others see a counted network.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from bench import Counted
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import BudgetExhausted
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel

Peer = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]
LIBRARIES = (
    "torchattacks", "art.attacks.evasion", "art.estimators.classification", "foolbox", "pyautoattack.autoattack",
    "adv_lib.attacks",
)  # fmt: skip
NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ORDER: dict[str, Any] = {"linf": float("inf"), "l2": 2, "l1": 1}


def load() -> list[str]:
    """Import what is installed, so that no clock sees it; the names of what is not."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv_lib imports it for plots that nobody draws here
    missing = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def torchattacks(name: str, *, norm: bool = False, eps: bool = True, **options: Any) -> Peer:
    """A class of torchattacks; options may be functions of eps."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        import torchattacks as library

        given = {k: v(threat.eps) if callable(v) else v for k, v in options.items()}
        given |= {"norm": NORM[threat.norm]} if norm else {}
        given |= {"eps": threat.eps} if eps else {}
        attack = getattr(library, name)(model, **given)
        attack.set_device(x.device)
        out: Tensor = attack(x, y)
        return out

    return run


def art(name: str, *, norm: bool = True, eps: bool = True, softmax: bool = False, **options: Any) -> Peer:
    """An attack of the Adversarial Robustness Toolbox on a PyTorchClassifier, of probabilities where it wants them."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        import numpy as np
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            model=nn.Sequential(model, nn.Softmax(dim=1)) if softmax else model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            clip_values=(0, 1),
        )
        given = {k: v(threat.eps) if callable(v) else v for k, v in options.items()}
        given |= {"norm": np.inf if threat.norm == "linf" else ORDER[threat.norm]} if norm else {}
        given |= {"eps": threat.eps} if eps else {}
        attack = getattr(evasion, name)(estimator, batch_size=len(x), **given)
        if hasattr(attack, "set_params") and "verbose" in attack.attack_params:
            attack.set_params(verbose=False)
        labels = np.eye(10, dtype=np.float32)[y.numpy()]
        return torch.from_numpy(attack.generate(x.numpy(), y=labels)).float()

    return run


def foolbox(name: str, **options: Any) -> Peer:
    """An attack of foolbox; those that minimise are asked for no eps."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        import foolbox as library

        given = {k: v(threat.eps) if callable(v) else v for k, v in options.items()}
        attack = getattr(library.attacks, name)(**given)
        minimal = isinstance(attack, library.attacks.base.MinimizationAttack)
        adversary = library.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
        out: Tensor = attack(adversary, x, y, epsilons=None if minimal else threat.eps)[1]
        return out

    return run


def adv_lib(name: str, **options: Any) -> Peer:
    """A function of adversarial-library."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        from adv_lib import attacks as library

        given = {k: v(threat.eps) if callable(v) else v for k, v in options.items()}
        out: Tensor = getattr(library, name)(model, x, y, **given)
        return out

    return run


def pyautoattack(*members: str, queries: int = 5000) -> Peer:
    """The reference AutoAttack, or some of its members."""

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        from pyautoattack.autoattack import AutoAttack

        version = "custom" if members else "standard"
        reference = AutoAttack(
            model, norm=NORM[threat.norm], eps=threat.eps, seed=0, version=version, device=str(x.device),
            attacks=list(members) or None,
        )  # fmt: skip
        if members:
            reference.apgd.n_restarts = reference.apgd_targeted.n_restarts = reference.fab.n_restarts = 1
            reference.square.n_queries = queries
            if threat.norm == "l1":  # as its standard version
                reference.apgd.use_largereps = reference.apgd_targeted.use_largereps = True
                reference.apgd_targeted.n_target_classes = 5
        out: Tensor = reference.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return out

    return run


def budgeted(peer: Peer, *, single: bool = False) -> Peer:
    """The peer under the threat's access and query budget: it keeps the nearest misclassified point it has shown.

    Args:
        single: one image at a time, for what mixes samples.
    """

    def one(model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, int]:
        oracle = Oracle(model, threat, Draws(0, torch.arange(len(x))), watch=(x, y))
        with suppress(BudgetExhausted):  # as intended: what it had found by then counts
            peer(oracle, x, y, threat)
        return oracle.best()[0], int(oracle.ledger.forwards.sum())

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        assert isinstance(model, Counted)
        parts = [slice(i, i + 1) for i in range(len(x))] if single else [slice(0, len(x))]
        found = []
        for part in parts:
            x_adv, forwards = one(model.model, x[part], y[part], threat)
            model.forwards += forwards
            found.append(x_adv)
        return torch.cat(found)

    return run
