"""The track: certificates and attacks of a real run, and a certifier that claims too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from siegebench.leaderboard import rank

from siegebench import api, registry
from siegebench.config import load_suite
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.plan import plan
from siegebench.store import Store
from siegebench.types import BackdoorAttack, Certifier
from siegebench.types.certifiers import ABSTAINED
from siegebench.workspace import Settings, Workspace
from tests import runs

MODEL = {"name": "plain_cnn", "recipe": {"epochs": 1, "batch": 64}}
SMOOTHING = {"name": "randomized_smoothing", "n0": 10, "n": 40, "votes": 10, "m": 2, "sigma": 0.1}
BOARD: dict[str, Any] = {
    "track": "certified", "certifiers": ["ibp"], "attacks": ["fgsm"],
    "threats": [{"norm": "linf", "eps": "4/255"}, {"norm": "linf", "eps": "1/255"}],
}  # fmt: skip


def suite(folder: Path, **changes: Any) -> str:
    return str(runs.suite(folder / "s.yaml", {**BOARD, **changes}, models=[MODEL], data={"set": "digits", "count": 20}))


def test_certificates_are_those_of_the_certifier_and_attacks_are_shared(tmp_path: Path) -> None:
    loaded = load_suite(suite(tmp_path, certifiers=["ibp", "crown.crown_ibp", SMOOTHING]))
    planned = plan(loaded)
    settings = Settings(root=str(tmp_path / "store"), threads=1, specs=planned.specs)
    outcome = api.run(loaded, settings, how="serial")
    assert not outcome.failed, [r.error for r in outcome.results if r.error]
    proofs = {r.cell.labels["certifier"]: r for r in outcome.results if r.cell.radii}
    tried = [(r.cell.labels.get("certifier"), r.cell.labels["attack"]) for r in outcome.results if r.cell.attack]
    assert sorted(map(str, tried)) == sorted(map(str, [
        (None, "fgsm"), (None, "fgsm"), *(("randomized_smoothing", a) for a in ("fgsm", "bpda(pgd)") * 2),
    ]))  # fmt: skip
    row = proofs["ibp"]
    assert row.cell.radii == [1 / 255, 4 / 255]
    ws = Workspace(settings)
    data, model = ws.evaluated(row.cell.data), ws.network(row.cell)
    found = registry.build(Certifier, "ibp")(model, data.pixels(), "linf", row.cell.radii, Draws(0, data.ids))
    right = found.prediction == data.labels
    for k in (0, 1):
        assert row.outcome(f"certified@{k}").tolist() == (found.holds[k] & right).tolist()
        assert row.metrics[f"certified_acc@{k}"]["n"] == 20
    every = torch.stack([found.holds[k] & right for k in (0, 1)]).double().mean()
    assert row.metrics["certified_acc"]["value"] == pytest.approx(float(every))
    assert (proofs["crown"].outcome("certified@0") >= row.outcome("certified@0")).all()
    (board,) = rank.boards(Store(settings.root).rows())
    assert all(line.rank for line in board.lines), [line.reasons for line in board.lines]


def test_a_network_trained_on_poison_is_certified_with_and_without_the_trigger(tmp_path: Path) -> None:
    backdoors = [{"name": "certifier_availability", "rate": 0.1}]
    recipe = {"name": "plain_cnn", "recipe": {"epochs": 3, "batch": 64, "lr": 0.003}}
    board = {**BOARD, "certifiers": [SMOOTHING], "threats": [{"norm": "l2", "eps": 0.1}], "backdoors": backdoors}
    written = runs.suite(tmp_path / "s.yaml", board, models=[recipe], data={"set": "digits", "count": 20})
    planned = plan(load_suite(str(written)))
    settings = Settings(root=str(tmp_path / "store"), threads=1, specs=planned.specs)
    outcome = api.run(load_suite(str(written)), settings, how="serial")
    assert not outcome.failed, [r.error for r in outcome.results if r.error]
    plain, poisoned = (
        next(r for r in outcome.results if r.cell.radii and (r.cell.backdoor is None) == clean)
        for clean in (True, False)
    )
    assert plain.weights != poisoned.weights
    assert "abstained_triggered" not in plain.metrics
    assert poisoned.counts["poisoned"] == round(0.1 * poisoned.counts["train"])
    # the row is what the certifier says of the network that training on the poisoned set gives
    ws = Workspace(settings)
    model, known = ws.backdoored(poisoned.cell)
    data, attack = ws.evaluated(poisoned.cell.data), registry.build(BackdoorAttack, backdoors[0])
    assert known is not None
    draws = Draws(derive_seed(0, "trigger"), data.ids)
    x = data.kind.load(data.kind.store(attack.stamp(data.pixels(), draws)), torch.float32)
    found = registry.build(Certifier, SMOOTHING)(
        model, x, "l2", [0.1], Draws(derive_seed(0, "certify"), data.ids)
    )  # fmt: skip
    assert poisoned.outcome("abstained_triggered").tolist() == (found.prediction == ABSTAINED).tolist()
    right = found.holds[0] & (found.prediction == data.labels)
    assert poisoned.outcome("certified_triggered@0").tolist() == right.tolist()
    assert poisoned.metrics["certified_acc_triggered"]["value"] == pytest.approx(float(right.double().mean()))
    (board_made,) = rank.boards(Store(settings.root).rows())
    (line,) = board_made.lines
    assert line.rank, line.reasons
    assert line.value("abstained_triggered") == poisoned.value("abstained_triggered")
    assert line.value("abstained") == plain.value("abstained")


def test_a_certifier_that_claims_too_much_makes_the_command_fail(
    tmp_path: Path, call: runs.Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = suite(tmp_path, certifiers=["outsider/overclaims"], threats=[{"norm": "linf", "eps": 0.5}])
    with runs.known(tmp_path / "site", monkeypatch):
        code, _, err = call("run", written, "--executor", "serial", "--store", tmp_path / "store", "--threads", 1)
    assert code == 1, err
    assert "certificate broken: plain_cnn / none / outsider/overclaims" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threats": [{"norm": "l1", "eps": 1}], "attacks": ["apgd"]}, "certifies l2, linf; the threats are l1"),
        ({"threats": [{"norm": "linf", "eps": 0.1, "target": 3}], "attacks": ["pgd"]}, "leave the target out"),
        ({"threats": [{"norm": "linf", "eps": -0.1}], "attacks": ["pgd"]}, r"yaml:\d+.*eps -0.1 is out of range"),
        ({"certifiers": ["ibb"]}, "Did you mean ibp"),
        ({"backdoors": ["label_flipping"]}, "has no trigger"),
        ({"backdoors": [{"name": "badnets", "rate": 0.9, "target": {"0": 1}}]}, "eligible"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(load_suite(suite(tmp_path, **changes)))
