"""Counter-based randomness: every number is a function of (seed, sample id, step, purpose).

No state, no global seed. A sample gets the same numbers alone or in any batch, in any order, on any worker, and after a
resume. The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) in wrapping int64 arithmetic.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)
_BLOCK = 2**16  # words that are mixed together: they stay in the cache of a CPU


def _shift(x: Tensor, k: int) -> Tensor:
    """Logical right shift (torch shifts int64 arithmetically)."""
    return (x >> k) & ((1 << (64 - k)) - 1)


def _mix(x: Tensor) -> Tensor:
    return _mix_(x.clone())


def _mix_(x: Tensor) -> Tensor:
    """In place, which takes half the time."""
    shifted = torch.empty_like(x)
    for k, factor in ((30, _M1), (27, _M2), (31, 1)):
        torch.bitwise_right_shift(x, k, out=shifted)
        x ^= shifted.bitwise_and_((1 << (64 - k)) - 1)
        if factor != 1:
            x *= factor
    return x


@lru_cache(maxsize=4096)
def _word(seed: int, text: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest()
    return _signed(int.from_bytes(digest, "little"))


def derive_seed(seed: int, *words: object) -> int:
    """A 63-bit seed that depends on all the words; for generators that are not counter-based (weights)."""
    return _word(seed, "\0".join(map(str, words))) & ((1 << 63) - 1)


def content_ids(x: Tensor) -> Tensor:
    """An id for each image [n, ...] that depends on its pixels only, int64 [n]: for images without ids of their own."""
    words = x.detach().flatten(1).float().add(0.0).contiguous()  # -0 becomes 0
    weights = _mix((torch.arange(words.shape[1], device=x.device) + 1) * _GAMMA) | 1
    step = max(1, 2**22 // max(1, words.shape[1]))
    sums = [(part.view(torch.int32).long() * weights).sum(dim=1) for part in words.split(step)]
    return _mix(torch.cat(sums)) if sums else torch.zeros(0, dtype=torch.long, device=x.device)


@dataclass(frozen=True, eq=False)
class Draws:
    """Random numbers for a batch of samples, one independent stream per sample.

    Attributes:
        seed: of the evaluation.
        ids: int64 [n], the samples' ids in their dataset (not their index in the batch).
    """

    seed: int
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> Draws:
        """The streams of some of the samples."""
        return Draws(self.seed, self.ids[index])

    def child(self, *words: object) -> Draws:
        """Independent streams for the same samples: a restart, a target class, a nested attack."""
        return Draws(derive_seed(self.seed, *words), self.ids)

    def repeat(self, k: int) -> Draws:
        """k independent streams for each sample, sample-major: s0 s0 s0 s1 s1 s1."""
        copies = torch.arange(k, device=self.ids.device).repeat(len(self.ids))
        return Draws(self.seed, _mix(self.ids.repeat_interleave(k) * _GAMMA + _word(0, "repeat") + copies))

    def to(self, device: torch.device | str) -> Draws:
        return Draws(self.seed, self.ids.to(device))

    def bits(self, shape: tuple[int, ...], step: int | Tensor = 0, purpose: str = "") -> Tensor:
        """Uniform int64 words, [n, *shape]. With a tensor step [n], each sample has its own step."""
        words = torch.empty(len(self.ids), math.prod(shape), dtype=torch.int64, device=self.ids.device)
        for rows, part in self._blocks(words.shape[1], step, purpose):
            words[rows] = part
        return words.view(len(self.ids), *shape)

    def _blocks(self, count: int, step: int | Tensor, purpose: str) -> Iterator[tuple[slice, Tensor]]:
        """`count` words for each sample, some samples at a time, so that they stay in the cache while they are used."""
        key = _mix(self.ids * _GAMMA + _word(self.seed, purpose))
        key = _mix(key + (torch.as_tensor(step, device=key.device).long() + 1) * _M1)
        counter = torch.arange(1, count + 1, device=key.device) * _GAMMA
        many = max(1, _BLOCK // max(1, count)) if key.device.type == "cpu" else max(1, len(key))
        for first in range(0, len(key), many):
            rows = slice(first, first + many)
            yield rows, _mix_(key[rows, None] + counter)

    def uniform(self, shape: tuple[int, ...] = (), step: int | Tensor = 0, purpose: str = "") -> Tensor:
        """U[0, 1) with 24 random bits, float32 [n, *shape]."""
        out = torch.empty(len(self.ids), math.prod(shape), dtype=torch.float32, device=self.ids.device)
        for rows, words in self._blocks(out.shape[1], step, purpose):
            torch.mul(_shift(words, 40), 2.0**-24, out=out[rows])
        return out.view(len(self.ids), *shape)

    def normal(self, shape: tuple[int, ...] = (), step: int | Tensor = 0, purpose: str = "") -> Tensor:
        """N(0, 1) by Box-Muller, both 32-bit halves of each word used; float32 [n, *shape]."""
        count = math.prod(shape)
        half = (count + 1) // 2
        out = torch.empty(len(self.ids), 2 * half, dtype=torch.float32, device=self.ids.device)
        for rows, words in self._blocks(half, step, purpose):
            u = _shift(words, 32).float().add_(0.5).mul_(2.0**-32)  # in (0, 1]
            angle = (words & 0xFFFFFFFF).float().mul_(2 * math.pi * 2.0**-32)
            radius = u.clamp_(max=1.0).log_().mul_(-2).sqrt_()
            torch.mul(radius, angle.cos(), out=out[rows, :half])
            torch.mul(radius, angle.sin_(), out=out[rows, half:])
        return out[:, :count].reshape(len(self.ids), *shape)

    def sign(self, shape: tuple[int, ...] = (), step: int | Tensor = 0, purpose: str = "") -> Tensor:
        """-1 or +1 with equal probability, float32 [n, *shape]."""
        return ((self.bits(shape, step, purpose) & 1) * 2 - 1).float()

    def integers(
        self, high: int | Tensor, shape: tuple[int, ...] = (), step: int | Tensor = 0, purpose: str = ""
    ) -> Tensor:
        """Uniform integers in [0, high), int64 [n, *shape]; high may differ by sample (broadcast)."""
        u = _shift(self.bits(shape, step, purpose), 11).double() * 2.0**-53
        return (u * high).floor().long()

    def order(self, purpose: str = "order") -> Tensor:
        """A random order of the samples that does not depend on the order of the batch: int64 [n] indices."""
        return torch.argsort(_shift(self.bits((), 0, purpose), 1), stable=True)

    def at(self, count: int | Tensor) -> Draws:
        """Streams that differ for each value of a per-sample counter: the k-th pass through a randomised model."""
        return Draws(self.seed, _mix(self.ids * _GAMMA + torch.as_tensor(count, device=self.ids.device).long() + 1))

    @staticmethod
    def fresh(n: int, device: torch.device | str = "cpu") -> Draws:
        """Draws that are not reproducible, for a randomised model that is called without draws."""
        return Draws(int.from_bytes(os.urandom(7), "little"), torch.arange(n, device=device))
