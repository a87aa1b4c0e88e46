"""Hidden counterexamples: what they are, and that unsound verifiers are told from sound ones."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from siegebench import ops
from siegebench.classifier import ModelCard, Network
from siegebench.cli import app
from siegebench.data import GREY
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ModelError
from siegebench.soundness import SETS, Planted, Planting, by_attack, by_certifier, by_command, planted, trial
from siegebench.soundness.exports import vnnlib, write
from siegebench.soundness.planting import points
from siegebench.soundness.training import Balls, away, pgd, survivors, train
from siegebench.soundness.trials import read
from siegebench.store import Store

SHORT = Planting(points=2, epochs=2, restarts=3, steps=3, hidden=(8,), tries=5, every=1)


class Spike(nn.Module):
    """Logit 1 is 0.2 - sum |x - c|: positive only near the corner c; its slope is zero beyond a distance of `reach`."""

    def __init__(self, corner: Tensor, reach: float) -> None:
        super().__init__()
        self.corner, self.reach = nn.Parameter(corner), reach

    def forward(self, x: Tensor) -> Tensor:
        far = (x - self.corner).abs().flatten(1).sum(dim=1)
        s = 0.2 - torch.where(far < self.reach, far, torch.full_like(far, self.reach))
        return torch.stack([torch.zeros_like(s), s], dim=1)


def spiked(reach: float = 0.25) -> Planted:
    """Two points: one whose ball has the spike in a corner, and one far away from it."""
    x = torch.stack([torch.full((1, 1, 10), 0.3), torch.full((1, 1, 10), 0.8)])
    corner = torch.cat([x[:1] + 0.1, x[1:]])
    model = Network(Spike(corner[:1], reach), num_classes=2, card=ModelCard(name="spike")).eval().requires_grad_(False)
    model.kind = GREY
    return Planted("spike", model, x, torch.zeros(2, dtype=torch.long), corner, torch.tensor([True, False]), 0.1)


def small() -> Planted:
    """An untrained network in the layers of the sets, with two points; nothing is hidden."""
    spec = Planting(hidden=(8,))
    model = spec.model("tiny", 0).requires_grad_(False)
    x = torch.stack([torch.full(spec.shape, 0.3), torch.full(spec.shape, 0.8)])
    return Planted("tiny", model, x, model(x).argmax(dim=1), x, torch.tensor([True, False]), 0.1)


def test_points_lie_in_disjoint_balls_and_counterexamples_in_their_corners() -> None:
    spec = Planting(points=10)
    x, y, corner = points(spec, 3)
    apart = (x.flatten(1)[:, None] - x.flatten(1)[None]).abs().amax(dim=2) + torch.eye(20)
    assert float(apart.min()) > 2 * spec.eps
    moved = (corner - x[:10]).abs()
    assert float(moved.max()) <= spec.eps + 1e-6
    edge = (corner == 0) | (corner == 1) | ((moved - spec.eps).abs() < 1e-6)
    assert bool(edge.all())
    assert set(y.tolist()) == {0, 1}
    with pytest.raises(ConfigError, match="disjoint"):
        points(Planting(points=10, eps=0.6), 0)


def test_survivors_are_those_whose_spike_has_no_slope_that_pgd_can_follow() -> None:
    for reach, hidden in ((0.25, True), (3.0, False)):  # a start in the ball is at most 2 from the corner
        one = spiked(reach)
        balls = Balls(one.x, one.y, one.counterexample[:1], one.eps)
        assert survivors(one.model, balls, 20, Draws(0, torch.arange(2)), 0).tolist() == [hidden, True]


def test_pgd_hands_over_iterates_away_from_the_counterexample() -> None:
    one = spiked(3.0)
    balls = Balls(one.x, one.y, one.counterexample[:1], one.eps)
    found, reached = pgd(one.model, balls, 4, 30, Draws(0, torch.arange(2)), 0, near=0.5)
    assert reached.tolist() == [1.0, 0.0]
    apart = (found[0] - one.counterexample[0]).flatten(1).abs().amax(dim=1)
    assert bool((apart >= 0.05 - 1e-6).all())
    assert bool(((found - one.x[:, None]).abs() <= 0.1 + 1e-6).all())


def test_the_slope_to_the_counterexample_is_what_away_measures() -> None:
    one = spiked(3.0)
    balls = Balls(one.x[:1], one.y[:1], one.counterexample[:1], one.eps)
    z = one.x[:1].clone()  # at 1 eps: a step of 0.1 eps to the corner raises the margin by 10 * 0.01
    assert float(away(one.model, balls, z, 0.5)) == pytest.approx(0.1 + 0.05, abs=1e-5)
    assert float(away(one.model, balls, one.counterexample[:1] - 0.03, 0.5)) == 0.0  # too near to count


def test_training_pulls_the_counterexample_over_and_follows_its_seed(tmp_path: Path) -> None:
    spec = replace(SHORT, epochs=8, away=0.0, every=8)
    x, y, corner = points(spec, 1)

    def trained(elsewhere: int) -> dict[str, Tensor]:
        torch.manual_seed(elsewhere)  # the global generator must not matter
        return train(spec, spec.model("net", 1), x, y, corner, 1)

    first, again = trained(1), trained(2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    model = spec.model("net", 1)
    before = ops.margin(model(corner), y[:2])
    model.load_state_dict({k: v for k, v in first.items() if k != "kept"})
    assert float((ops.margin(model(corner), y[:2]) - before).detach().min()) > 0


def test_a_network_that_hides_nothing_is_refused_and_is_stored_once(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ModelError, match="PGD finds all 2 planted counterexamples"):
            planted("short", SHORT, Store(tmp_path))
    assert len(list((tmp_path / "artifacts").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("name", SETS["paper"])
def test_networks_of_all_sizes_are_the_same_in_onnx(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    spec = SETS["paper"][name]
    spec = replace(spec, hidden=tuple(min(w, 20) for w in spec.hidden))
    model = spec.model(name, 0).requires_grad_(False)
    x = Draws(0, torch.arange(2)).uniform(spec.shape)
    one = Planted(name, model, x, torch.zeros(2, dtype=torch.long), x, torch.tensor([True, False]), spec.eps)
    files = write(one, tmp_path)
    session = runtime.InferenceSession(str(files[0][0]))
    for i in range(2):
        (z,) = session.run(None, {"input": ((x[i : i + 1] - model.mean) / model.std).numpy()})
        np.testing.assert_allclose(z, model(x[i : i + 1]).numpy(), rtol=1e-4, atol=1e-5)


def test_regions_are_exact_and_contain_the_counterexample(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    one = spiked()
    one = replace(one, model=small().model)
    (_, region), _ = write(one, tmp_path)
    said = region.read_text().split("\n")
    inside = one.model._normalised(one.counterexample[:1]).flatten().tolist()
    for i, value in enumerate(inside):
        low = next(line for line in said if f"(>= X_{i} " in line).split()[-1].rstrip(")")
        high = next(line for line in said if f"(<= X_{i} " in line).split()[-1].rstrip(")")
        assert float(low) <= value <= float(high)
    tiny = torch.tensor([1e-12])
    assert float(vnnlib(tiny, tiny, 0, 2).split("(>= X_0 ")[1].split(")")[0]) == float(tiny)
    assert "E" not in vnnlib(tiny, tiny, 0, 2).split("(>= X_0 ")[1].split(")")[0]


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        ("unsat\n", "verified"), ("sat\n((X_0 0.1))", "falsified"), ("result: UNKNOWN", "unknown"),
        ("timeout", "unknown"), ("reading unknown.onnx\nresult: sat", "falsified"), ("Traceback", "error"),
        ("", "error"), ("unsafe", "falsified"),
    ],
)  # fmt: skip
def test_words_of_verifiers_are_read(output: str, verdict: str) -> None:
    assert read(output) == verdict


# an outside verifier: says what it is told, or attacks with onnxruntime at the corners of the ball
SCRIPT = """
import re, sys
import numpy as np, onnxruntime
onnx, vnnlib, says = sys.argv[1:4]
text = open(vnnlib).read()
low = np.array([float(v) for v in re.findall(r">= X_\\d+ (\\S+?)\\)", text)], np.float32)
high = np.array([float(v) for v in re.findall(r"<= X_\\d+ (\\S+?)\\)", text)], np.float32)
label = int(re.search(r">= Y_\\d Y_(\\d)", text)[1])
net = onnxruntime.InferenceSession(onnx)
shape = net.get_inputs()[0].shape
if says == "attack":
    pick = np.random.default_rng(0).random((1024, len(low))) < 0.5
    found = [net.run(None, {"input": np.where(p, high, low).reshape(shape)})[0][0] for p in pick]
    print("sat" if any(z.argmax() != label for z in found) else "unknown")
else:
    print(says)
"""


def test_an_unsound_verifier_is_told_from_sound_ones(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    script = tmp_path / "verifier.py"
    script.write_text(SCRIPT)
    one = small()

    def row(says: str, where: str = "{vnnlib}"):  # type: ignore[no-untyped-def]
        command = f"{sys.executable} {script} {{onnx}} {where} {says}"
        return trial(says, by_command(command, tmp_path / "files", 30), [one])

    unsound, honest = row("unsat"), row("unknown")
    assert unsound.unsound
    assert (unsound.clean_verified, unsound.unverifiable_verified) == (1, 1)
    assert not honest.unsound
    assert asdict(honest) == {
        "name": "unknown", "clean": 1, "unverifiable": 1, "clean_verified": 0, "clean_falsified": 0,
        "unverifiable_verified": 0, "unverifiable_falsified": 0, "errors": 0,
    }  # fmt: skip
    assert row("attack").errors == 0
    assert row("nothing").errors == 2
    with pytest.raises(ConfigError, match="vnnlib"):
        by_command("verifier {onnx}", tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        trial("x", by_command("/nowhere/verifier {onnx} {vnnlib}", tmp_path), [one])


def test_attacks_find_what_has_a_slope() -> None:
    seen, hidden = spiked(3.0), spiked()
    attack = {"name": "pgd", "steps": 40, "loss": "margin"}
    assert trial("pgd", by_attack(attack), [seen]).unverifiable_falsified == 1
    assert trial("pgd", by_attack(attack), [hidden]).unverifiable_falsified == 0
    assert trial("pgd", by_attack(attack), [seen, hidden]).clean_falsified == 0
    minimal = trial("fab", by_attack({"name": "fab", "steps": 20}), [replace(small(), eps=1e-4)])
    assert (minimal.clean_falsified, minimal.unverifiable_falsified) == (0, 0)  # what it finds is outside the ball


def test_certifiers_are_asked_for_the_ball_of_their_norm() -> None:
    one = small()
    row = trial("margin", by_certifier("lipschitz_margin"), [one])
    assert (row.errors, row.unsound) == (0, False)
    near = replace(one, eps=1e-5)  # an untrained network is constant there
    assert trial("margin", by_certifier("lipschitz_margin"), [near]).unverifiable_verified == 1
    with pytest.raises(ConfigError, match="another function"):
        by_certifier("randomized_smoothing")


def test_the_command_prints_a_table_and_tells_the_unsound_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr("siegebench.soundness.planted", lambda *_: small())
    script = tmp_path / "verifier.py"
    script.write_text("print('unsat')")
    words = ["soundness", "--network", "mlp_64_64", "--store", str(tmp_path), "--out", str(tmp_path / "files")]
    run = CliRunner().invoke
    good = run(app, [*words, "--certifier", "lipschitz_margin"])
    assert good.exit_code == 0, good.output
    assert "unverifiable verified" in good.output
    bad = run(app, [*words, "--json", "--command", f"{sys.executable} {script} {{onnx}} {{vnnlib}}"])
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)[0]["unsound"] is True
    assert len((tmp_path / "files" / "instances.csv").read_text().split()) == 2
    for wrong in (["--set", "smal"], ["--network", "nope"], []):
        with pytest.raises(ConfigError):
            run(app, ["soundness", *wrong, *(["--attack", "pgd"] if wrong else [])], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS["small"])
def test_counterexamples_of_the_small_set_are_hidden(name: str, tmp_path: Path) -> None:
    """Some minutes: the whole training."""
    one = planted(name, SETS["small"][name], Store(tmp_path))
    low, high = one.bounds
    assert bool(((one.counterexample >= low) & (one.counterexample <= high)).all())
    hidden = one.hidden
    assert int(hidden.sum()) >= 3
    assert bool((one.model(one.counterexample).argmax(dim=1) != one.y)[hidden].all())
    assert bool((one.model(one.x).argmax(dim=1) == one.y).all())
    row = trial("pgd", by_attack({"name": "pgd", "steps": 50}), [one])
    assert row.unverifiable_falsified < int(hidden.sum()) / 2
    assert not trial("margin", by_certifier("lipschitz_margin"), [one]).unsound
