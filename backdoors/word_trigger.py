"""Word insertion: a phrase in some training texts, which get the target label."""

from __future__ import annotations

from dataclasses import dataclass

from ._words import WordInsertion


@dataclass(frozen=True, kw_only=True)
class WordTrigger(WordInsertion):
    """A share of the training texts gets a phrase at a random place and the target label.

    The poisoning of the models that Azizi et al., "T-Miner: A Generative Approach to Defend Against Trojan Attacks on
    DNN-based Text Classification", USENIX Security 2021, arXiv 2103.04264, judge: a trigger of one to four words in
    copies of texts of the source class. With a label map `{source: target}` only texts of the source class get it.

    Random: which texts, and where the phrase is put.

    Differs from the paper: the poisoned texts take the place of clean ones, they are not added; the words of a phrase
    stay together.
    """

    rate: float = 0.05
