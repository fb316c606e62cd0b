"""The bytes of a bank: packing, unpacking, files, and everything that can be wrong with them."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geoloc_fast import StripBank, strip_score, strip_topk
from geoloc_fast.ops import strip_bank as op
from geoloc_fast.reference import strip_bank as layouts
from geoloc_fast.testing import (
    assert_close,
    available_isas,
    force_backend,
    force_isa,
    observe_calls,
    poisoned_outputs,
    random_strips,
)

COLUMNS = (1, 2, 3, 7, 8, 16, 20, 32, 45, 64, 100)
DTYPES = ("fp32", "bf16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_every_instruction_set_writes_the_same_bytes_and_reads_the_same_values(columns: int, dtype: str) -> None:
    strips = random_strips(37, 5, 3, columns, seed=columns)
    index = torch.tensor([36, 0, 5, 5, 17])
    with force_backend("reference"):
        expected = StripBank.pack(strips, dtype=dtype)
        expected_values = expected.unpack(index)
    seen: list[tuple[Tensor, Tensor]] = []
    for isa in available_isas():
        with force_isa(isa), observe_calls() as calls, poisoned_outputs():
            bank = StripBank.pack(strips, dtype=dtype)
            values = bank.unpack(index)
        assert calls == [("strip_pack", "cpu", isa), ("strip_unpack", "cpu", isa)]
        seen.append((bank.buffer, values))
        # The reference sums in another order: now and then a value that lies between two roundings goes the other way.
        assert_close(values, expected_values, "float32")
        assert_close(bank.unpack(), expected.unpack(), "float32" if dtype == "fp32" else "bfloat16")
        assert int((bank.buffer != expected.buffer).sum()) < bank.buffer.numel() // 20
    for buffer, values in seen[1:]:
        assert torch.equal(buffer, seen[0][0])
        assert torch.equal(values, seen[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 16, 64])
def test_unpack_gives_the_strips_back(columns: int, dtype: str) -> None:
    strips = random_strips(33, 16, 4, columns, seed=1)
    values = StripBank.pack(strips, dtype=dtype).unpack()
    error = (values - strips).flatten(1).norm(dim=1)
    assert float(error.max()) < (2e-7 if dtype == "fp32" else 2.0**-8)


def test_energies_are_those_of_the_stored_strip_and_unused_lanes_are_zero() -> None:
    strips = random_strips(19, 3, 1, 16, seed=2)
    bank = StripBank.pack(strips, dtype="bf16")
    layout = bank.layout
    energies = bank.blocks.view(2, -1)[:, -layout.columns * 64 :].view(torch.float32).view(2, 16, 16)
    expected = bank.unpack().double().square().sum((1, 2))
    assert_close(energies.mT.reshape(32, 16)[:19], expected, "float32")
    words = bank.blocks.view(torch.int32).view(2, -1, 16)
    assert int(words[1, :, 3:].abs().max()) == 0


def test_a_strip_that_repeats_is_stored_so_that_it_repeats() -> None:
    half = random_strips(20, 4, 2, 8, seed=3)
    for dtype in DTYPES:
        values = StripBank.pack(half.repeat(1, 1, 1, 2), dtype=dtype).unpack()
        assert torch.equal(values[..., :8], values[..., 8:])


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float64, "strided", "channels last"])
def test_pack_takes_any_float_strips(source: torch.dtype | str) -> None:
    strips = random_strips(21, 8, 4, 16, seed=4)
    given: Tensor
    if isinstance(source, torch.dtype):
        given = strips.to(source)
    elif source == "strided":
        given = torch.zeros(42, 8, 4, 33)[::2, ..., ::2][..., :16]
        given.copy_(strips)
    else:
        given = strips.contiguous(memory_format=torch.channels_last)
    with observe_calls() as calls:
        bank = StripBank.pack(given, dtype="fp32")
    # float64 is not rounded to float32 on the way, which only the reference can do.
    assert calls[0][1] == ("reference" if source == torch.float64 else "cpu")
    expected = StripBank.pack(given.float(), dtype="fp32")
    assert_close(bank.unpack(), expected.unpack(), "float32")


def test_pack_in_parts_is_pack_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    strips = random_strips(100, 3, 1, 16, seed=5)
    at_once = StripBank.pack(strips)
    monkeypatch.setattr(op, "_BLOCKS_AT_ONCE", 2)
    assert torch.equal(StripBank.pack(strips).buffer, at_once.buffer)


def test_empty_bank_and_empty_index() -> None:
    bank = StripBank.pack(torch.zeros(0, 3, 2, 16))
    assert len(bank) == 0
    assert bank.unpack().shape == (0, 3, 2, 16)
    bank = StripBank.pack(random_strips(3, 3, 2, 16))
    assert bank.unpack(torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 2, 16)


@pytest.mark.parametrize("index", [-1, 3, 1 << 40])
def test_rows_outside_the_bank_are_refused(index: int) -> None:
    bank = StripBank.pack(random_strips(3, 3, 2, 16))
    with pytest.raises(ValueError, match="index: expected rows from 0 to 2"):
        bank.unpack(torch.tensor([index]))
    with pytest.raises(ValueError, match="strip_unpack: expected rows from 0 to 2"):  # the kernel's own check
        op.unpack(bank.blocks, [3, 3, 2, 16], "bf16", torch.tensor([index]))


def test_operators_check_the_bytes_they_are_given() -> None:
    bank = StripBank.pack(random_strips(3, 3, 2, 16))
    rows = torch.tensor([0])
    with pytest.raises(ValueError, match=r"blocks has \d+ values, expected \d+"):
        op.unpack(bank.blocks[:-64], [3, 3, 2, 16], "bf16", rows)
    with pytest.raises(ValueError, match=r"blocks has \d+ values, expected \d+"):
        op.unpack(bank.blocks, [33, 3, 2, 16], "bf16", rows)
    shifted = torch.zeros(bank.blocks.numel() + 64, dtype=torch.uint8)[4 : 4 + bank.blocks.numel()]
    with pytest.raises(ValueError, match="multiple of 64"):
        op.unpack(shifted, [3, 3, 2, 16], "bf16", rows)


# --- bad buffers -----------------------------------------------------------------------------------------------------


def damaged(bank: StripBank, at: int, value: int) -> Tensor:
    buffer = bank.buffer.clone()
    buffer[at] = value
    return buffer


def test_bad_buffers_say_what_is_wrong() -> None:
    bank = StripBank.pack(random_strips(3, 3, 2, 16))
    with pytest.raises(ValueError, match="expected a header of 128 bytes, got 10"):
        StripBank(bank.buffer[:10])
    with pytest.raises(ValueError, match=r"expected \d+ bytes for 3 strips, got"):
        StripBank(bank.buffer[:-1])
    with pytest.raises(ValueError, match="multiple of 64"):
        StripBank(torch.cat([torch.zeros(4, dtype=torch.uint8), bank.buffer])[4:])
    with pytest.raises(ValueError, match="contiguous"):
        StripBank(bank.buffer.repeat_interleave(2)[::2])
    with pytest.raises(TypeError, match="uint8"):
        StripBank(bank.buffer.to(torch.int8))
    for at, value, message in (
        (0, 1, "it begins"), (8, 9, "bank version 1, got 9"), (12, 7, "dtype code"), (24, 0, "possible shape"),
        (36, 8, "16 strips per block"), (48, 1, "header is damaged"), (100, 1, "header is damaged"),
        (47, 255, "finite column0_deg|damaged"),
    ):  # fmt: skip
        buffer = damaged(bank, at, value)
        if at == 47:
            buffer[40:48] = torch.tensor([0, 0, 0, 0, 0, 0, 0xF8, 0x7F], dtype=torch.uint8)
        with pytest.raises(ValueError, match=message):
            StripBank(buffer)


# --- files -----------------------------------------------------------------------------------------------------------


def test_saved_bank_opens_as_a_map_and_answers_the_same(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    bank = StripBank.pack(random_strips(100, 8, 4, 16, seed=6), column0_deg=315.0)
    query = random_strips(3, 8, 4, 5, seed=7)
    path = tmp_path / "places.strips"
    bank.save(path)
    assert path.stat().st_size == bank.nbytes
    assert [item.name for item in tmp_path.iterdir()] == ["places.strips"]
    opened = StripBank.open(path)
    assert (len(opened), opened.shape, opened.dtype, opened.column0_deg) == (100, (8, 4, 16), "bf16", 315.0)
    for mine, theirs in zip(strip_topk(query, opened, 5), strip_topk(query, bank, 5), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(opened.unpack(), bank.unpack())
    assert not recwarn.list

    # What is done to the map stays in memory.
    opened.buffer[200] += 1
    assert torch.equal(StripBank.open(path).buffer, bank.buffer)


def test_an_open_bank_may_save_itself_and_tensors_outlive_it(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    StripBank.pack(random_strips(20, 2, 1, 8, seed=8)).save(path)
    bank = StripBank.open(path)
    bank.save(path)
    blocks, expected = bank.blocks, bank.blocks.clone()
    descriptor = bank._file[1] if bank._file else -1
    del bank
    gc.collect()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)
    assert torch.equal(blocks, expected)


def test_a_file_that_shrinks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    StripBank.pack(random_strips(2000, 4, 2, 16, seed=9)).save(path)
    bank = StripBank.open(path)
    query = random_strips(1, 4, 2, 5)
    strip_topk(query, bank, 3)
    os.truncate(path, 4096)
    for search in (
        lambda: strip_topk(query, bank, 3),
        lambda: strip_score(query, bank, torch.tensor([[1999]])),
        lambda: bank.unpack(),
        lambda: bank.save(tmp_path / "other"),
    ):
        with pytest.raises(RuntimeError, match=r"bank: .* bytes when it was opened and has 4096 now"):
            search()


def test_bad_files_are_typed_errors_that_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    bank = StripBank.pack(random_strips(20, 2, 1, 8))
    whole = bytes(bank.buffer.numpy())
    before = set(os.listdir("/proc/self/fd"))
    for content, message in (
        (b"", "header of 128 bytes, got 0"),
        (whole[:100], "header of 128 bytes, got 100"),
        (whole[:-1], "cut short"),
        (whole + b"\0", "longer than its bank"),
        (b"PNG" + whole[3:], "it begins"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            StripBank.open(path)
    with pytest.raises(FileNotFoundError):
        StripBank.open(tmp_path / "nothing")
    assert set(os.listdir("/proc/self/fd")) == before


def test_saving_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bank"
    StripBank.pack(random_strips(20, 2, 1, 8)).save(path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        StripBank.pack(random_strips(30, 2, 1, 8)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_header_layout_is_what_the_documentation_says() -> None:
    layout = layouts.BankLayout(17, 3, 2, 16, "bf16", 180.0)
    assert (layout.words, layout.blocks, layout.block_bytes) == (3, 2, 4 * 16 * 16 * 4)
    assert layouts.BankLayout.from_header(layout.header()) == layout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 16])
def test_join_copies_rows_of_several_banks_as_they_are_stored(columns: int, dtype: str) -> None:
    strips = random_strips(60, 3, 1, columns, seed=9)
    first, second = (StripBank.pack(part, dtype=dtype, column0_deg=90.0) for part in (strips[:35], strips[35:]))
    rows = [torch.tensor([34, 0, 17, 17]), torch.arange(24, -1, -1)]
    joined = StripBank.join([(first, rows[0]), (second, rows[1]), (first, torch.empty(0, dtype=torch.int64))])
    chosen = torch.cat([rows[0], 35 + rows[1]])
    assert torch.equal(joined.buffer, StripBank.pack(strips[chosen], dtype=dtype, column0_deg=90.0).buffer)


def test_join_refuses_banks_of_another_kind() -> None:
    bank, none = StripBank.pack(random_strips(4, 2, 2, 8)), torch.arange(1)
    for other in (
        StripBank.pack(random_strips(4, 2, 2, 8), dtype="fp32"),
        StripBank.pack(random_strips(4, 2, 2, 8), column0_deg=0.0),
        StripBank.pack(random_strips(4, 4, 1, 8)),
    ):
        with pytest.raises(ValueError, match="parts: expected banks of one kind"):
            StripBank.join([(bank, none), (other, none)])
    with pytest.raises(ValueError, match="index: expected rows from 0 to 3, got 0 to 4"):
        StripBank.join([(bank, torch.arange(5))])
    with pytest.raises(ValueError, match="parts: expected at least one bank"):
        StripBank.join([])
