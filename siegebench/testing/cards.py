"""The contract of every registered entry, one function per clause."""

from __future__ import annotations

import inspect
import re
from typing import Any

from siegebench import registry, signatures
from siegebench.card import Registered
from siegebench.cells import SLOTS, canonical
from siegebench.skeleton import LEFT
from siegebench.testing.specimens import Case, require

METHODS = tuple(slot for slot in SLOTS if slot not in ("model", "measure"))  # their entries implement papers


def _card(case: Case) -> Registered:
    assert case.spec is not None
    return registry.find(case.kind, case.spec["name"])[0]


def is_rebuilt_from_its_description(case: Case) -> None:
    description = registry.describe(case.kind, case.spec)
    canonical(description)  # plain data, no NaN
    again = registry.description_of(case.kind, registry.rebuild(case.kind, description))
    require(again == description, f"its description is {description}, but it is rebuilt as {again}")


def has_presets_that_can_be_built(case: Case) -> None:
    assert case.spec is not None
    found = _card(case)
    if case.spec["name"] == found.name:
        for preset in found.card.presets:
            registry.build(case.kind, {**case.spec, "name": f"{found.name}.{preset}"})


def has_no_text_of_the_skeleton_left(case: Case) -> None:
    """Card and code say what this entry is."""
    path = _card(case).path
    code = path.with_name(_card(case).card.entry.partition(":")[0] + ".py")
    for file in (path, code):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else (), 1):
            for text in LEFT:
                require(text not in line, f"{file.name}:{number}: replace the skeleton's text {line.strip()!r}")


def explains_its_parameters(case: Case) -> None:
    assert case.spec is not None
    said = _docstring(case)
    require(said, f"the class {type(case.entry).__name__} has no docstring: say what it does and what is random")
    shared = signatures.docstrings(case.kind, case.spec["name"])
    silent = [name for name in parameters(case) if re.search(rf"\b{name}\b", "\n".join([said, *shared])) is None]
    require(not silent, f"the docstring does not explain {', '.join(silent)}; add a line under Attributes for each")


def says_what_is_random(case: Case) -> None:
    if case.kind in (*METHODS, "measure"):
        said = re.search(r"random|draw", _docstring(case), re.IGNORECASE)
        require(said, "the docstring does not say what is random; write 'Nothing is random.' if nothing is")


def says_how_it_differs_from_its_paper(case: Case) -> None:
    card = _card(case).card
    if case.kind in METHODS and card.paper and not (card.control or card.family):
        missing = "the card names a paper, and the docstring of the class has no line 'Differs from the paper: ...'"
        require("Differs from the paper:" in _docstring(case), f"{missing} (write 'nothing' if it does not)")


def parameters(case: Case) -> dict[str, Any]:
    """The parameters that the class, or a base in its file or beside it, defines."""
    assert case.spec is not None
    return signatures.parameters(case.kind, case.spec["name"])


def _docstring(case: Case) -> str:
    own = type(case.entry).__dict__.get("__doc__") or ""  # a dataclass without one gets its signature
    generated = own.startswith(f"{type(case.entry).__name__}(")
    return "" if generated else inspect.cleandoc(own)


CLAUSES = (
    is_rebuilt_from_its_description,
    has_presets_that_can_be_built,
    has_no_text_of_the_skeleton_left,
    explains_its_parameters,
    says_what_is_random,
    says_how_it_differs_from_its_paper,
)
