"""Tar files of strangers, and the index of their members: damage in one line, links, changes, the cache."""

import gzip
import os
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from tests.train.data.packed import images, opened, png, same, shard, tar, write_folder, written
from train.data.names import Names
from train.data.sources import kept, tar_index, tar_members


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder", images())


# Damaged tars


def header(name=b"a.png", size=b"00000000010", kind=b"0", magic=b"ustar\x0000"):
    """Returns a header with a right checksum."""
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[257 : 257 + len(magic)], block[148:156] = magic, b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


WHOLE = tar(images())
RECORD = b"30 path=" + b"p" * 21 + b"\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is empty, not a tar"),
        (b"no tar", "this is not a tar"),
        (bytes(10240), "holds no images"),
        (b"x" * 2048, "this is not a tar"),
        (
            gzip.compress(WHOLE, mtime=0),
            "it is compressed, and has no random access: unpack it once, to a .tar, by gunzip",
        ),
        (WHOLE[:1500], "it was cut short: it ends at byte 1,500 without the end mark"),
        (WHOLE[:520], r"it was cut short: member 'cat/0.png' has \d+ bytes, of which 8 are there"),
        (WHOLE[:600], "it was cut short: it ends at byte 600 without the end mark"),
        (WHOLE[:2048], "it was cut short: it ends at byte 2,048 without the end mark"),
        (WHOLE[:1100] + b"X" + WHOLE[1101:], "a header before byte .* is damaged"),
        (WHOLE + WHOLE, "bytes follow its end mark"),
        (WHOLE + bytes(2 << 20) + WHOLE, "bytes follow its end mark: join tars by tar --concatenate"),
        (header(size=b"77777777777"), "member 'a.png' has 8,589,934,591 bytes, of which 0 are there"),
        (header(size=b"\x80\0\0\0\x7f" + b"\xff" * 7), "this is not a tar"),
        (header(size=b"\xff" * 12), "this is not a tar"),
        (header(size=b"-0000000010"), "this is not a tar"),
        (header(kind=b"L", size=b"77777777777"), "a header has 8,589,934,591 bytes; allowed"),
        (header(kind=b"x", size=b"00000000036") + RECORD.ljust(512, b"\0"), "ends at byte 1,024 without the end mark"),
        (header(kind=b"x", size=b"00000000036") + b"99999999999 path=a\n".ljust(512, b"\0"), "not a tar|is damaged"),
        (header(kind=b"x", size=b"00000000036") + b"0 path=a\n".ljust(512, b"\0"), "not a tar|is damaged"),
        (header(kind=b"L", size=b"00000100000") + b"n" * 32768 + header() + bytes(1536), "a name has 32,768 bytes"),
        (tar({"cat.tar": b"no tar", "dog.tar": WHOLE}), "member cat.tar: this is not a tar"),
        (tar({"cat.tar": gzip.compress(WHOLE, mtime=0)}), "member cat.tar: it is compressed"),
        (tar({"a/x.txt": b"x", "b.npy": b"x"}), r"holds no images \(1 .txt, 1 .npy\)"),
    ],
)  # fmt: skip
def test_damaged_tars_are_refused_in_one_line(tmp_path, content, message):
    path = written(tmp_path / "a.tar", content)
    with pytest.raises(UserError, match=message) as error:
        opened(f"tar:{path}")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_links_folders_and_sparse_files_are_left_out_and_counted(tmp_path):
    links = {}
    for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("p.png", tarfile.FIFOTYPE)):
        links[name] = tarfile.TarInfo(f"cat/{name}")
        links[name].type, links[name].linkname = kind, "../../../etc/passwd"
    links["d"] = tarfile.TarInfo("cat")
    links["d"].type = tarfile.DIRTYPE
    members = {"../../cat.png": png(0), "__MACOSX/cat/1.png": png(0), "cat/._1.png": png(0), "outside.png": png(0)}
    source = opened(f"tar:{written(tmp_path / 'a.tar', {**images(), **links, **members})}").source
    assert len(source) == 21
    assert "(3 hidden, 3 link or special file, 1 outside of the folders left out)" in source.report
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar"} and not Path(
        tmp_path.parent.parent, "cat.png"
    ).exists()


def test_a_member_that_is_no_image_is_named_when_it_is_read(tmp_path):
    path = written(tmp_path / "a.tar", {**images(), "cat/bad.png": b"no picture"})
    with pytest.raises(UserError, match=r"cannot decode image .*a.tar: cat/bad.png: .*data.on_error=skip"):
        opened(f"tar:{path}").source.arrays()
    assert opened(f"tar:{path}", on_error="skip").source.arrays()["mask"].sum() == 21


def test_missing_tars_and_compressed_ones_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        opened(f"tar:{tmp_path}/none")
    with pytest.raises(UserError, match="there are no .tar files in this folder$"):
        opened(f"tar:{tmp_path}")
    (tmp_path / "cat.tar.gz").write_bytes(gzip.compress(WHOLE))
    for kind in ("tar", "webdataset"):
        with pytest.raises(UserError, match=r"no .tar files.*; cat.tar.gz is compressed: unpack it once"):
            opened(f"{kind}:{tmp_path}")


# Reading


def test_a_source_is_pickled_without_open_files_and_reads_in_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MOST_OPEN", 2)
    items = list(shard(images(count=20)).items())
    for number in range(12):
        written(tmp_path / f"{number:02}.tar", dict(items[10 * number : 10 * number + 10]))
    source = opened(f"webdataset:{tmp_path}").source
    expected = source.arrays(threads=1)["image"]
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000
    copy, order = pickle.loads(pickled), np.random.default_rng(0).permutation(60)
    results = {}

    def read(number):
        results[number] = copy.read(np.roll(order, number))["image"]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in results.items():
        assert np.array_equal(found, expected[np.roll(order, number)])
    assert len(results) == 8 and len(copy._files._open) <= 8  # each thread holds one at most
    copy.fetch([0])
    assert len(copy._files._open) <= 2


def test_a_shard_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = written(tmp_path / "a.tar", images())
    source = opened(f"tar:{path}")
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=r"a.tar: it was cut short after it was opened"):
        source.arrays()


def test_identity_changes_with_a_byte_a_label_and_a_name(tmp_path):
    members = shard(images())

    def identity(**changes):
        return opened(f"webdataset:{written(tmp_path / 'a.tar', {**members, **changes})}").source.identity()

    whole = identity()
    assert whole == identity() and whole["images"] == 21
    assert len({whole["content"], identity(**{"cat/3.png": png(99)})["content"],
                identity(**{"cat/3.cls": b"dog"})["content"]}) == 3  # fmt: skip


# The kept index


def test_the_index_is_kept_and_made_again_when_a_shard_changes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 1)
    path = written(tmp_path / "a.tar", images())
    first = opened(f"tar:{path}")
    (file,) = cache.iterdir()
    scans = []
    build = tar_index._build
    monkeypatch.setattr(tar_index, "_build", lambda *arguments: scans.append(1) or build(*arguments))
    same(opened(f"tar:{path}"), first)
    assert not scans
    written(path, images(count=9))
    assert len(opened(f"tar:{path}").source) == 27 and len(scans) == 1
    assert list(cache.iterdir()) == [file]  # it took the old one's place
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert len(opened(f"tar:{path}").source) == 27 and len(scans) == 2
    assert len(opened(f"tar:{path}").source) == 27 and len(scans) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 1)
    path = written(tmp_path / "a.tar", images())
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    assert len(opened(f"tar:{path}").source) == 21


def test_names_are_a_blob():
    names = ["a", "", "ü/b", "\udcff"]
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    blob = Names.of_lengths(b"".join(encoded), np.array([len(name) for name in encoded]))
    assert list(blob) == names and blob[2] == "ü/b" and list(blob.take(np.array([3, 0]))) == ["\udcff", "a"]
    assert blob.take(np.array([2, 0])).joined() == "ü/ba".encode()


def test_the_number_of_bytes_in_a_binary_size():
    assert tar_members._number(b"\x80" + struct.pack(">IQ", 0, 1 << 40)[1:]) == 1 << 40
