"""Writes docs/catalogue.md from the cards: `python -m siegebench.catalogue`. A test checks that the file is current."""

from __future__ import annotations

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


def main() -> None:
    """Write the file to docs/."""
    target = Path(__file__).resolve().parent.parent / "docs" / "catalogue.md"
    target.write_text(render(), encoding="utf-8")
    print(f"wrote docs/{target.name}")


if __name__ == "__main__":
    main()
