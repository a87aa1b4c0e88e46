"""The schema of stored rows: types, ranges and cross-references. Rows may be untrusted. Needs no torch.

Fields added after the first version are optional, because older rows lack them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from siegebench import strictjson
from siegebench.cells import ATTACKING, NEEDS, PROTOCOL, SCHEMA, SLOTS, digest
from siegebench.errors import ConfigError, shortened
from siegebench.metrics import COUNTS, SEVERITIES, Metric, find, is_measure, is_sample
from siegebench.strictjson import Refused, first_fault
from siegebench.threat import MAX_EPS, Access, Norm, parse_target

ROUNDING = 1e-6  # stored numbers have six digits


# --------------------------------------------------------------------------------------------------------------- values


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, found {shortened(value)}")
    return float(value)  # `strictjson` has checked that it is finite and within 64 bits


def _time(value: str) -> str:
    try:
        offset = datetime.fromisoformat(value).utcoffset()
    except ValueError:
        offset = None
    if offset != timedelta(0):
        raise ValueError(f"expected a time in UTC such as 2026-01-31T12:00:00+00:00, found {shortened(value)}")
    return value


def _nested(value: dict[str, Any]) -> dict[str, Any]:
    """Check the inner attack of an attack or measure like any entry."""
    inner = value.get("attack")
    if isinstance(inner, Mapping):
        try:
            Entry.model_validate(inner)
        except ValidationError as error:
            loc, message = first_fault(error)
            raise ValueError(f"attack{''.join(f'.{step}' for step in loc)}: {message}") from None
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Time = Annotated[str, AfterValidator(_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Snake = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Plain = str | int | None


class Part(BaseModel):
    """A mapping with strict types and no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Open(BaseModel):
    """A mapping with further keys, which are parameters."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


# ------------------------------------------------------------------------------------------------------------- the cell


class Entry(Open):
    """The description of an entry: its name, its version, and its parameters."""

    name: Text
    version: Annotated[int, Field(ge=1)]

    @model_validator(mode="before")
    @classmethod
    def _inside(cls, value: Any) -> Any:
        return _nested(value) if isinstance(value, dict) else value


class Data(Part):
    """The evaluated slice."""

    name: Text
    source: Entry
    split: Text
    count: Annotated[int, Field(ge=1)]
    digest: Sha256
    classes: Annotated[int, Field(ge=1)]
    kind: Snake | None = None
    train: Annotated[int, Field(ge=1)] | None = None
    train_digest: Sha256 | None = None


class Threat(Part):
    """The threat model."""

    norm: Norm
    eps: Annotated[Number, Field(ge=0)]
    access: Access
    queries: Annotated[int, Field(ge=1)] | None = None
    target: Annotated[Any, AfterValidator(parse_target)] = None

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.eps > MAX_EPS[self.norm]:
            raise Refused(f"expected at most {MAX_EPS[self.norm]:g} for {self.norm}, found {self.eps:g}", "eps")
        return self


class Inputs(Part):
    """Other images that a detector is to find: of another data set, or of a source that makes them."""

    kind: Snake
    data: Data | None = None
    source: Entry | None = None
    split: Text | None = None
    count: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if (self.data is None) == (self.source is None):
            raise Refused("expected either data or source")
        return self


class Client(Part):
    """Who releases gradients."""

    batch: Annotated[int, Field(ge=1)]
    state: Literal["initial", "trained"]
    smoothing: Annotated[Number, Field(ge=0, lt=1)]
    mixup: bool
    gallery: Annotated[int, Field(ge=2)]


class CellPart(Part):
    """What was measured."""

    track: Snake
    data: Data
    model: Entry
    defense: Entry | None = None
    attack: Entry | None = None
    measure: Entry | None = None
    backdoor: Entry | None = None
    detector: Entry | None = None
    corruption: Entry | None = None
    severities: Annotated[list[Annotated[int, Field(ge=1, le=SEVERITIES[-1])]], Field(min_length=1)] | None = None
    camouflage: Entry | None = None
    stage: dict[Literal["scenes", "ss"], Annotated[int, Field(ge=1)]] | None = None
    certifier: Entry | None = None
    study: Entry | None = None
    radii: Annotated[list[Annotated[Number, Field(ge=0)]], Field(min_length=1)] | None = None
    theft: Entry | None = None
    pool: Data | None = None
    copied: Annotated[Entry | None, Field(alias="copy")] = None
    leak: Entry | None = None
    sharing: Entry | None = None
    client: Client | None = None
    inputs: Inputs | None = None
    threat: Threat | None = None
    surrogates: list[Entry] | None = None
    adaptive: bool = False
    seed: Whole = 0

    @model_validator(mode="after")
    def _fits_its_track(self) -> Self:
        for slot in NEEDS.get(self.track, ()):
            if getattr(self, slot) is None:
                raise Refused(f"missing, a row of the {self.track} track has it", slot)
        if self.track in ATTACKING and self.attack is None and self.measure is None:
            raise Refused("missing, and so is the measure", "attack")
        for name in ("severities", "radii"):
            given = getattr(self, name)
            if given is not None and given != sorted(set(given)):
                raise Refused(f"expected them in ascending order, found {shortened(given)}", name)
        if self.track == "certified" and (self.attack is None) == (self.radii is None or self.certifier is None):
            raise Refused("expected either an attack, or a certifier and radii", "radii")
        return self


# ------------------------------------------------------------------------------------------------------------ the rest


class Figure(Part):
    """A measured value with its interval and sample size."""

    value: Number | None
    low: Number | None = None
    high: Number | None = None
    n: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.value is None:
            return self
        slack = ROUNDING * max(1.0, abs(self.value))
        if self.low is not None and self.low > self.value + slack:
            raise Refused(f"expected at most the value {self.value:g}, found {self.low:g}", "low")
        if self.high is not None and self.high < self.value - slack:
            raise Refused(f"expected at least the value {self.value:g}, found {self.high:g}", "high")
        return self

    def within(self, metric: Metric) -> None:
        """Refuse numbers outside the range of their metric."""
        for name in ("value", "low", "high"):
            given = getattr(self, name)
            if given is None:
                continue
            if metric.low is not None and given < metric.low - ROUNDING:
                raise Refused(f"expected at least {metric.low:g}, found {given:g}", name)
            if metric.high is not None and given > metric.high + ROUNDING:
                raise Refused(f"expected at most {metric.high:g}, found {given:g}", name)


class FlagPart(Part):
    """A finding of a check."""

    id: Text
    severity: Literal["info", "flag", "fail"]
    evidence: str


class ErrorPart(Part):
    """Why there is no result; for earlier attempts also when."""

    type: str | None = None
    message: str
    traceback: list[str] | None = None
    when: Time | None = None


class Timing(Part):
    """Times and duration of the computation."""

    seconds: Annotated[Number, Field(ge=0)] | None = None
    training: Annotated[Number, Field(ge=0)] | None = None  # of the seconds
    started: Time | None = None
    ended: Time | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.started and self.ended and datetime.fromisoformat(self.started) > datetime.fromisoformat(self.ended):
            raise Refused(f"earlier than it started, found {shortened(self.ended)}", "ended")
        return self


class Origin(Part):
    """The suite of a row: its name or file, and the overrides of the command line."""

    name: Text
    set: list[Text] = []


class Row(Part):
    """A stored row."""

    row_schema: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    protocol: Annotated[int, Field(ge=1, le=PROTOCOL)]
    key: Sha256
    labels: dict[Text, str]
    status: Literal["ok", "error", "not_applicable"]
    metrics: dict[Text, Figure]
    flags: list[FlagPart]
    samples: dict[Text, int | str]
    counts: dict[Text, Annotated[Number, Field(ge=0)]]
    weights: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    error: ErrorPart | None
    cell: CellPart
    attempts: Annotated[int, Field(ge=1)]
    env: dict[Text, Plain]
    timing: Timing
    given: dict[Text, dict[str, Any] | list[dict[str, Any]]] = {}
    sources: dict[Text, Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]] = {}
    errors: list[ErrorPart] = []

    @model_validator(mode="after")
    def _of_the_vocabulary(self) -> Self:
        own = self.cell.measure is not None or self.cell.study is not None  # it names its figures itself
        for name, figure in self.metrics.items():
            metric = find(name)
            if metric is None and not (own and is_measure(name)):
                raise Refused("no such figure", "metrics", name)
            try:
                if metric is not None and not own:
                    figure.within(metric)
            except Refused as error:
                raise Refused(str(error), "metrics", name, *error.loc) from None
        for name in self.counts:
            if name not in COUNTS:
                raise Refused("no such count", "counts", name)
        for part, more in (("given", ("copy", "suite")), ("sources", ("copy", "inputs", "pool"))):
            for name in getattr(self, part):
                if name not in (*SLOTS, "surrogates", "data", *more):
                    raise Refused("no such part of a cell", part, name)
        if "suite" in self.given:
            try:
                Origin.model_validate(self.given["suite"])
            except ValidationError as error:
                loc, message = first_fault(error)
                raise Refused(message, "given", "suite", *loc) from None
        if self.error is not None and self.status == "ok":
            raise Refused("there is one although the status is ok", "error")
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        n = self.samples.get("n")
        if "n" in self.samples and (isinstance(n, str) or n != self.cell.data.count):
            raise Refused(f"expected cell.data.count, {self.cell.data.count}, found {shortened(n)}", "samples", "n")
        for name, packed in self.samples.items():
            if name == "n":
                continue
            if not is_sample(name):
                raise Refused("no such outcome", "samples", name)
            if "n" not in self.samples:
                raise Refused("missing", "samples", "n")
            wanted = math.ceil(self.cell.data.count / 8)
            if not isinstance(packed, str):
                raise Refused(f"expected base64 text, found {shortened(packed)}", "samples", name)
            try:
                length = len(base64.b64decode(packed, validate=True))
            except (binascii.Error, ValueError):
                raise Refused(f"expected base64 text, found {shortened(packed)}", "samples", name) from None
            if length != wanted:
                raise Refused(f"expected {wanted} bytes for the images of the slice, found {length}", "samples", name)
        return self


# ------------------------------------------------------------------------------------------------------------- checking


def parse(content: bytes) -> dict[str, Any]:
    """The row in the bytes of a file, as plain data.

    Raises:
        ConfigError: one line, `field: what is wrong`.
    """
    try:
        row = strictjson.loads(content)
    except Refused as error:
        raise ConfigError(f"{_dotted(error.loc)}{error}") from None
    check(row, plain=True)
    return dict(row)


def check(row: Any, plain: bool = False) -> None:
    """Refuse anything but a valid row of this or an earlier version; `plain`: strictjson has seen it.

    Raises:
        ConfigError: one line, `field: what is wrong`.
    """
    try:
        if not plain:
            strictjson.plain(row)
        if not isinstance(row, dict):
            raise Refused(f"expected a mapping, found {shortened(row)}")
        try:
            Row.model_validate(row)
        except ValidationError as error:
            loc, message = first_fault(error)
            raise Refused(message, *loc) from None
        key, found = digest({"protocol": row["protocol"], **row["cell"]}), row["key"]
        if found != key:
            raise Refused(f"does not belong to the cell, expected {key[:16]}..., found {found[:16]}...", "key")
    except Refused as error:
        raise ConfigError(f"{_dotted(error.loc)}{error}") from None


def _dotted(loc: tuple[Any, ...]) -> str:
    steps = [str(step) if re.fullmatch(r"[A-Za-z0-9_@.-]{1,40}", str(step)) else shortened(step) for step in loc]
    return f"{'.'.join(steps)}: " if steps else ""
