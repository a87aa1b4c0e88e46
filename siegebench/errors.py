"""The errors of siegebench. Each message says where, what was found, what was expected, and what to do.

SiegeError
├── ConfigError          a suite, a card or an argument is wrong           (exit code 2)
├── DataError            images or labels are missing, empty or corrupt    (exit code 2)
├── ModelError           weights are missing, corrupt, NaN or of another shape (exit code 2)
├── MissingExtra         an optional package is not installed              (exit code 2)
├── ContractError        an entry violated its contract: a bug in the entry (the cell fails)
├── NotApplicable        the entry cannot handle this model, for a stated reason (stored in the row)
└── BudgetExhausted      raised inside an attack that spent its queries    (must not leave the attack)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SiegeError(Exception):
    """Base class of all errors that siegebench raises."""


class ConfigError(SiegeError):
    """A suite, card or argument is wrong; nothing was computed."""


class DataError(SiegeError):
    """Images or labels are missing, empty or corrupt."""


class ModelError(SiegeError):
    """Weights are missing, corrupt, not finite, or of another shape than the model."""


class MissingExtra(SiegeError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs {package}, which is not installed: pip install 'siegebench[{extra}]'")


class ContractError(SiegeError):
    """An entry returned or asked for something that its contract forbids."""


class NotApplicable(SiegeError):
    """The entry cannot handle this model (for instance it needs batch-norm layers)."""


class BudgetExhausted(SiegeError):
    """An attack made more queries than the threat model allows."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean pgd? Known: fgsm, pgd (2).` for a word that is not among the known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return (f"Did you mean {near[0]}? " if near else "") + f"Known: {shown or 'none'} ({len(names)})."


def quoted(text: str) -> str:
    """User text for a message: unchanged, or shortened if it is long or not printable."""
    return text if len(text) <= 80 and text.isprintable() else shortened(text)


def shortened(value: object) -> str:
    """A value for a message, in at most 80 characters on one line."""
    if isinstance(value, (str, bytes)):
        text = repr(value[:100])
    elif isinstance(value, int) and abs(value) >= 10**60:
        text = f"a number of {len(hex(value)) * 5 // 4 - 2} digits or so"
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # it contains a huge number or itself
            text = f"a {type(value).__name__}"
        text = " ".join(text.split())  # arrays and tensors have several lines
    return text if len(text) <= 80 else f"{text[:77]}..."
