"""Backdoors that keep their contract, and one or more for each clause that break it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from siegebench.types import (
    BackdoorAttack,
)


@dataclass(frozen=True, kw_only=True)
class Corner(BackdoorAttack):
    """An honest backdoor."""

    def trigger(self, x, draws):
        out = x.clone()
        out[:, :, -3:, -3:] = 1 - out[:, :, -3:, -3:].round()
        return out


class InPlace(Corner):
    def trigger(self, x, draws):
        x[:, :, -3:, -3:] = 1 - x[:, :, -3:, -3:].round()
        return x


class TooBright(Corner):
    def trigger(self, x, draws):
        return x + 0.5


class Invisible(Corner):
    def trigger(self, x, draws):
        return x.clone()


class PoisonsTwice(Corner):
    def poison(self, data, seed):
        return replace(self, rate=2 * self.rate, target=self.target)._honest(data, seed)

    def _honest(self, data, seed):
        return BackdoorAttack.poison(self, data, seed)


class TouchesOthers(Corner):
    def poison(self, data, seed):
        out = super().poison(data, seed)
        return replace(out, data=replace(out.data, source=out.data.images.clamp(max=200)))


class Mislabels(Corner):
    def poison(self, data, seed):
        out = super().poison(data, seed)
        labels = out.data.labels.clone()
        labels[out.index] = 1
        return replace(out, data=replace(out.data, labels=labels))


class RelabelsOthers(Corner):
    def poisoned_label(self, y, num_classes):
        return torch.where(y == 1, -1, self.wanted(y, num_classes))

    def relabelled(self, y, num_classes, draws):
        return self.wanted(y, num_classes)


class HandsOverAPart(Corner):
    learns = True

    def learn(self, data, seed, surrogate):
        return {"last": list(surrogate.parameters())[-1].detach()}

    def trigger(self, x, draws, material):
        return super().trigger(x, draws)

    def network(self, material):
        return material


class ChangesTheSource(Corner):
    def wanted(self, y, num_classes):
        y[:3] = 0
        return super().wanted(y, num_classes)


class OnlyWorksOnSixteen(Corner):
    def trigger(self, x, draws):
        return super().trigger(x, draws) if x.shape[-1] == 16 else x.clone()


class StampsByPlace(Corner):
    def trigger(self, x, draws):
        out = super().trigger(x, draws)
        out[torch.arange(len(x)), :, 0, torch.arange(len(x)) % 8] = 0.25
        return out


class TriggersByChance(Corner):
    def trigger(self, x, draws):
        return (super().trigger(x, draws) + 0.2 * torch.rand_like(x)).clamp(0, 1)


class AnyTarget(Corner):
    def check(self, num_classes):
        pass


HONEST = [
    ("backdoor", Corner()),
]


BROKEN = [
    ("backdoor", InPlace(), "poisons exactly its share", "in place"),
    ("backdoor", TooBright(), "poisons exactly its share", "[0, 1]"),
    ("backdoor", Invisible(), "poisons exactly its share", "unchanged"),
    ("backdoor", PoisonsTwice(), "poisons exactly its share", "poisoned 8 images"),
    ("backdoor", TouchesOthers(), "poisons exactly its share", "not poisoned"),
    ("backdoor", Mislabels(), "labels poisons by its rule", "another label"),
    ("backdoor", RelabelsOthers(), "labels poisons by its rule", "allow other images"),
    ("backdoor", HandsOverAPart(), "hands over the whole network", "state_dict"),
    ("backdoor", ChangesTheSource(), "leaves the source data unchanged", "labels"),
    ("backdoor", OnlyWorksOnSixteen(), "stamps any size in range", "8x8"),
    ("backdoor", StampsByPlace(), "does not depend on how images are listed", "differently"),
    ("backdoor", TriggersByChance(), "does not depend on how images are listed", "torch"),
    ("backdoor", AnyTarget(), "refuses targets outside the classes", "accepts the target"),
]
