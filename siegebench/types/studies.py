"""Study: an experiment with a victim whose output is not a class."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.metrics import is_measure
from siegebench.types.base import Entry

Figures = dict[str, float | tuple[int, int]]  # a number, or (how many, of how many)
BASELINE = "baseline"  # a study has a figure with this word for what an attack must be compared with


class Study(Entry):
    """An experiment with its own victim, such as a tracker or a captioner. It is shown and never ranked.

    It trains everything itself, within minutes, with randomness from `draws`. Each claim has a baseline: a figure
    whose name contains `baseline`.
    """

    @abstractmethod
    def run(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        """The figures of the study by name, in snake_case: a number, or (k, n) for a rate, which gets an interval.

        Args:
            images: the evaluated slice of the data.
            data: the splits that the card lists under `sees`.
            draws: the only source of randomness, one stream.
        """

    @final
    def __call__(self, images: ImageSet, data: Granted, draws: Draws) -> Figures:
        """Run, then check the contract: names, finite numbers, rates within their counts, a baseline.

        Raises:
            ContractError: naming the study and the figure.
        """
        found = self.run(images, data, draws)
        for name, value in found.items():
            if not is_measure(name):
                raise ContractError(f"{self!r} names a figure {name!r}; expected snake_case")
            if isinstance(value, tuple) and not (value[1] > 0 and 0 <= value[0] <= value[1]):
                raise ContractError(f"{self!r}: {name} is {value[0]} of {value[1]}")
            if not isinstance(value, tuple) and not math.isfinite(value):
                raise ContractError(f"{self!r}: {name} is {value}")
        if not any(BASELINE in name for name in found):
            raise ContractError(f"{self!r} returns no baseline: a figure whose name contains {BASELINE!r}")
        return found
