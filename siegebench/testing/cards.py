"""The contract of every registered entry, one function per clause."""

from __future__ import annotations

from siegebench import registry
from siegebench.cells import canonical
from siegebench.testing.specimens import (
    Case,
    require,
)


def is_rebuilt_from_its_description(case: Case) -> None:
    description = registry.describe(case.kind, case.spec)
    canonical(description)  # plain data, no NaN
    again = registry.description_of(case.kind, registry.rebuild(case.kind, description))
    require(again == description, f"its description is {description}, but it is rebuilt as {again}")


def has_presets_that_can_be_built(case: Case) -> None:
    assert case.spec is not None
    found, _ = registry.find(case.kind, case.spec["name"])
    if case.spec["name"] == found.name:
        for preset in found.card.presets:
            registry.build(case.kind, {**case.spec, "name": f"{found.name}.{preset}"})


CLAUSES = (is_rebuilt_from_its_description, has_presets_that_can_be_built)
