"""Cell: the description of one evaluation. Result: its stored row. Plain data, needs no torch."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from siegebench import metrics as vocabulary
from siegebench.errors import ConfigError

SCHEMA = 1  # version of a stored row
PROTOCOL = 1  # version of the evaluation; raised whenever the same cell could give another result

BITS = 32  # of the numbers of classes and groups

Status = Literal["ok", "error", "not_applicable"]
SLOTS = (
    "model", "defense", "attack", "measure", "backdoor", "detector", "corruption", "camouflage", "certifier", "theft",
    "leak", "sharing", "study",
)  # fmt: skip
# what a row is about: the first of these slots that it has names its file and its work
DOING = ("theft", "attack", "measure", "detector", "corruption", "camouflage", "certifier", "leak", "study")
ATTACKING = ("white_box", "query", "transfer", "patch")  # each row has an attack or a measure
NEEDS = {  # required slots per track; a row of a track that is not known here is shown, and ranked by nobody
    **dict.fromkeys(ATTACKING, ("threat",)),
    "backdoor": ("backdoor",),
    "poisoning": ("backdoor",),
    "input_detection": ("detector",),
    "model_detection": ("detector",),
    "corruption": ("corruption", "severities"),
    "camouflage": ("camouflage", "stage"),
    "certified": ("threat",),
    "extraction": ("theft", "attack", "threat"),
    "privacy": ("leak", "sharing", "client"),
    "study": ("study",),
}


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def images_key(data: Mapping[str, Any]) -> str:
    """Digest of the description of a data set and of its images: two folders may differ in nothing but the images."""
    return digest([data["source"], data["digest"]])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One evaluation. Every slot holds the description of an entry (name, version, all parameters) or None.

    Attributes:
        track: name of the track.
        data: `{name, version, split, count, digest, classes, ...}` of the evaluated slice; `train` if the number of
            training images is limited.
        threat: norm, eps, access, queries, and the target if there is one; None on backdoor tracks. Queries are
            those of a sample, with a theft those of the whole cell.
        surrogates: the models that the attack sees in place of the victim, none for a no-box attack; only on the
            transfer and camouflage tracks.
        severities: severities of the corruption; only with a corruption.
        stage: number of training `scenes` on which a texture is made, and samples `ss` along each side of a pixel for
            its scores; only with a camouflage.
        study: an experiment with a victim of its own; `model` then says only that.
        radii: radii of the certificates, ascending, in the norm of the threat, whose eps is the largest; only with a
            certifier and without an attack.
        pool: description of the images, without labels, that a thief asks about; only with a theft.
        copy: the network that a thief trains; None: that of the victim; only with a theft.
        client: who releases gradients, `{batch, state, smoothing, mixup, gallery}`; only on the privacy track.
        inputs: other images that a detector is to find, `{kind, data}` of another data set or `{kind, source, split,
            count}` of a source that makes them; only on the input_detection track.
        adaptive: whether the attack is one of the adaptive attacks that the defense declares.
        seed: seed of all random numbers.
    """

    track: str
    data: dict[str, Any]
    model: dict[str, Any]
    defense: dict[str, Any] | None = None
    attack: dict[str, Any] | None = None
    measure: dict[str, Any] | None = None
    backdoor: dict[str, Any] | None = None
    detector: dict[str, Any] | None = None
    corruption: dict[str, Any] | None = None
    severities: list[int] | None = None
    camouflage: dict[str, Any] | None = None
    stage: dict[str, int] | None = None
    certifier: dict[str, Any] | None = None
    radii: list[float] | None = None
    theft: dict[str, Any] | None = None
    pool: dict[str, Any] | None = None
    copy: dict[str, Any] | None = None
    leak: dict[str, Any] | None = None
    sharing: dict[str, Any] | None = None
    client: dict[str, Any] | None = None
    study: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    threat: dict[str, Any] | None = None
    surrogates: list[dict[str, Any]] | None = None
    adaptive: bool = False
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All fields that are not None, so that slots added in later versions do not change existing keys."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cell:
        return cls(**value)

    @cached_property
    def key(self) -> str:
        """sha256 of everything that determines the result, including the protocol version."""
        return digest({"protocol": PROTOCOL, **self.as_dict()})

    @property
    def labels(self) -> dict[str, str]:
        """Short names for display: one per slot, the data and the threat."""
        out = {slot: label(getattr(self, slot)) for slot in SLOTS if getattr(self, slot) is not None}
        if self.inputs is not None:
            out["inputs"] = f"{self.inputs['kind']} {label(source_of(self.inputs))}"
        if self.surrogates is not None:
            out["surrogates"] = "+".join(map(label, self.surrogates)) or "nothing"
        if self.client is not None:
            out["client"] = client_text(self.client)
        out["data"] = str(self.data["name"])
        if self.threat is not None:
            out["threat"] = ball_text(self.threat)
            if self.theft is not None:
                out["queries"] = f"{self.threat['queries']} queries"
        return out

    @property
    def title(self) -> str:
        """One line for progress bars and error messages."""
        shown = [v for k, v in self.labels.items() if k != "data"]
        return f"{self.track}: {' / '.join(shown)} (seed {self.seed})"

    @property
    def folder(self) -> str:
        """Folder of the row below the store, made of readable names."""
        parts = [self.data["name"], self.track]
        if self.threat is not None:
            parts.append(ball_text(self.threat).replace(" ", "-").replace("/", "over"))
        if self.surrogates is not None:
            parts.append("from-" + ("+".join(map(label, self.surrogates)) or "nothing"))
        parts.append(label(self.model))
        if self.backdoor is not None:
            parts.append(label(self.backdoor))
        if self.inputs is not None:
            parts.append(self.labels["inputs"])
        if self.defense is not None:
            parts.append(label(self.defense))
        if self.certifier is not None:
            parts.append(label(self.certifier))
        if self.sharing is not None:
            parts += [self.labels["client"], label(self.sharing)]
        return "/".join(_safe(p) for p in parts)

    @property
    def doing(self) -> dict[str, Any] | None:
        """The entry that the cell is about: what is done to the victim, or asked about it; None where it is trained."""
        return next((found for slot in DOING if (found := getattr(self, slot)) is not None), None)

    @property
    def work(self) -> str:
        """The track and what is done, by name: cells of the same work take about the same time."""
        labels = self.labels
        return "/".join([self.track, *(labels[slot] for slot in (*DOING, "sharing", "inputs") if slot in labels)])

    @property
    def file(self) -> str:
        """Path of the row below the store."""
        last = self.doing or {"name": "clean"}
        return f"{self.folder}/{_safe(label(last))}-{self.key[:16]}.json"


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)[:60].lstrip(".") or "_"


def eps_text(eps: float) -> str:
    """`8/255` if eps is a multiple of half a grey level below 1, else the number."""
    halves = eps * 510
    if 0 < halves < 510 and eps != 0.5 and math.isclose(halves, round(halves), rel_tol=1e-9):
        grey = round(halves) / 2
        return f"{grey:g}/255"
    return f"{eps:g}"


def ball_text(threat: Mapping[str, Any]) -> str:
    """`linf 8/255`, `l2 0.5`; `l0 6.25%` of the pixels; with `, target next` if there is a target."""
    eps, target = threat["eps"], threat.get("target")
    aim = "" if target is None else f", target {target}"
    return (f"l0 {100 * eps:g}%" if threat["norm"] == "l0" else f"{threat['norm']} {eps_text(eps)}") + aim


def client_text(client: Mapping[str, Any]) -> str:
    """`batch 1, initial`, and what was done to its labels."""
    smoothed = f", smoothing {client['smoothing']:g}" if client.get("smoothing") else ""
    return f"batch {client['batch']}, {client['state']}{smoothed}{', mixup' if client.get('mixup') else ''}"


def label(description: Mapping[str, Any] | None) -> str:
    """`eot(apgd)` for nested entries; the plain name otherwise."""
    if description is None:
        return "none"
    inner = description.get("attack")
    name = str(description["name"])
    return f"{name}({label(inner)})" if isinstance(inner, Mapping) else name


def untrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a network without what says how it was trained: the seed, or that it was published."""
    return {k: v for k, v in model.items() if k not in ("train_seed", "published")}


def source_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The data set that the images of `Cell.inputs` come from, by its description."""
    found: dict[str, Any] = inputs["data"]["source"] if "data" in inputs else inputs["source"]
    return found


# --------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Flag:
    """A finding of a check. `fail`: the entry is not ranked. `flag`: ranked with a warning. `info`: a remark."""

    id: str
    severity: Literal["info", "flag", "fail"]
    evidence: str

    def as_dict(self) -> dict[str, str]:
        return {"id": self.id, "severity": self.severity, "evidence": self.evidence}


def pack(outcome: Any) -> str:
    """A 0/1 vector as base64 of its bits."""
    return base64.b64encode(np.packbits(np.asarray(outcome, dtype=bool)).tobytes()).decode()


def unpack(text: str, n: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The 0/1 vector that `pack` packed."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=n).astype(bool)


def bits(name: str, values: Any) -> dict[str, str]:
    """Whole numbers, one a sample, as packed 0/1 vectors: `{name@0: lowest bits, name@1: ...}`."""
    numbers = np.asarray(values, dtype=np.int64)
    return {f"{name}@{k}": pack(numbers >> k & 1) for k in range(max(1, int(numbers.max()).bit_length()))}


@dataclass(kw_only=True)
class Result:
    """A row: the result of one cell.

    Attributes:
        metrics: `{name: {"value": v}}`, rates also with `low`, `high` (Wilson 95 %) and `n`.
        samples: `{"n": N, name: packed 0/1 vector over the N samples}`; `clean` and `robust` on attack tracks, and the
            class of each image in the bits `label@0`, `label@1`, ...
        counts: forward passes, backward passes and queries, in all and per sample.
        env: versions and device it was computed with.
        timing: `seconds` in all, seconds spent on `training`, and when it `started` and `ended` (UTC).
        given: the entries as the suite wrote them, by slot, without folders and files; and the `suite` itself. `data`
            also has the names of the `classes`, in the order of their labels, if they are known.
        sources: hashes of the source of the entries, by slot (see `sources`).
        errors: of earlier attempts, `{"type", "message", "when"}`.
        arrays: per-sample numbers, kept in a file beside the row.
        images: adversarial images with their ids and labels if they are kept, in a file beside the row.
    """

    cell: Cell
    status: Status = "ok"
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    flags: list[dict[str, str]] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    error: dict[str, Any] | None = None
    attempts: int = 1
    env: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse metrics, counts and samples that are not defined in `metrics`.

        Raises:
            ConfigError: with the name of the first one.
        """
        unknown = vocabulary.unknown(
            [*self.metrics], of_measure=self.cell.measure is not None or self.cell.study is not None
        )
        unknown = unknown or next((name for name in self.counts if name not in vocabulary.COUNTS), None)
        unknown = unknown or next((s for s in self.samples if s != "n" and not vocabulary.is_sample(s)), None)
        if unknown is not None:
            raise ConfigError(f"{unknown!r} is no figure of a row of the {self.cell.track} track; see metrics.py")

    def as_dict(self) -> dict[str, Any]:
        """The row as stored: results first, data that changes between runs last."""
        return {
            "schema": SCHEMA,
            "protocol": PROTOCOL,
            "key": self.cell.key,
            "labels": self.cell.labels,
            "status": self.status,
            "metrics": self.metrics,
            "flags": self.flags,
            "samples": self.samples,
            "counts": self.counts,
            "weights": self.weights,
            "error": self.error,
            "cell": self.cell.as_dict(),
            "attempts": self.attempts,
            "env": self.env,
            "timing": self.timing,
            **({"given": self.given} if self.given else {}),
            **({"sources": self.sources} if self.sources else {}),
            **({"errors": self.errors} if self.errors else {}),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Result:
        """A row that `schema.check` has accepted."""
        cell = Cell.from_dict(row["cell"])
        kept = {f.name for f in fields(cls)} - {"cell", "arrays", "images"}
        return cls(cell=cell, **{k: v for k, v in row.items() if k in kept})

    def after(self, before: Result | None, attempts: int = 1) -> Result:
        """Record an earlier failed attempt in this row, with its error.

        Args:
            attempts: number of attempts made since.
        """
        self.attempts = attempts
        if before is not None:
            last = {k: v for k, v in (before.error or {}).items() if k in ("type", "message")}
            when = before.timing.get("ended")
            self.attempts += before.attempts
            self.errors = [*before.errors, {"message": "", **last, **({"when": when} if when else {})}]
        return self

    def value(self, metric: str) -> float | None:
        """A metric's value, or None."""
        found = self.metrics.get(metric)
        return None if found is None else found["value"]

    def outcome(self, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """A per-sample 0/1 vector."""
        return unpack(self.samples[name], int(self.samples["n"]))

    def whole(self, name: str) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """The numbers that `bits` packed, one a sample; None if the row has none."""
        found = [k for k in range(BITS) if f"{name}@{k}" in self.samples]
        if not found:
            return None
        each = np.stack([self.outcome(f"{name}@{k}").astype(np.int64) << k for k in found])
        return np.asarray(each.sum(axis=0), dtype=np.int64)


def rate(k: float, n: int) -> dict[str, float]:
    """k of n with its Wilson 95 % interval; n is at least 1."""
    if n < 1:
        raise ValueError("a rate needs at least one sample")
    p, z = k / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {
        "value": round(p, 6),
        "low": round(max(0.0, centre - half), 6),
        "high": round(min(1.0, centre + half), 6),
        "n": n,
    }
