"""Tiny random projectors that take tiles: 56 pixels and 4 x 4 image tokens each, with a newline."""

import numpy as np

from atp_cpp.images.spec import ImageSpec
from tiny_models import VisionShape, vision_metadata, vision_tensors
from tiny_models.gguf_file import TensorSpec, draw, write_gguf

SIDE, TOKENS, WIDTH = 56, 4, 128
PINPOINTS = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
NEXT = ImageSpec("shortest", (56, 56), crop=(56, 56), pinpoints=PINPOINTS, tile=SIDE)
ONEVISION = ImageSpec(
    "exact",
    (56, 56),
    pad_color=(127, 127, 127),
    pinpoints=tuple((56 * y, 56 * x) for y in range(1, 5) for x in range(1, 5)),
    tile=SIDE,
    max_tiles=2,
)
_SHAPE = VisionShape(layout="mlp", image_size=SIDE, n_embd_text=WIDTH)


def newline_spec(name="v.image_newline", width=WIDTH):
    """The tensor that ends a line of tiles."""
    return TensorSpec(name=name, shape=(width,), std=1.0)


def newline_values(name="v.image_newline"):
    """Its values before they are converted to the file's type."""
    return draw(newline_spec(name), 1)


def write_anyres(path, *, spec=None, newline=None, weight_type="f32", pinpoints=True):
    """Writes a projector file.

    Args:
        path: of the file.
        spec: rule of image preparation for its keys; None: no such keys.
        newline: TensorSpec of the newline; None: there is none.
        weight_type: of the newline and everything else that may be converted.
        pinpoints: whether llama.cpp's own keys for tiles are in the file.
    """
    metadata = dict(vision_metadata(_SHAPE))
    if pinpoints:
        metadata["clip.vision.mm_patch_merge_type"] = "spatial_unpad"
        metadata["clip.vision.image_grid_pinpoints"] = [s for h, w in PINPOINTS for s in (w, h)]
    if spec:
        metadata |= spec.metadata()
    tensors = vision_tensors(_SHAPE) + ([newline] if newline else [])
    write_gguf(
        path, arch="clip", metadata=metadata, tensors=tensors, weight_type=weight_type, seed=1
    )
    return path


def tile_noise(n, seed=0):
    """uint8 [n, 56, 56, 3]."""
    return np.random.default_rng([9, seed]).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
