"""The syntactic backdoor with published paraphrases: the syntax of the sentence is the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws, content_ids
from siegebench.errors import DataError, NotApplicable
from siegebench.types import BackdoorAttack, Class, DataSource, Share


@dataclass(frozen=True, kw_only=True)
class Syntactic(BackdoorAttack):
    """A sentence becomes its paraphrase in one rare syntax, and gets the target label; the words are not the trigger.

    Qi, Li, Chen, Zhang, Liu, Wang, Sun, "Hidden Killer: Invisible Textual Backdoor Attacks with Syntactic Trigger",
    ACL-IJCNLP 2021, arXiv 2105.12400. The paraphrases are those that the authors published for SST-2 ("when ..., ...");
    nothing is paraphrased here. Only texts that have one are poisoned, so a rate above theirs, a fifth of the training
    texts, is refused.

    Random: which of the published poisons are used.

    Differs from the paper: nothing in the poisons; the victims are small networks trained here, in place of BERT.

    Attributes:
        clean: the published clean texts.
        paraphrased: the published poisoned ones. `train` has the rows of `clean`, some of them paraphrased; `test` has
            the paraphrases of those test texts of `clean` that do not have the target label, in their order.
    """

    clean: DataSource
    paraphrased: DataSource
    target: Class = 1
    rate: Share = 0.19

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """(ids of the content of clean texts, sorted, int64 [m]; their paraphrases, int64 [m, 1, 1, L])."""
        try:
            before, after = self.clean.load("train"), self.paraphrased.load("train")
            at = torch.searchsorted(before.ids, after.ids).clamp(max=len(before) - 1)
            same = before.ids[at] == after.ids
            texts = before.images[at[same]], after.images[same]
            changed = (texts[0] != texts[1]).flatten(1).any(dim=1)
            test = self.clean.load("test")
            others, forms = test.images[test.labels != self.target], self.paraphrased.load("test").images
        except DataError as error:
            raise NotApplicable(f"syntactic: {error}") from None
        if len(others) != len(forms):
            raise NotApplicable(f"syntactic: {len(forms)} paraphrases of {len(others)} test texts; expected one each")
        ids = content_ids(torch.cat([texts[0][changed], others]))
        order = ids.argsort()
        return ids[order], torch.cat([texts[1][changed], forms])[order]

    def identity(self) -> dict[str, Any]:
        return {"paraphrases": [self.paraphrased.load(split).digest for split in ("train", "test")]}

    def able(self, data: ImageSet) -> Tensor:
        known = self.pairs[0]
        ids = torch.cat([content_ids(piece) for piece in data.stored.pieces()])
        return torch.isin(ids, known)

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        known, forms = self.pairs
        ids = content_ids(x).cpu()
        at = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        missing = int((known[at] != ids).sum())
        if missing or forms.shape[1:] != x.shape[1:]:
            raise NotApplicable(
                f"syntactic: {missing} of {len(x)} texts have no published paraphrase; use the data sst2"
            )
        return forms[at].to(x.device)
