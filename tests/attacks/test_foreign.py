"""Attacks of torchattacks and ART through the oracle: the same numbers, exact counts, nothing leaks."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from siegebench.attacks._foreign import Foreign, Known, contained
from siegebench.attacks.art import ART
from siegebench.attacks.torchattacks import KNOWN, Torchattacks
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, MissingExtra
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

torchattacks = pytest.importorskip("torchattacks")
pytest.importorskip("art")

LINF = ThreatModel(eps=0.1)


def correct(model: Classifier, n: int = 4, size: int = 8) -> tuple[Tensor, Tensor]:
    x = kit.grey_images(n, size)
    return x, model(x).argmax(1)


def states() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# ------------------------------------------------------------------------------------------------ the same attack


def test_torchattacks_through_the_oracle_is_torchattacks(cnn: Classifier) -> None:
    x, y = correct(cnn, size=16)
    options = {"alpha": 0.02, "steps": 7, "random_start": False}
    x_adv, oracle = kit.attack_with(Torchattacks(target="PGD", options=options), cnn, x, y, ThreatModel(eps=0.05))
    direct = torchattacks.PGD(cnn, eps=0.05, **options)(x, y)
    cnn.eval()
    torch.testing.assert_close(x_adv, direct)
    assert oracle.ledger.forwards.tolist() == [7] * 4
    assert oracle.ledger.backwards.tolist() == [7] * 4


def test_art_through_the_oracle_is_art(linear: Classifier) -> None:
    x, y = correct(linear)
    x_adv, oracle = kit.attack_with(ART(target="FastGradientMethod"), linear, x, y, LINF)
    g, _, _ = oracle.gradient(x, lambda z: ops.cross_entropy(z, y))
    torch.testing.assert_close(x_adv, (x + 0.1 * g.sign()).clamp(0, 1))


@pytest.mark.parametrize(
    "attack",
    [
        Torchattacks(target="PGD"),
        Torchattacks(target="APGD"),
        Torchattacks(target="MIFGSM"),
        ART(target="ProjectedGradientDescentPyTorch", options={"eps_step": 0.02, "max_iter": 10, "num_random_init": 1}),
    ],
    ids=repr,
)
def test_deterministic_counted_independent_of_the_batch(linear: Classifier, attack: Foreign) -> None:
    x, y = correct(linear)
    torch.manual_seed(5)
    first, oracle = kit.attack_with(attack, linear, x, y, LINF)
    assert bool((linear(first).argmax(1) != y).all())
    assert int(oracle.ledger.forwards.min()) > 0
    torch.manual_seed(6)  # the global state is of no influence
    np.random.seed(6)
    again, _ = kit.attack_with(attack, linear, x, y, LINF)
    assert torch.equal(first, again)
    for i in torch.arange(4).flip(0).split(1):
        draws = Draws(0, i)
        single = Oracle(linear, LINF, draws)
        alone = attack(single, x[i], y[i], LINF, draws)
        assert torch.equal(alone, first[i])
        assert torch.equal(single.ledger.forwards, oracle.ledger.forwards[i])


def test_seeds_differ_by_cell_and_by_sample(linear: Classifier) -> None:
    x = kit.grey_images(1).expand(2, -1, -1, -1).contiguous()
    y = linear(x).argmax(1)
    attack, threat = Torchattacks(target="APGD", options={"steps": 2}), ThreatModel(eps=1e-4)
    zero, one = (kit.attack_with(attack, linear, x, y, threat, seed)[0] for seed in (0, 1))
    noise, _ = kit.attack_with(Torchattacks(target="GN"), linear, x, y, threat)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(kit.attack_with(Torchattacks(target="GN"), linear, x, y, threat, 1)[0], noise)
    assert zero.shape == one.shape


@pytest.mark.parametrize("target", ["Square", "APGD", "GN"])
def test_global_random_state_and_stdout_are_as_before(
    linear: Classifier, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = correct(linear, 2)
    options = {"n_queries": 20} if target == "Square" else {}
    before = states()
    kit.attack_with(Torchattacks(target=target, options=options), linear, x, y, LINF)
    assert states() == before
    assert capsys.readouterr().out == ""


def test_random_state_is_put_back_after_an_error() -> None:
    before = states()

    def draw_and_fail() -> None:
        with contained(3, torch.device("cpu")):
            print(torch.rand(1), np.random.rand(), random.random())
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert states() == before


def test_batched_is_one_call(linear: Classifier) -> None:
    x, y = correct(linear)
    one, _ = kit.attack_with(Torchattacks(target="FGSM"), linear, x, y, LINF)
    whole, oracle = kit.attack_with(Torchattacks(target="FGSM", batched=True), linear, x, y, LINF)
    torch.testing.assert_close(whole, one)
    assert oracle.ledger.backwards.tolist() == [1] * 4


def test_double_precision(linear: Classifier) -> None:
    model = linear.double()
    x, y = kit.grey_images(2).double(), None
    y = model(x).argmax(1)
    for attack in (Torchattacks(target="PGD"), ART(target="FastGradientMethod")):
        x_adv, _ = kit.attack_with(attack, model, x, y, LINF)
        assert x_adv.dtype == torch.float64
        assert bool((model(x_adv).argmax(1) != y).all())


# ------------------------------------------------------------------------------------------- access, budget, watch


def test_score_attacks_run_on_scores_and_others_do_not(linear: Classifier) -> None:
    x, y = correct(linear)
    threat = ThreatModel(eps=0.3, access="score", queries=100)
    square = Torchattacks(target="Square", options={"n_queries": 90})
    x_adv, oracle = kit.attack_with(square, linear, x, y, threat)
    assert bool((linear(x_adv).argmax(1) != y).all())
    assert oracle.ledger.backwards.tolist() == [0] * 4
    assert int(oracle.ledger.queries.max()) <= 100
    with pytest.raises(ContractError, match="needs gradient access"):
        kit.attack_with(Torchattacks(target="PGD"), linear, x, y, threat)


@pytest.mark.parametrize("queries", [150, 700])
def test_cut_off_by_its_queries_it_still_yields_its_best_point(linear: Classifier, queries: int) -> None:
    x, y = correct(linear, 2)
    threat = ThreatModel(norm="l2", eps=1.0, access="label", queries=queries)
    attack = ART(target="HopSkipJump", options={"max_iter": 50})
    x_adv, oracle = kit.attack_with(attack, linear, x, y, threat)
    # it would go on for long, and asks for up to 64 images at once: what does not fit is refused
    assert queries - 64 < int(oracle.ledger.queries.min()) <= int(oracle.ledger.queries.max()) <= queries
    assert oracle.ledger.backwards.tolist() == [0] * 2
    assert bool((linear(x_adv).argmax(1) != y).all())
    assert not torch.equal(x_adv, x)


@dataclass(frozen=True, kw_only=True)
class Planted(Foreign):
    """Shows the victim some points, then returns others; `target` says which."""

    norms: ClassVar[Any] = ("linf",)
    library: ClassVar[str] = "planted"
    module: ClassVar[str] = "torchattacks"
    known: ClassVar[dict[str, Known]] = KNOWN

    target: str = "FGSM"
    options: dict[str, Any] = field(default_factory=dict)
    batched: bool = False
    shown: tuple[float, ...] = ()
    returned: float = 0.0

    def once(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad():
            (g,) = torch.autograd.grad(ops.margin(oracle(leaf), y).sum(), leaf)
        for step in self.shown:
            oracle((x + step * g.sign()).clamp(0, 1))
        return x + self.returned * g.sign()


@dataclass(frozen=True, kw_only=True)
class Spread(Planted):
    """The same under L1."""

    known: ClassVar[dict[str, Known]] = {"FGSM": Known("gradient", ("l1",))}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("shown", "returned", "expected"),
    [
        ((0.09, 0.08), 0.0, 0.08),  # it lost its way: the nearest point seen comes back
        ((0.09, 0.08), 0.1, 0.1),  # its own point is good and stays
        ((0.2,), 0.0, 0.0),  # what it saw is outside the budget
        ((), 0.1, 0.1),
    ],
)
def test_the_best_point_seen_is_returned_where_the_own_one_fails(
    linear: Classifier, batched: bool, shown: tuple[float, ...], returned: float, expected: float
) -> None:
    x, y = correct(linear)
    x_adv, _ = kit.attack_with(Planted(shown=shown, returned=returned, batched=batched), linear, x, y, LINF)
    torch.testing.assert_close((x_adv - x).flatten(1).abs().amax(1), torch.full((4,), expected))


def test_rounding_is_forgiven_and_a_broken_budget_is_not(linear: Classifier) -> None:
    x, y = correct(linear)
    x_adv, _ = kit.attack_with(Planted(returned=0.1 + 5e-6), linear, x, y, LINF)
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-7
    with pytest.raises(ContractError, match="budget"):
        kit.attack_with(Planted(returned=0.1 + 5e-5), linear, x, y, LINF)
    with pytest.raises(ContractError, match="budget"):
        kit.attack_with(Torchattacks(target="PGD", options={"eps": "40/255"}), linear, x, y, LINF)
    with pytest.raises(ContractError, match="not in \\[0, 1\\]"):
        kit.attack_with(Planted(returned=0.5), linear, x, y, ThreatModel(eps=0.6))


def test_rounding_errors_of_a_sum_grow_with_eps(linear: Classifier) -> None:
    x, y = correct(linear)
    wide = ThreatModel(norm="l1", eps=50.0)
    each = 50 / x[0].numel()  # the same change of every pixel
    for attack in (Spread(returned=each * (1 + 4e-7)), Spread(shown=(each * (1 + 4e-7),))):  # 2e-5 too far
        x_adv, _ = kit.attack_with(attack, linear, x, y, wide)
        assert float(wide.size(x_adv, x).min()) > 49.99
        assert float(wide.size(x_adv, x).max()) <= 50 * (1 + 1e-6)
    with pytest.raises(ContractError, match="budget"):
        kit.attack_with(Spread(returned=each * (1 + 2e-5)), linear, x, y, wide)  # 1e-3 too far


# ------------------------------------------------------------------------------------------------------ parameters


def test_names_and_options_are_checked_before_anything_runs() -> None:
    for spec, message in (
        ({"name": "torchattacks/PDG"}, "Did you mean PGD"),
        ({"name": "torchattacks/PGD", "stepz": 3}, "Did you mean steps"),
        ({"name": "torchattacks/APGD", "norm": "L2"}, "norm comes from the threat model"),
        ({"name": "torchattacks/APGD", "seed": 3}, "seed comes from the cell's seed"),
        ({"name": "torchattacks/PGD", "alpha": "2/0"}, "fraction"),
        ({"name": "art/HopSkipJumpp"}, "Did you mean HopSkipJump"),
        ({"name": "art/BoundaryAttack", "targeted": True}, "untargeted"),
        ({"name": "art/CarliniL2Method", "max_itr": 3}, "Did you mean max_iter"),
        ({"name": "art/GeneratorX"}, "no attack"),
    ):
        with pytest.raises(ConfigError, match=message):
            registry.build("attack", spec)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(MissingExtra, match=r"siegebench\[torchattacks\]"):
        registry.build("attack", "torchattacks/PGD")
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    with pytest.raises(MissingExtra, match=r"siegebench\[art\]"):
        registry.build("attack", "art/HopSkipJump")


def test_every_choice_is_written_into_the_description() -> None:
    described = registry.describe("attack", {"name": "torchattacks/PGD", "alpha": "2/255", "steps": 40})
    assert described["name"] == "torchattacks/PGD"
    assert described["options"] == {"alpha": pytest.approx(2 / 255), "steps": 40, "random_start": True}
    spelled = registry.describe("attack", {"name": "torchattacks/PGD", "alpha": 2 / 255, "steps": 40})
    assert spelled == described
    rebuilt = registry.rebuild("attack", described)
    assert registry.describe("attack", {k: v for k, v in described.items() if k != "version"}) == described
    assert isinstance(rebuilt, Torchattacks)
    art = registry.describe("attack", {"name": "art/HopSkipJump", "max_iter": 20})["options"]
    assert art["max_iter"] == 20
    assert art["init_eval"] == 100
    assert not {"norm", "targeted", "verbose", "classifier"} & set(art)
    tuples = registry.describe("attack", "torchattacks/Pixle")["options"]
    assert tuples["x_dimensions"] == [2, 10]


@pytest.mark.parametrize(
    ("name", "access", "norms", "minimises"),
    [
        ("torchattacks/PGD", "gradient", ("linf",), False),
        ("torchattacks/APGD", "gradient", ("linf", "l2"), False),
        ("torchattacks/PIFGSM", "gradient", ("linf",), False),  # calls its radius max_epsilon
        ("torchattacks/CW", "gradient", ("l2",), True),
        ("torchattacks/Square", "score", ("linf", "l2"), False),
        ("art/HopSkipJump", "label", ("linf", "l2"), True),
        ("art/SquareAttack", "score", ("linf", "l2"), False),
        ("art/CarliniL2Method", "gradient", ("l2",), True),
    ],
)
def test_what_each_says_of_itself(name: str, access: str, norms: tuple[str, ...], minimises: bool) -> None:
    attack = registry.build("attack", name)
    assert (attack.access(), attack.handles(), attack.minimises()) == (access, norms, minimises)


def test_norm_and_radius_come_from_the_threat_model(linear: Classifier) -> None:
    x, y = correct(linear)
    attack = Torchattacks(target="APGD")
    for threat in (ThreatModel(eps=0.1), ThreatModel(norm="l2", eps=1.0)):
        x_adv, _ = kit.attack_with(attack, linear, x, y, threat)
        assert bool((linear(x_adv).argmax(1) != y).all())
    with pytest.raises(ContractError, match="handles linf"):
        kit.attack_with(Torchattacks(target="PGD"), linear, x, y, threat)


def test_every_known_name_exists_in_the_installed_library() -> None:
    from siegebench.attacks.art import KNOWN as art_known

    for cls, known in ((Torchattacks, KNOWN), (ART, art_known)):
        for name in known:
            assert cls(target=name).parameters()["target"] == name
