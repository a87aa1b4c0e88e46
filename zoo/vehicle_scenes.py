"""Rendered vehicles and other things, over photographs: images whose paint can carry any texture."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import DataError
from siegebench.render import mitsuba_maps
from siegebench.render.compose import compose
from siegebench.render.maps import Maps
from siegebench.render.meshes import Mesh, read
from siegebench.render.scenes import SPLITS, Scene, draw, procedural, render
from siegebench.render.vehicles import VEHICLES
from siegebench.types import Class, Count, DataSource, Positive, SceneSource, Share

from ._files import DATA_VARIABLE, cache_folder, data_folder, sha256
from ._images import stacked, write

AT_ONCE = 16  # scenes
PERIOD = 2.0  # metres, of a random pattern
KEPT = 6  # sets of maps in memory
Task = Literal["vehicle", "kind"]
CLASSES: dict[Task, tuple[str, ...]] = {"vehicle": ("other", "vehicle"), "kind": ("other", *VEHICLES)}


@dataclass(frozen=True, kw_only=True)
class VehicleScenes(SceneSource):
    """Procedural sedans, vans and pickups, and as many crates, huts, columns and pyramids, in flat random colours.

    The scenes of `train` and `test` share no mesh, no background and no direction of view. Each has its own camera, sun
    and colour; the shadow falls on the background. Rendering takes about 0.1 s for an image of 128 pixels; images are
    kept in the cache folder, so that it is done once.

    Random: everything about a scene, from `seed`, split and id. Images may differ in the last digit of some pixels
    between machines.

    Attributes:
        train, test: number of images of each split.
        size: side of the images.
        task: `vehicle` has the classes other and vehicle, `kind` has other and the kinds of vehicles.
        backgrounds: photographs; without them, backgrounds are drawn: a sky, hills and ground.
        background_split: of `backgrounds`. Its images are divided between `train` and `test`.
        avoid: labels of photographs that are not used, such as those that show vehicles.
        meshes: number of meshes of each kind in a split.
        patterned: share of the images whose paint is a random pattern instead of one colour.
        files: your own vehicles (.obj, .glb) instead of procedural ones, one after the other; in both splits. They look
            along x (.obj, z up) or z (.glb, y up). Needs the extra `render`.
        parts: names of the parts of `files` that are paint; all when empty.
        length: metres to which `files` are scaled; None keeps their units.
        renderer: `raster`, or `mitsuba` for path-traced light: some seconds for an image. Needs the extra `render`.
        paths: of each pixel, for mitsuba.
        seed: of all random numbers.
    """

    local: ClassVar[tuple[str, ...]] = ("files",)

    train: Count
    test: Count
    size: Count = 128
    task: Task = "vehicle"
    backgrounds: DataSource | None = None
    background_split: str = "train"
    avoid: tuple[Class, ...] = ()
    meshes: Count = 24
    patterned: Share = 0.0
    files: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    length: Positive | None = None
    renderer: Literal["raster", "mitsuba"] = "raster"
    paths: Count = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.files and self.task == "kind":
            raise ValueError("task: `kind` is for procedural vehicles; with `files`, give `task: vehicle`")

    def identity(self) -> dict[str, Any]:
        return {"sha256": [sha256(mesh_file(name)) for name in self.files]} if self.files else {}

    def load(self, split: str) -> ImageSet:
        count = self._count(split)
        path = cache_folder() / "rendered" / f"{self._key}-{split}-{count}.safetensors"
        images = _cached(path, lambda: self._drawn(split), count, f"vehicle_scenes {split}")
        scenes = self._plan(split, range(count))
        return ImageSet(
            images, torch.tensor([self._label(s) for s in scenes]), torch.arange(count), len(CLASSES[self.task]),
            f"vehicle_scenes {split}", classes=CLASSES[self.task],
        )  # fmt: skip

    def scenes(self, split: str, ids: Sequence[int], ss: int = 2) -> Maps:
        wanted = self._wanted(split, ids)
        where = (self._key, self.task, split, ss, tuple(wanted))
        if where not in _maps:
            _maps[where] = Maps.join(list(self._rendered(self._plan(split, wanted), split, ss)))
        _maps.move_to_end(where)
        while len(_maps) > KEPT:
            _maps.popitem(last=False)
        return _maps[where]

    def views(self, split: str, ids: Sequence[int]) -> Tensor:
        scenes = self._plan(split, self._wanted(split, ids))
        poses = [scene.pose.fitting(self._mesh(scene)) for scene in scenes]
        return torch.tensor([[pose.azimuth % 360, pose.pitch, pose.distance] for pose in poses])

    def vehicles(self) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(CLASSES[self.task]) if name != "other")

    def paint(self, split: str, ids: Tensor) -> Tensor:
        """The paint of the source's own images, sRGB [n, 3, 16, 16]."""
        draws = Draws(derive_seed(self.seed, "paint", split), ids)
        flat = draws.uniform((3, 1, 1), purpose="colour").expand(-1, -1, 16, 16)
        pattern = draws.uniform((3, 16, 16), purpose="pattern")
        chosen = draws.uniform((), purpose="patterned") < self.patterned
        return torch.where(chosen[:, None, None, None], pattern, flat)

    # ------------------------------------------------------------------------------------------------------- rendering

    def _count(self, split: str) -> int:
        if split not in SPLITS:
            raise self.no_split("vehicle_scenes", split)
        return self.train if split == "train" else self.test

    def _wanted(self, split: str, ids: Sequence[int]) -> list[int]:
        count, wanted = self._count(split), [int(i) for i in ids]
        if not wanted or min(wanted) < 0 or max(wanted) >= count:
            strange = next((i for i in wanted if not 0 <= i < count), "none")
            raise DataError(f"vehicle_scenes {split}: scene {strange} requested; it has the scenes 0 to {count - 1}")
        return wanted

    def _plan(self, split: str, ids: Sequence[int]) -> list[Scene]:
        return draw(split, ids, seed=self.seed, vehicles=self.meshes)

    def _label(self, scene: Scene) -> int:
        if scene.kind not in VEHICLES:
            return 0
        return 1 if self.task == "vehicle" else CLASSES["kind"].index(scene.kind)

    def _drawn(self, split: str) -> Iterator[Tensor]:
        """The images of a split, uint8 [3, size, size]."""
        count = self._count(split)
        for start in range(0, count, AT_ONCE):
            ids = range(start, min(start + AT_ONCE, count))
            maps = Maps.join(list(self._rendered(self._plan(split, ids), split, 2)))
            x = compose(maps, self.paint(split, torch.tensor(list(ids))), PERIOD)
            yield from (x * 255).round().to(torch.uint8)

    def _rendered(self, scenes: Sequence[Scene], split: str, ss: int) -> Iterator[Maps]:
        photos = self._photographs(split)
        for scene in scenes:
            if photos is None:
                behind = procedural(derive_seed(self.seed, split, scene.id), self.size, self.size)
            else:
                behind = photos[int(scene.background * len(photos))]
            mesh = self._mesh(scene)
            about = (mesh, scene.pose.fitting(mesh), scene.sun, behind)
            if self.renderer == "raster":
                yield render(*about, ss=ss, label=self._label(scene), id=scene.id)
            else:
                spp = max(1, self.paths // ss**2)
                yield mitsuba_maps.render(*about, ss=ss, label=self._label(scene), id=scene.id, spp=spp)

    def _mesh(self, scene: Scene) -> Mesh:
        if not self.files or scene.kind not in VEHICLES:
            return scene.mesh
        file = self.files[scene.id // 2 % len(self.files)]
        return _read(str(mesh_file(file)), self.parts, self.length)

    def _photographs(self, split: str) -> Tensor | None:
        """The backgrounds of a split, uint8 [n, 3, size, size]; None if they are drawn."""
        photos = self._usable
        if photos is None:
            return None
        order = Draws(derive_seed(self.seed, "backgrounds"), photos.ids).order()
        return squared(photos.images[order[SPLITS.index(split) :: 2].sort().values], self.size)

    @cached_property
    def _usable(self) -> ImageSet | None:
        """The photographs for both splits; None if backgrounds are drawn.

        Raises:
            DataError: when they are missing, grey, or fewer than two.
        """
        if self.backgrounds is None:
            return None
        whole = self.backgrounds.scan(self.background_split)
        usable = (~torch.isin(whole.labels, torch.tensor(self.avoid, dtype=torch.long))).nonzero().squeeze(1)
        if len(usable) < 2 or whole.shape[0] != 3:
            raise DataError(
                f"{whole.name}: {len(usable)} photographs with {whole.shape[0]} channels for backgrounds; expected 2 "
                "or more with 3 channels. Give others, or leave fewer out with `avoid`"
            )
        return whole.select(usable).in_memory()

    @cached_property
    def _key(self) -> str:
        """A hash of all that determines the images of a scene."""
        about = {k: v for k, v in self.parameters().items() if k not in ("train", "test", "backgrounds", "task")}
        photos = self._usable
        about |= {"code": _code(), "photographs": None if photos is None else photos.digest, **self.identity()}
        if self.renderer == "mitsuba":
            about["mitsuba"] = mitsuba_maps.version()
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """A hash of the code that renders: cached images of other code are not used."""
    files = [Path(__file__), *sorted(Path(mitsuba_maps.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def mesh_file(name: str) -> Path:
    """A mesh: a path, or a file in the folder named by the environment variable.

    Raises:
        DataError: when there is none.
    """
    folder, path = data_folder(), Path(name).expanduser()
    for found in (path, *(() if folder is None else (folder / name,))):
        if found.is_file():
            return found
    raise DataError(f"mesh {name}: there is no such file, neither here nor in {folder or f'a folder {DATA_VARIABLE}'}")


_read = lru_cache(maxsize=16)(lambda file, parts, length: read(file, paint=parts, length=length))


def squared(photos: Tensor, size: int) -> Tensor:
    """The middle square of photographs uint8 [n, 3, h, w], resized."""
    height, width = photos.shape[2:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    out = torch.empty(len(photos), 3, size, size, dtype=torch.uint8)
    for piece, into in zip(photos.split(64), out.split(64), strict=True):
        square = piece[:, :, top : top + edge, left : left + edge].float()
        fitted = F.interpolate(square, (size, size), mode="bilinear", antialias=True, align_corners=False)
        into.copy_(fitted.round().clamp(0, 255))
    return out


def _cached(path: Path, images: Callable[[], Iterator[Tensor]], count: int, where: str) -> Tensor:
    """Images from a file of the cache, which is written if it does not exist."""
    with contextlib.suppress(OSError, SafetensorError, KeyError):  # absent or damaged: render again
        return load_file(path)["images"]
    with contextlib.suppress(OSError):  # without a writable cache they are rendered each time
        write(path, images(), count, where)
        return load_file(path)["images"]
    return stacked(images(), count, where)


_maps: OrderedDict[tuple[object, ...], Maps] = OrderedDict()  # of this process, the last used at the end
