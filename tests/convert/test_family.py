"""Which checkpoints can be converted, told from their configuration alone."""

import pytest

from atp_cpp.convert.checkpoint import read_checkpoint
from atp_cpp.convert.family import (
    architecture,
    check_counts,
    check_supported,
    is_llava,
    llava_encoder,
)
from atp_cpp.errors import ConvertError
from support.checkpoint_files import CONFIG, write_checkpoint


def llava(**changes):
    """A LLaVA-1.5 configuration, complete; ``vision_…`` changes go to its encoder."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "num_hidden_layers": 24,
    }
    vision |= {k.removeprefix("tower_"): v for k, v in changes.items() if k.startswith("tower_")}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": vision,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    } | {k: v for k, v in changes.items() if not k.startswith("tower_")}


def siglip(**changes):
    tower = {"tower_model_type": "siglip_vision_model", "tower_hidden_act": "gelu_pytorch_tanh"}
    return llava(**tower, **{"vision_feature_select_strategy": "full"} | changes)


@pytest.mark.parametrize(
    ("layer", "n_layer", "feature_layers"),
    [
        (-2, 23, (23,)),  # hidden states count from before the first block
        (-1, 24, (24,)),
        (23, 23, (23,)),
        ([-24, -20, -12, -1], 24, (1, 5, 13, 24)),
    ],
)
def test_blocks_that_no_feature_passes_are_left_out(layer, n_layer, feature_layers):
    encoder = llava_encoder(llava(vision_feature_layer=layer))
    assert (encoder.n_layer, encoder.feature_layers) == (n_layer, feature_layers)


@pytest.mark.parametrize(
    ("act", "name"), [("quick_gelu", "quick_gelu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu")]
)
def test_activation_by_llama_cpps_name(act, name):
    assert llava_encoder(llava(tower_hidden_act=act)).act == name


def test_tiles_are_known_by_their_pinpoints():
    assert not llava_encoder(llava()).anyres
    assert llava_encoder(siglip(image_grid_pinpoints=[[384, 384]])).anyres


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (llava(tower_model_type="dinov2"), ["dinov2", "clip_vision_model or siglip_vision_model"]),
        (llava(tower_hidden_act="relu"), ["vision_config.hidden_act", "'relu'", "quick_gelu"]),
        (llava(projector_hidden_act="silu"), ["projector_hidden_act", "'silu'", "gelu"]),
        (llava(vision_feature_select_strategy="full"), ["'full'", "only 'default'"]),
        (siglip(vision_feature_select_strategy="default"), ["'default'", "only 'full'"]),
        (llava(vision_feature_layer=-26), ["-26", "24 blocks"]),
        (llava(vision_feature_layer=25), ["25", "24 blocks"]),
        (llava(vision_feature_layer=0), ["0", "1 … 24"]),
        (llava(vision_feature_layer=[]), ["[]"]),
        (llava(vision_feature_layer=[-1, -2]), ["[-1, -2]", "order of depth"]),
        (llava(vision_feature_layer=[5, 5]), ["[5, 5]"]),
    ],
)
def test_refused_with_what_came_and_what_goes(config, words):
    with pytest.raises(ConvertError) as error:
        llava_encoder(config)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": "Llava"}])
def test_a_configuration_without_a_name(config):
    with pytest.raises(ConvertError, match=r"names no architecture.*save_pretrained"):
        architecture(config)


def test_pixtral_calls_itself_llava_and_is_llama_cpps():
    assert is_llava(llava())
    assert not is_llava(llava(tower_model_type="pixtral"))
    check_supported(llava(tower_model_type="pixtral"), text=True, vision=True)


def test_ours_need_nothing_of_llama_cpps_tables():
    check_supported(llava(), text=False, vision=False)


@pytest.mark.parametrize(
    ("text", "words"), [(True, "is a text model"), (False, "neither a LLaVA model nor one that")]
)
def test_unsupported_is_said_by_name(text, words):
    with pytest.raises(ConvertError, match=f"Foo.*{words}"):
        check_supported({"architectures": ["FooForCausalLM"]}, text=text, vision=False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"vocab_size": 10**10}, "config.json: vocab_size is 10000000000; expected at most"),
        ({"text_config": {"num_hidden_layers": 10**8}}, "text_config.num_hidden_layers is 10000"),
        ({"vision_config": {"depth": float("inf")}}, "vision_config.depth is inf; expected at"),
    ],
)
def test_counts_over_which_a_converter_would_loop_for_ever(tmp_path, config, reason):
    folder = write_checkpoint(tmp_path / "hf", config=CONFIG | config)
    with pytest.raises(ConvertError, match=reason):
        read_checkpoint(folder, "tiny")
    check_counts({"vocab_size": 262_208, "num_hidden_layers": 126})
