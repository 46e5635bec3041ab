"""Many images through threads: order, bounds, and failures that stay with their image."""

import hashlib
import random
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from atp_cpp.errors import AtpError
from atp_cpp.images.load import load_image
from support.image_files import png
from support.loading_runs import encoded, item, load, number, numbered

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

# ---- order


@pytest.mark.parametrize("n_threads", [0, 1, 2, 7])
@pytest.mark.parametrize("window", [1, 3, 50])
def test_each_image_in_its_place_with_its_own_pixels(n_threads, window):
    rng = random.Random(window)

    def slowly(pixels):
        time.sleep(rng.random() / 500)
        return number(pixels)

    out = list(load(numbered(40), slowly, n_threads=n_threads, window=window))
    assert [loaded.pixels for loaded in out] == list(range(40))
    assert [loaded.item.custom_id for loaded in out] == [str(i) for i in range(40)]
    assert all(loaded.error == "" and loaded.t_load > 0 for loaded in out)
    assert out[3].sha256 == hashlib.sha256(encoded(3)).hexdigest()


def test_a_slow_image_holds_back_those_behind_it_only_in_the_output():
    behind = threading.Event()

    def slow_first(pixels):
        if number(pixels) == 0:
            assert behind.wait(60)
        if number(pixels) == 3:
            behind.set()
        return number(pixels)

    assert [one.pixels for one in load(numbered(6), slow_first)] == list(range(6))


def test_nothing_in_nothing_out():
    assert list(load([])) == []


@pytest.mark.parametrize("n_threads", [0, 2])
def test_without_prepare_come_the_pixels(n_threads, scene):
    (loaded,) = load([item(scene)], n_threads=n_threads)
    np.testing.assert_array_equal(loaded.pixels, load_image(scene))


# ---- failures


BAD = {
    "cut.jpg": lambda: encoded(1)[:30],
    "empty.jpg": lambda: b"",
    "doc.jpg": lambda: b"%PDF-1.4" + bytes(50),
    "huge.png": lambda: png(30_000, 30_000, data=b"x"),
    "dot.png": lambda: png(1, 1),
}


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_bad_images_among_good_ones(tmp_path, n_threads):
    items = numbered(5)
    for at, (name, content) in enumerate(BAD.items()):
        path = tmp_path / name
        path.write_bytes(content())
        items.insert(2 * at, item(str(path), name=str(path)))
    items.insert(3, item(str(tmp_path / "gone.jpg"), name="gone.jpg"))
    items.insert(7, item(b"", name="line", error="line 7: no JSON"))
    items.append(item(np.zeros((4, 4)), name="flat"))
    items.append(item(lambda: 1 / 0, name="zero"))
    out = list(load(items, number, n_threads=n_threads))
    assert [loaded.item for loaded in out] == items
    assert [loaded.pixels for loaded in out if not loaded.error] == list(range(5))
    bad = [loaded for loaded in out if loaded.error]
    assert len(bad) == len(items) - 5
    assert all(loaded.pixels is None for loaded in bad)
    assert all(loaded.item.image in loaded.error for loaded in bad)


def test_a_file_that_vanishes_between_listing_and_opening(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(i))

    def listing():
        for path in paths:
            if path.name == "2.png":
                path.unlink()
            yield item(str(path), name=str(path))

    out = list(load(listing(), number))
    assert [loaded.pixels for loaded in out] == [0, 1, None, 3]
    assert "no such file" in out[2].error


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt, BaseException])
def test_whatever_prepare_raises_in_a_thread_costs_one_image(n_threads, error):
    def sometimes(pixels):
        if number(pixels) % 3 == 1:
            raise error
        return number(pixels)

    out = list(load(numbered(7), sometimes, n_threads=n_threads))
    assert [loaded.pixels for loaded in out] == [0, None, 2, 3, None, 5, 6]
    assert all(bool(loaded.error) == (loaded.pixels is None) for loaded in out)


def test_ctrl_c_in_the_callers_thread_ends_it():
    def interrupted(pixels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(load(numbered(3), interrupted, n_threads=0))


def test_a_listing_that_fails_does_so_behind_the_images_before_it():
    def listing():
        yield from numbered(3)
        raise AtpError("the list broke")

    images = load(listing(), number, window=8)
    assert [next(images).pixels for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AtpError, match="the list broke"):
        next(images)


# ---- bounds


@pytest.mark.parametrize("window", [1, 2, 9])
def test_no_more_than_the_window_is_drawn(window):
    drawn = []

    def listing():
        for one in numbered(30):
            drawn.append(one)
            yield one

    for n_out, _ in enumerate(load(listing(), window=window)):
        assert len(drawn) <= n_out + window
    assert len(drawn) == 30


def test_items_are_drawn_in_the_callers_thread():
    def listing():
        for one in numbered(5):
            assert threading.current_thread() is caller
            yield one

    caller = threading.current_thread()
    assert all(not loaded.error for loaded in load(listing()))


def test_bytes_at_hand_are_bounded():
    data = encoded(1, side=64)
    drawn = []

    def listing():
        for _ in range(30):
            drawn.append(1)
            yield item(data + bytes(100_000))  # decoders stop before these

    images = load(listing(), lambda pixels: None, window=30, max_bytes=350_000)
    for n_out, loaded in enumerate(images):
        assert loaded.error == ""
        assert len(drawn) <= n_out + 4
    assert len(drawn) == 30


@pytest.mark.parametrize("n_threads", [2, 6])
def test_large_pictures_are_decoded_one_at_a_time(n_threads):
    at_once, most = [0], [0]
    lock = threading.Lock()

    def prepare(pixels):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.005)
        with lock:
            at_once[0] -= 1

    need = 20 * 64 * 64
    items = [item(encoded(i, side=64)) for i in range(12)]
    list(load(items, prepare, n_threads=n_threads, window=12, max_bytes=need + 5000))
    # the oldest never waits, and it may become so while another is under way
    assert most[0] <= 2
    most[0] = 0
    list(load(items, prepare, n_threads=n_threads, window=12))
    assert most[0] >= 2


def test_pixels_that_wait_to_be_fetched_are_bounded():
    made = []

    def prepare(pixels):
        made.append(1)
        return np.zeros(1000, np.uint8)

    images = load(numbered(40), prepare, n_threads=4, window=40, max_bytes=20 * 64 + 8 * 1000)
    for n_out, loaded in enumerate(images):
        assert loaded.error == ""
        assert len(made) <= n_out + 14
    assert len(made) == 40


@pytest.mark.parametrize("n_threads", [0, 2])
def test_nothing_is_kept_of_an_image_that_was_fetched(n_threads):
    images = load(numbered(4), n_threads=n_threads)
    seen = weakref.ref(next(images).pixels)
    next(images)
    assert seen() is None
    images.close()


def test_threads_at_rest_hold_no_pixels():
    seen = []

    def watched(pixels):
        seen.append(weakref.ref(pixels))
        return number(pixels)

    images = load(numbered(3), watched, n_threads=2, window=8)
    assert [next(images).pixels for _ in range(3)] == [0, 1, 2]
    assert [one() for one in seen] == [None] * 3
    assert list(images) == []


# ---- pixels that belong to somebody


def test_a_frame_that_its_owner_uses_again():
    def frames():
        frame = np.zeros((8, 8, 3), np.uint8)
        for i in range(20):
            frame[:] = load_image(encoded(i))
            yield item(frame)

    assert [one.pixels for one in load(frames(), number, window=8)] == list(range(20))


def test_one_pillow_image_many_times(scene):
    with Image.open(scene) as image:
        out = list(load([item(image)] * 10, lambda pixels: int(pixels.sum()), n_threads=4))
    assert len({loaded.pixels for loaded in out}) == 1
    assert not any(loaded.error for loaded in out)
