"""Writes docs/catalogue.md from the cards, and leaderboard/flags.json from docs/flags.md.

`python -m siegebench.catalogue` writes them; a test checks that both are current.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from siegebench import registry, signatures
from siegebench.kinds import KINDS


def _facts(kind: str, name: str) -> str:
    """The most important properties, in a few words."""
    card = registry.find(kind, name)[0].card
    said = signatures.declared(kind, name)
    facts = []
    if kind == "attack":
        facts.append(str(said.get("needs", "gradient")) + " access")
        norms = said.get("norms", ("linf",))
        facts.append(", ".join(norms) if isinstance(norms, tuple) else "norms of the inner attack")
        facts += ["smallest perturbation"] if said.get("minimal") else []
        facts += ["takes a target class"] if said.get("aims") else []
    if kind in ("attack", "measure"):
        facts += ["learns from training images"] if said.get("learns") else []
    if kind == "corruption":
        facts.append(str(said.get("group", "")))
    if kind == "defense":
        facts += [flag for flag in ("trains", "randomized") if said.get(flag)]
        facts += ["not differentiable"] if said.get("differentiable") is False else []
    if card.sees:
        facts.append("uses " + ", ".join(card.sees))
    if card.takes != ("image",):
        facts.append("takes " + ", ".join(card.takes))
    if card.control:
        facts.append("planted control")
    return "; ".join(facts)


def render() -> str:
    """The catalogue as Markdown."""
    lines = [
        "# Catalogue",
        "",
        "Generated from the cards by `python -m siegebench.catalogue`; `siegebench show NAME` prints one in full.",
    ]
    for kind in KINDS:
        names = [name for name in registry.names(kind) if "/" not in name]
        if not names:
            continue
        header = "| name | what it does | facts | parameters | paper |"
        lines += ["", f"## {KINDS[kind].title}", "", header, "|---|---|---|---|---|"]
        for name in names:
            card = registry.find(kind, name)[0].card
            shown = ", ".join(
                f"`{key}={value['default']}`" if value["default"] is not None else f"`{key}`"
                for key, value in signatures.parameters(kind, name).items()
            )
            cells = (f"`{name}`", card.summary, _facts(kind, name), shown, card.paper)
            lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def flags(text: str) -> str:
    """The meaning of every flag in the tables of docs/flags.md, as JSON: the page explains flags without the docs."""
    found: dict[str, list[str]] = {}
    for name, meaning in re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", meaning).replace("`", "").replace("\\|", "|")
        if plain not in found.setdefault(name, []):
            found[name].append(plain)
    return json.dumps({k: " ".join(v) for k, v in sorted(found.items())}, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write docs/catalogue.md, and leaderboard/flags.json from docs/flags.md."""
    root = Path(__file__).resolve().parent.parent
    written = {
        "docs/catalogue.md": render(),
        "leaderboard/flags.json": flags((root / "docs" / "flags.md").read_text(encoding="utf-8")),
    }
    for name, text in written.items():
        (root / name).write_text(text, encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
