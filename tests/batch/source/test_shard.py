"""Each image in exactly one part, by its id alone; parts of nearly equal size."""

import random

import pytest

from atp_cpp.batch.source.shard import check_shard, parse_shard, shard_of
from atp_cpp.errors import AtpError


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 1000])
def test_every_image_is_in_one_part_that_exists(n):
    assert all(1 <= shard_of(f"photos/{i}.jpg", n) <= n for i in range(500))


@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize("form", ["img_{:08d}.jpg", "a/very/long/path/{}.webp", "{}"])
def test_parts_are_nearly_equal(n, form):
    n_images = 200 * n
    counts = [0] * n
    for i in range(n_images):
        counts[shard_of(form.format(i), n) - 1] += 1
    # six standard deviations of a fair draw
    assert max(abs(count - 200) for count in counts) < 6 * 200**0.5


def test_the_part_does_not_depend_on_other_images_or_their_order():
    ids = [f"{i}.jpg" for i in range(300)]
    alone = {custom_id: shard_of(custom_id, 5) for custom_id in ids}
    random.Random(3).shuffle(ids)
    assert {custom_id: shard_of(custom_id, 5) for custom_id in ids} == alone


def test_the_part_is_the_same_on_every_machine_and_in_every_version():
    # changing these would make a resumed run of shards skip some images and repeat others
    ids = ("cat.jpg", "photos/größe 1.png", "shard-000.tar/0001.webp")
    assert [shard_of(custom_id, 1000) for custom_id in ids] == [765, 603, 478]


def test_names_that_are_no_text_have_a_part():
    assert shard_of("caf\udce9.jpg", 1) == 1
    assert shard_of("\ud800", 1) == 1


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("2/8", (2, 8)), (" 3/3 ", (3, 3))])
def test_what_a_user_writes(text, shard):
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/b", "1/2/3", "-1/2", "1.5/2", "1 / 2"])
def test_other_forms_are_refused(text):
    with pytest.raises(AtpError, match="expected I/N"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["0/4", "5/4", "0/0"])
def test_parts_that_do_not_exist_are_refused(text):
    with pytest.raises(AtpError, match=text):
        parse_shard(text)


def test_a_pair_is_checked_like_its_text():
    check_shard((4, 4))
    with pytest.raises(AtpError, match="counted from 1"):
        check_shard((0, 4))
