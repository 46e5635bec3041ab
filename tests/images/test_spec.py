"""ImageSpec: from a checkpoint's files, to GGUF keys and back, and what it cannot express."""

from dataclasses import replace

import pytest

from atp_cpp.images.spec import PREFIX, ImageSpec

# as llava-hf/llava-1.5-7b-hf, llava-v1.6-mistral-7b-hf and llava-onevision-qwen2-0.5b-ov-hf have it
LLAVA = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NEXT = LLAVA | {
    "image_processor_type": "LlavaNextImageProcessor",
    "image_grid_pinpoints": PINPOINTS,
}
GRID = [[384 * y, 384 * x] for y in range(1, 7) for x in range(1, 7)]
ONEVISION = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "size": {"height": 384, "width": 384},
    "image_grid_pinpoints": GRID,
    "image_mean": [0.5, 0.5, 0.5],
    "resample": 3,
}


def config(model_type="llava", side=336, **more):
    return {"model_type": model_type, "vision_config": {"image_size": side}, **more}


NEXT_CONFIG = config("llava_next", image_grid_pinpoints=PINPOINTS)
ONEVISION_CONFIG = config(
    "llava_onevision", 384, image_grid_pinpoints=GRID, vision_aspect_ratio="anyres_max_9"
)

SPECS = {
    "llava": (LLAVA, config(), ImageSpec("shortest", (336, 336), crop=(336, 336))),
    "next": (
        NEXT,
        NEXT_CONFIG,
        ImageSpec(
            "shortest",
            (336, 336),
            crop=(336, 336),
            pinpoints=tuple((h, w) for h, w in PINPOINTS),
            tile=336,
        ),
    ),
    "onevision": (
        ONEVISION,
        ONEVISION_CONFIG,
        ImageSpec(
            "exact",
            (384, 384),
            pad_color=(127, 127, 127),
            pinpoints=tuple((h, w) for h, w in GRID),
            tile=384,
            max_tiles=9,
        ),
    ),
    "siglip": (
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}},
        config(side=384),
        ImageSpec("exact", (384, 384)),
    ),
    "padded": (
        LLAVA | {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "resample": 1},
        config(),
        ImageSpec("shortest", (336, 336), "lanczos", crop=(336, 336), pad_color=(122, 116, 104)),
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_checkpoints_files_give_the_rule_and_its_keys_give_it_back(name):
    preprocessor, model, expected = SPECS[name]
    spec = ImageSpec.from_hf(preprocessor, model)
    assert spec == expected
    assert spec.side == model["vision_config"]["image_size"]
    pairs = spec.metadata()
    assert all(key.startswith(PREFIX) for key in pairs)
    for value in pairs.values():
        assert isinstance(value, (int, str)) or all(type(v) is int for v in value)
    assert ImageSpec.from_metadata(pairs | {"clip.vision.image_size": 7}) == spec


@pytest.mark.parametrize(
    "name",
    [
        "CLIPImageProcessor",
        "CLIPImageProcessorFast",
        "CLIPImageProcessorPil",
        "CLIPFeatureExtractor",
    ],
)
def test_a_processor_has_several_names(name):
    key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    named = {k: v for k, v in LLAVA.items() if k != "image_processor_type"} | {key: name}
    assert ImageSpec.from_hf(named, config()) == SPECS["llava"][2]
    assert ImageSpec.from_hf({"image_processor": named, "patch_size": 14}, config())


def test_a_nameless_processor_is_the_models():
    nameless = {k: v for k, v in NEXT.items() if k != "image_processor_type"}
    assert ImageSpec.from_hf(nameless, NEXT_CONFIG) == SPECS["next"][2]
    assert ImageSpec.from_hf(nameless, config()) == SPECS["llava"][2]
    with pytest.raises(ValueError, match=r"LlavaNextImageProcessor.*, got none"):
        ImageSpec.from_hf(nameless, config("gemma3"))


REFUSED = {
    "another processor": (
        {"image_processor_type": "Idefics3ImageProcessor"},
        {},
        "CLIPImageProcessor, .*, got Idefics3ImageProcessor",
    ),
    "no resizing": ({"do_resize": False}, {}, "do_resize true, got false"),
    "no rescaling": ({"do_rescale": False}, {}, "do_rescale true, got false"),
    "no normalising": ({"do_normalize": False}, {}, "do_normalize true, got false"),
    "another factor": ({"rescale_factor": 1 / 127.5}, {}, "rescale_factor 1/255, got 0.0078"),
    "another filter": ({"resample": 7}, {}, "Pillow's filters as resample .0 to 5., got 7"),
    "a filter by name": ({"resample": "bicubic"}, {}, "got bicubic"),
    "no crop": ({"do_center_crop": False}, {}, "leaves images of any shape"),
    "two edges": ({"size": {"shortest_edge": 9, "longest_edge": 9}}, {}, "shortest_edge alone"),
    "edge as crop": ({"crop_size": {"shortest_edge": 336}}, {}, "crop_size is height and width"),
    "oblong": ({"crop_size": {"height": 336, "width": 337}}, {}, "got 336 x 337 pixels"),
    "nothing": ({"crop_size": 0}, {}, "1 pixel or more, got 0"),
    "another tower": ({}, {"vision_config": {"image_size": 224}}, "336 pixels and .* takes 224"),
    "a tower of 224": ({}, {"vision_config": {}}, "336 pixels and .* takes 224"),
    "tiles": ({"image_processor_type": "LlavaNextImageProcessor"}, {}, "model of type llava takes"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "model", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_expressed_is_refused(settings, model, reason):
    with pytest.raises(ValueError, match=reason) as error:
        ImageSpec.from_hf(LLAVA | settings, config() | model)
    assert "\n" not in str(error.value)


def test_tiles_that_do_not_fit_are_refused():
    def read(settings, **model):
        return ImageSpec.from_hf(NEXT | settings, NEXT_CONFIG | model)

    with pytest.raises(ValueError, match="differ; expected the same list"):
        read({}, image_grid_pinpoints=PINPOINTS[:3])
    odd = [*PINPOINTS, [336, 340]]
    with pytest.raises(ValueError, match="336 x 340 is not made of whole tiles of 336"):
        read({"image_grid_pinpoints": odd}, image_grid_pinpoints=odd)
    with pytest.raises(ValueError, match=r"expected tiles of 384 pixels.*, got 336"):
        ImageSpec.from_hf(ONEVISION | {"crop_size": 336, "do_center_crop": False}, ONEVISION_CONFIG)
    for ratio in ("anyres", "pad", "anyres_max_0"):
        with pytest.raises(ValueError, match=f"like anyres_max_9, got {ratio}"):
            ImageSpec.from_hf(ONEVISION, ONEVISION_CONFIG | {"vision_aspect_ratio": ratio})
    with pytest.raises(ValueError, match="at most 256 pinpoints, got 257"):
        replace(SPECS["next"][2], pinpoints=((336, 336),) * 257)


def test_a_file_without_keys_has_no_rule():
    assert ImageSpec.from_metadata({}) is None
    assert ImageSpec.from_metadata({"clip.vision.image_grid_pinpoints": [1, 2]}) is None


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", 2, "version is 2, this program reads 1; update it"),
        ("version", None, "version is None"),
        ("size", [336], r"atp.image.size is damaged: \[336\]; convert the model again"),
        ("size", None, "sizes of 1 pixel or more, got 0"),
        ("size", "large", "atp.image.size is damaged"),
        ("crop", [336.0, 336.0], "atp.image.crop is damaged"),
        ("pad_color", [0, 0], "atp.image.pad_color is damaged"),
        ("pad_color", [0, 0, 256], "atp.image.pad_color is damaged"),
        ("pinpoints", [336, 672, 672], "atp.image.pinpoints is damaged"),
        ("tile", 300, "336 x 672 is not made of whole tiles of 300"),
        ("tile", None, "belong together"),
        ("tile", "336", "atp.image.tile is damaged"),
        ("max_tiles", -1, "atp.image.max_tiles is damaged"),
        ("resize", "longest", "resize is shortest or exact, got longest"),
        ("resample", "cubic", "got cubic"),
        ("resample", None, "expected a filter of nearest"),
    ],
)
def test_damaged_keys_are_refused(key, value, reason):
    pairs = SPECS["next"][2].metadata() | {PREFIX + key: value}
    if value is None:
        del pairs[PREFIX + key]
    with pytest.raises(ValueError, match=reason):
        ImageSpec.from_metadata(pairs)


@pytest.mark.parametrize(
    ("given", "model", "words"),
    [
        (LLAVA, config(), "resized (bicubic), shorter side to 336 px, middle 336 x 336 px"),
        (NEXT, NEXT_CONFIG, "middle 336 x 336 px, and tiles of 336 px on one of 5 canvases"),
        (
            ONEVISION,
            config("llava_onevision", side=384, image_grid_pinpoints=GRID),
            "resized (bicubic), to 384 x 384 px, and tiles of 384 px on one of 36 canvases",
        ),
        (
            {**LLAVA, "image_processor_type": "LlavaImageProcessor", "do_pad": True},
            config(),
            "laid on a square, resized",
        ),
    ],
)
def test_says_its_steps_in_words(given, model, words):
    assert words in str(ImageSpec.from_hf(given, model))
