"""The binarisation test names the attacks that miss an adversarial image which surely exists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import typer
from torch import Tensor

from siegebench import registry, testing
from siegebench.classifier import Classifier, Wrapped
from siegebench.cli.checking import check
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.testing import Check, check_attacks
from siegebench.testing.binarisation import Binarisation, binarisation
from siegebench.testing.specimens import network, planted_set
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Defense
from tests import fakes

CE: dict[str, Any] = {"name": "pgd", "steps": 20}
MARGIN: dict[str, Any] = {"name": "pgd", "steps": 20, "loss": "margin"}


def tried(model: Classifier, n: int = 4, threat: ThreatModel | None = None, **attacks: dict[str, Any]) -> Binarisation:
    built = {name: registry.build(Attack, spec) for name, spec in attacks.items()}
    return binarisation(model, planted_set().pixels(slice(0, n)), built, threat, inner=60, tries=60)


class Times(Wrapped):
    """Logits times a constant."""

    def __init__(self, inner: Classifier, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.factor * self.inner(x, draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self(x, draws)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_on_a_plain_network_gradients_find_what_random_search_misses(norm: Norm, eps: float) -> None:
    found = tried(network(), threat=ThreatModel(norm=norm, eps=eps), ce=CE, margin=MARGIN)
    assert found.rates == {"ce": 1.0, "margin": 1.0}
    assert not found.failed
    assert found.random <= 0.5
    assert found.samples == 4


def test_cross_entropy_fails_behind_large_logits_and_the_margin_does_not() -> None:
    found = tried(Times(network(), 10000.0), ce=CE, margin=MARGIN)
    assert found.failed == {"ce": 0.0}
    assert found.rates["margin"] == 1.0


@pytest.mark.parametrize("fake", ["detached", "quantised"])
def test_gradients_that_are_cut_find_nothing(fake: str) -> None:
    found = tried(fakes.FAKES[fake](network()), ce=CE, margin=MARGIN, bpda={"name": "bpda", "attack": MARGIN})
    assert set(found.failed) == {"ce", "margin", "bpda"}


def test_a_good_backward_model_finds_what_the_cut_gradient_does_not() -> None:
    defended = registry.build(Defense, "bit_depth").structure(network())
    found = tried(defended, margin=MARGIN, bpda={"name": "bpda", "attack": MARGIN})
    assert found.rates == {"margin": 0.0, "bpda": 1.0}


def test_the_model_is_left_as_found_and_the_result_is_repeatable() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert tried(model, 2, margin=MARGIN) == tried(model, 2, margin=MARGIN)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_attacks_that_do_not_fit_say_why() -> None:
    found = tried(network(), 2, l2={"name": "cw"}, long={**CE, "step": 0.5})
    assert not found.rates
    assert "not linf" in found.refused["l2"]
    assert "longer than the whole ball" in found.refused["long"]


def test_models_whose_last_layer_is_hidden_or_not_alone_are_told_so() -> None:
    ensemble = registry.build(Defense, {"name": "concat_ensemble", "combine": "logits"})
    with pytest.raises(NotApplicable, match="runs 3 such layers"):
        tried(ensemble.structure(network()), 2, ce=CE)
    with pytest.raises(NotApplicable, match="l1"):
        tried(network(), 2, ThreatModel(norm="l1", eps=4.0), ce=CE)


def test_the_attacks_of_a_registered_defense_are_tested_by_name() -> None:
    found = check_attacks("median_filter", samples=2, inner=60)
    assert [c.name.split("(")[0].split(" finds")[0] for c in found] == ["autoattack", "pgd", "bpda", "bpda"]
    assert all(c.passed and not c.skipped for c in found)
    (told,) = check_attacks({"name": "concat_ensemble", "combine": "logits"}, samples=2)
    assert told.skipped
    assert "the linear layer that gives the logits" in told.name
    with pytest.raises(ConfigError, match="'pgd' is no defense"):
        check_attacks("pgd")


def test_the_command_fails_if_an_attack_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(testing, "check_entry", lambda spec: [Check("a clause", True)])
    monkeypatch.setattr(testing, "check_attacks", lambda spec: [Check("pgd finds a planted image", False, "found 0")])
    check("none", [])
    with pytest.raises(typer.Exit):
        check("none", [], deep=True)
    out = capsys.readouterr().out
    assert out.splitlines() == ["ok    a clause", "ok    a clause", "FAIL  pgd finds a planted image: found 0"]
