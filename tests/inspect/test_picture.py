"""Pictures of what was kept: the right patches of the right image, and files written whole."""

import numpy as np
import pytest
from PIL import Image

from atp_cpp import CutSpec, SamplingConfig
from atp_cpp.cli.program import main
from atp_cpp.errors import AtpError
from atp_cpp.images.prepare import Box
from atp_cpp.images.views import View
from atp_cpp.inspect.picture import PANEL_SIDE, dimmed, kept_mask, render
from support.fake_engine import FakeReport

BRIGHT = 200


def report(kept, grids=((4, 4),), n_image_tokens=None):
    n = sum(r * c for r, c in grids) if n_image_tokens is None else n_image_tokens
    return FakeReport(
        n_image_tokens=n,
        n_prompt=n,
        n_decoded=1,
        n_kept=[len(k) for k in kept],
        tokens_mean=float(n),
        kept=kept,
        grids=list(grids),
    )


def bright(height, width):
    return np.full((height, width, 3), BRIGHT, np.uint8)


def is_kept(picture):
    """bool [h, w]: where the picture was left as it is."""
    return picture[..., 0] == BRIGHT


def test_mask_is_row_by_row():
    mask = kept_mask(report([[0, 5, 15]]), 0)
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 1], [3, 3]]


def test_mask_of_the_second_image_and_second_cut():
    two = report([[0, 3, 4, 11], [3, 11]], grids=((2, 2), (2, 4)))
    assert kept_mask(two, 0, 0).tolist() == [[True, False], [False, True]]
    assert np.argwhere(kept_mask(two, 0, 1)).tolist() == [[0, 0], [1, 3]]
    assert np.argwhere(kept_mask(two, 1, 1)).tolist() == [[1, 3]]


def test_a_column_of_line_breaks_is_not_drawn():
    """Two images of 2x3 patches, Pixtral's way: a token between the lines, none at the end."""
    n = 2 * (2 * 4 - 1)
    mask = kept_mask(report([[2, 3, 4, 7 + 6]], grids=((2, 4), (2, 4)), n_image_tokens=n), 0)
    assert mask.tolist() == [[False, False, True], [True, False, False]]
    second = kept_mask(report([[3, 7 + 6]], grids=((2, 4), (2, 4)), n_image_tokens=n), 0, 1)
    assert second.tolist() == [[False, False, False], [False, False, True]]


def test_dropped_patches_are_dark_and_grey_kept_ones_untouched():
    pixels = np.random.default_rng(0).integers(1, 255, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    out = dimmed(pixels, mask)
    np.testing.assert_array_equal(out[2:4, 4:6], pixels[2:4, 4:6])
    dark = out[4:]
    np.testing.assert_array_equal(dark[..., 0], dark[..., 1])
    assert dark.max() <= 64


def test_a_square_grid_over_a_wide_image_has_its_padding_above_and_below():
    # 40x20 pixels on 4x4 patches: libmtmd pads to 40x40, so row 0 and row 3 see no image at all
    rows = [is_kept(dimmed(bright(20, 40), np.eye(4, dtype=bool)[r][:, None] & np.ones(4, bool)))
            for r in range(4)]  # fmt: skip
    assert [r.any() for r in rows] == [False, True, True, False]
    assert rows[1][:10].all()
    assert not rows[1][10:].any()
    assert rows[2][10:].all()


def test_a_square_grid_over_a_tall_image_has_its_padding_at_the_sides():
    mask = np.zeros((4, 4), bool)
    mask[:, 1] = True
    kept = is_kept(dimmed(bright(40, 20), mask))
    assert kept[:, :10].all()
    assert not kept[:, 10:].any()


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (24, 24), (2, 9)])
@pytest.mark.parametrize("size", [(2, 2), (7, 311), (311, 7), (336, 336)])
def test_all_kept_is_the_image_and_none_kept_leaves_no_pixel(grid, size):
    assert is_kept(dimmed(bright(*size), np.ones(grid, bool))).all()
    assert not is_kept(dimmed(bright(*size), np.zeros(grid, bool))).any()


def test_sheet_has_the_image_and_one_panel_per_cut():
    plan = [CutSpec(1, "grid", 0.5), CutSpec(2, "grid", 0.25)]
    sheet = render(bright(30, 60), report([list(range(8)), [0]]), plan)
    assert sheet.mode == "RGB"
    assert sheet.width > 3 * PANEL_SIDE
    assert PANEL_SIDE / 2 < sheet.height < PANEL_SIDE
    shares = is_kept(np.asarray(sheet)).mean(axis=0)
    thirds = np.array_split(shares, 3)
    assert thirds[0].max() > 0.5  # the whole image
    assert thirds[0].mean() > thirds[1].mean() > thirds[2].mean()


def test_more_than_four_panels_go_on_in_the_next_line():
    plan = [CutSpec(i + 1, "grid", 0.5) for i in range(5)]
    five = render(bright(40, 40), report([[0]] * 5), plan)
    three = render(bright(40, 40), report([[0]] * 3), plan[:3])
    assert five.width == three.width
    assert five.height > 1.9 * three.height


def test_what_a_crop_left_out_is_dark():
    view = View(0, "", Box(0, 20, 20, 40), 4)  # the middle third of 20 x 60 pixels
    pixels = bright(20, 60)
    out = is_kept(dimmed(pixels, np.ones((4, 4), bool), box=view.box))
    assert out[:, 20:40].all()
    assert not out[:, :20].any()
    assert not out[:, 40:].any()
    half = np.zeros((4, 4), bool)
    half[2:, :1] = True
    out = is_kept(dimmed(pixels, half, half, box=view.box))
    assert not out.any(), "what is tinted is not as it was"
    blue = dimmed(pixels, half, half, box=view.box)[..., 2] > BRIGHT
    assert np.argwhere(blue.any(axis=1)).ravel().tolist() == list(range(10, 20))
    assert np.argwhere(blue.any(axis=0)).ravel().tolist() == list(range(20, 25))


def test_an_image_in_tiles_has_two_panels_a_cut():
    grids = [(4, 4), (4, 9), (4, 4), (1, 1)]
    views = (
        View(0, "overview", Box(0, 0, 40, 80), 4),
        View(0, "tiles", Box(0, 0, 40, 80), 8),
        View(1, "", Box(0, 0, 40, 80), 4),
        View(1, "", None, 0),
    )
    line_ends = [16 + 9 * row + 8 for row in range(4)]
    what = report([[*range(16), *line_ends, 52, 68]], grids=grids)
    plan = [CutSpec(1, "grid", 0.5)]
    drawn = np.asarray(render(bright(40, 80), what, plan, views=views))
    panels = [part[:, :, 0] == BRIGHT for part in np.array_split(drawn, 3, axis=1)]
    shares = [part.mean() for part in panels]
    assert shares[1] > 0.9 * shares[0], "the overview is whole"
    assert shares[2] < 0.1, "of the tiles only the ends of lines live, which show nothing"
    second = render(bright(40, 80), what, plan, image_index=1, views=views)
    assert second.width < 0.8 * drawn.shape[1], "no panel for the end behind an overview"
    with pytest.raises(AtpError, match="the prompt had 2 images; there is no image 2"):
        render(bright(40, 80), what, plan, image_index=2, views=views)


@pytest.mark.parametrize(
    ("what", "plan", "index", "says"),
    [
        (report([[0]]), [], 0, "expected 1 cuts as in the report, got 0"),
        (report([[0]]), [CutSpec(1, "grid")], 1, "there is no image 1"),
        (report([[0]], n_image_tokens=20), [CutSpec(1, "grid")], 0, "not 16 cells of a grid"),
    ],
)
def test_what_cannot_be_drawn(what, plan, index, says):
    with pytest.raises(AtpError, match=says):
        render(bright(8, 8), what, plan, image_index=index)


# ---- the command


def run(*arguments):
    return main([str(a) for a in arguments])


def test_command_writes_a_picture_and_prints_the_caption(fake_engine, scene, tmp_path, capsys):
    fake_engine()
    out = tmp_path / "kept.png"
    files = ("-m", "m.gguf", "--mmproj", "p.gguf")
    assert run("explain", scene, "--out", out, "--policy", "grid:keep=0.25,after=2", *files) == 0
    captured = capsys.readouterr()
    assert captured.out == "A red circle.\n"
    assert "wrote" in captured.err
    with Image.open(out) as picture:
        assert picture.width > 2 * PANEL_SIDE
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("out", "policy", "says"),
    [
        ("kept.txt", "grid", "ends in .png"),
        ("no/such/kept.png", "grid", "must be a directory"),
        ("kept.png", "none", "nothing to draw"),
    ],
)
def test_command_refuses(fake_engine, scene, tmp_path, capsys, out, policy, says):
    fake_engine()
    files = ("-m", "m.gguf", "--mmproj", "p.gguf")
    assert run("explain", scene, "--out", tmp_path / out, "--policy", policy, *files) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / out).exists()


def test_command_needs_something_that_prunes(fake_engine, scene, tmp_path, capsys):
    fake_engine()
    files = ("-m", "m.gguf", "--mmproj", "p.gguf")
    assert run("explain", scene, "--out", tmp_path / "kept.png", *files) == 2
    assert "--policy, or a sidecar with --atp" in capsys.readouterr().err


def test_real_picture(tiny_captioner, scene):
    pixels = np.asarray(Image.open(scene))
    caption = tiny_captioner.caption(
        pixels, policy="grid:keep=0.25,after=2", sampling=SamplingConfig(n_predict=1)
    )
    mask = kept_mask(caption.report, 0)
    assert mask.shape == (8, 8)
    assert mask[::2, ::2].all()  # Bayer order: a quarter is every second row and column
    assert mask.sum() == 16
    assert render(pixels, caption.report, caption.plan).width > 2 * PANEL_SIDE
