"""Maps: all that is needed of rendered scenes to put textures on them.

A pixel is the mean of ss x ss samples. Samples that show paint are kept one by one: where they are on the surface (uv)
and how much light their albedo sends to the camera (M). All others do not depend on the texture, so that their mean is
enough (A).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of n scenes with H x W pixels, each of ss x ss samples; in linear light.

    Scenes differ in the number of samples with paint; P is the largest, and where a scene has fewer, M is 0.

    Attributes:
        a: [n, 3, H, W], all light that does not depend on the texture: glass, tyres, gloss of the paint, background.
        m: [n, P, 3], radiance of paint with albedo 1, without its gloss.
        uv: [n, P, 2], metres on the surface, in the plane of the dominant axis of its normal: (y, -z), (x, -z) or
            (x, -y) for an axis x, y or z; so textures are upright on the sides of a vehicle.
        place: int64 [n, P], index of the sample in the picture of (H ss) x (W ss) samples.
        paint: [n, H, W], the share of each pixel that shows paint.
        vehicle: [n, H, W], the share that shows the mesh.
        box: [n, 4], left, top, right, bottom of the mesh in pixels; zeros where it is not in the picture.
        middle: [n, 3], x and y of the middle of the mesh in samples, and metres between two samples at its distance.
        labels: int64 [n].
        ids: int64 [n], of the scenes in their split.
        ss: samples along each side of a pixel.
    """

    a: Tensor
    m: Tensor
    uv: Tensor
    place: Tensor
    paint: Tensor
    vehicle: Tensor
    box: Tensor
    middle: Tensor
    labels: Tensor
    ids: Tensor
    ss: int

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, index: Tensor | slice) -> Maps:
        """Some of the scenes."""
        some = Maps.of({name: value[index] for name, value in self.tensors().items()}, self.ss)
        used = (some.m > 0).any(dim=2).any(dim=0).nonzero()
        most = int(used.max()) + 1 if len(used) else 0
        return replace(some, m=some.m[:, :most], uv=some.uv[:, :most], place=some.place[:, :most])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.a.shape[2], self.a.shape[3]

    @property
    def cell(self) -> Tensor:
        """The pixel of each sample, int64 [n, P]."""
        fine = self.size[1] * self.ss
        return self.place // fine // self.ss * self.size[1] + self.place % fine // self.ss

    @property
    def screen(self) -> Tensor:
        """Metres right and down from the middle of the mesh, in the plane through it that faces the camera."""
        width = self.size[1] * self.ss
        at = torch.stack([self.place % width, self.place // width], dim=-1).to(self.uv) + 0.5
        return (at - self.middle[:, None, :2]) * self.middle[:, None, 2:]

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device | str) -> Maps:
        return Maps.of({name: value.to(device) for name, value in self.tensors().items()}, self.ss)

    def dense(self) -> tuple[Tensor, Tensor]:
        """(M [n, 3, H ss, W ss], uv [n, 2, H ss, W ss]) as pictures; zero where no paint is."""
        shape = (len(self), self.size[0] * self.ss, self.size[1] * self.ss)
        out = []
        for value in (self.m, self.uv * (self.m > 0).any(dim=2, keepdim=True)):
            flat = value.new_zeros(len(self), shape[1] * shape[2], value.shape[2])
            flat = flat.scatter_add(1, self.place[..., None].expand_as(value), value)
            out.append(flat.view(*shape, value.shape[2]).permute(0, 3, 1, 2))
        return out[0], out[1]

    @staticmethod
    def join(parts: Sequence[Maps]) -> Maps:
        """The scenes of several maps of one size."""
        most = max(part.m.shape[1] for part in parts)
        padded = [
            {k: _padded(v, most) if k in ("m", "uv", "place") else v for k, v in p.tensors().items()} for p in parts
        ]
        return Maps(**{k: torch.cat([p[k] for p in padded]) for k in padded[0]}, ss=parts[0].ss)

    @staticmethod
    def of(tensors: Mapping[str, Tensor], ss: int) -> Maps:
        """Maps from what `tensors` returned."""
        return Maps(**tensors, ss=ss)


def _padded(value: Tensor, most: int) -> Tensor:
    out = value.new_zeros(len(value), most, *value.shape[2:])
    out[:, : value.shape[1]] = value
    return out
