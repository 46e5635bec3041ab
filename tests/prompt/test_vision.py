"""Vision: grids and positions of every tower, and images or prompts that do not go together."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gguf import GGUFReader

from atp_cpp import _core as core


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one(engine, image, **options):
    prompt = engine.info.media_marker + " what is it?"
    return engine.generate(prompt, [image], n_predict=12, **options)


FIXED = {("llama", "mlp"): (8, 8), ("llama", "mlp-cls"): (8, 8), ("gemma3", "gemma3"): (4, 4)}


@pytest.mark.parametrize(("tower", "grid"), FIXED.items(), ids=str)
def test_towers_of_one_size_make_one_grid_of_any_image(make_engine, tower, grid):
    arch, layout = tower
    engine = make_engine(arch, layout=layout)
    for height, width in ((112, 112), (1, 1), (1, 300), (300, 1), (113, 57), (2000, 3)):
        report = one(engine, noise(height, width)).report
        assert report.grids == [grid]
        assert report.n_image_tokens == grid[0] * grid[1]
    engine.close()


@pytest.mark.parametrize("arch", ["qwen2vl", "qwen3vl"])
def test_towers_of_any_size_follow_the_image(make_engine, arch):
    engine = make_engine(arch, n_ctx=2048)
    grids = {}
    for height, width in ((280, 140), (140, 280), (196, 196), (28, 560), (560, 28)):
        report = one(engine, noise(height, width), plan=[core.Cut(2, "grid", 0.25)]).report
        ((rows, cols),) = report.grids
        assert report.n_image_tokens == rows * cols
        assert rows / cols == pytest.approx(height / width, rel=0.35)
        grids[height, width] = rows, cols
        first = {divmod(i, cols) for i in report.kept[0]}
        if rows % 2 == cols % 2 == 0:
            assert first == {(y, x) for y in range(0, rows, 2) for x in range(0, cols, 2)}
    assert grids[280, 140] == grids[140, 280][::-1]
    assert one(engine, noise(1, 1)).report.n_image_tokens > 0
    engine.close()


BREAKS = ("pixtral", "mistral3")  # a token between two lines: a last column, without its last cell


@pytest.mark.parametrize("layout", [*BREAKS, "gemma4v"])
def test_towers_of_any_size_without_mrope_have_lines_and_columns(make_engine, layout):
    """A wide picture has a wide grid, and policy grid keeps a lattice of it."""
    engine = make_engine("llama", layout=layout, n_ctx=2048)
    extra = 1 if layout in BREAKS else 0
    for height, width in ((168, 336), (336, 168), (252, 252), (126, 378)):
        report = one(engine, noise(height, width), plan=[core.Cut(2, "grid", 0.25)]).report
        ((rows, cols),) = report.grids
        assert report.n_image_tokens == rows * cols - extra
        assert rows > 1
        assert (cols - extra) / rows == pytest.approx(width / height, rel=0.35)
        kept = np.zeros(rows * cols, bool)
        kept[report.kept[0]] = True
        ys, xs = np.nonzero(kept.reshape(rows, cols))
        assert np.mean((ys % 2 == 0) & (xs % 2 == 0)) > 0.9, "every second line and column"
        for lines, n in ((ys, rows), (xs, cols)):
            assert set(lines) >= set(range(0, n - 1, 2)), "from all over the picture"
    engine.close()


@pytest.mark.parametrize("layout", BREAKS)
def test_the_tokens_between_lines_are_those_of_the_file(make_engine, tiny_mmproj, layout):
    """libmtmd adds them to memory that nobody has written; that is not always 0."""
    break_ = gguf_tensor(tiny_mmproj(layout), "v.token_embd.img_break")
    engine = make_engine("llama", layout=layout, n_ctx=2048)
    marker = engine.info.media_marker
    for repeat in range(4):
        seq = engine.encode(f"{marker} {marker}", [noise(168, 336, repeat), noise(252, 126)])
        at = 0
        for rows, cols in seq.grids:
            assert rows > 1
            image = seq.embd[at : at + rows * cols - 1]
            is_break = np.all(image == break_, axis=1)
            assert list(np.flatnonzero(is_break)) == list(range(cols - 1, len(image), cols))
            at += len(image)
        assert at == seq.n_image_tokens
    engine.close()


def gguf_tensor(path, name):
    (tensor,) = (t for t in GGUFReader(path).tensors if t.name == name)
    return np.asarray(tensor.data, np.float32).reshape(-1)


@pytest.mark.parametrize("arch", ["qwen2vl", "qwen3vl"])
def test_mrope_images_take_fewer_positions_than_tokens(make_engine, arch):
    """The context counts positions: max(rows, cols) for an image, and the question."""
    engine = make_engine(arch, n_ctx=64)
    report = one(engine, noise(336, 336)).report
    assert report.n_prompt > 64, "more rows than positions"
    engine.close()


def test_a_mirrored_view_is_read_as_it_looks(make_engine):
    engine = make_engine("llama")
    image = noise(60, 80)
    for view in (image[:, ::-1], image[::-1], image[::2, ::2], np.asfortranarray(image)):
        assert one(engine, view).tokens == one(engine, view.copy(order="C")).tokens
    assert one(engine, image).tokens != one(engine, image[:, ::-1]).tokens
    engine.close()


def test_the_tower_sees_where_things_are(make_engine, arch):
    engine = make_engine(arch)
    texts = set()
    for y, x in ((0, 0), (0, 56), (56, 0), (56, 56)):
        image = np.zeros((112, 112, 3), np.uint8)
        image[y : y + 56, x : x + 56] = noise(56, 56)
        texts.add(one(engine, image).text)
    assert len(texts) == 4
    engine.close()


@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "gemma3", "qwen3vl"])
def test_encoded_rows_are_those_that_generate_prefills(make_engine, make_rig, pictures, arch):
    engine = make_engine(arch)
    marker = engine.info.media_marker
    text = f"one {marker} two {marker} three?"
    seq = engine.encode(text, pictures[:2])
    result = engine.generate(text, pictures[:2], n_predict=1)
    report = result.report
    assert (seq.n_rows, seq.n_image_tokens) == (report.n_prompt, report.n_image_tokens)
    assert seq.grids == report.grids
    assert [row for row, token in enumerate(seq.tokens) if token == -1] == seq.image_rows
    rig = make_rig(arch)
    decoder = rig.staged()
    assert seq.embd.shape == (report.n_image_tokens, decoder.n_embd_inp)
    assert np.isfinite(seq.embd).all()
    assert [int(np.argmax(decoder.prefill(seq)["logits"][-1]))] == result.tokens
    other = engine.encode(text, [pictures[2], pictures[1]])
    same = np.all(seq.embd == other.embd, axis=1)
    half = report.n_image_tokens // 2
    assert not same[:half].any(), "of another image"
    assert same[half:].all()
    engine.close()


@pytest.mark.parametrize("arch", ["llama", "qwen2vl", "gemma3", "qwen3vl"])
def test_a_prompt_prepared_in_another_thread_gives_the_same_rows(make_engine, pictures, arch):
    engine = make_engine(arch)
    text = f"one {engine.info.media_marker} two {engine.info.media_marker} three?"
    pairs = list(itertools.permutations(pictures, 2))
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(lambda pair: engine.prepare(text, list(pair)), pairs))
    for pair, early in zip(pairs, prepared, strict=True):
        whole, parts = engine.encode(text, list(pair)), engine.encode_prepared(early)
        assert (parts.tokens, parts.grids) == (whole.tokens, whole.grids)
        np.testing.assert_array_equal(parts.embd, whole.embd)
        np.testing.assert_array_equal(parts.embd, engine.encode_prepared(early).embd)
    engine.close()
    with pytest.raises(core.ModelError, match="this engine is closed"):
        engine.encode_prepared(prepared[0])


def test_a_prepared_prompt_is_for_its_engine_alone(engines, make_engine, tiny_model):
    early = engines("llama").prepare("<__media__>", [noise(8, 8)])
    for other in (
        make_engine("llama"),
        core.Engine(str(tiny_model("llama")), n_ctx=128, n_threads=1),
    ):
        with pytest.raises(core.ImageError, match="prepared by another engine"):
            other.encode_prepared(early)
        other.close()
    engines("llama").encode_prepared(early)


def test_what_cannot_be_prepared(engines, tiny_model):
    for prompt, images in (("none", [noise(8, 8)]), ("<__media__>", [noise(8, 8)[..., 0]])):
        with pytest.raises(core.ImageError):
            engines("llama").prepare(prompt, images)
    bare = core.Engine(str(tiny_model("llama")), n_ctx=128, n_threads=1)
    with pytest.raises(core.ModelError, match="no vision projector loaded; pass its mmproj file"):
        bare.prepare("say it", [])
    bare.close()


@pytest.mark.parametrize("n_threads", [-1, 513])
def test_threads_of_the_encoder_that_cannot_be(make_engine, n_threads):
    with pytest.raises(
        core.ModelError, match=f"n_threads_encode must be 0 to 512, got {n_threads}"
    ):
        make_engine("llama", n_threads_encode=n_threads)


def test_the_encoders_threads_change_nothing(make_engine, engines):
    more = make_engine("llama", n_threads_encode=3)
    image = noise(70, 50)
    rows = [e.encode("<__media__>", [image]).embd for e in (more, engines("llama"))]
    np.testing.assert_array_equal(*rows)
    more.close()


def test_encoding_text_alone_gives_its_tokens(engines, tiny_model):
    seq = engines("llama").encode("say it", [])
    assert seq.embd.shape == (0, 128)
    bare = core.Engine(str(tiny_model("llama")), n_ctx=128, n_threads=1)
    assert bare.encode("say it", []).tokens == seq.tokens
    assert len(seq.tokens) > 2
    with pytest.raises(core.ModelError, match="no vision projector loaded; pass its mmproj file"):
        bare.encode("<__media__>", [noise(8, 8)])
    bare.close()
    with pytest.raises(core.ModelError, match="this engine is closed"):
        bare.encode("say it", [])


WRONG_IMAGES = {
    "grey": (noise(8, 8)[..., 0], r"must be uint8 \[height, width, 3\], got \[8, 8\]"),
    "alpha": (np.zeros((8, 8, 4), np.uint8), r"got \[8, 8, 4\]"),
    "batch": (np.zeros((1, 8, 8, 3), np.uint8), r"got \[1, 8, 8, 3\]"),
    "no rows": (np.zeros((0, 8, 3), np.uint8), "an image of 8x0 pixels has nothing to see"),
    "no columns": (np.zeros((8, 0, 3), np.uint8), "an image of 0x8 pixels has nothing to see"),
}


@pytest.mark.parametrize(("image", "reason"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_what_is_no_picture_is_refused(engines, image, reason):
    with pytest.raises(core.ImageError, match=reason):
        one(engines("llama"), image)
    with pytest.raises(core.ImageError, match=reason):
        engines("llama").encode("<__media__>", [image])


def test_numbers_of_another_type_are_refused(engines):
    for dtype in (np.float32, np.int64, np.int8):
        with pytest.raises(TypeError):
            one(engines("llama"), noise(8, 8).astype(dtype))


@pytest.mark.parametrize(
    ("prompt", "n_images", "found"),
    [("no marker", 1, 0), ("<__media__>", 0, 1), ("<__media__><__media__>", 1, 2), ("", 2, 0)],
)
def test_markers_must_be_as_many_as_images(engines, prompt, n_images, found):
    with pytest.raises(core.ImageError, match=f"{found} media markers .* for {n_images} images"):
        engines("llama").generate(prompt, [noise(8, 8)] * n_images)
    with pytest.raises(core.ImageError, match=f"{found} media markers .* for {n_images} images"):
        engines("llama").encode(prompt, [noise(8, 8)] * n_images)


def test_images_need_a_projector(tiny_model):
    engine = core.Engine(str(tiny_model("llama")), n_ctx=128, n_threads=1)
    assert not engine.info.has_vision
    with pytest.raises(core.ModelError, match="no vision projector loaded; pass its mmproj file"):
        one(engine, noise(8, 8))
    assert engine.generate("<__media__> is text here", [], n_predict=2).report.n_image_tokens == 0
    engine.close()


@pytest.mark.parametrize(
    ("arch", "layout", "widths"),
    [("llama", "qwen3vl", (128, 512)), ("qwen3vl", "mlp", (512, 128))],
)
def test_a_projector_of_another_width_is_refused(tiny_model, tiny_mmproj, arch, layout, widths):
    with pytest.raises(core.ModelError, match="does not work with") as error:
        core.Engine(str(tiny_model(arch)), str(tiny_mmproj(layout)))
    assert f"n_embd = {widths[0]}) and mmproj (n_embd = {widths[1]})" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wider_projector_of_the_same_kind_is_refused(tiny_model, tiny_mmproj):
    with pytest.raises(core.ModelError, match=r"n_embd = 128.*n_embd = 64"):
        core.Engine(str(tiny_model("llama")), str(tiny_mmproj("mlp", n_embd_text=64)))
