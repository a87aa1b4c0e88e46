"""Plan: from a suite to the list of its cells, with everything they need known by content. Nothing is trained here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from siegebench.cells import Cell, digest
from siegebench.config import Suite
from siegebench.tracks import TRACKS


@dataclass
class Plan:
    """The cells of a suite, and the full specs of what they name.

    Attributes:
        cells: neighbours share a model.
        specs: with folders and files, by the digest of a description; those are not part of a key.
    """

    cells: list[Cell] = field(default_factory=list)
    specs: dict[str, Any] = field(default_factory=dict)


def plan(suite: Suite, given: dict[str, Any] | None = None) -> Plan:
    """The cells of a suite, in the order in which they should run.

    Args:
        given: the description of a model handed over from Python, which takes the place of the suite's models.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed; the message begins with the position.
    """
    inventory = suite.inventory(given)
    cells = {cell.key: cell for board in suite.filled() for cell in board.cells(inventory)}

    def neighbours(cell: Cell) -> tuple[Any, ...]:
        """Cells of one victim lie side by side, the most expensive ones first (autoattack before fgsm)."""
        cost = inventory.costs[digest(cell.attack)] if cell.attack else 0.0
        victim = (digest(cell.model), digest(cell.backdoor), digest(cell.defense))
        return (TRACKS[cell.track].late, *victim, -cost, cell.key)

    return Plan(sorted(cells.values(), key=neighbours), inventory.specs)
