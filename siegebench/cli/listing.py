"""`siegebench list` and `siegebench show`: registered entries and stored rows. Imports no entry and no torch."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from siegebench import registry, signatures
from siegebench.cli import complete
from siegebench.cli.complete import LISTED
from siegebench.cli.options import Json
from siegebench.errors import ConfigError, did_you_mean
from siegebench.kinds import KINDS
from siegebench.threat import ACCESSES, NORMS


def list_(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(LISTED)}.", autocompletion=complete.lists)],
    access: Annotated[
        str | None, typer.Option(help="Attacks that need this access: gradient, score, label or none.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Attacks and measures that handle linf, l2, l1 or l0.")] = None,
    track: Annotated[str | None, typer.Option(help="Attacks and defenses of a track, such as query.")] = None,
    as_json: Json = False,
) -> None:
    """List the registered entries of a kind, optionally filtered."""
    kind = KINDS[kind].plural if kind in KINDS else "suites" if kind == "suite" else kind
    if kind not in LISTED:
        raise ConfigError(f"list {kind}: no such list. {did_you_mean(kind, LISTED)}")
    wanted = {"access": access, "norm": norm, "track": track}
    if kind == "suites":
        refuse(kind, wanted, ())
        rows = suites()
    else:
        of = next(k for k in KINDS.values() if k.plural == kind)
        refuse(kind, wanted, FILTERS.get(of.name, ()))
        rows = [entry(of.name, name) for name in registry.names(of.name)]
        rows = [
            row for row in rows if all(v is None or fits(of.name, row["declares"], k, v) for k, v in wanted.items())
        ]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max((len(r["name"]) for r in rows), default=0)
    for row in rows:
        print(f"{row['name']:{width}}  {row['summary']}")


FILTERS = {"attack": ("access", "norm", "track"), "measure": ("norm",), "defense": ("track",)}
DEFAULT_TRACKS = (
    "white_box",
    "query",
    "transfer",
    "patch",
    "corruption",
    "camouflage",
    "certified",
    "extraction",
)  # of a defense that does not declare any
# the tracks of an attack follow from its access and norms
ATTACK_TRACKS = {
    "white_box": lambda needs, norms: needs == "gradient",
    "query": lambda needs, norms: needs in ("score", "label"),
    "transfer": lambda needs, norms: needs in ("gradient", "none"),
    "patch": lambda needs, norms: "l0" in norms,
}
VALUES = {
    "access": ACCESSES,
    "norm": NORMS,
    "track": (*ATTACK_TRACKS, "backdoor", "poisoning", "corruption", "camouflage", "certified", "extraction"),
}


def refuse(kind: str, wanted: dict[str, str | None], possible: tuple[str, ...]) -> None:
    """Refuse filters that do not apply to a kind, and unknown values.

    Raises:
        ConfigError: for an unknown value, with the nearest one.
    """
    for name, value in wanted.items():
        if value is None:
            continue
        if name not in possible:
            raise ConfigError(f"--{name}: {kind} do not declare it; it filters {_filtered(name)}")
        if value not in VALUES[name]:
            raise ConfigError(f"--{name} {value}: no such {name}. {did_you_mean(value, VALUES[name])}")


def _filtered(name: str) -> str:
    return ", ".join(f"{kind}s" for kind, filters in FILTERS.items() if name in filters)


def fits(kind: str, declared: dict[str, Any], name: str, value: str) -> bool:
    """Whether the declared attributes of a class match one filter."""
    norms = declared.get("norms", ("linf", "l2", "l1") if kind == "measure" else ("linf",))
    norms = norms if isinstance(norms, tuple) else NORMS  # a name such as NORMS: the norms of the inner attack
    needs = declared.get("needs", "gradient")
    if name == "access":
        return bool(needs == value)
    if name == "norm":
        return value in norms
    if kind == "defense":
        return value == "poisoning" or value in declared.get("tracks", DEFAULT_TRACKS)
    return value in ATTACK_TRACKS and bool(ATTACK_TRACKS[value](needs, norms))


def suites() -> list[dict[str, Any]]:
    """Names and summaries of the bundled suites."""
    import yaml

    from siegebench.bundled import bundled_suites

    return [
        {"name": p.stem, "summary": str((yaml.safe_load(p.read_text(encoding="utf-8")) or {}).get("summary", ""))}
        for p in bundled_suites()
    ]


def entry(kind: str, name: str) -> dict[str, Any]:
    """All information in a card and in the source of its class."""
    found, _ = registry.find(kind, name)
    card = found.card
    return {
        "name": found.name,
        "kind": kind,
        "summary": card.summary,
        "paper": card.paper,
        "version": card.version,
        "parameters": signatures.parameters(kind, name),
        "declares": signatures.declared(kind, name),
        "presets": card.presets,
        "sees": list(card.sees),
        "takes": list(card.takes),
        "control": card.control,
        "family": card.family,
    }


def as_text(value: Any) -> str:
    """JSON for a terminal, with control characters escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
