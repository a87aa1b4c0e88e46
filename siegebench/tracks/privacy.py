"""The privacy track: what an attacker recovers of private images from the gradients that clients release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, digest, pack, rate, untrained
from siegebench.classifier import Classifier, frozen
from siegebench.data import limited, split_clean
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError
from siegebench.inventory import Inventory, Named
from siegebench.leakage import Scores, gallery, mixed, scores, summary
from siegebench.per_image import flat, per_image
from siegebench.prepare import in_batches
from siegebench.tracks.base import BoardSpec, Budget, Spec, Specs, Strict
from siegebench.types import Leak, ModelSource, Shared, Sharing
from siegebench.workspace import Workspace

RULES: list[Spec] = [
    "plain", {"name": "noise", "sigma": 0.01}, {"name": "prune", "share": 0.9}, {"name": "clip", "norm": 1.0},
    {"name": "dp", "norm": 1.0, "multiplier": 0.5},
]  # fmt: skip
TOGETHER = 64  # private images that are attacked at once
USEFUL_BATCH = 64  # public images of the batch on which the usefulness of a rule is measured
PIECE = 2000  # public images read at once
RATES = {"identified": "identified", "label_acc": "label_right"}  # metric to score
NUMBERS = ("psnr", "ssim", "label_l1")  # scores of which the median is told
DELTA = 1e-5  # of the stated epsilon, for one epoch of such batches


class ClientSpec(Strict):
    """The clients of a board.

    Attributes:
        batch: images of each client.
        state: the network is `initial`, as its weights are drawn, or `trained` on the public images.
        smoothing: label smoothing s: 1 - s for the class, plus s / classes for every class.
        mixup: each private image is a mixture of two images, and so is its label.
        gallery: number of images among which a private one has to be found, itself included.
    """

    batch: Budget = 1
    state: Literal["initial", "trained"] = "initial"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: bool = False
    gallery: Annotated[int, Field(ge=2)] = 500


class PrivacyBoard(BoardSpec):
    """Images recovered from shared gradients: leak x model x sharing rule.

    The evaluated images are private, the split `train` is public: the gallery, the mean image and the batch on which
    the usefulness of a rule is measured are from there.

    Attributes:
        leaks: attacks on what is released.
        sharings: rules of release; `plain` must be among them for anything to be ranked.
        client: who releases.
        controls: leaks that must stay at chance.
    """

    track: Literal["privacy"]
    leaks: Specs
    sharings: Specs = Field(default=RULES)
    client: ClientSpec = Field(default=ClientSpec())
    controls: list[Spec] = Field(default=["prior"])
    slots: ClassVar[dict[str, str]] = {
        "models": "model", "leaks": "leak", "sharings": "sharing", "controls": "leak",
    }  # fmt: skip

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        assert self.data is not None
        count, batch = self.data.count, self.client.batch
        for leak in self.named(inventory, "leaks"):
            if leak.entry.most is not None and batch > leak.entry.most:
                told = (
                    f"leak {leak.name!r} recovers {leak.entry.most} image of a client; the clients have batch: {batch}"
                )
                raise inventory.document.error(leak.where, told)
        if count is not None and count % batch:
            fitting = count // batch * batch or batch
            told = f"{count} images are not a multiple of the client's batch of {batch}; set count: {fitting}"
            raise inventory.document.error(self.where("data", "count"), told)
        if self.client.mixup and count is not None and count < 2:
            raise inventory.document.error(self.where("client", "mixup"), "mixup needs count: 2 or more images")

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        n, batch = len(data.images), self.client.batch
        if n % batch:
            told = f"{n} images are not a multiple of the client's batch of {batch}; set `count`"
            raise inventory.document.error(self.where("data", "set"), told)
        used = self.used(inventory, data)
        self._check_gallery(inventory)
        leaks: list[Named[Leak]] = [*self.named(inventory, "leaks"), *self.named(inventory, "controls")]
        rules: list[Named[Sharing]] = self.named(inventory, "sharings")
        client: dict[str, Any] = self.client.model_dump()
        for model, rule, leak in product(self.networks(inventory, data), rules, leaks):
            trained = self.client.state == "trained" and model.trained
            for seed in self.seeds or ():
                yield Cell(
                    track=self.track, data=used, model=model.seeded(0) if trained else model.description,
                    leak=inventory.identified(leak), sharing=inventory.identified(rule), client=client, seed=seed,
                )  # fmt: skip

    def _check_gallery(self, inventory: Inventory) -> None:
        assert self.data is not None
        where = self.where("data", "set")
        whole = inventory.scan(self.source(inventory), "train", where)
        public = len(split_clean(limited(whole, self.data.train))[0])
        if public < self.client.gallery - 1:
            where = self.where("client", "gallery") if "gallery" in self.client.model_fields_set else where
            told = f"the gallery has {self.client.gallery - 1} public images, the training set {public}"
            raise inventory.document.error(where, f"{told}; set client: {{gallery: {public + 1}}} or less")

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        """The row of one leak against one rule, on all private images of the slice."""
        assert cell.client is not None
        data, model = ws.evaluated(cell.data), network(cell, ws)
        weights = fingerprint(model)
        n, seed = int(cell.client["batch"]), derive_seed(cell.seed, "privacy")
        streams = Draws(seed, data.ids)
        x, y = ws.pixels(data), _labels(cell, data.labels, data.num_classes).to(ws.device, ws.dtype)
        if cell.client["mixup"]:
            x, y = mixed(x, y, streams)
        x, y = x.unflatten(0, (-1, n)), y.unflatten(0, (-1, n))
        clients = streams[torch.arange(0, len(data), n)]
        rule, leak = ws.entry(Sharing, cell.sharing), ws.entry(Leak, cell.leak)
        public, size, passes = _public(cell, ws), int(cell.client["gallery"]) - 1, 0

        def part(at: slice) -> Scores:
            nonlocal passes
            own, draws = x[at], clients[at].to(ws.device)
            each = per_image(model, own.flatten(0, 1), y[at].flatten(0, 1))
            released = rule({k: g.detach().unflatten(0, own.shape[:2]) for k, g in each.items()}, draws.child("share"))
            shared = Shared(released, model, rule, n, data.shape, public.mean.to(own))
            found = leak(shared, draws.child("leak"))
            passes += shared.passes
            of = slice(at.start * n, at.stop * n)
            others = public.galleries(data.labels[of], streams[of], size).to(own)
            return scores(found, own, y[at], others)

        with frozen(model):
            parts = in_batches(part, len(x), max(1, TOGETHER // n))
            useful, epsilon = ws.remember(
                ("utility", digest([cell.model, cell.sharing, cell.client]), cell.data["train_digest"], cell.seed),
                lambda: _useful(cell, ws, model, rule, public),
            )
        if fingerprint(model) != weights:
            raise ContractError(f"{cell.title}: the network was changed by the leak")
        found = {name: torch.cat([getattr(p, name) for p in parts]).cpu() for name in _given(parts[0])}
        metrics = _figures(found, len(data))
        metrics["utility_cos"] = {"value": useful}
        if epsilon is not None:
            metrics["epsilon"] = {"value": epsilon}
        samples: dict[str, Any] = {name: pack(found[name]) for name in RATES.values() if name in found}
        return Result(
            cell=cell,
            metrics=metrics,
            samples={"n": len(data), **samples},
            counts={"attacked": len(data), "backwards": passes, "backwards_per_sample": passes / len(data)},
            arrays={name: found[name].numpy() for name in NUMBERS if name in found},
            weights=weights,
        )


def _given(of: Scores) -> list[str]:
    """What the attacker recovered, by the names of its scores."""
    return [f.name for f in fields(of) if getattr(of, f.name) is not None]


def _figures(found: dict[str, Tensor], total: int) -> dict[str, dict[str, float]]:
    """Rates and medians over the private images."""
    out = {name: rate(int(found[of].sum()), total) for name, of in RATES.items() if of in found}
    return out | {
        name: {"value": float(found[name].double().median()), "n": total} for name in NUMBERS if name in found
    }


def network(cell: Cell, ws: Workspace) -> Classifier:
    """The public network of the clients: trained, or with the weights that the seed draws."""
    assert cell.client is not None
    if cell.client["state"] == "trained":
        return ws.model(cell)

    def make() -> Classifier:
        built = ws.entry(ModelSource, untrained(cell.model)).build_for(ws.evaluated(cell.data))
        return built.fresh(derive_seed(cell.seed, "weights")).to(ws.device, ws.dtype).eval()

    made: Classifier = ws.remember(("initial", digest(cell.model), cell.data["digest"], cell.seed), make)
    return made


def _labels(cell: Cell, labels: Tensor, classes: int) -> Tensor:
    assert cell.client is not None
    s = float(cell.client["smoothing"])
    return (1 - s) * F.one_hot(labels, classes).double() + s / classes


class _Public:
    """Images of the split `train`, which are public.

    Attributes:
        images: all of them.
        mean: their mean, [C, H, W].
        small: the small versions of them that are compared, [P, d].
    """

    def __init__(self, cell: Cell, ws: Workspace) -> None:
        self.images = ws.splits(cell.data)[0]
        n = len(self.images)
        parts = in_batches(lambda at: self.images.pixels(at), n, PIECE)
        self.mean = torch.stack([p.sum(dim=0) for p in parts]).sum(dim=0) / n
        self.small = torch.cat([summary(p) for p in parts])

    def galleries(self, labels: Tensor, draws: Draws, count: int) -> Tensor:
        """Other images for each private one, [n, count, d]."""
        return self.small[gallery(self.images.labels, labels, count, draws)]


def _public(cell: Cell, ws: Workspace) -> _Public:
    made: _Public = ws.remember(("public", cell.data["train_digest"]), lambda: _Public(cell, ws))
    return made


def _useful(cell: Cell, ws: Workspace, model: Classifier, rule: Sharing, public: _Public) -> tuple[float, float | None]:
    """(cosine of a released and the true mean gradient of a batch, epsilon of an epoch of such batches)."""
    images, seed = public.images, derive_seed(cell.seed, "useful")
    index = Draws(seed, images.ids).order()[:USEFUL_BATCH]
    y = _labels(cell, images.labels[index], images.num_classes).to(ws.device, ws.dtype)
    each = {k: g[None] for k, g in per_image(model, ws.pixels(images, index), y).items()}
    released = flat(rule(each, Draws(seed, torch.zeros(1, dtype=torch.long, device=ws.device))))
    true = flat({k: g.mean(dim=1) for k, g in each.items()})
    cos = F.cosine_similarity(released.double(), true.double()).clamp(-1, 1)
    n = len(images)
    return float(cos), rule.epsilon(min(1.0, USEFUL_BATCH / n), max(1, round(n / USEFUL_BATCH)), DELTA)
