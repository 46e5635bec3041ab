"""Configurations whose encoder llama.cpp would compute otherwise than transformers."""

import pytest

from atp_cpp.convert.passthrough import check_configuration
from atp_cpp.errors import ConvertError

LOCAL, WHOLE = "sliding_attention", "full_attention"
GEMMA = "Gemma3ForConditionalGeneration"
QWEN = "Qwen2_5_VLForConditionalGeneration"


def gemma(layers, **vision):
    return {"text_config": {"layer_types": layers}, "vision_config": vision}


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (QWEN, {"vision_config": {"hidden_act": "silu", "window_size": 112}}),
        (QWEN, {}),
        (GEMMA, gemma([LOCAL] * 5 + [WHOLE] + [LOCAL] * 3)),
        (GEMMA, gemma(None, hidden_act="gelu_pytorch_tanh")),
        ("InternVLChatModel", {"select_layer": -1, "ps_version": "v2"}),
        ("PixtralForConditionalGeneration", {"vision_config": {"hidden_act": "anything"}}),
    ],
)
def test_what_llama_cpp_computes_is_let_through(architecture, config):
    check_configuration({"architectures": [architecture], **config})


@pytest.mark.parametrize(
    ("architecture", "config", "why"),
    [
        (
            QWEN,
            {"vision_config": {"window_size": 56}},
            "vision_config.window_size is 56; llama.cpp computes 112 here",
        ),
        (
            GEMMA,
            gemma([LOCAL, WHOLE]),
            r"text_config.layer_types\[1\] is 'full_attention'; llama.cpp computes 'sliding_att",
        ),
        (
            GEMMA,
            gemma([], hidden_act="relu"),
            "vision_config.hidden_act is 'relu'; llama.cpp computes 'gelu' or 'gelu_pytorch_tanh'",
        ),
        (
            GEMMA,
            {"text_config": {"head_dim": 16, "query_pre_attn_scalar": 32}},
            "query_pre_attn_scalar is 32; llama.cpp computes 16 here",
        ),
        ("InternVLChatModel", {"ps_version": "v1"}, "ps_version is 'v1'; llama.cpp computes 'v2'"),
        (
            "InternVLForConditionalGeneration",
            {"vision_feature_layer": -2},
            "vision_feature_layer is -2; llama.cpp computes -1",
        ),
    ],
)
def test_what_it_computes_otherwise_is_refused(architecture, config, why):
    with pytest.raises(ConvertError, match=why):
        check_configuration({"architectures": [architecture], **config})
