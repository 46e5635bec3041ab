"""Images are prepared bit for bit as Hugging Face's image processors (PIL backend) prepare them."""

import numpy as np
import pytest

from atp_cpp.images.prepare import best_pinpoint, prepare
from atp_cpp.images.spec import FILTERS, ImageSpec
from support.pictures_of_all_shapes import PHOTO, SHAPES, picture

pytestmark = pytest.mark.torch

SQUARE = {"height": 56, "width": 56}
CROP = {"size": {"shortest_edge": 56}, "crop_size": SQUARE}
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
MANY = [[56 * y, 56 * x] for y in range(1, 7) for x in range(1, 7)]
# class of processor, its settings, type of the model
RULES = {
    "CLIP": ("CLIP", CROP, "llava"),
    "CLIP, ints": ("CLIP", {"size": 56, "crop_size": 56}, "llava"),
    "CLIP, small crop": ("CLIP", {"size": {"shortest_edge": 71}, "crop_size": 56}, "llava"),
    "CLIP, large crop": ("CLIP", {"size": {"shortest_edge": 41}, "crop_size": 56}, "llava"),
    "CLIP, exact": ("CLIP", {"size": {"height": 61, "width": 80}, "crop_size": 56}, "llava"),
    "CLIP, uncropped": ("CLIP", {"size": SQUARE, "do_center_crop": False}, "llava"),
    "SigLIP": ("Siglip", {"size": SQUARE}, "llava"),
    "SigLIP, bilinear": ("Siglip", {"size": SQUARE, "resample": 2}, "llava"),
    "LLaVA": ("Llava", CROP, "llava"),
    "LLaVA, padded": ("Llava", {**CROP, "do_pad": True}, "llava"),
    "LLaVA, grey": ("Llava", {**CROP, "do_pad": True, "image_mean": [0.5] * 3}, "llava"),
    "LLaVA, padded, uncropped": (
        "Llava",
        {"size": {"shortest_edge": 56}, "do_center_crop": False, "do_pad": True},
        "llava",
    ),
    "NeXT": ("LlavaNext", {**CROP, "image_grid_pinpoints": PINPOINTS}, "llava_next"),
    "NeXT, 36 canvases": ("LlavaNext", {**CROP, "image_grid_pinpoints": MANY}, "llava_next"),
    "NeXT, crop": (
        "LlavaNext",
        {"size": {"shortest_edge": 61}, "crop_size": 56, "image_grid_pinpoints": PINPOINTS},
        "llava_next",
    ),
    "OneVision": (
        "LlavaOnevision",
        {"size": SQUARE, "image_grid_pinpoints": MANY},
        "llava_onevision",
    ),
    "OneVision, lanczos": (
        "LlavaOnevision",
        {"size": SQUARE, "image_grid_pinpoints": PINPOINTS, "resample": 1},
        "llava_onevision",
    ),
}


def processor(kind, settings):
    """Hugging Face's own, and the dictionary it would save."""
    import transformers

    made = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    return made, made.to_dict()


def model_config(settings, model_type):
    config = {"model_type": model_type, "vision_config": {"image_size": 56}}
    pinpoints = settings.get("image_grid_pinpoints")
    return config | ({"image_grid_pinpoints": pinpoints} if pinpoints else {})


def raw(theirs, images):
    """uint8 tiles of each image, [n, h, w, 3], before rescaling."""
    out = theirs(images, do_rescale=False, do_normalize=False, do_pad=theirs.do_pad)
    arrays = [np.asarray(values) for values in out["pixel_values"]]
    arrays = [values[None] if values.ndim == 3 else values for values in arrays]
    assert all(values.dtype == np.uint8 for values in arrays)
    return [np.moveaxis(values, 1, -1) for values in arrays]


@pytest.mark.parametrize("rule", RULES)
def test_every_shape_is_bit_equal(rule):
    from PIL import Image

    kind, settings, model_type = RULES[rule]
    theirs, saved = processor(kind, settings)
    spec = ImageSpec.from_hf(saved, model_config(settings, model_type))
    assert ImageSpec.from_metadata(spec.metadata()) == spec
    for shape in SHAPES:
        pixels = picture(shape)
        (expected,) = raw(theirs, [Image.fromarray(pixels)])
        ours = prepare(pixels, spec)
        np.testing.assert_array_equal(ours.tiles, expected, err_msg=f"{rule} {shape}")
        assert ours.size == shape
        assert len(ours.tiles) == 1 + ours.grid[0] * ours.grid[1]


@pytest.mark.parametrize("resample", FILTERS)
def test_every_filter_on_a_whole_photo(resample):
    from PIL import Image

    size = {"height": 224, "width": 224}
    config = {"model_type": "llava", "vision_config": {"image_size": 224}}
    with Image.open(PHOTO) as photo:
        photo = photo.convert("RGB")
    theirs, saved = processor("CLIP", {"size": {"shortest_edge": 224}, "crop_size": size})
    saved["resample"] = resample
    theirs.resample = resample
    (expected,) = raw(theirs, [photo])
    ours = prepare(np.array(photo), ImageSpec.from_hf(saved, config))
    np.testing.assert_array_equal(ours.tiles, expected)


def test_several_images_get_tiles_from_next_and_squares_from_onevision():
    """OneVision's chat template hands over a list of images per conversation, and so do we."""
    from PIL import Image

    for rule, tiles in (("NeXT", True), ("OneVision", False)):
        kind, settings, model_type = RULES[rule]
        theirs, saved = processor(kind, settings)
        spec = ImageSpec.from_hf(saved, model_config(settings, model_type))
        images = [picture(shape) for shape in SHAPES[10:16]]
        pillow = [Image.fromarray(image) for image in images]
        for ours, expected in zip(
            [prepare(image, spec, n_images=len(images)) for image in images],
            raw(theirs, [pillow]),
            strict=True,
        ):
            n = len(ours.tiles)
            assert (n > 1) == tiles
            np.testing.assert_array_equal(ours.tiles, expected[:n])
            assert not expected[n:].any(), "what Hugging Face adds to make a batch"


def test_the_best_canvas_is_theirs():
    from transformers.image_processing_utils import select_best_resolution

    rng = np.random.default_rng(0)
    for pinpoints in (PINPOINTS, MANY, [[336, 672], [672, 336], [672, 672], [1008, 336]]):
        for _ in range(500):
            size = tuple(int(2 ** rng.uniform(0, 12)) for _ in range(2))
            ours = best_pinpoint(size, tuple((h, w) for h, w in pinpoints))
            assert ours == tuple(select_best_resolution(size, pinpoints)), size


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "Llava", "LlavaNext", "LlavaOnevision"])
def test_what_a_file_does_not_say_is_their_default(kind):
    import transformers

    theirs = getattr(transformers, f"{kind}ImageProcessorPil")()
    model_type = {"LlavaNext": "llava_next", "LlavaOnevision": "llava_onevision"}.get(kind, "llava")
    side = 384 if kind == "LlavaOnevision" else 224
    pinpoints = getattr(theirs, "image_grid_pinpoints", None)
    if kind == "LlavaNext":  # their own defaults, 224 and tiles for 336, do not go together
        theirs, side = type(theirs)(size={"shortest_edge": 336}, crop_size=336), 336
    config = {"model_type": model_type, "vision_config": {"image_size": side}}
    bare = {"image_processor_type": f"{kind}ImageProcessor", "do_center_crop": None}
    if kind == "LlavaNext":
        bare |= {"size": {"shortest_edge": 336}, "crop_size": 336}
    assert ImageSpec.from_hf(bare, config) == ImageSpec.from_hf(theirs.to_dict(), config)
    spec = ImageSpec.from_hf(bare, config)
    assert [list(p) for p in spec.pinpoints] == [list(p) for p in pinpoints or []]
