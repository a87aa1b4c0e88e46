"""VIPER: what it changes, how much, and what its shields undo."""

from __future__ import annotations

import importlib
import unicodedata
from types import ModuleType

import pytest
import torch

from siegebench import registry
from siegebench.classifier import Classifier, ModelCard
from siegebench.data import TEXT
from siegebench.draws import Draws
from siegebench.errors import DataError
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


# ------------------------------------------------------------------------------------------------ pictures of letters


def glyphs() -> ModuleType:
    found = importlib.import_module("siegebench.attacks._glyphs")
    if found.font_file() is None:
        pytest.skip("needs the font DejaVu Sans")
    return found


def test_the_nearest_picture_is_that_of_a_twin_in_another_alphabet() -> None:
    near = glyphs().alike("a", 30_000, 20)
    assert near[0] == (ord("\u0430"), 1.0)  # the Cyrillic a is drawn as the Latin one
    cosines = [cosine for _, cosine in near]
    assert cosines == sorted(cosines, reverse=True)
    assert len(dict(near)) == 20
    assert all(128 <= point < 30_000 for point in dict(near))
    assert {"\u00e1", "\u1ea1"} <= set(map(chr, dict(near)))  # with an acute, and with a dot below
    assert ord("x") not in dict(glyphs().alike("x", 30_000, 20))


def test_pictures_of_letters_are_what_a_font_draws() -> None:
    points, vectors = glyphs().pictures(1000)
    assert points.max() < 1000
    torch.testing.assert_close(torch.tensor(vectors).norm(dim=1), torch.ones(len(points)))
    names = [unicodedata.name(chr(p)) for p in points.tolist()]
    assert not any("COMBINING" in name or "SPACE" in name for name in names)
    assert ord("\u05d0") not in glyphs().pictures(2000)[0]  # alef, written from right to left


def test_attacks_by_pictures_change_every_letter_and_names_do_not_undo_them() -> None:
    glyphs()
    z, x = attacked("viper.ices", 1.0)
    letter = (x >= 65) & (x < 128)
    assert bool((z[letter] >= 128).all())
    assert torch.equal(z[~letter], x[~letter])
    left = float((read_by("homoglyph_names", z) == x)[letter].float().mean())
    assert 0.3 < left < 0.95
    viper = importlib.import_module("siegebench.attacks.viper")
    even, odd = (viper.neighbours("ices", half)[0][ord("a")].unique() for half in ("even", "odd"))
    assert {*even.tolist()} & {*odd.tolist()} == {0}  # ten neighbours each, and no more


def test_the_key_of_an_attack_by_pictures_has_its_font(monkeypatch: pytest.MonkeyPatch) -> None:
    module = glyphs()
    assert len(registry.build(Attack, "viper.ices").identity()["font"]) == 64
    assert registry.build(Attack, "viper").identity() == {}
    monkeypatch.setattr(module, "font_file", lambda: None)
    module.pictures.cache_clear()
    assert registry.build(Attack, "viper.ices").identity() == {"font": None}
    with pytest.raises(DataError, match="install DejaVu Sans"):
        module.pictures(1000)
