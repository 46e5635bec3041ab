"""GGUF files of the hub: which are chosen, how they come, and what is said when they do not."""

import re
from pathlib import Path

import gguf
import pytest

from atp_cpp import Captioner
from atp_cpp.errors import ModelError
from atp_cpp.hub.gguf_files import Choice, choose, hub_files, hub_model
from atp_cpp.models.files import DEMO_ATP, DEMO_DIR, DEMO_MMPROJ, DEMO_MODEL
from support.hub_standin import TOKEN

REPO = "org/tiny"
LLAVA = (
    "README.md", "config.json", "llava-Q2_K.gguf", "llava-Q4_K_M.gguf", "llava-Q8_0.gguf",
    "llava-f16.gguf", "mmproj-llava-f16.gguf", "atp-llava-f32.gguf",
)  # fmt: skip


@pytest.fixture
def demo_hub(hub):
    """The stand-in with the demo model's files, as a repository of GGUF files has them."""
    hub.files = {n: (DEMO_DIR / n).read_bytes() for n in (DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP)}
    hub.large = set(hub.files)
    hub.files["README.md"] = b"hello"
    return hub


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def refused(*arguments, **options):
    with pytest.raises(ModelError) as caught:
        hub_files(REPO, *arguments, **options)
    return one_line(caught)


# ---- choosing


def chosen(names, *arguments, **options):
    return choose("org/name", names, *arguments, **options)


def not_chosen(names, *arguments, **options):
    with pytest.raises(ModelError) as caught:
        chosen(names, *arguments, **options)
    return one_line(caught)


@pytest.mark.parametrize("pattern", ["*Q4_K_M.gguf", "*q4_k_m.gguf", "llava-q4_k_m.GGUF"])
def test_a_pattern_chooses_and_the_others_are_found_by_name(pattern):
    expected = Choice("llava-Q4_K_M.gguf", "mmproj-llava-f16.gguf", "atp-llava-f32.gguf")
    assert chosen(LLAVA, pattern) == expected


def test_the_capitals_written_come_first():
    names = ["a-f16.gguf", "a-F16.gguf", "mmproj-a.gguf"]
    assert chosen(names, "*F16.gguf").model == "a-F16.gguf"


def test_a_model_alone_needs_no_name():
    assert chosen(["x/m.gguf", "mmproj.gguf"]) == Choice("x/m.gguf", "mmproj.gguf", "")


def test_folders_may_be_left_out_of_a_pattern():
    names = ["Q4/llava-Q4_0.gguf", "Q8/llava-Q8_0.gguf", "vision/mmproj-f16.gguf"]
    expected = Choice("Q8/llava-Q8_0.gguf", "vision/mmproj-f16.gguf", "")
    assert chosen(names, "llava-q8*") == expected
    assert chosen(names, "Q8/*") == expected


@pytest.mark.parametrize(
    ("projectors", "expected"),
    [
        (["mmproj-a-f16.gguf", "mmproj-a-f32.gguf", "mmproj-a-bf16.gguf"], "mmproj-a-f16.gguf"),
        (["mmproj-F16.gguf", "mmproj-BF16.gguf"], "mmproj-F16.gguf"),
        (["mmproj-q8_0.gguf"], "mmproj-q8_0.gguf"),
    ],
)
def test_f16_is_preferred_among_projectors(projectors, expected):
    assert chosen(["a.gguf", *projectors]).mmproj == expected


def test_files_named_by_hand():
    names = ["a.gguf", "b.gguf", "clip-b.gguf", "mmproj-a.gguf", "atp-1.gguf", "atp-2.gguf"]
    expected = Choice("b.gguf", "clip-b.gguf", "atp-2.gguf")
    assert chosen(names, "b.gguf", mmproj="clip-*", atp="*2.gguf") == expected


@pytest.mark.parametrize("pattern", ["*q8_0.gguf", "x/a-Q8_0-00001-of-00003.gguf", "*Q8_0*"])
def test_all_parts_of_a_file_are_taken(pattern):
    parts = [f"x/a-Q8_0-{k:05}-of-00003.gguf" for k in (1, 2, 3)]
    others = [f"x/a-Q4_0-{k:05}-of-00002.gguf" for k in (1, 2)]
    expected = Choice(parts[0], "mmproj.gguf", "", tuple(parts[1:]))
    assert chosen([*others, *parts, "mmproj.gguf"], pattern) == expected
    assert "any of 2: x/a-Q4_0-00001-of-00002.gguf" in not_chosen([*others, *parts, "mmproj.gguf"])


def test_a_model_called_like_a_sidecar_can_be_named():
    names = ["atp-llava.gguf", "atp-thresholds.gguf", "mmproj.gguf"]
    expected = Choice("atp-llava.gguf", "mmproj.gguf", "atp-thresholds.gguf")
    assert chosen(names, "atp-llava.gguf") == expected


def test_the_demo_models_names():
    names = [DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP]
    assert chosen(names) == Choice(DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP)


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((), {}, "the text model could be any of 4: llava-Q2_K.gguf, llava-Q4_K_M.gguf, llava-Q8"),
        (("*Q*",), {}, "any of 3: llava-Q2_K.gguf, llava-Q4_K_M.gguf, llava-Q8_0.gguf; name one "),
        (("*Q5_0.gguf",), {}, "no file that fits filename='*Q5_0.gguf'; its GGUF files are llava"),
        (("*Q8_0*",), {"mmproj": "*x*"}, "no file that fits mmproj='*x*'"),
        (("*Q8_0*",), {"atp": "*x*"}, "no file that fits atp='*x*'"),
    ],
)
def test_what_cannot_be_chosen(arguments, options, says):
    assert says in not_chosen(LLAVA, *arguments, **options)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["model.safetensors"], "holds no GGUF files; `atp-cpp convert org/name` makes them"),
        (["mmproj-a.gguf"], "has no text model; its GGUF files are mmproj-a.gguf"),
        (["a.gguf"], "has no mmproj*.gguf; its GGUF files are a.gguf"),
        (["a.gguf", "mmproj-1-f16.gguf", "mmproj-2-f16.gguf"], "the vision projector could be any"),
        (["a.gguf", "mmproj-f32.gguf", "mmproj-q8_0.gguf"], "name one with mmproj="),
        (["a.gguf", "mmproj.gguf", "atp-1.gguf", "atp-2.gguf"], "the sidecar could be any of 2"),
        (
            ["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "mmproj.gguf"],
            "a-00001-of-00003.gguf is one of 3 parts, but there is no a-00003-of-00003.gguf",
        ),
        (["a-00002-of-00002.gguf", "mmproj.gguf"], "has no text model"),
    ],
)
def test_repositories_that_cannot_be_used(names, says):
    assert says in not_chosen(names)


def test_long_lists_are_cut():
    said = not_chosen([f"{i:03}.gguf" for i in range(50)])
    assert "any of 50: 000.gguf" in said
    assert said.endswith("011.gguf and 38 more; name one with filename=")


# ---- the stand-in


def test_a_captioner_of_the_hubs_files(demo_hub, demo_captioner):
    scene = Path(__file__).parents[2] / "examples" / "scene.png"
    with Captioner.from_pretrained(REPO, policy="atp:budget=0.5", n_ctx=1024, n_threads=2) as cap:
        assert [p.name for p in (cap.model, cap.mmproj, cap.atp)] == [
            DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP,
        ]  # fmt: skip
        text = cap.caption(scene).text
    assert text == demo_captioner.caption(scene, policy="atp:budget=0.5").text


def split(path, folder):
    """Writes a GGUF file in parts; returns their names."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / path.name, arch, split_max_tensors=40)
    for key, stored in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = stored.types[-1] if len(stored.types) > 1 else None
            writer.add_key_value(key, stored.contents(), stored.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(p.name for p in folder.iterdir())


def test_a_model_in_parts(demo_hub, demo_captioner, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    parts = split(DEMO_DIR / DEMO_MODEL, folder)
    assert len(parts) > 2
    del demo_hub.files[DEMO_MODEL]
    demo_hub.files |= {name: (folder / name).read_bytes() for name in parts}
    demo_hub.large = set(demo_hub.files)
    scene = Path(__file__).parents[2] / "examples" / "scene.png"
    with Captioner.from_pretrained(REPO, "atp-demo.gguf", n_ctx=1024, n_threads=2) as cap:
        assert cap.model.name == parts[0]
        assert cap.atp.name == DEMO_ATP
        text = cap.caption(scene).text
    assert text == demo_captioner.caption(scene).text
    assert all(len(demo_hub.gets(name)) == 1 for name in parts)


def test_every_option_of_a_captioner_is_passed_on(demo_hub, fake_engine):
    import inspect

    given = {
        "policy": "fastv:keep=0.25,after=2", "budget": None, "n_gpu_layers": 0, "n_ctx": 512,
        "n_ubatch": 64, "n_threads": 3, "n_threads_encode": 1, "flash_attn": "off",
        "type_k": "f32", "type_v": "q8_0", "self_test": False,
    }  # fmt: skip
    own = set(inspect.signature(Captioner.__init__).parameters) - {"self", "model"}
    assert own == {*given, "mmproj", "atp"}
    assert own <= set(inspect.signature(Captioner.from_pretrained).parameters)
    engine = fake_engine()
    cap = Captioner.from_pretrained(REPO, **given)
    assert [str(cut) for cut in cap.plan] == ["fastv:keep=0.25,after=2"]
    options = {k: v for k, v in given.items() if k not in ("policy", "budget")}
    assert engine.made[0].options == options


def test_nothing_is_downloaded_twice_or_needlessly(demo_hub, tmp_path):
    first = hub_files(REPO, DEMO_MODEL)
    assert [path.name for path in first] == [DEMO_MODEL, DEMO_MMPROJ, DEMO_ATP]
    assert [path.read_bytes() for path in first] == [demo_hub.files[p.name] for p in first]
    assert hub_files(REPO, DEMO_MODEL) == first
    assert [len(demo_hub.gets(path.name)) for path in first] == [1, 1, 1]
    assert demo_hub.gets("README.md") == []


def test_a_download_that_breaks_off_goes_on(demo_hub):
    demo_hub.cuts = {DEMO_MODEL: [1_000_000, 2_000_000]}
    model, *_ = hub_files(REPO)
    assert model.read_bytes() == demo_hub.files[DEMO_MODEL]
    begins = [int(re.sub(r"\D.*", "", a.range[6:]) or 0) for a in demo_hub.gets(DEMO_MODEL)]
    assert len(begins) == 3
    assert begins[0] == 0 < begins[1] < begins[2]


def test_offline_it_is_the_cache(demo_hub, monkeypatch):
    assert "not all of its files are in the cache" in refused(local_files_only=True)
    online = hub_files(REPO)
    demo_hub.asked.clear()
    assert hub_files(REPO, local_files_only=True) == online
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_files(REPO) == online
    assert demo_hub.asked == []


def test_the_cache_and_the_revision_are_the_callers(demo_hub, tmp_path):
    model, *_ = hub_files(REPO, cache_dir=tmp_path / "mine", revision="v1")
    assert model.is_relative_to(tmp_path / "mine")
    assert demo_hub.commit in model.parts
    again, *_ = hub_files(REPO, cache_dir=tmp_path / "mine", local_files_only=True, revision="v1")
    assert again == model
    assert "has no revision v9" in refused(revision="v9")


def test_a_gated_or_private_repository_needs_the_token(demo_hub):
    demo_hub.gated = True
    assert "is gated; accept its terms at" in refused(token=False)
    assert hub_files(REPO, token=TOKEN)[0].name == DEMO_MODEL
    demo_hub.private = True
    assert "no such repository" in refused(token=False)
    assert hub_files(REPO, token=TOKEN)[0].name == DEMO_MODEL


def test_what_the_hub_may_answer(demo_hub):
    with pytest.raises(ModelError, match="no such repository") as caught:
        hub_files("org/other")
    one_line(caught)
    with pytest.raises(ModelError, match="expected a repository as org/name") as caught:
        hub_files("a/b/c")
    one_line(caught)
    demo_hub.status = 503
    assert "503" in refused()
    demo_hub.status = 403
    assert "answered 403; log in" in refused()


def test_a_hub_that_cannot_be_reached(demo_hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused()


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert 'pip install "atp_cpp[hub]"' in refused()


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf", "mmproj.gguf"], "", "a-Q4_K_M.gguf"),
        (["a-Q2_K.gguf", "a-Q8_0.gguf", "mmproj.gguf"], "", "a-Q8_0.gguf"),
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf", "mmproj.gguf"], ":q8_0", "a-Q8_0.gguf"),
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf", "mmproj.gguf"], ":Q4_K_M", "a-Q4_K_M.gguf"),
    ],
)
def test_hf_user_repo_quant(hub, names, asked, expected):
    hub.files = dict.fromkeys(names, b"GGUF")
    model, mmproj, atp = hub_model(REPO + asked)
    assert (model.name, mmproj.name, atp) == (expected, "mmproj.gguf", None)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (":", "nothing after the colon"),
        (":Q5_0", "no file that fits filename='*Q5_0.gguf'"),
        ("", "the text model could be any of 2"),
    ],
)
def test_hf_that_cannot_be(hub, asked, says):
    hub.files = dict.fromkeys(["a-Q2_K.gguf", "a-Q3_K.gguf", "mmproj.gguf"], b"GGUF")
    with pytest.raises(ModelError) as caught:
        hub_model(REPO + asked)
    assert says in one_line(caught)
