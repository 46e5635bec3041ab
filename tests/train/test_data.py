"""Batches: the tokens the engine would see, in a stream that can be resumed."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from atp_cpp.errors import AtpError
from atp_cpp.images.load import load_image
from atp_cpp.models.gguf_header import read_header
from atp_cpp.prompts.prompt import ChatPrompt

pytestmark = pytest.mark.torch

DEMO_HF = Path(__file__).parents[1] / "data" / "demo_hf"
QUESTIONS = (
    "what color is the circle?",
    "  is there a red shape?\n",
    "",
    "é 汉字 {x} \\n",
    "a" * 90,
)
LLAVA_HF = (  # the template of llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def data():
    from atp_cpp.train import data

    return data


@pytest.fixture(scope="module")
def processor(data):
    return data.load_processor(DEMO_HF)


@pytest.fixture
def pictures(tmp_path):
    """Four PNGs of one colour each, and a file of three questions about each."""
    rows = []
    for number, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40 + number, 30), color).save(tmp_path / f"{color}.png")
        rows += [
            {"image": f"{color}.png", "question": f"{what}?", "answer": color, "kind": what}
            for what in ("color", "what is the shape", "how many")
        ]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.fixture
def stream(data, processor, pictures):
    """`stream(**options)` makes Batches of the pictures; closed at the end."""
    made = []

    def make(file=pictures, **options):
        options = {"images_per_batch": 2, "questions_per_image": 2, "seed": 5, **options}
        made.append(data.Batches(data.load_items(file), processor, **options))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def test_the_prompt_is_the_engines_token_for_token(data, processor):
    import atp_cpp
    from atp_cpp.models.files import DEMO_DIR, DEMO_MODEL
    from atp_cpp.train.prompting import Prompting

    prompting = Prompting(processor)
    assert prompting.n_image_tokens == 576
    template = read_header(DEMO_DIR / DEMO_MODEL).metadata["tokenizer.chat_template"]
    chat = ChatPrompt(template, bos="<s>", eos="</s>", add_bos=True, marker="<__media__>")
    with atp_cpp.Captioner(n_ctx=1024, self_test=False) as captioner:
        for question in QUESTIONS:
            before, after = chat.render(question, 1).split("<__media__>")
            ids = [
                processor.tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (before, after)
            ]
            head, _ = prompting.encode(question, "yes")
            rows = prompting.repeat_image(head)
            assert rows == [1, *ids[0], *([prompting.image_token_id] * 576), *ids[1]]
            sampling = atp_cpp.SamplingConfig(n_predict=1)
            red = Image.new("RGB", (8, 8), "red")
            assert captioner.caption(red, question, sampling=sampling).report.n_prompt == len(rows)


def test_a_sample_is_prompt_answer_and_end(stream, processor):
    batch = next(stream(shuffle=False))
    assert batch.pixel_values.shape == (2, 3, 336, 336)
    assert batch.image_of.tolist() == [0, 0, 1, 1]
    assert batch.kinds == ["color", "what is the shape"] * 2
    ids, labels, mask = (t.tolist() for t in (batch.input_ids, batch.labels, batch.attention_mask))
    for row in range(4):
        start, end = int(batch.prompt_len[row]), sum(mask[row])
        assert labels[row][:start] == [-100] * start
        assert labels[row][start:end] == ids[row][start:end]
        assert labels[row][end:] == [-100] * (len(ids[row]) - end)
        assert ids[row][end - 1] == processor.tokenizer.eos_token_id
        assert set(ids[row][end:]) <= {processor.tokenizer.pad_token_id}
        color = ("red", "green")[row // 2]
        assert processor.tokenizer.decode(ids[row][start : end - 1]) == f" {color}"
        assert processor.tokenizer.decode(ids[row][:start]).endswith("? ASSISTANT:")
        assert mask[row] == sorted(mask[row], reverse=True)


def test_pixels_are_the_processors(stream, processor, pictures):
    batch = next(stream(shuffle=False))
    image = Image.fromarray(load_image(pictures.parent / "green.png"))
    theirs = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    assert (batch.pixel_values[1] == theirs).all()


def test_a_pass_shows_every_item_and_another_pass_another_order(stream):
    batches = stream()
    seen = [next(batches) for _ in range(40)]
    colors = [[tuple(p.tolist()) for p in b.pixel_values[:, :, 9, 9]] for b in seen]
    passes = [(*a, *b) for a, b in zip(colors[::2], colors[1::2], strict=True)]
    assert {len(set(p)) for p in passes} == {4}
    assert len(set(passes)) > 4
    kinds = {tuple(b.kinds[:2]) for b in seen}
    assert len(kinds) == 6  # all ordered pairs of three questions


def same(a, b):
    names = ("pixel_values", "image_of", "input_ids", "attention_mask", "labels", "prompt_len")
    alike = [getattr(a, n).shape == getattr(b, n).shape for n in names]
    return all(alike) and all((getattr(a, n) == getattr(b, n)).all() for n in names)


def test_the_stream_goes_on_where_its_state_was_taken(stream):
    first = stream(images_per_batch=3)
    for _ in range(3):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    rest = [next(first) for _ in range(4)]
    second = stream(images_per_batch=3)
    next(second)
    second.load_state_dict(state)
    assert all(same(a, next(second)) for a in rest)
    assert not all(same(a, next(first)) for a in rest)
    with pytest.raises(AtpError, match="seed 6, got 5"):
        stream(seed=6).load_state_dict(state)


def test_bad_images_are_passed_over_named_and_counted(stream, pictures, caplog):
    (pictures.parent / "green.png").write_bytes(b"not an image")
    (pictures.parent / "blue.png").unlink()
    batches = stream(images_per_batch=4)
    with caplog.at_level(logging.WARNING, "atp_cpp"):
        batch = next(batches)
        next(batches)
    assert batch.pixel_values.shape[0] == 4
    assert batches.n_bad_images >= 2
    assert len(caplog.records) == 2
    assert "green.png" in caplog.text and "blue.png: no such file" in caplog.text


def test_no_image_at_all_ends_the_run(stream, pictures):
    for path in pictures.parent.glob("*.png"):
        path.unlink()
    with pytest.raises(AtpError, match=r"none of the 4 images can be read.*--image-dir"):
        next(stream())


def test_once_gives_every_item_once(stream):
    parts = list(stream(images_per_batch=3, questions_per_image=9).once())
    assert [p.pixel_values.shape[0] for p in parts] == [3, 1]
    assert [len(p.kinds) for p in parts] == [9, 3]


def test_the_image_token_in_a_question_is_refused(stream, pictures):
    row = {"image": "red.png", "question": "what is <image>?", "answer": "a tag"}
    pictures.write_text(json.dumps(row))
    with pytest.raises(AtpError, match=r"red.png: expected no <image>"):
        stream()


@pytest.mark.parametrize(
    ("template", "prompt", "closing"),
    [
        (None, "USER: <image>\nwhat? ASSISTANT:", " this</s>"),
        (LLAVA_HF, "USER: <image>\nwhat? ASSISTANT:", " this</s>"),
        (
            "{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
            "</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            "<|user|>\n<image>what?</s>\n<|assistant|>\n",
            "this</s>",
        ),
    ],
)
def test_other_templates(data, template, prompt, closing):
    from atp_cpp.train.prompting import Prompting

    processor = data.load_processor(DEMO_HF)
    processor.chat_template = template
    prompting = Prompting(processor)
    assert prompting.prompt("what?") == prompt
    head, tail = prompting.encode("what?", "this")
    encode = processor.tokenizer
    assert list(head) == encode(prompt)["input_ids"]
    assert list(head + tail) == encode(prompt + closing)["input_ids"]
    assert tail[-1] == encode.eos_token_id


def test_early_folders_get_what_the_model_config_says(data, tmp_path):
    for path in DEMO_HF.iterdir():
        if path.suffix != ".safetensors" and path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "processor_config.json"
    config = json.loads(file.read_text())
    for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
        del config[name]
    file.write_text(json.dumps(config))
    model = json.loads((tmp_path / "config.json").read_text())
    model["vision_feature_select_strategy"] = "default"
    (tmp_path / "config.json").write_text(json.dumps(model))
    processor = data.load_processor(tmp_path)
    assert processor.patch_size == 14
    batches = data.Batches(
        [data.Item((tmp_path / "x.png",), ())],
        processor,
        images_per_batch=1,
        questions_per_image=1,
        seed=0,
    )
    assert batches.prompting.n_image_tokens == 576
    batches.close()


def test_a_folder_without_a_processor_is_named(data, tmp_path):
    with pytest.raises(AtpError, match=r"nowhere: expected a folder.*download it first"):
        data.load_processor(tmp_path / "nowhere")
    with pytest.raises(AtpError, match="no processor of a Hugging Face checkpoint"):
        data.load_processor(tmp_path)
