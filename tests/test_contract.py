"""Every registered entry keeps its contract, and every clause of the contract catches an entry that breaks it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, DataError
from siegebench.testing import CLAUSES, Check, check_entry, check_instance
from siegebench.testing.specimens import images, planted_set
from siegebench.threat import ThreatModel
from siegebench.types import (
    Attack,
    BackdoorAttack,
    DataSource,
    Defense,
    InputDetector,
    Measure,
    ModelDetector,
    ModelSource,
    Verdict,
)

REGISTERED = [(kind, name) for kind, name in registry.cards() if "/" not in name]
NEEDS_NOTHING = ("attack", "measure", "defense", "backdoor", "detector")


def faults(checks: list[Check]) -> list[str]:
    return [f"{c.name}: {c.detail}" for c in checks if not c.passed]


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=[f"{k}-{n}" for k, n in REGISTERED])
def test_registered_entry_keeps_its_contract(kind: str, name: str) -> None:
    checks = check_entry(name, kind)
    assert not faults(checks)
    if kind in NEEDS_NOTHING:  # these need no file and no download: every clause can be tried
        assert not [c.name for c in checks if "not checked" in c.name]


# ------------------------------------------------------------------------------------ entries that need a place on disk


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_parquet_files_of_ones_own(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        rows = {"image": [{"bytes": png(first + i), "path": None} for i in range(6)], "label": [0, 1, 2, 0, 1, 2]}
        pq.write_table(pa.table(rows), tmp_path / f"mine-{split}-00000-of-00001.parquet")
    checks = check_entry({"name": "parquet", "folder": str(tmp_path), "prefix": "mine", "num_classes": 3}, "dataset")
    assert len(checks) >= 4
    assert not faults(checks)
    assert not [c.name for c in checks if "not checked" in c.name]


def test_image_folder_of_ones_own(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "test")):
        for j, label in enumerate(("cat", "dog")):
            (tmp_path / split / label).mkdir(parents=True)
            for k in range(2):
                (tmp_path / split / label / f"{k}.png").write_bytes(png(100 * i + 10 * j + k))
    checks = check_entry({"name": "image_folder", "folder": str(tmp_path)}, "dataset")
    assert len(checks) >= 4
    assert not faults(checks)
    assert not [c.name for c in checks if "not checked" in c.name]


# Without the checkpoint the network is trained, so that this needs no file
WITH_CHECKPOINT = [
    name for name in registry.names("model") if isinstance(registry.find("model", name)[1].get("checkpoint"), str)
]


@pytest.mark.parametrize("name", WITH_CHECKPOINT)
def test_model_without_its_checkpoint(name: str) -> None:
    checks = check_entry({"name": name, "checkpoint": None}, "model")
    assert len(checks) >= 5
    assert not faults(checks)


# ------------------------------------------------------------------------------------------------------- broken attacks


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """An honest attack, to be broken below."""

    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return threat.project(x + threat.eps * g.sign(), x)


class Exceeds(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return (x + 1.01 * (super().run(oracle, x, y, threat, draws) - x)).clamp(0, 1)


class LeavesTheBox(FGSM):
    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return x + threat.eps * g.sign()


class ReturnsNaN(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return super().run(oracle, x, y, threat, draws) / 0 * 0


class ReturnsFloat32(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return super().run(oracle, x, y, threat, draws).float()


class SaysThatItAims(FGSM):
    aims: ClassVar[bool] = True


class AsksForMore(FGSM):
    needs: ClassVar[Any] = "score"


class MovesAtZero(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return (super().run(oracle, x, y, threat, draws) + 5e-7).clamp(0, 1)


class UsesTorchRand(FGSM):
    def run(self, oracle, x, y, threat, draws):
        start = threat.project(x + threat.eps * torch.randn_like(x), x)
        return super().run(oracle, start, y, threat, draws).clamp(x - threat.eps, x + threat.eps)


class UsesNumpy(FGSM):
    def run(self, oracle, x, y, threat, draws):
        np.random.rand()
        return super().run(oracle, x, y, threat, draws)


class UsesEntropy(FGSM):
    def run(self, oracle, x, y, threat, draws):
        noise = Draws.fresh(len(x)).sign(tuple(x.shape[1:])).to(x.dtype)
        return threat.project(x + threat.eps * noise, x)


class PeeksAtNeighbours(FGSM):
    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        return threat.project(x + threat.eps * (g / g.abs().max()), x)


class CountsPlaces(FGSM):
    def run(self, oracle, x, y, threat, draws):
        noise = Draws(draws.seed, torch.arange(len(x))).sign(tuple(x.shape[1:])).to(x.dtype)
        return threat.project(x + threat.eps * noise, x)


class SwitchesToTraining(FGSM):
    def run(self, oracle, x, y, threat, draws):
        out = super().run(oracle, x, y, threat, draws)
        oracle.model.train()
        return out


class UpdatesBatchNorm(FGSM):
    def run(self, oracle, x, y, threat, draws):
        oracle.model.train()
        out = super().run(oracle, x, y, threat, draws)
        oracle.model.eval()
        return out


class LeavesAHook(FGSM):
    def run(self, oracle, x, y, threat, draws):
        next(oracle.model.children()).register_forward_hook(lambda *_: None)
        return super().run(oracle, x, y, threat, draws)


class WritesIntoTheImages(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return x.copy_(super().run(oracle, x.clone(), y, threat, draws))


class ChecksNothing(FGSM):
    def __call__(self, oracle, x, y, threat, draws):
        return self.run(oracle, x, y, threat, draws) if threat.access == "gradient" else x


@dataclass(frozen=True, kw_only=True)
class AsksTooOften(Attack):
    needs: ClassVar[Any] = "score"

    def run(self, oracle, x, y, threat, draws):
        for _ in range(40):
            oracle.logits(x)
        return x


class GoesAroundTheOracle(FGSM):
    def run(self, oracle, x, y, threat, draws):
        leaf = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(ops.margin(oracle.model(leaf), y).sum(), leaf)
        return threat.project(x + threat.eps * g.sign(), x)


class FollowsWhatIsLeft(FGSM):
    """Its loss has a remainder that points the wrong way once the cross-entropy is flat."""

    def run(self, oracle, x, y, threat, draws):
        g, _, _ = oracle.gradient(x, lambda z: ops.cross_entropy(z, y) - 1e-9 * ops.margin(z, y))
        return threat.project(x + threat.eps * g.sign(), x)


class Descends(FGSM):
    def run(self, oracle, x, y, threat, draws):
        return threat.project(2 * x - super().run(oracle, x, y, threat, draws), x)


# ------------------------------------------------------------------------------------------------------ broken measures


@dataclass(frozen=True, kw_only=True)
class Measures(Measure):
    value: float = 0.5
    severity: str = "info"

    def run(self, oracle, x, y, threat, draws):
        flags = [{"id": "seen", "severity": self.severity, "evidence": "none"}]
        return {"metrics": {"one": self.value}, "flags": flags}


class MeasuresByChance(Measures):
    def run(self, oracle, x, y, threat, draws):
        return {"metrics": {"one": float(torch.rand(()))}, "flags": []}


# ------------------------------------------------------------------------------------------------------ broken defenses


class Noisy(Wrapped):
    """Adds noise, where from is said by `source`."""

    def __init__(self, inner: Classifier, source: str) -> None:
        super().__init__(inner)
        self.source = source

    def forward(self, x, draws=None):
        if self.source == "torch":
            noise = torch.randn_like(x)
        else:
            noise = (draws or Draws.fresh(len(x), x.device)).normal(tuple(x.shape[1:])).to(x)
        return self.inner(x + 0.1 * noise)


class Changed(Wrapped):
    """Logits by any function of (inner, images)."""

    def __init__(self, inner: Classifier, how: Any, hidden: Any = None) -> None:
        super().__init__(inner)
        self.how, self.hidden = how, hidden

    def forward(self, x, draws=None):
        return self.how(self, x)

    def surrogate(self, x, draws=None):
        return self.inner(x)


class StraightThrough(Changed):
    def surrogate(self, x, draws=None):
        return self.inner(x + (rounded(x) - x).detach())


def rounded(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


ADAPTIVE = ({"name": "pgd", "loss": "margin"},)


@dataclass(frozen=True, kw_only=True)
class Honest(Defense):
    adaptive: ClassVar[Any] = ADAPTIVE

    def wrap(self, model):
        return Wrapped(model)


class HonestNoise(Honest):
    randomized: ClassVar[bool] = True

    def wrap(self, model):
        return Noisy(model, "draws")


class HonestRounding(Honest):
    differentiable: ClassVar[bool] = False

    def wrap(self, model):
        return StraightThrough(model, lambda self, x: self.inner(rounded(x)))


class HonestTraining(Honest):
    trains: ClassVar[bool] = True

    def fit(self, defended, data, draws):
        with torch.no_grad():
            for p in defended.parameters():
                p.mul_(1.1)


class ChangesTheModel(Honest):
    def wrap(self, model):
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        return model


class FreezesTheModel(Honest):
    def wrap(self, model):
        return Wrapped(model.requires_grad_(False))


class MarksTheModel(Honest):
    def wrap(self, model):
        model.randomized = True
        return model


class ReadsUndeclared(HonestTraining):
    def fit(self, defended, data, draws):
        super().fit(defended, data.train, draws)


class HidesItsNoise(Honest):
    def wrap(self, model):
        return Noisy(model, "draws")


class NoiseOfTorch(HonestNoise):
    def wrap(self, model):
        return Noisy(model, "torch")


class OnlyClaimsNoise(Honest):
    randomized: ClassVar[bool] = True


class ClaimsGradients(Honest):
    def wrap(self, model):
        return StraightThrough(model, lambda self, x: self.inner(rounded(x)))


class CutsTheGraph(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x.detach()).detach())


class AnotherSurrogate(HonestRounding):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(rounded(x)))  # its surrogate does not round


class NaNGradient(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x) + (x * 0).sum(dim=(1, 2, 3)).sqrt()[:, None])


class LooksAtTheBatch(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x - 0.1 * x.mean(dim=0)))


class Float32Only(Honest):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x).float())


class ForgetsItsState(HonestTraining):
    def wrap(self, model):
        return Changed(model, lambda self, x: self.inner(x) * (self.hidden or 1.0))

    def fit(self, defended, data, draws):
        defended.hidden = 2.0


class TrainsByChance(HonestTraining):
    def fit(self, defended, data, draws):
        with torch.no_grad():
            for p in defended.parameters():
                p.add_(0.01 * torch.randn_like(p))


class NobodyKnowsIt(Honest):
    adaptive: ClassVar[Any] = ()


class UnknownAdaptive(Honest):
    adaptive: ClassVar[Any] = ({"name": "pdg"},)


# ----------------------------------------------------------------------------------------------------- broken backdoors


@dataclass(frozen=True, kw_only=True)
class Corner(BackdoorAttack):
    """An honest backdoor."""

    def trigger(self, x, draws):
        out = x.clone()
        out[:, :, -3:, -3:] = 1 - out[:, :, -3:, -3:].round()
        return out


class InPlace(Corner):
    def trigger(self, x, draws):
        x[:, :, -3:, -3:] = 1 - x[:, :, -3:, -3:].round()
        return x


class TooBright(Corner):
    def trigger(self, x, draws):
        return x + 0.5


class Invisible(Corner):
    def trigger(self, x, draws):
        return x.clone()


class PoisonsTwice(Corner):
    def poison(self, data, seed):
        return replace(self, rate=2 * self.rate, target=self.target)._honest(data, seed)

    def _honest(self, data, seed):
        return BackdoorAttack.poison(self, data, seed)


class TouchesOthers(Corner):
    def poison(self, data, seed):
        out = super().poison(data, seed)
        return replace(out, data=replace(out.data, source=out.data.images.clamp(max=200)))


class Mislabels(Corner):
    def poison(self, data, seed):
        out = super().poison(data, seed)
        labels = out.data.labels.clone()
        labels[out.index] = 1
        return replace(out, data=replace(out.data, labels=labels))


class ChangesTheSource(Corner):
    def wanted(self, y, num_classes):
        y[:3] = 0
        return super().wanted(y, num_classes)


class OnlyWorksOnSixteen(Corner):
    def trigger(self, x, draws):
        return super().trigger(x, draws) if x.shape[-1] == 16 else x.clone()


class StampsByPlace(Corner):
    def trigger(self, x, draws):
        out = super().trigger(x, draws)
        out[torch.arange(len(x)), :, 0, torch.arange(len(x)) % 8] = 0.25
        return out


class TriggersByChance(Corner):
    def trigger(self, x, draws):
        return (super().trigger(x, draws) + 0.2 * torch.rand_like(x)).clamp(0, 1)


class AnyTarget(Corner):
    def check(self, num_classes):
        pass


# ----------------------------------------------------------------------------------------------------- broken detectors


@dataclass(frozen=True, kw_only=True)
class Confidence(InputDetector):
    """An honest detector."""

    def fit(self, model, data, draws):
        return lambda x, d: model(x).detach().softmax(dim=1).amax(dim=1)


class ScoresNaN(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: super(ScoresNaN, self).fit(model, data, draws)(x, d).log() * float("nan")


class OneScore(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: super(OneScore, self).fit(model, data, draws)(x, d).mean()


class PeeksAtTraining(Confidence):
    def fit(self, model, data, draws):
        return super().fit(model, data.train, draws)


class ScoresByChance(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: torch.rand(len(x))


class TrainsTheModel(Confidence):
    def fit(self, model, data, draws):
        model.train()
        return super().fit(model, data, draws)


class RanksTheBatch(Confidence):
    def fit(self, model, data, draws):
        return lambda x, d: super(RanksTheBatch, self).fit(model, data, draws)(x, d).argsort().argsort().float()


@dataclass(frozen=True, kw_only=True)
class Judges(ModelDetector):
    verdict: Verdict = field(default_factory=lambda: Verdict(0.5, False))

    def judge(self, model, data, draws):
        return self.verdict


# ------------------------------------------------------------------------------------------- broken models and datasets


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))


@dataclass(frozen=True, kw_only=True)
class Source(ModelSource):
    """Honest, unless `wrong` says how."""

    wrong: str = ""

    def build(self, *, num_classes, size):
        model = Network(tiny_net(), num_classes=num_classes, rebuild=tiny_net)
        if self.wrong == "training":
            return model.train()
        if self.wrong == "cut":
            return Changed(model, lambda self, x: self.inner(x.detach())).eval()
        if self.wrong == "batch":
            return Changed(model, lambda self, x: self.inner(x - x.mean(dim=0))).eval()
        if self.wrong == "features":
            return Flat(tiny_net(), num_classes=num_classes, rebuild=tiny_net).eval()
        if self.wrong == "fresh":
            return Shares(tiny_net(), num_classes=num_classes, rebuild=tiny_net).eval()
        return model.eval()


class Flat(Network):
    def features(self, x):
        return super().features(x).sum()


class Shares(Network):
    def fresh(self, seed):
        return self


@dataclass(frozen=True, kw_only=True)
class Planted(DataSource):
    """Honest, unless `wrong` says how."""

    wrong: str = ""

    def load(self, split):
        if split not in ("train", "test") and self.wrong != "split":
            raise DataError(f"no split {split}")
        data = planted_set()
        if self.wrong != "leak":
            data = replace(data, source=data.images ^ (1 if split == "train" else 2))
        if self.wrong == "ids":
            data = replace(data, ids=data.ids // 2)
        if self.wrong == "unstable":
            data = replace(data, source=torch.randint(0, 256, data.images.shape, dtype=torch.uint8))
        return data

    def scan(self, split):
        whole = self.load(split)
        return whole.select(torch.arange(len(whole)).flip(0)) if self.wrong == "scan" else whole


HONEST = [
    ("attack", FGSM()),
    ("measure", Measures()),
    ("defense", Honest()),
    ("defense", HonestNoise()),
    ("defense", HonestRounding()),
    ("defense", HonestTraining()),
    ("backdoor", Corner()),
    ("detector", Confidence()),
    ("detector", Judges()),
    ("model", Source()),
    ("dataset", Planted()),
]


@pytest.mark.parametrize(("kind", "entry"), HONEST, ids=[type(e).__name__ for _, e in HONEST])
def test_honest_entry_passes(kind: str, entry: Any) -> None:
    checks = check_instance(kind, entry)
    assert not faults(checks)
    assert len(checks) == len(CLAUSES[kind])
    assert not [c.name for c in checks if "not checked" in c.name]


BROKEN = [
    ("attack", Exceeds(), "returns images of the right shape range and budget", "budget"),
    ("attack", LeavesTheBox(), "returns images of the right shape range and budget", "not in [0, 1]"),
    ("attack", ReturnsNaN(), "returns images of the right shape range and budget", "NaN"),
    ("attack", ReturnsFloat32(), "returns images of the right shape range and budget", "float32"),
    ("attack", AsksForMore(), "returns images of the right shape range and budget", "asked for a gradient"),
    ("attack", MovesAtZero(), "changes nothing at eps 0", "5e-07"),
    ("attack", UsesTorchRand(), "gives the same result for the same draws", "generator of torch"),
    ("attack", UsesNumpy(), "gives the same result for the same draws", "generator of numpy"),
    ("attack", UsesEntropy(), "gives the same result for the same draws", "other images"),
    ("attack", PeeksAtNeighbours(), "treats a sample alone as in a batch", "alone"),
    ("attack", CountsPlaces(), "treats a sample alone as in a batch", "in reverse order"),
    ("attack", SwitchesToTraining(), "leaves the model as found", "modes"),
    ("attack", UpdatesBatchNorm(), "leaves the model as found", "weights"),
    ("attack", LeavesAHook(), "leaves the model as found", "hooks"),
    ("attack", WritesIntoTheImages(), "leaves the images as found", "in place"),
    ("attack", ChecksNothing(), "is refused with less access than it needs", "ran with score access"),
    ("attack", AsksTooOften(), "keeps the query budget", "37 queries granted"),
    ("attack", GoesAroundTheOracle(), "books its passes", "no forward pass"),
    ("attack", Descends(), "breaks a half space near its closed form", "0 of 4 broken at 1.5"),
    (
        "attack",
        FollowsWhatIsLeft(),
        "breaks the same half space behind scaled logits or shows that it is blind",
        "0 of 4 broken behind scaled logits",
    ),
    ("attack", SaysThatItAims(), "aims at the class it is told", "moved towards the class"),
    ("measure", Measures(value=float("nan")), "returns finite metrics and well formed flags", "one"),
    ("measure", Measures(severity="fatal"), "returns finite metrics and well formed flags", "fatal"),
    ("measure", MeasuresByChance(), "measures the same for the same draws", "torch"),
    ("defense", ChangesTheModel(), "applies with the data its card declares", "changed the model it was given"),
    ("defense", ReadsUndeclared(), "applies with the data its card declares", "reads 'train'"),
    ("defense", FreezesTheModel(), "leaves the given model as found", "flags"),
    ("defense", MarksTheModel(), "leaves the given model as found", "flags"),
    ("defense", HidesItsNoise(), "is as random as it declares", "depend on the draws"),
    ("defense", NoiseOfTorch(), "is as random as it declares", "torch"),
    ("defense", OnlyClaimsNoise(), "is as random as it declares", "two looks are the same"),
    ("defense", ClaimsGradients(), "lets gradients through as it declares", "zero for 6 of 6"),
    ("defense", CutsTheGraph(), "lets gradients through as it declares", "no gradient passes"),
    ("defense", AnotherSurrogate(), "lets gradients through as it declares", "other logits"),
    ("defense", NaNGradient(), "lets gradients through as it declares", "not finite"),
    ("defense", LooksAtTheBatch(), "works in float64 and on one image", "alone gets other logits"),
    ("defense", Float32Only(), "works in float64 and on one image", "torch.float32"),
    ("defense", ForgetsItsState(), "keeps its trained state when saved", "not in state_dict"),
    ("defense", TrainsByChance(), "trains the same for the same draws", "torch"),
    ("defense", NobodyKnowsIt(), "has adaptive attacks that can be built", "no adaptive attack"),
    ("defense", UnknownAdaptive(), "has adaptive attacks that can be built", "Did you mean pgd?"),
    ("backdoor", InPlace(), "poisons exactly its share", "in place"),
    ("backdoor", TooBright(), "poisons exactly its share", "[0, 1]"),
    ("backdoor", Invisible(), "poisons exactly its share", "unchanged"),
    ("backdoor", PoisonsTwice(), "poisons exactly its share", "poisoned 8 images"),
    ("backdoor", TouchesOthers(), "poisons exactly its share", "not poisoned"),
    ("backdoor", Mislabels(), "labels poisons by its rule", "another label"),
    ("backdoor", ChangesTheSource(), "leaves the source data unchanged", "labels"),
    ("backdoor", OnlyWorksOnSixteen(), "stamps any size in range", "8x8"),
    ("backdoor", StampsByPlace(), "does not depend on how images are listed", "otherwise"),
    ("backdoor", TriggersByChance(), "does not depend on how images are listed", "torch"),
    ("backdoor", AnyTarget(), "refuses targets outside the classes", "accepts the target"),
    ("detector", ScoresNaN(), "gives finite scores from the data its card declares", "not finite"),
    ("detector", OneScore(), "gives finite scores from the data its card declares", "expected (12,)"),
    ("detector", PeeksAtTraining(), "gives finite scores from the data its card declares", "reads 'train'"),
    ("detector", ScoresByChance(), "scores the same for the same draws", "torch"),
    ("detector", TrainsTheModel(), "leaves the judged model as found", "modes"),
    ("detector", RanksTheBatch(), "scores an input alone as in a batch", "alone scores"),
    ("detector", Judges(verdict=Verdict(0.5, np.True_)), "gives a well formed verdict", "expected bool"),
    ("detector", Judges(verdict=Verdict(0.5, True, (10,))), "gives a well formed verdict", "not a class"),
    ("model", Source(wrong="training"), "builds a classifier", "eval mode"),
    ("model", Source(wrong="batch"), "answers for an image alone as in a batch", "other logits"),
    ("model", Source(wrong="cut"), "lets gradients reach the image", "no gradient passes"),
    ("model", Source(wrong="features"), "gives features of each image", "expected [3, d]"),
    ("model", Source(wrong="fresh"), "builds anew from a seed", "same weights"),
    ("dataset", Planted(wrong="ids"), "loads both splits", "not unique"),
    ("dataset", Planted(wrong="unstable"), "loads the same images again", "digest"),
    ("dataset", Planted(wrong="scan"), "scans what it loads", "train: scan and load disagree"),
    ("dataset", Planted(wrong="leak"), "keeps test images out of the training set", "80 of 80"),
    ("dataset", Planted(wrong="split"), "refuses an unknown split", "must raise DataError"),
]


@pytest.mark.parametrize(
    ("kind", "entry", "clause", "message"),
    BROKEN,
    ids=[f"{type(e).__name__}-{e.wrong}" if hasattr(e, "wrong") else type(e).__name__ for _, e, _, _ in BROKEN],
)
def test_broken_entry_is_caught_by_its_clause(kind: str, entry: Any, clause: str, message: str) -> None:
    broken = {c.name: c.detail for c in check_instance(kind, entry) if not c.passed}
    assert clause in broken, f"not caught; faults: {broken}"
    assert message in broken[clause]


def test_every_clause_is_shown_to_catch_something() -> None:
    shown = {(kind, clause) for kind, _, clause, _ in BROKEN}
    assert shown == {(kind, c.__name__.replace("_", " ")) for kind, clauses in CLAUSES.items() for c in clauses}


# ------------------------------------------------------------------------------------------------------ how it is asked


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean pgd"):
        check_entry("pdg")
    with pytest.raises(ConfigError, match=r"no parameter 'stepz'\. Did you mean step"):
        check_entry({"name": "pgd", "stepz": 3})
    with pytest.raises(ConfigError, match=r"unknown kind 'atack'\. Did you mean attack"):
        check_instance("atack", FGSM())


def test_a_control_need_not_succeed() -> None:
    assert not faults(check_instance("attack", Descends(), control=True))


def test_a_preset_and_a_family_member_are_checked_as_such() -> None:
    assert not faults(check_entry("pgd.margin"))
    names = [c.name for c in check_entry("badnets.white")]
    assert "is rebuilt from its description" in names


def test_images_and_planted_set_do_not_change() -> None:
    # the numbers in the clauses (eps at which some images fall) rest on them
    assert torch.equal(images(4), images(6)[:4])
    assert isinstance(planted_set(), ImageSet)
    assert planted_set().digest == planted_set().digest
    assert ThreatModel(norm="linf", eps=0.1).size(images(2)[:1], images(2)[1:]).item() == 1.0
