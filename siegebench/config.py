"""Suite: what a YAML file asks for, checked to the last name before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from siegebench import registry
from siegebench.errors import ConfigError, SiegeError, did_you_mean
from siegebench.threat import Access, Norm, ThreatModel, parse_number
from siegebench.yamlmarks import Document

Spec = str | dict[str, Any]
Specs = Annotated[list[Spec], Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
Budget = Annotated[int, Field(ge=1, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(_Strict):
    """Which images: a dataset, a split, and how many (class-stratified, fixed by their ids; all when left out)."""

    set: Spec
    split: Literal["test", "train"] = "test"
    count: Budget | None = None


def _text_and_number(value: Any) -> Any:
    parse_number(value)
    return value if isinstance(value, str) else float(value)


class ThreatSpec(_Strict):
    """An Lp ball; eps is a number or a fraction such as 8/255."""

    norm: Norm
    eps: Annotated[str | float, BeforeValidator(_text_and_number)]

    def model(self, access: Access, queries: int | None) -> ThreatModel:
        return ThreatModel.parse({"norm": self.norm, "eps": self.eps, "access": access, "queries": queries})


class _Board(_Strict):
    track: str
    data: DataSpec | None = None
    models: Specs | None = None
    seeds: Seeds | None = None
    # which lists hold which kind of entry
    slots: ClassVar[dict[str, str]] = {"models": "model"}
    _place: tuple[Any, ...] = PrivateAttr(())  # in the document

    def place(self, slot: str) -> tuple[Any, ...]:
        """Where the document says it: on the board, or at the top for what the board leaves to the suite."""
        inherited = slot in ("data", "models", "seeds") and getattr(self, slot) is None
        return (slot,) if inherited else (*self._place, slot)


class AttackBoard(_Board):
    """What the tracks that attack images have in common."""

    attacks: Specs
    defenses: Specs = ["none"]
    threats: Annotated[list[ThreatSpec], Field(min_length=1)]
    slots: ClassVar[dict[str, str]] = {"models": "model", "defenses": "defense", "attacks": "attack"}


class WhiteBoxBoard(AttackBoard):
    """Robust accuracy under attacks that see everything; the adaptive attacks of each defense are added."""

    track: Literal["white_box"]
    checks: list[Spec] = ["masking"]
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "checks": "measure"}


class QueryBoard(AttackBoard):
    """Robust accuracy under attacks that may only ask, with a budget of queries a sample."""

    track: Literal["query"]
    access: Literal["score", "label"] = "score"
    queries: Budget = 1000


class TransferBoard(AttackBoard):
    """Robust accuracy under images made on other models: the attacker trains surrogates and never meets the victim."""

    track: Literal["transfer"]
    surrogates: list[Spec]  # none: the attacker has no network at all (no box)
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "surrogates": "model"}


class PatchBoard(AttackBoard):
    """Accuracy under patches, patterns and light: few pixels change, or many by what physics allows, but visibly."""

    track: Literal["patch"]


class BackdoorBoard(_Board):
    """Clean accuracy, attack success and recovered accuracy of each backdoor attack under each defense."""

    track: Literal["backdoor"]
    backdoors: Specs
    defenses: Specs = ["none"]
    slots: ClassVar[dict[str, str]] = {"models": "model", "backdoors": "backdoor", "defenses": "defense"}


class InputDetectionBoard(_Board):
    """How well detectors tell triggered inputs (or poisoned training images) from clean ones."""

    track: Literal["input_detection"]
    backdoors: Specs
    detectors: Specs
    slots: ClassVar[dict[str, str]] = {"models": "model", "backdoors": "backdoor", "detectors": "detector"}


class ModelDetectionBoard(_Board):
    """How well detectors tell backdoored models from clean ones, over a population of both."""

    track: Literal["model_detection"]
    backdoors: Specs
    detectors: Specs
    clean: Budget = 1  # clean models for each seed, so that false alarms show
    slots: ClassVar[dict[str, str]] = InputDetectionBoard.slots


Board = (
    WhiteBoxBoard | QueryBoard | TransferBoard | PatchBoard | BackdoorBoard | InputDetectionBoard | ModelDetectionBoard
)
TRACKS: dict[str, type[_Board]] = {
    "white_box": WhiteBoxBoard,
    "query": QueryBoard,
    "transfer": TransferBoard,
    "patch": PatchBoard,
    "backdoor": BackdoorBoard,
    "input_detection": InputDetectionBoard,
    "model_detection": ModelDetectionBoard,
}


class Suite(_Strict):
    """A named list of boards; `data`, `models` and `seeds` at the top serve every board that has none of its own."""

    suite: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    summary: str = ""
    data: DataSpec | None = None
    models: Specs | None = None
    seeds: Seeds = [0]
    boards: Annotated[
        list[Annotated[Board, Field(discriminator="track")]],
        Field(min_length=1),
    ]

    _document: Document | None = PrivateAttr(None)

    def of(self, board: _Board, name: str) -> Any:
        """A board's own `data`, `models` or `seeds`, else the suite's."""
        own = getattr(board, name)
        return own if own is not None else getattr(self, name)

    @contextmanager
    def blame(self, loc: Sequence[Any]) -> Iterator[None]:
        """Put `file:line:col` of a place in front of what goes wrong inside."""
        try:
            yield
        except SiegeError as error:
            if self._document is not None and not getattr(error, "blamed", False):
                place = self._document.where((*loc, *getattr(error, "loc", ())))
                error.args = (f"{place}: {' '.join(str(error).split())}",)
                error.blamed = True  # type: ignore[attr-defined]
            raise


def suite_path(name: str) -> Path:
    """A file, or the name of a suite that comes along.

    Raises:
        ConfigError: when there is neither; with the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{name}: is a folder; expected a YAML file or the name of a bundled suite")
    bundled = {p.stem: p for p in bundled_suites()}
    if name in bundled:
        return bundled[name]
    raise ConfigError(f"{name}: no such file or bundled suite. {did_you_mean(path.stem, bundled)}")


def bundled_suites() -> list[Path]:
    """The suites that come with the package."""
    import importlib.util

    spec = importlib.util.find_spec("siegebench.suites")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return sorted(p for folder in folders for p in Path(folder).glob("*.yaml"))


def load_suite(name: str, overrides: Sequence[str] = ()) -> Suite:
    """Read, override, validate: every key, type, range, name and parameter, and what goes with what.

    Args:
        name: a YAML file, or the name of a bundled suite.
        overrides: `path=value` assignments, applied before validation.

    Raises:
        ConfigError: one line, `file:line:col: what was found, what was expected`.
    """
    document = Document.read(suite_path(name))
    for assignment in overrides:
        document.override(assignment)
    return parse_suite(document)


def parse_suite(document: Document) -> Suite:
    """Validate a document that was read already. Raises ConfigError as `load_suite` does."""
    if not isinstance(document.data, dict):
        found = type(document.data).__name__ if document.data is not None else "nothing"
        raise document.error((), f"expected a mapping with suite, data, models, boards; found {found}")
    _check_keys(document)
    try:
        suite = Suite.model_validate(document.data)
    except ValidationError as error:
        raise document.error(*_first(error)) from None
    suite._document = document
    for i, board in enumerate(suite.boards):
        board._place = ("boards", i)
        _check_board(document, suite, board, ("boards", i))
    return suite


def _check_keys(document: Document) -> None:
    """Unknown keys first: their message names the nearest key, and a typo explains the errors that follow from it."""

    def known(model: type[BaseModel], data: Any, loc: tuple[Any, ...]) -> None:
        if not isinstance(data, dict):
            return
        for key in data:
            if key not in model.model_fields:
                raise document.error((*loc, key), f"unknown key {key!r}. {did_you_mean(str(key), model.model_fields)}")

    data = document.data
    known(Suite, data, ())
    known(DataSpec, data.get("data"), ("data",))
    boards = data.get("boards")
    for i, board in enumerate(boards if isinstance(boards, list) else []):
        loc = ("boards", i)
        if not isinstance(board, dict):
            raise document.error(loc, f"a board is a mapping with track, models, ...; found {board!r}")
        track = board.get("track")
        if not isinstance(track, str) or track not in TRACKS:
            place = (*loc, "track") if "track" in board else loc
            raise document.error(place, f"unknown track {track!r}. {did_you_mean(str(track), TRACKS)}")
        known(TRACKS[track], board, loc)
        known(DataSpec, board.get("data"), (*loc, "data"))
        threats = board.get("threats")
        for j, threat in enumerate(threats if isinstance(threats, list) else []):
            known(ThreatSpec, threat, (*loc, "threats", j))


def _first(error: ValidationError) -> tuple[tuple[Any, ...], str]:
    first = error.errors()[0]
    # pydantic adds the tags of its unions to the path
    loc = tuple(s for s in first["loc"] if s not in (*TRACKS, "str", "float", "dict[str,any]"))
    shown = ".".join(str(s) for s in loc)
    if first["type"] == "missing":
        return loc[:-1], f"{shown} is missing"
    if first["loc"][-1:] == ("str",):
        return loc, f"{shown}: expected a name or a mapping with `name`, found {_short(first.get('input'))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if "found" in message else f", found {_short(first.get('input'))}"
    return loc, f"{shown}: {message}{found}"


def _check_board(document: Document, suite: Suite, board: Board, loc: tuple[Any, ...]) -> None:
    for name in ("data", "models"):
        if suite.of(board, name) is None:
            raise document.error(loc, f"this {board.track} board has no {name}, and neither has the suite")

    def check(kind: str, spec: Any, at: tuple[Any, ...]) -> Any:
        with suite.blame(at):
            return registry.build(kind, spec)

    check("dataset", suite.of(board, "data").set, (*board.place("data"), "set"))
    built: dict[str, list[Any]] = {}
    for slot, kind in board.slots.items():
        specs = suite.of(board, slot) if slot == "models" else getattr(board, slot)
        built[slot] = [check(kind, spec, (*board.place(slot), i)) for i, spec in enumerate(specs)]
        _no_twins(document, specs, board.place(slot), map(registry.normal, specs))
    _no_twins(document, suite.of(board, "seeds"), board.place("seeds"))
    if isinstance(board, AttackBoard):
        _check_attacks(document, board, built, loc)
    if "defenses" in built:
        for i, defense in enumerate(built["defenses"]):
            if board.track not in (*defense.tracks, *(("backdoor",) if defense._name == "none" else ())):
                raise document.error(
                    (*loc, "defenses", i),
                    f"defense {defense._name!r} is for {', '.join(defense.tracks)}, not for the {board.track} track",
                )
    if isinstance(board, (InputDetectionBoard, ModelDetectionBoard)):
        from siegebench.types import ModelDetector

        for i, detector in enumerate(built["detectors"]):
            if isinstance(detector, ModelDetector) != (board.track == "model_detection"):
                level = "models" if isinstance(detector, ModelDetector) else "inputs"
                raise document.error(
                    (*loc, "detectors", i), f"detector {detector._name!r} judges {level}; it is not for {board.track}"
                )


def granted(board: AttackBoard) -> Access:
    """What an attack of this board may ask of the model it sees."""
    if isinstance(board, QueryBoard):
        return board.access
    return "none" if isinstance(board, TransferBoard) and not board.surrogates else "gradient"


def _check_attacks(document: Document, board: AttackBoard, built: dict[str, list[Any]], loc: tuple[Any, ...]) -> None:
    access = granted(board)
    balls: list[tuple[str, float]] = []
    for j, threat in enumerate(board.threats):
        try:
            ball = threat.model(access, None)
        except ConfigError as error:
            raise document.error((*loc, "threats", j, "eps"), str(error)) from None
        balls.append((ball.norm, ball.eps))
    norms = {norm for norm, _ in balls}
    _no_twins(document, [f"{t.norm} {t.eps}" for t in board.threats], (*loc, "threats"), balls)
    handled: set[str] = set()
    for i, attack in enumerate(built["attacks"]):
        at = (*loc, "attacks", i)
        if not ThreatModel(access=access).grants(attack.access()):
            needs = f"attack {attack._name!r} needs {attack.access()} access"
            raise document.error(at, f"{needs}; this {board.track} board grants {access}")
        usable = norms & set(attack.handles())
        if not usable:
            handles, asked = ", ".join(attack.handles()), ", ".join(sorted(norms))
            raise document.error(at, f"attack {attack._name!r} handles {handles}; the threats are {asked}")
        handled |= usable
    for j, threat in enumerate(board.threats):
        if threat.norm not in handled:
            raise document.error((*loc, "threats", j), f"no attack of this board handles {threat.norm}")


def _no_twins(
    document: Document, items: Sequence[Any], loc: tuple[Any, ...], values: Iterable[Any] | None = None
) -> None:
    seen: list[Any] = []
    for i, (item, value) in enumerate(zip(items, items if values is None else values, strict=True)):
        if value in seen:
            raise document.error((*loc, i), f"{_short(item)} stands twice")
        seen.append(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
