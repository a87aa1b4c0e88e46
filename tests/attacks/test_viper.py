"""VIPER: what it changes, how much, and what its shields undo."""

from __future__ import annotations

import torch

from siegebench import registry
from siegebench.classifier import Classifier, ModelCard
from siegebench.data import TEXT
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.text import encoded
from siegebench.threat import ThreatModel
from siegebench.types import Attack, Defense

SENTENCE = "The quick brown fox jumps over the lazy dog"
N = 40


class Echo(Classifier):
    """Keeps what it reads."""

    num_classes, kind, card = 2, TEXT, ModelCard("echo")

    def forward(self, x: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        self.seen = x
        return x.new_zeros(len(x), 2, dtype=torch.float32)


def attacked(spec: object, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = encoded([SENTENCE] * N, 64)
    threat, draws = ThreatModel(norm="l0", eps=eps, access="none"), Draws(0, torch.arange(N))
    attack = registry.build(Attack, spec)  # type: ignore[arg-type]
    return attack(Oracle(Echo(), threat, draws), x, torch.zeros(N, dtype=torch.long), threat, draws), x


def read_by(defense: str, x: torch.Tensor) -> torch.Tensor:
    model = Echo()
    registry.build(Defense, defense).wrap(model)(x)
    return model.seen


def test_p_is_the_share_of_letters_and_the_budget_its_limit() -> None:
    z, x = attacked("viper", 0.4)
    share = ThreatModel(norm="l0", eps=0.4, access="none").size(z, x)
    assert float(share.max()) <= 0.4
    letters = 35 / 43
    assert 0.28 < float(share.mean()) < 0.4 * letters + 0.02
    changed = z != x
    assert bool(((x >= 65) | ~changed).all())  # blanks stay


def test_at_p_1_every_letter_becomes_another_of_the_same_case() -> None:
    z, x = attacked("viper", 1.0)
    letter = (x >= 65) & (x < 128)
    assert bool((z[letter] != x[letter]).all())
    back = read_by("homoglyph_names", z)
    assert torch.equal(back, x)  # names undo the rule exactly
    partly = read_by("unicode_nfkd", z)
    assert 0.2 < float((partly == x)[letter].float().mean()) < 0.9


def test_a_decomposition_undoes_diacritics_exactly() -> None:
    z, x = attacked("viper.eces", 1.0)
    letter = (x >= 65) & (x < 128)
    q = x == ord("q")  # which has no letter with a diacritic
    assert torch.equal((z != x) & letter, letter & ~q)
    assert torch.equal(read_by("unicode_nfkd", z), x)


def test_lookalikes_are_what_names_do_not_undo() -> None:
    z, x = attacked("viper.lookalikes", 1.0)
    assert float((read_by("homoglyph_names", z) != x).flatten(1).float().mean()) > 0.3


def test_the_halves_of_the_neighbours_share_no_character() -> None:
    even, odd = (attacked(f"viper.{half}", 1.0) for half in ("even", "odd"))
    new = [{*z[(z != x)].tolist()} for z, x in (even, odd)]
    assert new[0]
    assert new[1]
    assert not new[0] & new[1]


def test_rewriting_passes_embeddings_unchanged() -> None:
    model = Echo()
    e = torch.randn(2, 3, 4)
    registry.build(Defense, "unicode_nfkd").wrap(model)(e)
    assert model.seen is e
