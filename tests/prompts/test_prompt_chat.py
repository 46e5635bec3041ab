"""Conversations: the model's own template decides, and each image has one marker in its place."""

import jinja2
import pytest

from atp_cpp.errors import AtpError, ModelError
from atp_cpp.prompts.prompt import ChatPrompt, Turn
from atp_cpp.prompts.template import LLAVA_15, compile_template
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
from support.tiny_templates import CHAT_TEMPLATES

M = "<__media__>"
SIGNS = {  # what each template writes for an image
    "llama": "<image>",
    "mistral": "<image>",
    "llama3": "<image>",
    "qwen2_llava": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
    "gemma": "<start_of_image>",
    "smolvlm": "<image>",
}
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CONVERSATIONS = {
    "one turn": [Turn(USER, (None, "What is this?"))],
    "text alone": [Turn(USER, ("Who are you?",))],
    "text first": [Turn(USER, ("Before. ", None, " After."))],
    "three images": [Turn(USER, (None, "one ", None, None, "two"))],
    "system": [Turn(SYSTEM, ("Be brief.",)), Turn(USER, (None, "What is this?"))],
    "turns": [
        Turn(USER, (None, "What is this?")),
        Turn(ASSISTANT, ("A 'red' <b>circle</b>.",)),
        Turn(USER, ("And this?", None)),
        Turn(ASSISTANT, ("Two lines,\nno more.",)),
        Turn(USER, ("Sure?",)),
    ],
    "all of it": [
        Turn(SYSTEM, ("Be brief, {{ bos_token }}",)),
        Turn(USER, ("Hello.",)),
        Turn(ASSISTANT, ("Hello.",)),
        Turn(USER, ("Hello.", None, "  What is naive?\n\n", None)),
        Turn(ASSISTANT, ("Hello.",)),
        Turn(USER, (None, "Hello.")),
    ],
    "image alone": [Turn(USER, (None,))],
}


def chat(template, *, bos="<s>", **options):
    return ChatPrompt(
        template, bos=bos, eos="</s>", **{"add_bos": True, "marker": M, "nfc": False} | options
    )


def as_hugging_face(template, turns):
    """The template rendered in one go, all images in it; nothing is looked for."""
    return compile_template(template).render(
        messages=messages_of(turns),
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )


def messages_of(turns):
    """As templates take them."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "image"} if part is None else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]


@pytest.mark.parametrize("talk", CONVERSATIONS)
@pytest.mark.parametrize("family", CHAT_TEMPLATES)
def test_it_is_what_the_template_writes_with_markers_for_images(family, talk):
    template, turns = CHAT_TEMPLATES[family], CONVERSATIONS[talk]
    try:
        expected = as_hugging_face(template, turns)
    except jinja2.TemplateError:
        pytest.fail("a template of the tests does not take this")
    expected = expected.removeprefix("<s>").replace(SIGNS[family], M)
    assert expected.count(M) == sum(turn.parts.count(None) for turn in turns)
    assert chat(template).render_chat(turns) == expected


@pytest.mark.torch
@pytest.mark.parametrize("talk", CONVERSATIONS)
@pytest.mark.parametrize("family", CHAT_TEMPLATES)
def test_transformers_renders_the_same(family, talk):
    from transformers.utils.chat_template_utils import render_jinja_template

    template, turns = CHAT_TEMPLATES[family], CONVERSATIONS[talk]
    [[rendered]] = render_jinja_template(
        conversations=[messages_of(turns)], chat_template=template, add_generation_prompt=True,
        bos_token="<s>", eos_token="</s>",
    )[:1]  # fmt: skip
    expected = rendered.removeprefix("<s>").replace(SIGNS[family], M)
    assert chat(template).render_chat(turns) == expected


@pytest.mark.parametrize(
    "template",
    [
        *CHAT_TEMPLATES.values(), LLAVA_HF, QWEN2_VL, SMOLVLM, GEMMA3, NUMBERED, TAGS_ALIKE,
        TEXT_ONLY, TEXT_ONLY_PLUS, PARTS_WITHOUT_IMAGES, PARTS_THAT_RAISE, "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("n_images", [1, 3])
def test_one_turn_is_the_prompt_of_a_question(template, n_images):
    prompt = chat(template)
    turn = Turn(USER, (*([None] * n_images), "What is this?"))
    assert prompt.render_chat([turn]) == prompt.render("What is this?", n_images)


def test_signs_are_numbered_anew_in_each_message():
    turns = [Turn(USER, (None, None, "a")), Turn(USER, (None, "b"))]
    expected = f"<|user|>\n{M}\n{M}\na<|end|>\n<|user|>\n{M}\nb<|end|>\n<|assistant|>"
    assert chat(NUMBERED).render_chat(turns) == expected


def test_templates_that_take_texts_alone_get_the_parts_in_their_order():
    turns = [
        Turn(SYSTEM, ("Be brief.",)),
        Turn(USER, ("Look:", None, "What is it?")),
        Turn(ASSISTANT, ("A cat.",)),
        Turn(USER, (None, "And this?")),
    ]
    assert chat(TEXT_ONLY_PLUS).render_chat(turns) == (
        f"<|system|>\nBe brief.\n<|user|>\nLook:\n{M}\nWhat is it?\n"
        f"<|assistant|>\nA cat.\n<|user|>\n{M}\nAnd this?\n"
    )


def test_a_system_message_may_have_to_be_a_string():
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ '[S]' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}[INST]"
        "{% for c in m['content'] %}{{ '[IMG]' if c['type'] == 'image' else c['text'] }}"
        "{% endfor %}[/INST]{% endif %}{% endfor %}"
    )
    turns = [
        Turn(SYSTEM, ("Be brief.",)),
        Turn(USER, ("Look: ", None)),
        Turn(ASSISTANT, ("A cat.",)),
        Turn(USER, (None, "And this?")),
    ]
    expected = f"[S]Be brief.[INST]Look: {M}[/INST]A cat.</s>[INST]{M}And this?[/INST]"
    assert chat(template).render_chat(turns) == expected


def test_what_templates_take_off_the_assistants_words_is_no_loss():
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>"
        "{% elif m['role'] == 'assistant' %}{{ c['text'].split('</think>')[-1] }}"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}|{% endfor %}"
    )
    turns = [
        Turn(USER, (None, "What?")),
        Turn(ASSISTANT, ("<think>hm</think>A cat.",)),
        Turn(USER, ("Sure?",)),
    ]
    assert chat(template).render_chat(turns) == f"{M}What?|A cat.|Sure?|"


@pytest.mark.parametrize("role", [SYSTEM, USER, ASSISTANT])
@pytest.mark.parametrize("sign", [M, "<image>"])
def test_a_sign_for_an_image_in_any_text_is_refused(role, sign):
    turns = [Turn(role, (f"an {sign} here",)), Turn(USER, (None, "What?"))]
    prompt = chat(LLAVA_HF)
    for _ in range(2):  # also when the template is known
        with pytest.raises(AtpError, match="own sign for an image"):
            prompt.render_chat(turns)


def test_tags_in_a_text_are_no_signs_afterwards():
    prompt = chat(LLAVA_HF)
    turns = [Turn(USER, ("<b>", None, "<b>")), Turn(ASSISTANT, ("<i>",)), Turn(USER, ("<p>", None))]
    before = prompt.render_chat(turns)
    assert prompt.render_chat(turns) == before
    assert prompt.render("<b><i><p>", 1) == f"USER: {M}\n<b><i><p> ASSISTANT:"


def test_the_templates_own_refusal_is_told():
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system here') }}{% endif %}"
        "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}"
        "{% endfor %}{% endfor %}"
    )
    with pytest.raises(ModelError, match="no system here") as caught:
        chat(template).render_chat([Turn(SYSTEM, ("Be brief.",)), Turn(USER, (None, "What?"))])
    assert "\n" not in str(caught.value)


def test_a_template_that_loses_a_turn_is_refused():
    template = (
        "{% for c in messages[-1]['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    )
    turns = [Turn(USER, ("First.",)), Turn(ASSISTANT, ("Yes.",)), Turn(USER, (None, "Second."))]
    with pytest.raises(ModelError, match="lost a text or one of 1 images"):
        chat(template).render_chat(turns)


def test_without_template_it_is_llavas():
    turns = CONVERSATIONS["turns"]
    shown = as_hugging_face(CHAT_TEMPLATES["llama"], turns).replace("<image>", M)
    assert chat("").render_chat(turns) == shown
    assert "<image>" not in LLAVA_15  # which may stand in a text


def test_prompts_are_composed_and_stripped_as_the_tokeniser_would():
    turns = [Turn(SYSTEM, ("nai\u0308ve",)), Turn(USER, ("x \n", None))]
    prompt = chat(SMOLVLM, nfc=True, lstrip=["<image>"]).render_chat(turns)
    assert "na\u00efve" in prompt
    assert f"x{M}" in prompt
