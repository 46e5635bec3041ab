"""Tiles in the engine: encoded as they are, packed with their newline, pruned on two grids."""

import contextlib
import signal
import threading
import time

import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.sidecar.sidecar import fingerprint_from_gguf
from support import atp_twin
from support.invariants import pruned_equals_masked, scores_equal_numpy
from support.policy_twin import quota
from support.random_sidecar import random_sidecar
from support.tiny_anyres import (
    TOKENS,
    WIDTH,
    newline_spec,
    newline_values,
    tile_noise,
    write_anyres,
)

QUESTION = " what is in the picture and how many are there?"


def tiles(rows=2, cols=3, size=(100, 170), seed=0, **options):
    return core.Tiles(tile_noise(1 + rows * cols, seed), (rows, cols), size, **options)


@pytest.fixture(scope="module")
def anyres_engine(tiny_model, tmp_path_factory):
    """`anyres_engine(newline=…, …) -> Engine` on a projector file of that kind; shared."""
    folder, made = tmp_path_factory.mktemp("anyres"), {}

    def get(model="llama", atp="", **options):
        key = str((model, atp, options))
        if key not in made:
            path = write_anyres(folder / f"{len(made)}.gguf", **options)
            made[key] = core.Engine(
                str(tiny_model(model)), str(path), atp, n_ctx=1024, n_ubatch=64, n_threads=1
            )
        return made[key]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def engine(anyres_engine):
    return anyres_engine(newline=newline_spec())


@pytest.fixture(scope="module")
def plain(anyres_engine):
    """The same tower in a file that knows nothing of tiles."""
    return anyres_engine(pinpoints=False)


def features(engine, images):
    """[n, TOKENS^2, WIDTH] of images of the tower's size, one by one."""
    each = [engine.encode(engine.info.media_marker, [image]).embd for image in images]
    return np.stack(each)


def test_a_tile_is_encoded_as_it_is(engine, plain):
    pixels = tile_noise(1)
    expected = features(plain, pixels)[0]
    assert expected.shape == (TOKENS**2, WIDTH)
    for there in (engine, plain):
        alone = core.Tiles(pixels, (0, 0), (70, 90))
        seq = there.encode("a <__media__> b", [alone])
        np.testing.assert_array_equal(seq.embd[: TOKENS**2], expected)
        image = there.encode("a <__media__> b", list(pixels))
        np.testing.assert_array_equal(image.embd, expected)
        assert image.grids == [(TOKENS, TOKENS)]
    resized = np.repeat(np.repeat(pixels[0], 2, 0), 2, 1)
    assert not np.array_equal(features(plain, [resized])[0], expected), "pixels do matter"


def test_an_overview_alone_ends_where_there_is_a_newline(engine, plain):
    alone = core.Tiles(tile_noise(1), (0, 0), (70, 90))
    ended = engine.encode("<__media__>", [alone])
    assert ended.grids == [(TOKENS, TOKENS), (1, 1)]
    np.testing.assert_array_equal(ended.embd[-1], newline_values())
    assert plain.encode("<__media__>", [alone]).grids == [(TOKENS, TOKENS)]


@pytest.mark.parametrize("max_tiles", [0, 1])
def test_tiles_are_packed(engine, plain, max_tiles):
    image = tiles(max_tiles=max_tiles)
    assert (image.grid, image.size, image.max_tiles) == ((2, 3), (100, 170), max_tiles)
    seq = engine.encode("one <__media__> two", [image])
    expected, grids = core.pack_tiles(
        features(plain, image.tiles),
        grid=image.grid,
        size=image.size,
        newline=newline_values(),
        max_tiles=max_tiles,
    )
    np.testing.assert_array_equal(seq.embd, expected)
    assert seq.grids == grids == [(4, 4), ((3, 5) if max_tiles else (8, 13))]
    at = seq.image_rows
    assert at == list(range(at[0], at[0] + len(expected)))
    assert seq.tokens[: at[0]] == engine.encode("one ", []).tokens
    assert seq.n_pos == seq.n_rows, "a position each"


def test_tiles_and_images_mix_in_one_prompt(engine):
    first, second = tiles(1, 2, (50, 100)), tiles(2, 1, (100, 50), seed=1)
    image = tile_noise(1, seed=2)[0]
    prompt = "a<__media__>b<__media__>c<__media__>" + QUESTION
    images = [first, image, second]
    seq = engine.encode(prompt, images)
    assert seq.grids == [(4, 4), (4, 9), (4, 4), (4, 4), (8, 5)]
    report = engine.generate(prompt, images, n_predict=1).report
    assert report.grids == seq.grids
    assert report.grid_images == [0, 0, 1, 2, 2]
    assert report.t_encode > 0
    one = engine.encode("<__media__>", [second]).embd
    np.testing.assert_array_equal(seq.embd[-len(one) :], one)


def test_a_prepared_prompt_keeps_the_tiles_it_needs(engine):
    image, prompt = tiles(2, 3), "a<__media__>b" + QUESTION
    expected = engine.encode(prompt, [image])
    early = [engine.prepare(prompt, [tiles(2, 3)]) for _ in range(5)]  # nobody else holds these
    noise = [tile_noise(7, seed=9) for _ in range(20)]
    for prepared in early:
        seq = engine.encode_prepared(prepared)
        assert (seq.tokens, seq.grids) == (expected.tokens, expected.grids)
        np.testing.assert_array_equal(seq.embd, expected.embd)
    assert len(noise) == 20


@pytest.mark.parametrize("name", ["v.image_newline", "model.image_newline"])
@pytest.mark.parametrize("weight_type", ["f32", "f16"])
def test_newlines_of_either_name_and_type_are_read(anyres_engine, name, weight_type):
    there = anyres_engine(newline=newline_spec(name), weight_type=weight_type)
    seq = there.encode("<__media__>", [tiles(1, 1, (56, 56))])
    kept = np.float16 if weight_type == "f16" else np.float32
    expected = newline_values(name).astype(kept).astype(np.float32)
    assert seq.grids == [(4, 4), (4, 5)]
    np.testing.assert_array_equal(seq.embd[20::5], np.broadcast_to(expected, (4, WIDTH))[:4])


def test_a_newline_that_cannot_be_used_is_an_error_of_the_file(anyres_engine):
    for options, reason in (
        ({"newline": newline_spec(width=64)}, "has 64 elements; expected the model's 128"),
        (
            {"newline": newline_spec(), "weight_type": "q8_0"},
            "is of type q8_0; expected f32, f16 or bf16",
        ),
    ):
        there = anyres_engine(**options)
        with pytest.raises(core.ModelError, match=f"v.image_newline {reason}; convert it again"):
            there.encode("<__media__>", [tiles()])
        seq = there.encode("<__media__>", [tile_noise(1)[0]])
        assert seq.grids == [(4, 4)], "an image needs no newline"


def test_tiles_need_a_newline_and_their_size(engine, plain):
    with pytest.raises(core.ImageError, match=r"one tile an image, got 7: it has no v.image_newl"):
        plain.encode("<__media__>", [tiles()])
    for side in (28, 57, 112):
        wrong = core.Tiles(np.zeros((1, side, side, 3), np.uint8), (0, 0), (9, 9))
        with pytest.raises(core.ImageError, match=f"tiles of 56x56 pixels, got {side}x{side}"):
            engine.encode("<__media__>", [wrong])
    oblong = core.Tiles(np.zeros((1, 56, 28, 3), np.uint8), (0, 0), (9, 9))
    with pytest.raises(core.ImageError, match="tiles of 56x56 pixels, got 28x56"):
        engine.generate("<__media__>", [oblong])
    with pytest.raises(core.ImageError, match=r"0 media markers .* for 1 images"):
        engine.encode("none", [tiles()])


def test_a_tower_of_any_size_takes_no_tiles(make_engine):
    there = make_engine("qwen2vl")
    with pytest.raises(core.ImageError, match="of type qwen2vl_merger; give the image itself"):
        there.encode("<__media__>", [core.Tiles(tile_noise(1), (0, 0), (9, 9))])
    there.close()


@pytest.mark.parametrize(("arch", "layout"), [("gemma3", "gemma3"), ("llama", "mlp-cls")])
def test_one_tile_is_any_fixed_towers_image(make_engine, arch, layout):
    there = make_engine(arch, layout=layout)
    pixels = np.random.default_rng(3).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    tile = there.encode("<__media__>", [core.Tiles(pixels[None], (0, 0), (200, 300))])
    image = there.encode("<__media__>", [pixels])
    np.testing.assert_array_equal(tile.embd, image.embd)
    assert (tile.grids, tile.tokens) == (image.grids, image.tokens)
    there.close()


WRONG_TILES = {
    "too few": (tile_noise(2), (2, 2), (9, 9), r"must be uint8 \[5, height, width, 3\]"),
    "an image": (tile_noise(1)[0], (0, 0), (9, 9), r"got \[56, 56, 3\]"),
    "grey": (tile_noise(1)[..., :1], (0, 0), (9, 9), r"got \[1, 56, 56, 1\]"),
    "half a grid": (tile_noise(1), (0, 1), (9, 9), r"got \(0, 1\)"),
    "a huge grid": (tile_noise(1), (2**30, 4), (9, 9), r"got \(1073741824, 4\)"),
    "no size": (tile_noise(1), (0, 0), (0, 9), r"height and width in pixels.* got \(0, 9\)"),
}


@pytest.mark.parametrize(
    ("pixels", "grid", "size", "reason"), WRONG_TILES.values(), ids=WRONG_TILES
)
def test_what_are_no_tiles_is_refused(pixels, grid, size, reason):
    with pytest.raises(core.ImageError, match=reason):
        core.Tiles(pixels, grid, size)
    with pytest.raises(TypeError):
        core.Tiles(pixels.astype(np.float32), grid, size)


def test_tiles_are_copied_where_they_are_no_plain_array(engine):
    pixels = tile_noise(1)
    view = core.Tiles(np.asfortranarray(pixels), (0, 0), (9, 9))
    straight = core.Tiles(pixels, (0, 0), (9, 9))
    a, b = (engine.encode("<__media__>", [t]).embd for t in (view, straight))
    np.testing.assert_array_equal(a, b)


def test_an_interrupt_is_seen_between_tiles(engine):
    many = tiles(60, 60, (3360, 3360))  # about a second

    def seconds_of_encoding():
        started = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            engine.encode("<__media__>", [many])
        return time.monotonic() - started

    whole = seconds_of_encoding()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1 * whole, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    try:
        assert seconds_of_encoding() < 0.7 * whole
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


# ---- two grids of one image


def prompt_of(engine, *images):
    return engine.encode("<__media__>" * len(images) + QUESTION, list(images))


@pytest.mark.parametrize("policy", ["grid", "random", "fastv"])
def test_each_grid_keeps_its_quota(engine, policy):
    image = tiles()
    plan = [core.Cut(2, policy, 0.5), core.Cut(5, policy, 0.1)]
    report = engine.generate("<__media__>" + QUESTION, [image], plan=plan, n_predict=2).report
    assert report.grids == [(4, 4), (8, 13)]
    for kept, keep in zip(report.kept, (0.5, 0.1), strict=True):
        counts = [sum(i < 16 for i in kept), sum(i >= 16 for i in kept)]
        assert counts == [quota(keep, 16), quota(keep, 104)]
    if policy == "grid":
        cells = {divmod(i - 16, 13) for i in report.kept[0] if i >= 16}
        assert cells == {(y, x) for y in range(8) for x in range(13) if (x + y) % 2 == 0}


def test_cuts_without_pruning_change_nothing(engine):
    image, prompt = tiles(), "<__media__>" + QUESTION
    whole = engine.generate(prompt, [image], n_predict=12)
    cut = engine.generate(
        prompt, [image], plan=[core.Cut(1, "none"), core.Cut(4, "none")], n_predict=12
    )
    assert cut.tokens == whole.tokens
    assert cut.report.n_kept == [120, 120]


def test_dropping_rows_of_two_grids_equals_hiding_them(engine, make_rig):
    rig = make_rig("llama", "f32")
    seq = prompt_of(engine, tiles(), tiles(1, 1, (56, 56), seed=1))
    plan = [core.Cut(2, "grid", 0.5), core.Cut(4, "fastv", 0.2), core.Cut(6, "random", 0.1, 3)]
    kept = pruned_equals_masked(rig, rig.staged(), seq, plan)
    assert [len(k) for k in kept] == [
        sum(quota(p, n) for n in (16, 104, 16, 20)) for p in (0.5, 0.2, 0.1)
    ]


def test_scores_of_two_grids_are_numpys(engine, make_rig):
    rig = make_rig("llama", "f32")
    seq = prompt_of(engine, tiles())
    plan = [core.Cut(2, "fastv", 0.5), core.Cut(5, "fastv", 0.25)]
    # <s>, the overview and the tiles' grid, and the question: four runs of rows
    scores_equal_numpy(rig, rig.staged(n_ubatch=512), seq, plan, n_batches=4)


@pytest.fixture(scope="module")
def sidecar(tiny_model):
    return random_sidecar(
        3,
        cuts=(2, 5),
        theta_r_bias=0.1,
        theta_s_bias=0.8,
        fingerprint=fingerprint_from_gguf(tiny_model("llama")),
    )


@pytest.fixture(scope="module")
def atp_engine(anyres_engine, sidecar, tmp_path_factory):
    path = sidecar.write_gguf(tmp_path_factory.mktemp("atp") / "atp.gguf")
    return anyres_engine(newline=newline_spec(), atp=str(path))


def test_atp_meets_its_budget_on_two_grids(atp_engine):
    prompt, image = "<__media__>" + QUESTION, tiles()
    report = atp_engine.generate(prompt, [image], plan=atp_engine.atp_plan(), n_predict=2).report
    assert 120 > report.n_kept[0] >= report.n_kept[1] > 0
    for budget in (0.7, 0.9):
        plan = atp_engine.atp_plan(budget)
        mean = atp_engine.generate(prompt, [image], plan=plan, n_predict=0).report.tokens_mean
        assert budget * 120 - 1 < mean <= budget * 120 + 1e-9


def test_what_atp_keeps_on_two_grids_is_what_its_twin_keeps(atp_engine, sidecar, make_rig):
    """The spatial rule counts rows and columns on each grid of its own."""
    staged = make_rig("llama", "f32").staged(n_ubatch=512)
    seq = prompt_of(atp_engine, tiles())
    staged.set_plan(atp_engine.atp_plan())
    out = staged.prefill(seq)
    live = list(range(seq.n_image_tokens))
    for module, kept in enumerate(out["kept"]):
        expected = atp_twin.choose(
            sidecar,
            module,
            self_sum=out["self_sum"][module],
            cross=out["cross"][module],
            live=live,
            grids=[(4, 4), (8, 13)],
        )
        assert kept == expected["kept"]
        assert min(kept) < 16 <= max(kept), "both grids live"
        live = kept
