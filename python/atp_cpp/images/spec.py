"""How Hugging Face prepares an image for a vision tower: read from a checkpoint, kept in GGUF keys.

In: preprocessor_config.json and config.json of a LLaVA checkpoint, or the keys of an mmproj file.
Out: an :class:`ImageSpec`, which :mod:`atp_cpp.images.prepare` follows. Scaling to 0..1, mean and
deviation are not part of it: libmtmd applies them, from keys of its own.

The keys, all with the prefix ``atp.image.``: ``version`` (1), ``resize`` ("shortest" or "exact"),
``size`` [h, w], ``resample`` (the name of Pillow's filter), and where they apply ``crop`` [h, w],
``pad_color`` [r, g, b], ``pinpoints`` [h, w, h, w, …], ``tile`` (px) and ``max_tiles``.

Source of the rules: transformers 5.23, the PIL image processors of CLIP, SigLIP, LLaVA, LLaVA-NeXT
and LLaVA-OneVision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Size: TypeAlias = "tuple[int, int]"  # height, width in pixels
Color: TypeAlias = "tuple[int, int, int]"  # 0..255

PREFIX = "atp.image."
VERSION = 1
MAX_PINPOINTS = 256  # fewer than the array elements that gguf_header keeps
# Pillow's numbers, which Hugging Face writes -> names
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CROPPED: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": _CLIP_MEAN,
}
_NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION_PINPOINTS = [[384 * y, 384 * x] for y in range(1, 7) for x in range(1, 7)]
# what a processor does where its file says nothing
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CROPPED,
    "Llava": _CROPPED,
    "LlavaNext": {**_CROPPED, "image_grid_pinpoints": _NEXT_PINPOINTS},
    "LlavaOnevision": {
        "size": {"height": 384, "width": 384},
        "image_mean": _CLIP_MEAN,
        "image_grid_pinpoints": _ONEVISION_PINPOINTS,
    },
    "Siglip": {"size": {"height": 224, "width": 224}},
}
_TILED = ("LlavaNext", "LlavaOnevision")
_OF_MODEL = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The steps from pixels of any size to squares of the size the vision tower takes.

    Attributes:
        resize: "exact" to `size` whatever the shape, or "shortest": the shorter side becomes
            ``size[0]``, the longer one follows.
        size: [h, w] of the resized image; equal sides with "shortest".
        resample: name of Pillow's filter.
        crop: [h, w] cut from the middle after resizing, filled up with black where the image is
            smaller; None: nothing is cut.
        pad_color: the image is first laid on a square of this colour. With pinpoints only when
            there are several images in the prompt, which then get no tiles.
        pinpoints: canvases [h, w] for tiles; the image is drawn into the one that suits it. Empty:
            no tiles.
        tile: side of the tiles cut from a canvas, in pixels; 0 without pinpoints.
        max_tiles: a grid of more image tokens than this many tiles have is shrunk to that (about);
            0: never.
    """

    resize: Literal["shortest", "exact"]
    size: Size
    resample: str = "bicubic"
    crop: Size | None = None
    pad_color: Color | None = None
    pinpoints: tuple[Size, ...] = ()
    tile: int = 0
    max_tiles: int = 0

    def __post_init__(self) -> None:
        """Checks that every image becomes squares of one size.

        Raises:
            ValueError: fields that do not.
        """
        if self.resize not in ("shortest", "exact"):
            raise ValueError(f"image preparation: resize is shortest or exact, got {self.resize}")
        if self.resample not in FILTERS.values():
            names = ", ".join(FILTERS.values())
            raise ValueError(
                f"image preparation: expected a filter of {names}, got {self.resample}"
            )
        end = self.crop or self.size
        if min(*self.size, *end) < 1:
            least = min(*self.size, *end)
            raise ValueError(f"image preparation: expected sizes of 1 pixel or more, got {least}")
        if end[0] != end[1]:
            raise ValueError(
                f"image preparation: expected squares for the vision tower, got {end[0]} x {end[1]}"
                " pixels; non-square inputs are not supported"
            )
        square = self.crop or self.pad_color or self.pinpoints  # whatever comes in
        if self.resize == "shortest" and (not square or self.size[0] != self.size[1]):
            raise ValueError(
                "image preparation: resizing the shortest edge without a centre crop leaves images "
                "of any shape; expected do_center_crop, or a size with height and width"
            )
        if bool(self.pinpoints) != (self.tile > 0) or (self.max_tiles and not self.pinpoints):
            raise ValueError("image preparation: pinpoints and the side of a tile belong together")
        if len(self.pinpoints) > MAX_PINPOINTS:
            raise ValueError(
                f"image preparation: expected at most {MAX_PINPOINTS} pinpoints, "
                f"got {len(self.pinpoints)}"
            )
        for height, width in self.pinpoints:
            if min(height, width) < 1 or height % self.tile or width % self.tile:
                raise ValueError(
                    f"image preparation: the pinpoint {height} x {width} is not made of whole "
                    f"tiles of {self.tile} pixels"
                )

    @property
    def side(self) -> int:
        """Height and width of what comes out, in pixels."""
        return (self.crop or self.size)[0]

    def __str__(self) -> str:
        """The steps in a few words, for a reader."""
        steps = []
        if self.pad_color and not self.pinpoints:
            steps.append("laid on a square")
        height, width = self.size
        to = f"shorter side to {height}" if self.resize == "shortest" else f"to {width} x {height}"
        steps.append(f"resized ({self.resample}), {to} px")
        if self.crop:
            steps.append(f"middle {self.crop[1]} x {self.crop[0]} px")
        if self.pinpoints:
            steps.append(f"and tiles of {self.tile} px on one of {len(self.pinpoints)} canvases")
        return ", ".join(steps)

    @classmethod
    def from_hf(
        cls, preprocessor_config: Mapping[str, Any], config: Mapping[str, Any]
    ) -> ImageSpec:
        """Reads a checkpoint's image processor.

        Args:
            preprocessor_config: of preprocessor_config.json, or of processor_config.json (there
                the image processor is one of its entries).
            config: of config.json.

        Raises:
            ValueError: a processor, or a setting of one, whose result could not be the same.
        """
        given = preprocessor_config.get("image_processor", preprocessor_config)
        kind = _processor_kind(given, config)
        settings = {**_DEFAULTS[kind], **{k: v for k, v in given.items() if v is not None}}
        _check_steps(settings)
        size = _size(settings["size"], square=False, name="size")
        crop = None
        if settings.get("do_center_crop"):
            crop = _size(settings.get("crop_size"), square=True, name="crop_size")[1]
        spec = cls(
            resize=size[0],
            size=size[1],
            resample=_filter(settings.get("resample", 3)),
            crop=crop,
            pad_color=_pad_color(kind, settings),
            **_tiling(kind, settings, config, (crop or size[1])[0]),
        )
        _check_tower(spec, config)
        return spec

    def metadata(self) -> dict[str, int | float | str | list[int]]:
        """The keys that :meth:`from_metadata` reads back; ints are meant as uint32."""
        pairs: dict[str, int | float | str | list[int]] = {
            "version": VERSION,
            "resize": self.resize,
            "size": list(self.size),
            "resample": self.resample,
        }
        if self.crop:
            pairs["crop"] = list(self.crop)
        if self.pad_color:
            pairs["pad_color"] = list(self.pad_color)
        if self.pinpoints:
            pairs["pinpoints"] = [side for pinpoint in self.pinpoints for side in pinpoint]
            pairs["tile"] = self.tile
        if self.max_tiles:
            pairs["max_tiles"] = self.max_tiles
        return {PREFIX + key: value for key, value in pairs.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ImageSpec | None:
        """Reads the keys of an mmproj file.

        Args:
            metadata: key -> value of the file.

        Returns:
            None for a file without these keys: libmtmd prepares its images.

        Raises:
            ValueError: keys of a later version, or damaged ones.
        """
        pairs = {k[len(PREFIX) :]: v for k, v in metadata.items() if k.startswith(PREFIX)}
        if not pairs:
            return None
        if pairs.get("version") != VERSION:
            raise ValueError(
                f"{PREFIX}version is {pairs.get('version')}, this program reads {VERSION}; "
                "update it, or convert the model again"
            )
        flat = _ints(pairs, "pinpoints", None)
        return cls(
            resize=pairs.get("resize", ""),
            size=_pair(pairs, "size") or (0, 0),
            resample=str(pairs.get("resample", "")),
            crop=_pair(pairs, "crop"),
            pad_color=_color(pairs),
            pinpoints=tuple(zip(flat[::2], flat[1::2], strict=True)),
            tile=_count(pairs, "tile"),
            max_tiles=_count(pairs, "max_tiles"),
        )


def _processor_kind(given: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """CLIP, Siglip, Llava, LlavaNext or LlavaOnevision."""
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    if not name:
        kind = _OF_MODEL.get(str(config.get("model_type")), "")
    else:
        kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))
    if kind not in _DEFAULTS:
        known = ", ".join(f"{k}ImageProcessor" for k in _DEFAULTS)
        raise ValueError(f"expected one of the image processors {known}, got {name or 'none'}")
    if kind in _TILED and _OF_MODEL.get(str(config.get("model_type")), kind) != kind:
        raise ValueError(
            f"{name} makes tiles, and a model of type {config['model_type']} takes none"
        )
    return kind


def _check_steps(settings: Mapping[str, Any]) -> None:
    """Refuses what libmtmd would do all the same, and what is not a fixed size."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.get(step, True):
            raise ValueError(f"expected an image processor with {step} true, got false")
    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"expected an image processor with rescale_factor 1/255, got {factor}")


def _size(value: Any, *, square: bool, name: str) -> tuple[Literal["shortest", "exact"], Size]:
    """A size in any form Hugging Face takes; an int is the shortest edge unless `square`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return ("exact" if square else "shortest"), (value, value)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping):
        sides = {key: side for key, side in value.items() if side is not None}
        if set(sides) == {"height", "width"}:
            return "exact", (int(sides["height"]), int(sides["width"]))
        if set(sides) == {"shortest_edge"} and not square:
            return "shortest", (int(sides["shortest_edge"]),) * 2
    form = "height and width" if square else "height and width, or shortest_edge alone"
    raise ValueError(f"expected an image processor whose {name} is {form}, got {value}")


def _filter(resample: Any) -> str:
    if isinstance(resample, bool) or resample not in FILTERS:
        raise ValueError(
            f"expected an image processor with one of Pillow's filters as resample (0 to 5), "
            f"got {resample}"
        )
    return FILTERS[resample]


def _pad_color(kind: str, settings: Mapping[str, Any]) -> Color | None:
    """Of LLaVA with do_pad, and of OneVision, which pads where a prompt has several images."""
    if kind != "LlavaOnevision" and not (kind == "Llava" and settings.get("do_pad")):
        return None
    mean = settings["image_mean"]
    values = [mean] if isinstance(mean, (int, float)) else list(mean)
    color = [int(255 * value) for value in values]
    if len(color) != 3:
        raise ValueError(f"expected an image processor with three means, got {values}")
    return (color[0], color[1], color[2])


def _tiling(
    kind: str, settings: Mapping[str, Any], config: Mapping[str, Any], side: int
) -> dict[str, Any]:
    """The fields of ImageSpec that say how tiles are made."""
    if kind not in _TILED:
        return {}
    default = _DEFAULTS[kind]["image_grid_pinpoints"]
    pinpoints = settings["image_grid_pinpoints"]
    of_model = config.get("image_grid_pinpoints") or default
    if [list(p) for p in pinpoints] != [list(p) for p in of_model]:
        raise ValueError(
            "image_grid_pinpoints of the image processor and of the model differ; "
            "expected the same list in preprocessor_config.json and config.json"
        )
    fields = {"pinpoints": tuple((int(h), int(w)) for h, w in pinpoints), "tile": _tile(settings)}
    if kind == "LlavaOnevision":
        ratio = str(config.get("vision_aspect_ratio", "anyres_max_9"))
        match = re.fullmatch(r"anyres_max_([1-9]\d*)", ratio)
        if not match:
            raise ValueError(f"expected a vision_aspect_ratio like anyres_max_9, got {ratio}")
        fields["max_tiles"] = int(match[1])
    if fields["tile"] != side:
        raise ValueError(f"expected tiles of {side} pixels, the tower's size, got {fields['tile']}")
    return fields


def _tile(settings: Mapping[str, Any]) -> int:
    """The side of a tile: of the crop if one is given, even where nothing is cropped."""
    if settings.get("crop_size"):
        return _size(settings["crop_size"], square=True, name="crop_size")[1][0]
    return _size(settings["size"], square=False, name="size")[1][0]


def _check_tower(spec: ImageSpec, config: Mapping[str, Any]) -> None:
    """Raises ValueError unless the tower takes squares of the prepared size."""
    vision = config.get("vision_config") or {}
    side = vision.get("image_size", 224)
    if side != spec.side:
        raise ValueError(
            f"the image processor makes images of {spec.side} pixels and the vision tower takes "
            f"{side}; expected the same in preprocessor_config.json and in vision_config"
        )


def _ints(pairs: Mapping[str, Any], key: str, length: int | None) -> list[int]:
    """A list of ints of an even or the given length; empty if the key is absent."""
    values = pairs.get(key, [])
    whole = isinstance(values, list) and all(type(v) is int for v in values)
    if not whole or (len(values) % 2 if length is None else len(values) not in (0, length)):
        raise ValueError(f"{PREFIX}{key} is damaged: {values}; convert the model again")
    return list(values)


def _pair(pairs: Mapping[str, Any], key: str) -> Size | None:
    values = _ints(pairs, key, 2)
    return (values[0], values[1]) if values else None


def _color(pairs: Mapping[str, Any]) -> Color | None:
    values = _ints(pairs, "pad_color", 3)
    if any(not 0 <= v <= 255 for v in values):
        raise ValueError(f"{PREFIX}pad_color is damaged: {values}; convert the model again")
    return (values[0], values[1], values[2]) if values else None


def _count(pairs: Mapping[str, Any], key: str) -> int:
    value = pairs.get(key, 0)
    if type(value) is not int or value < 0:
        raise ValueError(f"{PREFIX}{key} is damaged: {value}; convert the model again")
    return value
