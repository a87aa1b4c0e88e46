"""ISSBA: a secret that a decoder reads, within the bound, different from image to image."""

from __future__ import annotations

import torch

from siegebench.draws import Draws
from tests import victims

from .planted import clean_net, victim_of


def test_the_secret_is_hidden_and_networks_learn_it() -> None:
    attack = victims.backdoor("issba", epochs=8, eps=0.15)
    test = victims.tiny_digits()[3]
    _, poisoned, ca, asr = victim_of(attack)
    material = poisoned.material
    assert material is not None
    x = test.pixels(slice(0, 100))
    out = attack.stamp(x, Draws(0, test.ids[:100]), material=material)
    change = out - x
    assert float(change.abs().max()) <= 0.15 + 1e-6
    assert not torch.equal(change[0].sign(), change[1].sign())  # each image its own
    nets = attack._nets(3)  # type: ignore[attr-defined]
    nets.load_state_dict(material)
    with torch.no_grad():
        read, plain = ((nets["decoder"](image) > 0) == attack.secret().bool() for image in (out, x))  # type: ignore[attr-defined]
    assert float(read.double().mean()) > 0.85 > float(plain.double().mean())
    assert ca > 0.95
    assert asr > 0.8
    assert victims.success_rate(clean_net(), attack, test, material) < 0.2
