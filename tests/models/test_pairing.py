"""A projector of another model: a warning where both files say enough, none where they do not."""

import logging
import subprocess
import sys

import gguf
import pytest

from atp_cpp import Captioner
from atp_cpp.convert.run import convert_hf
from atp_cpp.errors import ModelError
from atp_cpp.models.files import DEMO_DIR, DEMO_MMPROJ, DEMO_MODEL
from atp_cpp.models.gguf_header import read_header, read_metadata
from atp_cpp.models.pairing import CHECKPOINT_KEY, PROJECTOR_ARCHS, why_no_pair


def write(path, arch, *, bases=(), **keys):
    """A GGUF file of keys; `general.` in front of those without a dot, "_" for other dots."""
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in keys.items():
        writer.add_string(key if "." in key else f"general.{key}", value)
    if bases:
        writer.add_base_model_count(len(bases))
        for number, name in enumerate(bases):
            writer.add_base_model_name(number, name)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture
def pair(tmp_path):
    """`pair(text, vision, arch=, kind=)`: why_no_pair of two files with these keys."""

    def compare(text, vision, *, arch="llama", kind="mlp", kind_key="clip.projector_type"):
        typed = {"type": "mmproj"} | vision
        return why_no_pair(
            write(tmp_path / "text.gguf", arch, **text),
            write(tmp_path / "mmproj.gguf", "clip", **{kind_key: kind}, **typed),
        )

    return compare


def named(name, *bases, **more):
    return {"name": name, "bases": bases} | more


QWEN = "Qwen2.5 VL 7B Instruct"
# general.name and general.base_model.*.name as public files have them: text model, projector
ONE_MODEL = {
    "the same name": (named(QWEN), named(QWEN)),
    "other separators": (named("Gemma-3-4B-It"), named("gemma3 4b it")),
    "a repository's name": (named("Qwen/Qwen2.5-VL-7B-Instruct"), named(QWEN)),
    "a type in one name": (named("SmolVLM 256M Instruct f16"), named("SmolVLM 256M Instruct")),
    "hf in one name": (named("llava-1.5-7b-hf"), named("Llava v1.5 7b")),
    "trained further, by name": (named("Huihui Qwen2.5 VL 7B Instruct Abliterated"), named(QWEN)),
    "trained further, by its base": (named("Nanonets OCR s", QWEN), named(QWEN)),
    "the projector trained further": (named(QWEN), named("Eye Of Mine", QWEN)),
    "one basename": (named("Mine", basename="Qwen2.5-VL"), named("Eyes", basename="qwen2.5-vl")),
    "a projector without a name": (named(QWEN), {}),
    "a text model without a name": ({}, named(QWEN)),
    "a folder of the hub's cache": (named(QWEN), named("cc594898137f460bfe9f0759e9844b3ce807cfb5")),
    "a folder that was called model": (named("Model"), named(QWEN)),
    "an old projector": (named("LLaMA v2"), named("openai/clip-vit-large", type="")),
    "an old projector's folder": (named("Llava"), named("vit", type="model")),
}
TWO_MODELS = {
    "two versions": (named("Llava v1.5 7b"), named("Llava v1.6 Vicuna 7b hf")),
    "two models": (named("Vicuna 7b v1.5"), named("BakLLaVA 1")),
    "one base": (named("Cats", QWEN), named("Dogs", QWEN)),
    "two seeds": (named("seed 1"), named("seed 2")),
}


@pytest.mark.parametrize(("text", "vision"), ONE_MODEL.values(), ids=ONE_MODEL)
def test_one_model(pair, text, vision):
    assert pair(text, vision) == ""


@pytest.mark.parametrize(("text", "vision"), TWO_MODELS.values(), ids=TWO_MODELS)
def test_two_models(pair, text, vision):
    reason = pair(text, vision)
    assert reason.startswith("text.gguf says it is ")
    for file in (text, vision):
        assert file["name"] in reason
        assert all(f"from {base}" in reason for base in file["bases"])


def test_a_projector_of_another_architecture(pair):
    for key in ("clip.projector_type", "clip.vision.projector_type"):
        one = named(QWEN)
        assert pair(one, one, arch="qwen2vl", kind="qwen2.5vl_merger", kind_key=key) == ""
        assert pair(one, one, arch="gemma3", kind="qwen2.5vl_merger", kind_key=key) == (
            "mmproj.gguf is a projector of kind qwen2.5vl_merger, for text models of architecture "
            "qwen2vl; text.gguf is gemma3"
        )
    assert pair(named(QWEN), named(QWEN), arch="gemma3", kind="idefics3") == ""


def test_two_checkpoints_of_one_name(pair):
    one, other = ({"name": "model", CHECKPOINT_KEY: digest * 32} for digest in "ab")
    assert pair(one, one) == ""
    assert "were converted from different weights (model; model)" in pair(one, other)
    assert pair(one, {"name": "model"}) == ""  # nothing to compare
    assert pair(one | {"name": "mine"}, one | {"name": "yours"}) == ""  # the weights say more


def test_keys_before_the_tokenizer_are_enough(tmp_path, tiny_model):
    path = write(tmp_path / "text.gguf", "llama", name="x", bases=["y"])
    read = read_metadata(path)
    assert read["general.base_model.0.name"] == "y"
    assert read.items() < read_header(path).metadata.items()
    assert not any(key.startswith("tokenizer.") for key in read)
    with pytest.raises(ModelError, match="no such file"):
        read_metadata(tmp_path / "none.gguf")


def test_the_demo_is_one_model():
    assert why_no_pair(DEMO_DIR / DEMO_MODEL, DEMO_DIR / DEMO_MMPROJ) == ""


def test_a_captioner_warns(tiny_model, tiny_mmproj, caplog):
    """Width 128 in both, so that llama.cpp takes them together."""
    model = tiny_model("gemma3", n_layer=6)
    for kind, warned in (("gemma3", False), ("qwen2vl", True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "atp_cpp"):
            Captioner(model, mmproj=tiny_mmproj(kind), n_ctx=256, n_threads=1).close()
        notes = [r.getMessage() for r in caplog.records if "answers have nothing to do" in r.msg]
        assert len(notes) == warned
        assert all("of kind qwen2vl_merger" in note for note in notes)


def test_the_command_warns_once_on_stderr(cli, scene, tiny_model, tiny_mmproj):
    model = tiny_model("gemma3", n_layer=6)
    ran = cli("caption", scene, "-m", model, "--mmproj", tiny_mmproj("qwen2vl"), "-n", 2, "-t", 1)
    assert ran.code == 0
    assert ran.err.count("note: mmproj-qwen2vl.gguf is a projector of kind qwen2vl_merger") == 1
    assert "kind" not in ran.out
    ran = cli("caption", scene, "-m", model, "--mmproj", tiny_mmproj("gemma3"), "-n", 2, "-t", 1)
    assert (ran.code, "note: " in ran.err) == (0, False)


def test_inspect_shows_both(cli, tiny_files, tiny_mmproj, tiny_model):
    model, mmproj = tiny_files
    ran = cli("inspect", mmproj, "-m", model)
    assert ran.code == 0
    assert f"  text model     {model} (tiny random llama)\n  fits           yes\n" in ran.out
    other = tiny_mmproj("qwen2vl")
    assert "fits           no: " in cli("inspect", other, "-m", tiny_model("gemma3")).out
    (row,) = cli("inspect", other, "-m", tiny_model("gemma3"), "--json").rows
    assert row["fits"] is False
    assert row["model_about"] == "tiny random gemma3"
    narrow = tiny_mmproj("mlp", n_embd_text=96)
    ran = cli("inspect", narrow, "-m", model)
    assert "no: its image tokens are 96 wide, the text model is 128" in ran.out
    (row,) = cli("inspect", mmproj, "--json").rows
    assert (row["model"], row["fits"]) == ("", None)
    assert "is no text model" in cli("inspect", mmproj, "-m", mmproj).err


@pytest.mark.torch
def test_the_converters_files_know_each_other(tmp_path):
    """Whatever they are called: the checkpoint's weights decide."""
    from support.tiny_llava_hf import write_tiny_llava

    folders = [write_tiny_llava(tmp_path / f"{seed}" / "hf", seed=seed) for seed in (1, 2)]
    made = [convert_hf(folder, folder.parent / "out") for folder in folders]
    (text, mmproj), (text2, mmproj2) = ([file.path for file in files] for files in made)
    assert why_no_pair(text, mmproj) == why_no_pair(text2, mmproj2) == ""
    assert "were converted from different weights (hf; hf)" in why_no_pair(text, mmproj2)
    again = convert_hf(folders[0], tmp_path / "again", outtype="q8_0", model_name="other")
    assert why_no_pair(text, again[1].path) == why_no_pair(again[0].path, mmproj) == ""


@pytest.mark.torch
def test_projectors_of_one_family_are_those_that_the_converter_writes():
    """No pair that llama.cpp's own converter makes is called wrong."""
    code = """
import inspect, re
from atp_cpp.convert.worker import import_upstream
import_upstream()
import gguf
from conversion import MMPROJ_MODEL_MAP, load_all_models
from conversion.base import ModelBase, ModelType
load_all_models()
for name in MMPROJ_MODEL_MAP:
    vision = ModelBase._model_classes[ModelType.MMPROJ][name]
    text = ModelBase._model_classes[ModelType.TEXT].get(name)
    for kind in set(re.findall(r"VisionProjectorType[.](\\w+)", inspect.getsource(vision))):
        if text is not None:
            print(getattr(gguf.VisionProjectorType, kind), gguf.MODEL_ARCH_NAMES[text.model_arch])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    made = [line.split() for line in done.stdout.splitlines()]
    assert len(made) > 40, done.stderr
    wrong = [(k, arch) for k, arch in made if arch not in PROJECTOR_ARCHS.get(k, (arch,))]
    assert not wrong
    assert {kind for kind, _ in made} >= set(PROJECTOR_ARCHS) - {"lfm2"}
