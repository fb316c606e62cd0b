"""Pairs in tar files: the layout, the shuffled stream, going on exactly, bounded memory, damaged files."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from geoloc_fast.data.shards import MAX_MEMBER_BYTES, Pair, PairStream, Position, write_shards
from geoloc_fast.errors import ShardError

COUNT = 150


def pairs(count: int = COUNT) -> Iterator[Pair]:
    for n in range(count):
        image = (b"\x89PNG" if n % 2 else b"\xff\xd8\xff") + bytes([n % 256]) * (n % 700)
        yield Pair(
            "", image, f"description {n}, façade", None if n % 5 == 0 else n / 10, None if n % 5 == 0 else -n / 7
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    made = write_shards(pairs(), folder, shard_bytes=40_000)
    assert len(made) > 5 and [path.name for path in made] == [f"pairs-{n:06d}.tar" for n in range(len(made))]
    assert sorted(path.name for path in folder.iterdir()) == [path.name for path in made]
    return folder


def test_the_files_are_those_of_webdataset(folder: Path) -> None:
    texts = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert all(name.split(".")[1] in ("jpg", "png", "txt", "json") for name in names)
            for name in names:
                if name.endswith(".txt"):
                    member = tar.extractfile(name)
                    assert member is not None
                    texts.append(member.read().decode())
    assert texts == [pair.text for pair in pairs()]


def test_what_was_written_comes_back(folder: Path) -> None:
    stream = PairStream(sorted(folder.glob("*.tar")), buffer=1)
    found = sorted(stream.epoch(), key=lambda pair: pair.key)
    assert [pair[1:] for pair in found] == [pair[1:] for pair in pairs()]
    assert stream.position == Position(1, 0)


def test_shards_of_others(tmp_path: Path) -> None:
    """Written by tarfile, with folders, long names and files that are of no use here."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("set")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in (
            ("set/one.cls", b"7"),
            ("set/one.JPG", b"\xff\xd8one"),
            ("set/one.txt", "ein Platz, größer".encode()),
            ("set/two.seg.png", b"mask"),
            ("set/two.jpeg", b"\xff\xd8two"),
            ("set/two.txt", b"two"),
            ("set/two.json", json.dumps({"lat": 1, "lon": "2.5", "more": []}).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = {pair.key: pair for pair in PairStream(tmp_path).epoch()}
    assert found["one"] == Pair("one", b"\xff\xd8one", "ein Platz, größer", None, None)
    assert found["two"] == Pair("two", b"\xff\xd8two", "two", 1.0, 2.5)


def test_an_epoch_gives_each_once_in_an_order_of_its_own(folder: Path) -> None:
    orders = []
    stream = PairStream(folder, seed=3, buffer=32)
    for _ in range(2):
        orders.append([pair.key for pair in stream.epoch()])
        assert sorted(orders[-1]) == [f"{n:09d}" for n in range(COUNT)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    assert [pair.key for pair in PairStream(folder, seed=3, buffer=32).epoch()] == orders[0]
    assert [pair.key for pair in PairStream(folder, seed=4, buffer=32).epoch()] != orders[0]


@pytest.mark.parametrize("stop", [0, 1, 31, 32, 77, COUNT - 1, COUNT])
def test_it_goes_on_exactly(folder: Path, stop: int) -> None:
    whole = PairStream(folder, seed=1, buffer=32)
    want = [*whole.epoch(), *whole.epoch()]
    first = PairStream(folder, seed=1, buffer=32)
    head = []
    for pair in first.epoch():
        if len(head) == stop:
            break
        head.append(pair)
        position = first.position
    second = PairStream(folder, seed=1, buffer=32)
    if stop:
        assert position == Position(0, stop)
        second.position = position
    assert [*head, *second.epoch(), *second.epoch()] == want


def test_processes_share_an_epoch(folder: Path) -> None:
    parts = [[pair.key for pair in PairStream(folder, rank=rank, world=3, buffer=8).epoch()] for rank in range(3)]
    assert sorted(key for part in parts for key in part) == [f"{n:09d}" for n in range(COUNT)]
    assert all(parts)


def test_memory_is_that_of_the_buffer(tmp_path: Path) -> None:
    image = b"\xff\xd8" + bytes(20_000)
    write_shards((Pair("", image, "words", 1.0, 2.0) for _ in range(600)), tmp_path, shard_bytes=1 << 20)
    list(PairStream(tmp_path, buffer=4).epoch())  # what is imported and cached once
    tracemalloc.start()
    count = sum(1 for _ in PairStream(tmp_path, buffer=500).epoch())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 600 and peak < 1_500_000  # 12 MB of images; 500 places in files, and one sample


def test_writing_again_or_stopping_leaves_nothing_half_done(tmp_path: Path) -> None:
    write_shards(pairs(3), tmp_path)
    with pytest.raises(FileExistsError, match=r"without pairs-\*\.tar"):
        write_shards(pairs(3), tmp_path)

    def breaking() -> Iterator[Pair]:
        yield from pairs(3)
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_shards(breaking(), tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    assert write_shards([], tmp_path / "none") == []
    with pytest.raises(ShardError, match="got none"):
        PairStream(tmp_path / "none")


def test_a_sample_without_text_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("one.jpg"))
        tar.addfile(tarfile.TarInfo("one.json"))
    with pytest.raises(ShardError, match=r"one: expected \.txt and one of jpg, jpeg, png, got jpg, json"):
        list(PairStream(tmp_path).epoch())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (path,) = write_shards(pairs(20), tmp_path)
    whole = path.read_bytes()

    def message(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(ShardError) as caught:
            list(PairStream(tmp_path).epoch())
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "empty" in message(b"")
    assert "cut" in message(whole[: len(whole) // 2 - 100])
    assert "cut" in message(whole[:700])
    assert "checksum" in message(whole[:20] + b"x" + whole[21:])
    assert "header" in message(b"x" * 5000)
    huge = bytearray(whole)
    huge[124:136] = b"%011o\0" % (MAX_MEMBER_BYTES + 1)
    huge[148:156] = b" " * 8
    huge[148:156] = b"%06o\0 " % sum(huge[:512])
    assert f"at most {MAX_MEMBER_BYTES}" in message(bytes(huge))
    position = whole.index(b'{"lat"')
    assert "expected text and position" in message(whole[:position] + b"[" + whole[position + 1 :])


@pytest.mark.parametrize(("arguments", "message"), [({"buffer": 0}, "buffer"), ({"rank": 2, "world": 2}, "rank")])
def test_bad_arguments(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairStream(folder, **arguments)
