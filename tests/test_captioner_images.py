"""Captioner and the rule of image preparation in a projector's file: followed, or refused."""

import numpy as np
import pytest
from PIL import Image

from atp_cpp import Captioner, SamplingConfig
from atp_cpp import _core as core
from atp_cpp.cli.program import main
from atp_cpp.errors import ModelError
from atp_cpp.images.prepare import prepare
from atp_cpp.images.spec import PREFIX, ImageSpec
from atp_cpp.models.files import image_spec_of
from support.pictures_of_all_shapes import picture
from support.tiny_anyres import NEXT, ONEVISION, newline_spec, write_anyres

SHORT = SamplingConfig(n_predict=4)
PLAIN = ImageSpec("shortest", (56, 56), crop=(56, 56))


def captioner(fake_engine, spec):
    engine = fake_engine(spec=spec)
    return Captioner("m.gguf", mmproj="p.gguf"), engine.made[0]


def test_the_engine_gets_tiles_where_the_file_has_a_rule(fake_engine):
    cap, engine = captioner(fake_engine, PLAIN)
    pixels = picture((100, 170))
    caption = cap.caption(pixels)
    (image,) = engine.calls[0]["images"]
    assert isinstance(image, core.Tiles)
    np.testing.assert_array_equal(image.tiles, prepare(pixels, PLAIN).tiles)
    assert (image.grid, image.size, image.max_tiles) == ((0, 0), (100, 170), 0)
    assert cap.image_spec == PLAIN
    assert [view.image for view in caption.views] == [0]
    assert caption.views[0].box.left == pytest.approx(35, abs=1)
    assert caption.t_load > 0


def test_the_rule_knows_how_many_images_a_prompt_has(fake_engine):
    cap, engine = captioner(fake_engine, ONEVISION)
    pixels = [picture((100, 170)), picture((60, 60))]
    cap.caption(pixels)
    cap.caption_pixels(pixels[:1], "What?", plan=())
    among, alone = engine.calls
    assert [len(image.tiles) for image in among["images"]] == [1, 1]
    assert len(alone["images"][0].tiles) > 1
    assert alone["images"][0].max_tiles == 2


def test_pixels_go_as_they_are_where_it_has_none(fake_engine):
    cap, engine = captioner(fake_engine, None)
    pixels = picture((100, 170))
    assert cap.caption(pixels).views == ()
    np.testing.assert_array_equal(engine.calls[0]["images"][0], pixels)
    assert cap.image_spec is None


# ---- on real files


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """`files(**of write_anyres) -> (model, mmproj)`."""
    folder, made = tmp_path_factory.mktemp("files"), []

    def write(**options):
        made.append(write_anyres(folder / f"{len(made)}.gguf", **options))
        return tiny_model("llama", n_layer=8), made[-1]

    return write


@pytest.fixture(scope="module")
def next_captioner(files):
    model, mmproj = files(spec=NEXT, newline=newline_spec())
    with Captioner(model, mmproj=mmproj, n_ctx=1024, n_threads=1) as cap:
        yield cap


def test_a_file_is_read_with_all_its_pinpoints(files):
    many = tuple((56 * y, 56 * x) for y in range(1, 7) for x in range(1, 7))
    spec = ImageSpec("exact", (56, 56), pad_color=(1, 2, 3), pinpoints=many, tile=56, max_tiles=9)
    assert image_spec_of(files(spec=spec, newline=newline_spec())[1]) == spec
    assert image_spec_of(files(newline=newline_spec())[1]) is None


def test_real_tiles(next_captioner):
    pixels = picture((100, 170))
    caption = next_captioner.caption(pixels, policy="grid:keep=0.25,after=2", sampling=SHORT)
    grids = caption.report.grids
    assert grids[0] == (4, 4)
    assert [view.name for view in caption.views] == ["overview", "tiles"]
    assert grids[1][1] == caption.views[1].cols + 1
    assert caption.report.n_image_tokens == sum(r * c for r, c in grids)
    assert next_captioner.caption(pixels, sampling=SHORT).text == (
        next_captioner.caption(Image.fromarray(pixels), sampling=SHORT).text
    )


def test_real_images_of_every_shape(next_captioner):
    # 3 of 500 pixels are less than a cell of the tiles' grid; of columns the lines' ends stay
    for shape, n in (((2, 2), 2), ((3, 500), 1), ((500, 3), 2), ((57, 113), 2), ((640, 480), 2)):
        caption = next_captioner.caption(picture(shape), sampling=SamplingConfig(n_predict=1))
        assert len(caption.views) == len(caption.report.grids) == n
        shown = [view.box is not None for view in caption.views]
        assert shown == ([True, False] if shape == (500, 3) else [True] * n)


def test_real_several_images(next_captioner):
    pixels = [picture((100, 170)), picture((50, 40))]
    caption = next_captioner.caption(pixels, "Compare.", sampling=SHORT)
    assert caption.report.grid_images == [0, 0, 1, 1]
    assert [view.image for view in caption.views] == [0, 0, 1, 1]


def test_real_picture_of_tiles(files, tmp_path, capsys):
    model, mmproj = files(spec=NEXT, newline=newline_spec())
    Image.fromarray(picture((100, 170))).save(tmp_path / "a.png")
    out = tmp_path / "kept.png"
    options = ("--policy", "grid:keep=0.25,after=2", "-n", "2", "-c", "1024")
    command = ("explain", tmp_path / "a.png", "--out", out, "-m", model, "--mmproj", mmproj)
    assert main([str(part) for part in (*command, *options)]) == 0
    assert "wrote" in capsys.readouterr().err
    with Image.open(out) as drawn:
        assert drawn.width > 3 * 448, "the image, its overview and its tiles"


def damaged(spec, **pairs):
    """A rule whose keys are others than it would write."""

    class Damaged:
        def metadata(self):
            return spec.metadata() | {PREFIX + key: value for key, value in pairs.items()}

    return Damaged()


def test_inspect_says_how_images_are_prepared(files, capsys):
    assert main(["inspect", str(files(spec=PLAIN)[1])]) == 0
    assert f"  images         {PLAIN}\n" in capsys.readouterr().out
    assert main(["inspect", str(files(spec=damaged(PLAIN, version=2))[1])]) == 2
    assert "atp.image.version is 2, this program reads 1" in capsys.readouterr().err


SMALLER = ImageSpec("exact", (28, 28))
WRONG_FILES = {
    "a later version": (damaged(PLAIN, version=2), "atp.image.version is 2, this program reads 1"),
    "damaged": (damaged(PLAIN, size=[56, 56, 56]), "atp.image.size is damaged"),
    "another size": (SMALLER, "squares of 28 pixels and encoded as squares of 56; convert"),
    "no newline": (NEXT, "cut into tiles, and it has no v.image_newline"),
}


@pytest.mark.parametrize(("spec", "reason"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_rule_that_cannot_be_meant_is_an_error_of_the_file(files, spec, reason):
    model, mmproj = files(spec=spec)
    with pytest.raises(ModelError, match=reason) as error:
        Captioner(model, mmproj=mmproj, n_threads=1)
    assert str(mmproj) in str(error.value)
    assert "\n" not in str(error.value)
