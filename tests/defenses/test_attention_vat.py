"""Attention VAT: the change of the scores, in closed form."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing import texts
from siegebench.testing.specimens import of_kind
from siegebench.text import attentive
from siegebench.threat import ThreatModel
from siegebench.types import Defense, Measure

N = 6


def parts():  # type: ignore[no-untyped-def]
    from siegebench.data import TEXT
    from siegebench.testing.specimens import network

    with of_kind(TEXT):
        net = attentive(network())
    x = texts.texts(N, 64)
    x[0, 0, 0, 12:] = 0  # a short text beside long ones
    with torch.no_grad():
        e = net.embedded(x)
        real = net.real(e)
        h = net.states(e, real)
        return net, x, h, net.scores(h), real


@pytest.mark.parametrize("interpretable", [False, True])
def test_the_change_is_the_worst_small_one_and_padding_gets_none(interpretable: bool) -> None:
    net, _, h, s, real = parts()
    defense = registry.build(Defense, {"name": "attention_vat", "eps": 0.5, "interpretable": interpretable})
    r = defense.worst(net, h, s, real, Draws(0, torch.arange(N)))  # type: ignore[attr-defined]
    assert float(r[~real].abs().sum()) == 0
    if not interpretable:
        torch.testing.assert_close(r.norm(dim=1), torch.full((N,), 0.5))
    module = __import__("siegebench.defenses.attention_vat", fromlist=["answer"])
    z = module.answer(net, h, s, real)
    far = module.divergence(z, module.answer(net, h, s + r, real))
    assert bool((far >= 0).all())
    noise = Draws(1, torch.arange(N)).normal((s.shape[1],)) * real
    other = module.divergence(z, module.answer(net, h, s + 0.5 * module.unit(noise), real))
    assert interpretable or float(far.detach().mean()) > float(other.detach().mean())


def test_agreement_is_one_where_attention_is_importance() -> None:
    measure = registry.build(Measure, "attention_agreement")
    net, x, _, _, _ = parts()
    threat, draws = ThreatModel(norm="l0", eps=0.1), Draws(0, torch.arange(N))
    y = net(x).argmax(dim=1)
    found = measure(Oracle(net, threat, draws), x, y, threat, draws)["metrics"]
    assert -1 <= found["correlation"] <= 1
    assert found["texts"] in (N - 1, N)
    module = __import__("siegebench.measures.attention_agreement", fromlist=["_correlation"])
    a, real = torch.rand(3, 5), torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(module._correlation(a, 2 * a + 1, real), torch.ones(3))
    torch.testing.assert_close(module._correlation(a, -a, real), -torch.ones(3))
