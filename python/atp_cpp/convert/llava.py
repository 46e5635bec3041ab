"""The projector file of LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision, through llama.cpp's writer.

Runs in the child process, where ``conversion`` and its ``gguf`` can be imported. What differs from
the files of llama.cpp's older scripts, so that a reader needs no guess:

* every block that is used is in the file, and none that is not; ``clip.vision.feature_layer`` says
  after which block features are taken (transformers: ``vision_feature_layer``);
* the encoder's last normalisation is left out: LLaVA takes its features before it;
* how images are prepared is in the file (``atp.image.*``, see :mod:`atp_cpp.images.spec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from conversion.base import MmprojModel

from atp_cpp.convert.family import llava_encoder
from atp_cpp.convert.llava_shapes import check_shapes
from atp_cpp.errors import ConvertError
from atp_cpp.images.spec import ImageSpec

if TYPE_CHECKING:
    from conversion.base import ModelBase
    from torch import Tensor

_TOWER = "vision_tower.vision_model."
# of the encoder; LLaVA uses none of them
_DROPPED = ("post_layernorm.", "head.", "embeddings.position_ids")
# linear layers of the projector -> their place in llama.cpp's "mlp" projector
_PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}
_NEWLINE = "v.image_newline"
_PAIR = ("weight", "bias")
_NORMS_AND_LAYERS = (
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
)
# what an encoder has in transformers, always: per block, and before the first one
_BLOCK = tuple(f"{layer}.{kind}" for layer in _NORMS_AND_LAYERS for kind in _PAIR)
_EMBEDDINGS = {
    "clip_vision_model": (
        "embeddings.class_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        *(f"pre_layrnorm.{kind}" for kind in _PAIR),
    ),
    "siglip_vision_model": (
        *(f"embeddings.patch_embedding.{kind}" for kind in _PAIR),
        "embeddings.position_embedding.weight",
    ),
}

Named = tuple[str, "Callable[[], Tensor]"]


class LlavaMmproj(MmprojModel):
    """Writes one projector file. Made by :func:`atp_cpp.convert.worker.vision_model`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encoder = llava_encoder(self.global_config)
        assert self.hparams_vision is not None
        self.hparams_vision["num_hidden_layers"] = self.encoder.n_layer
        self._check_projector()
        self._check_encoder()
        check_shapes(
            {name: tuple(load().shape) for name, load in self.model_tensors.items()},
            self.global_config,
            self.encoder,
            class_token=self.hparams_vision["model_type"] == "clip_vision_model",
        )

    @classmethod
    def filter_tensors(cls, item: Named) -> Named | None:
        """Keeps encoder, projector and newline, under the names of older checkpoints."""
        name, load = item
        name = canonical_name(name)
        if name.startswith(_TOWER):
            kept = not name.removeprefix(_TOWER).startswith(_DROPPED)
        else:
            kept = name == "image_newline" or name.startswith("multi_modal_projector.")
        return (name, load) if kept else None

    def set_gguf_parameters(self) -> None:
        """Metadata: llama.cpp's keys, and ours for the preparation of images."""
        for key in ("image_mean", "image_std"):
            if key not in self.preprocessor_config:
                raise ConvertError(
                    f"no {key} in preprocessor_config.json or processor_config.json; "
                    "get that file of the checkpoint, too"
                )
        super().set_gguf_parameters()
        writer = self.gguf_writer
        writer.add_clip_projector_type("mlp")
        writer.add_vision_attention_layernorm_eps(self.find_vparam(["layer_norm_eps"]))
        writer.add_vision_use_gelu(self.encoder.act == "gelu")
        writer.add_vision_feature_layers(self.encoder.feature_layers)
        if self.encoder.anyres:
            writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
            # (height, width) in transformers, (width, height) in llama.cpp
            pinpoints = [n for h, w in self.global_config["image_grid_pinpoints"] for n in (w, h)]
            writer.add_vision_image_grid_pinpoints(pinpoints)
        try:
            spec = ImageSpec.from_hf(self.preprocessor_config, self.global_config)
        except ValueError as error:
            raise ConvertError(f"preprocessor_config.json: {error}") from error
        for key, value in spec.metadata().items():
            _add(writer, key, value)

    def modify_tensors(
        self, data_torch: Tensor, name: str, bid: int | None
    ) -> Iterable[tuple[str, Tensor]]:
        """One tensor of the checkpoint -> its tensors in the file."""
        if name == "image_newline":
            return [(_NEWLINE, data_torch)]
        if name.startswith("multi_modal_projector."):
            return self._projector_tensors(data_torch, name)
        if bid is not None and bid >= self.encoder.n_layer:
            return []  # no feature passes through it
        return super().modify_tensors(data_torch, name, bid)

    def _projector_tensors(self, data: Tensor, name: str) -> Iterable[tuple[str, Tensor]]:
        _, layer, kind = name.split(".")
        yield f"{_PROJECTOR[layer]}.{kind}", data
        if kind == "weight" and f"multi_modal_projector.{layer}.bias" not in self.model_tensors:
            # llama.cpp's graph adds one always
            yield f"{_PROJECTOR[layer]}.bias", torch.zeros(data.shape[0], dtype=torch.float32)

    def _check_encoder(self) -> None:
        """What libmtmd takes for optional it leaves out, and computes other features."""
        assert self.hparams_vision is not None
        expected = [*_EMBEDDINGS[self.hparams_vision["model_type"]]]
        for il in range(self.encoder.n_layer):
            expected += [f"encoder.layers.{il}.{name}" for name in _BLOCK]
        missing = [name for name in expected if _TOWER + name not in self.model_tensors]
        if missing:
            raise ConvertError(
                f"the checkpoint lacks {len(missing)} of the vision encoder's {len(expected)} "
                f"tensors, {missing[0]} for one; get the checkpoint again"
            )

    def _check_projector(self) -> None:
        expected = {f"multi_modal_projector.{layer}.weight" for layer in _PROJECTOR}
        if self.encoder.anyres:
            expected.add("image_newline")
        weights = {n for n in self.model_tensors if not n.startswith(_TOWER)}
        if missing := sorted(expected - weights):
            raise ConvertError(
                f"the checkpoint has no {', '.join(missing)}; expected a LLaVA projector of two "
                "linear layers"
            )
        known = {f"multi_modal_projector.{layer}.bias" for layer in _PROJECTOR} | expected
        if unknown := sorted(weights - known - {"image_newline"}):
            raise ConvertError(
                f"the projector has {unknown[0]}, which llama.cpp's LLaVA projector does not have"
            )


def check_head(text: ModelBase) -> None:
    """Without a head llama.cpp takes the embeddings for it, whatever the configuration says.

    Args:
        text: the language model of a LLaVA checkpoint.

    Raises:
        ConvertError: it should have a head of its own, and has none.
    """
    config = text.hparams
    tied = any(c.get("tie_word_embeddings") for c in (config, config.get("text_config") or {}))
    if not tied and not any(name.endswith("lm_head.weight") for name in text.model_tensors):
        raise ConvertError(
            "the checkpoint has no lm_head.weight, and config.json does not say that the "
            "embeddings serve for it (tie_word_embeddings); get the checkpoint again"
        )


def canonical_name(name: str) -> str:
    """A tensor's name as checkpoints up to transformers 4 had it.

    Later ones vary in prefixes; LLaVA's original code calls the projector's layers by their places.
    """
    name = name.removeprefix("model.").replace("vision_tower.vision_tower.", "vision_tower.")
    for place, layer in (("0", "linear_1"), ("2", "linear_2")):
        name = name.replace(f"mm_projector.{place}.", f"multi_modal_projector.{layer}.")
    if name.startswith("vision_tower.") and not name.startswith(_TOWER):
        return _TOWER + name.removeprefix("vision_tower.")
    return name


def _add(writer: Any, key: str, value: int | float | str | list[int]) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
