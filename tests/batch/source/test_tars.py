"""Archives of images: order, what is passed over, and archives that are broken."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from atp_cpp.batch.load import opening
from atp_cpp.batch.source import tars
from atp_cpp.batch.source.tars import Member, images_in_tar
from atp_cpp.errors import ImageError

ASKED = ("What is it?",)


def is_plain(path):
    return str(path).lower().endswith(".tar")


def tar(path, members, *, form=tarfile.USTAR_FORMAT):
    """Writes an archive of (name, bytes); of compressed ones the suffix says so."""
    mode = "w" if is_plain(path) else "w:gz"
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def shard(n=4):
    """Members of n WebDataset samples."""
    for i in range(n):
        yield f"{i:03}.jpg", f"image {i} ".encode() * 200
        yield f"{i:03}.txt", b"a caption"
        yield f"{i:03}.json", b"{}"


def read(item):
    return item.source() if callable(item.source) else item.source


def good_and_bad(path):
    """The items of an archive: those without and those with an error."""
    items = list(images_in_tar(path, ASKED))
    return [i for i in items if not i.error], [i for i in items if i.error]


kinds = pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz", "S.TAR"])


@kinds
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_in_the_archives_order(tmp_path, name, form):
    members = [*shard(), ("zz/" + "long" * 40 + ".png", b"1"), ("a/größe.webp", b"2")]
    if form == tarfile.USTAR_FORMAT:
        members = [*members[:-2], members[-1]]
    path = tar(tmp_path / name, members, form=form)
    good, bad = good_and_bad(path)
    images = [(n, data) for n, data in members if not n.endswith((".txt", ".json"))]
    assert [(i.custom_id, read(i)) for i in good] == [(f"{path}/{n}", d) for n, d in images]
    assert all(i.image == i.custom_id and i.prompts == ASKED for i in good)
    assert not bad


def test_members_of_a_tar_are_read_when_they_are_opened(tmp_path):
    path = tar(tmp_path / "s.tar", shard())
    items = list(images_in_tar(path, ASKED))
    assert all(isinstance(i.source, Member) for i in items)
    assert read(pickle.loads(pickle.dumps(items[2]))) == b"image 2 " * 200
    os.truncate(path, 3000)
    with pytest.raises(ImageError, match="became shorter"):
        read(items[2])
    os.unlink(path)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read(items[0])


@kinds
def test_hidden_members_and_folders_are_passed_over(tmp_path, name):
    path = tar(tmp_path / name, [("._a.jpg", b"x"), (".b/.c.jpg", b"x"), ("a.jpg", b"y")])
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        folder = tarfile.TarInfo("f.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("f.jpg/g.jpg"))
    assert [i.custom_id for i in good_and_bad(path)[0]] == [f"{path}/a.jpg"]
    good, bad = good_and_bad(str(tmp_path / "d.tar"))
    assert [os.path.basename(i.custom_id) for i in good] == ["g.jpg"]
    assert not bad


@kinds
def test_links_are_errors_of_their_own(tmp_path, name):
    path = tmp_path / name
    with tarfile.open(path, "w" if is_plain(name) else "w:gz") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        info = tarfile.TarInfo("a.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"y"))
    good, bad = good_and_bad(str(path))
    assert [read(i) for i in good] == [b"y"]
    assert [i.custom_id for i in bad] == [f"{path}/link.jpg"]
    assert "expected a plain file" in bad[0].error


@kinds
def test_a_member_too_large_is_an_error_of_its_own(tmp_path, name, monkeypatch):
    monkeypatch.setattr(tars, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(opening, "MAX_FILE_BYTES", 1000)
    path = tar(tmp_path / name, [("a.jpg", b"x" * 1001), ("b.jpg", b"y" * 1000)])
    good, bad = good_and_bad(path)
    assert [read(i) for i in good] == [b"y" * 1000]
    assert [i.custom_id for i in bad] == [f"{path}/a.jpg"]
    assert "expected at most" in bad[0].error


def test_a_member_of_ten_gigabytes_costs_nothing(tmp_path):
    path = tmp_path / "s.tar"
    with open(path, "wb") as stream:
        huge = tarfile.TarInfo("huge.png")
        huge.size = 10 << 30
        stream.write(huge.tobuf(tarfile.GNU_FORMAT))
        stream.seek(huge.size, os.SEEK_CUR)  # a hole in the file
        small = tarfile.TarInfo("small.png")
        small.size = 3
        stream.write(small.tobuf() + b"abc" + bytes(509 + 1024))
    good, bad = good_and_bad(str(path))
    assert [read(i) for i in good] == [b"abc"]
    assert "got 10240 MiB" in bad[0].error


def wanted_last(custom_id):
    return custom_id.endswith("003.jpg")


@kinds
def test_what_is_not_wanted_is_left_out(tmp_path, name):
    path = tar(tmp_path / name, shard())
    (item,) = images_in_tar(path, ASKED, wanted_last)
    assert read(item) == b"image 3 " * 200


@kinds
def test_every_cut_gives_the_whole_members_and_one_error(tmp_path, name):
    path = tmp_path / name
    whole = read_all(tar(path, shard()))
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for end in [1, 100, 512, 600, *rng.integers(1, len(data), 40).tolist()]:
        path.write_bytes(data[:end])
        good, bad = good_and_bad(str(path))
        assert [read(i) for i in good] == whole[: len(good)]
        if is_plain(name):
            n_expected = sum(1 for i in range(4) if i * 4608 + 512 + 1600 <= end)
            assert len(good) == n_expected
        lost = len(good) < len(whole)
        assert len(bad) <= 1
        assert bad or not lost or end % 512 == 0  # between two members no cut can be seen


def read_all(path):
    return [read(i) for i in images_in_tar(path, ASKED)]


@kinds
def test_a_damaged_header_is_told_with_what_came_before_it(tmp_path, name):
    path = tmp_path / name
    tar(path, shard())
    plain = path.read_bytes() if is_plain(name) else gzip.decompress(path.read_bytes())
    broken = bytearray(plain)
    at = plain.index(b"002.jpg\0")
    broken[at : at + 512] = b"\xaa" * 512
    path.write_bytes(bytes(broken) if is_plain(name) else gzip.compress(broken))
    good, bad = good_and_bad(str(path))
    assert [read(i) for i in good] == [b"image 0 " * 200, b"image 1 " * 200]
    assert [i.custom_id for i in bad] == [str(path)]
    assert "damaged or cut off after 2 images (invalid header); copy it again" in bad[0].error


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_flipped_bytes_never_raise_and_never_hang(tmp_path, name):
    path = tmp_path / name
    tar(path, shard(), form=tarfile.PAX_FORMAT)
    data = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(200):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        good, bad = good_and_bad(str(path))
        assert len(good) <= 12
        assert len(bad) <= 12
        assert all("\n" not in i.error for i in bad)


def header(name, *, size, kind=tarfile.REGTYPE):
    """A header block whose size is any number, negative ones too, with a right checksum."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [-1, -512, -(1 << 40), 1 << 62])
@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
@kinds
def test_sizes_that_lie(tmp_path, name, kind, size):
    data = header("a.jpg", size=3) + b"abc" + bytes(509)
    data += header("b.jpg", size=size, kind=kind) + bytes(20 * 512)
    path = tmp_path / name
    path.write_bytes(data if is_plain(name) else gzip.compress(data))
    good, bad = good_and_bad(str(path))
    assert [read(i) for i in good] == [b"abc"]
    assert bad[-1].custom_id == str(path)
    assert {i.custom_id for i in bad[:-1]} <= {f"{path}/b.jpg"}


@kinds
@pytest.mark.parametrize("n_marks", [0, 1, 2, 20])
def test_the_mark_at_the_end_may_be_missing(tmp_path, name, n_marks, caplog):
    caplog.set_level("INFO")
    data = header("a.jpg", size=3) + b"abc" + bytes(509) + bytes(512) * n_marks
    path = tmp_path / name
    path.write_bytes(data if is_plain(name) else gzip.compress(data))
    good, bad = good_and_bad(str(path))
    assert [read(i) for i in good] == [b"abc"]
    assert not bad
    assert ("without the mark" in caplog.text) == (n_marks == 0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tar", b"", "0 bytes"),
        ("a.tar", b"no archive at all", "truncated header"),
        ("a.tar", b"no archive at all" * 100, "invalid header"),
        ("a.tar.gz", b"no archive at all" * 100, "ot a gzipped file"),
        ("a.tar", bytes(10240), "no image in this archive"),
    ],
)
def test_files_that_are_no_archive(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    good, bad = good_and_bad(str(path))
    assert not good
    assert len(bad) == 1
    assert says in bad[0].error
    assert bad[0].custom_id == bad[0].image == str(path)


def test_an_archive_without_images(tmp_path):
    path = tar(tmp_path / "a.tar", [("a.txt", b"x")])
    assert "no image in this archive" in good_and_bad(path)[1][0].error


def test_archives_that_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    assert "pipe, device or socket" in good_and_bad(str(tmp_path / "pipe.tar"))[1][0].error
    assert "no such file" in good_and_bad(str(tmp_path / "none.tar"))[1][0].error


def test_headers_are_not_kept(tmp_path, monkeypatch):
    seen = []
    following = tarfile.TarFile.next
    monkeypatch.setattr(
        tarfile.TarFile, "next", lambda self: seen.append(len(self.members)) or following(self)
    )
    list(images_in_tar(tar(tmp_path / "s.tar", shard(50)), ASKED))
    assert len(seen) > 150
    assert max(seen) <= 1


def test_the_archive_is_closed_when_listing_ends_early(tmp_path, monkeypatch):
    opened = []
    open_file = tars.open_file

    def watched(*args, **options):
        opened.append(open_file(*args, **options))
        return opened[-1]

    monkeypatch.setattr(tars, "open_file", watched)
    items = images_in_tar(tar(tmp_path / "s.tar.gz", shard()), ASKED)
    next(items)
    items.close()
    assert opened[0].closed
