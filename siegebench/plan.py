"""Plan: the list of cells of a suite. Loads data and models to check and hash them, but trains nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from siegebench.cells import Cell, digest
from siegebench.config import Suite
from siegebench.inventory import NamedData
from siegebench.tracks import TRACKS


@dataclass
class Plan:
    """The cells of a suite, and the specs of their entries.

    Attributes:
        cells: cells of the same model are adjacent.
        boards: the keys of the cells of each board of the suite; a cell of two boards is computed once.
        specs: specs with folders and files (which are not part of a key), by the digest of a description.
    """

    cells: list[Cell] = field(default_factory=list)
    boards: list[list[str]] = field(default_factory=list)
    specs: dict[str, Any] = field(default_factory=dict)


def plan(suite: Suite, given: dict[str, Any] | None = None, data: NamedData | None = None) -> Plan:
    """The cells of a suite, in the order of execution.

    Args:
        given: description of a model passed from Python, which replaces the suite's models.
        data: images passed from Python, which replace the suite's data.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed; the message begins with the position.
    """
    inventory = suite.inventory(given, data)
    boards = [{cell.key: cell for cell in board.cells(inventory)} for board in suite.filled()]
    cells = {key: cell for board in boards for key, cell in board.items()}

    def order(cell: Cell) -> tuple[Any, ...]:
        """Keeps cells of one victim together, the most expensive attacks first (autoattack before fgsm)."""
        cost = inventory.costs[digest(cell.attack)] if cell.attack else 0.0
        victim = (digest(cell.model), digest(cell.backdoor), digest(cell.defense))
        return (TRACKS[cell.track].late, *victim, -cost, cell.key)

    return Plan(sorted(cells.values(), key=order), [list(board) for board in boards], inventory.specs)
