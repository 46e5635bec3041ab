"""Prompts: what the templates of known models give, one media marker per image."""

import logging

import pytest

from atp_cpp.errors import AtpError, ModelError
from atp_cpp.prompts.prompt import ChatPrompt, Turn
from support.chat_templates import (
    GEMMA3,
    LLAVA_HF,
    NUMBERED,
    PARTS_THAT_RAISE,
    PARTS_WITHOUT_IMAGES,
    QWEN2_VL,
    SMOLVLM,
    TAGS_ALIKE,
    TEXT_ONLY,
    TEXT_ONLY_PLUS,
)

M = "<__media__>"
ASK = "What is this?"


def render(template, n_images=1, question=ASK, bos="<s>", add_bos=True):
    return ChatPrompt(template, bos=bos, eos="</s>", add_bos=add_bos, marker=M).render(
        question, n_images
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAVA_HF, f"USER: {M}\n{ASK} ASSISTANT:"),
        (
            QWEN2_VL,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{M}{ASK}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (SMOLVLM, f"<|im_start|>User:{M}{ASK}<end_of_utterance>\nAssistant:"),
        (GEMMA3, f"<start_of_turn>user\n{M}{ASK}<end_of_turn>\n<start_of_turn>model\n"),
        (NUMBERED, f"<|user|>\n{M}\n{ASK}<|end|>\n<|assistant|>"),
        (TAGS_ALIKE, f"<|user|>{M}<|text|>{ASK}<|text|><|bot|>"),
        (TEXT_ONLY, f"[INST] {M}\n{ASK} [/INST]"),
        (TEXT_ONLY_PLUS, f"<|user|>\n{M}\n{ASK}\n"),
        (PARTS_WITHOUT_IMAGES, f"{M}{ASK} A:"),
        (PARTS_THAT_RAISE, f"{M}{ASK} A:"),
    ],
)
def test_one_image(template, expected):
    assert render(template) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAVA_HF, f"USER: {M}\n{M}\n{M}\n{ASK} ASSISTANT:"),
        (SMOLVLM, f"<|im_start|>User:{M}{M}{M}{ASK}<end_of_utterance>\nAssistant:"),
        (NUMBERED, f"<|user|>\n{M}\n{M}\n{M}\n{ASK}<|end|>\n<|assistant|>"),
        (TAGS_ALIKE, f"<|user|>{M}{M}{M}<|text|>{ASK}<|text|><|bot|>"),
        (TEXT_ONLY, f"[INST] {M}\n{M}\n{M}\n{ASK} [/INST]"),
        (PARTS_WITHOUT_IMAGES, f"{M}{M}{M}{ASK} A:"),
    ],
)
def test_three_images(template, expected):
    assert render(template, 3) == expected


@pytest.mark.parametrize("template", [LLAVA_HF, QWEN2_VL, GEMMA3, TEXT_ONLY, ""])
@pytest.mark.parametrize("n_images", [1, 2, 7])
@pytest.mark.parametrize(
    "question",
    [
        "",
        "<image>\nWhat is an <image> tag?",
        "<|vision_start|><|image_pad|><|vision_end|> {{ bos_token }} {% raw %}",
        "two\nlines, 'quotes', \"more\", <b>&amp;</b> and 汉字",
    ],
)
def test_always_one_marker_per_image_and_the_question_unchanged(template, n_images, question):
    if template == LLAVA_HF:  # its own sign for an image; see below
        question = question.replace("<image>", "<img>")
    elif template == QWEN2_VL:
        question = question.replace("<|", "<").replace("|>", ">")
    out = render(template, n_images, question)
    assert out.count(M) == n_images
    assert question in out


def test_a_leading_bos_is_taken_off_once():
    assert render("<s>" + TEXT_ONLY).startswith("<s>[INST]")
    assert not render(TEXT_ONLY).startswith("<s>")
    assert render(TEXT_ONLY, bos="").startswith("[INST]")


def test_bos_stays_where_the_tokeniser_adds_none():
    assert render(TEXT_ONLY, add_bos=False).startswith("<s>[INST]")


def test_bos_of_the_question_stays():
    assert "<s> tag" in render(TEXT_ONLY, question="<s> tag")


def test_without_template_it_is_llava_and_said(caplog):
    with caplog.at_level(logging.WARNING, "atp_cpp"):
        assert render("") == f"USER: {M}\n{ASK} ASSISTANT:"
    assert "no chat template" in caplog.text


def test_rendering_is_hugging_faces():
    template = (
        "{%- for m in messages %}\n    {% if true %}\n"
        "{{ {'a': '<é>'} | tojson }}\n    {% endif %}\n"
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}\n"
        "{{ strftime_now('%Y') | length }}{{ m['content'] }}{% endfor %}"
    )
    # blocks eat their line, tojson does not escape for HTML, loops can break
    assert render(template) == f'{{"a": "<é>"}}\n14{M}\n{ASK}'


def test_the_marker_in_the_question_is_refused():
    with pytest.raises(AtpError, match="<__media__>"):
        render(LLAVA_HF, question=f"look: {M}")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in %}", "not valid Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content.x }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}", "cannot be rendered"),
        ("{{ messages.append(1) }}{{ messages[0]['content'] }}", "cannot be rendered"),
        ("just words", "lost the question"),
    ],
)
def test_templates_that_fail(template, says):
    with pytest.raises(ModelError, match=says) as caught:
        render(template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "sign"),
    [(LLAVA_HF, "<image>"), (QWEN2_VL, "<|image_pad|>"), (QWEN2_VL, "<|vision_start|>")],
)
def test_the_models_sign_for_an_image_in_the_question_is_refused(template, sign):
    with pytest.raises(AtpError, match="the model's own sign for an image; leave it out"):
        render(template, question=f"What is {sign}?")
    other = "<image>" if template is QWEN2_VL else "<|image_pad|>"
    assert other in render(template, question=f"What is {other}?"), "another model's, mere text"


@pytest.mark.parametrize("nfc", [True, False])
def test_prompts_are_composed_where_the_tokeniser_would(nfc):
    chat = ChatPrompt(LLAVA_HF, bos="<s>", eos="</s>", add_bos=True, marker=M, nfc=nfc)
    word = "nai\u0308ve"
    composed = "na\u00efve" if nfc else word
    assert chat.render(word, 1) == f"USER: {M}\n{composed} ASSISTANT:"


def test_white_space_that_belongs_to_a_token_is_dropped():
    options = {"bos": "<s>", "eos": "</s>", "add_bos": True, "marker": M}
    left = ChatPrompt(LLAVA_HF, **options, lstrip=["<image>", "<a>"])
    assert left.render("x \n<a> y", 1) == f"USER:{M}\nx<a> y ASSISTANT:"
    right = ChatPrompt(LLAVA_HF, **options, rstrip=["<image>", "<a>"])
    assert right.render("x <a>\n y", 2) == f"USER: {M}{M}x <a>y ASSISTANT:"


ALWAYS = (
    "{% for m in messages %}USER: <image>\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %} ASSISTANT:{% endfor %}"
)
ALWAYS_STRING = "{% for m in messages %}[INST] <|image|>{{ m.content | trim }} [/INST]{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (ALWAYS, "USER: <__media__>\nWhat? ASSISTANT:"),
        (ALWAYS_STRING, "[INST] <__media__>What? [/INST]"),
    ],
)
def test_a_template_that_writes_its_sign_always(template, expected):
    prompt = ChatPrompt(template, bos="<s>", eos="</s>", add_bos=True, marker="<__media__>")
    assert prompt.render("What?", 1) == expected
    assert prompt.render_chat([Turn("user", (None, "What?"))]) == expected
    with pytest.raises(ModelError, match="2 images; give one image and one user message"):
        prompt.render("What?", 2)
    with pytest.raises(ModelError, match="0 images"):
        prompt.render_chat([Turn("user", ("What?",))])
    with pytest.raises(AtpError, match="own sign for an image"):
        prompt.render("What is <image>, what is <|image|>?", 1)
