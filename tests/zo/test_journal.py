"""The journal's bytes: what comes back, what a crash leaves, and what a changed byte does."""

from __future__ import annotations

import errno
import math
import os
import struct
import zlib
from dataclasses import replace

import pytest

from mlxzo.zo import journal as journal_module
from mlxzo.zo.journal import RECORD_BYTES, Header, JournalError, JournalStep, JournalWriter, Parameter, read, steps_in

PARAMETERS = (Parameter("model.norm.weight", "float32", (8,), 0.05), Parameter("w", "bfloat16", (4, 8), 1.0))


def header(queries: int = 2, weight_decay: float = 0.0) -> Header:
    config = {"seed": 7, "directions": "sign", "queries": queries, "weight_decay": weight_decay}
    return Header(config, "ab" * 32, PARAMETERS, noise=1)


def steps(count: int, decay: float = 0.0) -> list[JournalStep]:
    # Values that float32 holds exactly.
    return [JournalStep((0.5 + i, -0.25), (1.5 * i, 2.0**-20), 3.0 + i, decay) for i in range(count)]


def written(path, recorded, head=None):
    writer = JournalWriter(path, head or header())
    for step in recorded:
        writer.append(step)
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("decay", [0.0, 0.125])
def test_what_is_written_comes_back(tmp_path, decay):
    head = header(weight_decay=decay)
    recorded = steps(5, decay)
    written(tmp_path / "j", recorded, head)
    journal = read(tmp_path / "j")
    assert list(journal) == recorded
    assert journal.header == head
    assert journal.torn_bytes == 0


def test_the_bytes_are_those_of_the_definition(tmp_path):
    data = written(tmp_path / "j", steps(1))
    (size,) = struct.unpack("<I", data[8:12])
    end = 12 + size + 4
    start = zlib.crc32(data[: end - 4])
    assert data[:8] == b"MLXZO-J1"
    assert data[end - 4 : end] == struct.pack("<I", start)
    second = struct.pack("<fff", -0.25, 2.0**-20, 3.0)
    assert data[end + 16 :] == second + struct.pack("<I", zlib.crc32(second, zlib.crc32(struct.pack("<Q", 1), start)))


def test_a_thousand_steps_take_less_than_20_kilobytes(tmp_path):
    parameters = tuple(
        Parameter(f"model.layers.{i}.{part}.weight", "float32", (576, 1536), 0.1 + i / 300)
        for i in range(30)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
    )
    head = Header({**header(1).config, "task": "reviews"}, "ab" * 32, parameters, noise=1)
    assert len(written(tmp_path / "j", [JournalStep((1.0,), (1.0,), 1.0)] * 1000, head)) < 20_000


def test_a_tail_torn_at_any_byte_costs_the_last_step_alone(tmp_path):
    data = written(tmp_path / "j", steps(3))
    last = len(data) - 2 * RECORD_BYTES
    for length in range(last, len(data)):
        torn = tmp_path / "torn"
        torn.write_bytes(data[:length])
        journal = read(torn)
        assert list(journal) == steps(2)
        assert journal.torn_bytes == length - last
        # A crash may also leave the length and not the bytes.
        torn.write_bytes(data[:length] + bytes(len(data) - length))
        assert list(read(torn)) == steps(2)


def test_a_tail_of_zeros_of_any_length_is_torn(tmp_path):
    """A power failure after a second of steps: the file system has kept the size of the file and not its bytes."""
    path, data = tmp_path / "j", written(tmp_path / "whole", steps(9))
    path.write_bytes(data[: -10 * RECORD_BYTES] + bytes(10 * RECORD_BYTES))
    journal = read(path)
    assert list(journal) == steps(4) and journal.torn_bytes == 10 * RECORD_BYTES
    assert steps_in(path) == 4
    # The writer keeps to the header that is there, whatever zlib would make of its content now.
    again = JournalWriter(path, replace(journal.header, card="other bytes"), after=journal)
    for step in steps(9)[4:]:
        again.append(step)
    again.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("decay", [0.0, 0.125])
def test_whole_steps_are_counted(tmp_path, decay):
    path = tmp_path / "j"
    data = written(path, steps(3, decay), header(weight_decay=decay))
    assert steps_in(path) == 3
    for torn in (1, RECORD_BYTES + 5):
        path.write_bytes(data[:-torn])
        assert steps_in(path) == len(read(path)) == 2
    path.write_bytes(data[:20])
    with pytest.raises(JournalError, match="header"):
        steps_in(path)


def test_a_writer_goes_on_behind_the_last_whole_step(tmp_path):
    whole = written(tmp_path / "whole", steps(4))
    cut = tmp_path / "cut"
    cut.write_bytes(written(tmp_path / "j", steps(3))[:-5])
    journal = read(cut)
    writer = JournalWriter(cut, journal.header, after=journal)
    for step in steps(4)[2:]:
        writer.append(step)
    writer.close()
    assert cut.read_bytes() == whole


def test_a_flipped_bit_in_any_byte_is_detected(tmp_path):
    data = written(tmp_path / "j", steps(3))
    for place in range(len(data) - 2 * RECORD_BYTES):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(JournalError, match=r"changed is (damaged|not a journal)"):
            read(tmp_path / "changed")


def test_a_damaged_record_is_named(tmp_path):
    data = bytearray(written(tmp_path / "j", steps(3)))
    place = len(data) - 6 * RECORD_BYTES
    data[place + 2 * RECORD_BYTES] ^= 4
    (tmp_path / "j").write_bytes(data)
    with pytest.raises(JournalError, match=rf"record 3 of 6 \(step 2, byte {place + 2 * RECORD_BYTES}\)"):
        read(tmp_path / "j")


def test_a_factor_that_is_not_finite_is_refused(tmp_path):
    written(tmp_path / "j", [*steps(2), JournalStep((1.0, 1.0), (1.0, math.inf), 1.0), *steps(1)])
    with pytest.raises(JournalError, match="factor in step 3 that is no finite number"):
        read(tmp_path / "j")


def test_records_that_changed_places_are_detected(tmp_path):
    data = written(tmp_path / "j", steps(3))
    start = len(data) - 6 * RECORD_BYTES
    first, second, rest = data[start : start + 32], data[start + 32 : start + 64], data[start + 64 :]
    (tmp_path / "j").write_bytes(data[:start] + second + first + rest)
    with pytest.raises(JournalError, match="record 1 of 6"):
        read(tmp_path / "j")


@pytest.mark.parametrize("content", [b"", b"MLXZO-J1", b"MLXZO-J1\xff\xff\xff\xff", b"something else" * 10])
def test_what_is_no_journal_is_refused(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError):
        read(tmp_path / "j")


def test_a_well_checked_header_that_makes_no_sense_is_refused(tmp_path):
    body = zlib.compress(b'{"format": 1, "config": []}')
    head = b"MLXZO-J1" + struct.pack("<I", len(body)) + body
    (tmp_path / "j").write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    with pytest.raises(JournalError, match="makes no sense"):
        read(tmp_path / "j")


def test_a_closed_journal_ends_where_asked_and_carries_the_fingerprint(tmp_path):
    written(tmp_path / "j", steps(5))
    journal = read(tmp_path / "j")
    head = replace(journal.header, sha256="cd" * 32, card="# A model")
    (tmp_path / "closed").write_bytes(journal.encode(3, head))
    closed = read(tmp_path / "closed")
    assert list(closed) == steps(3)
    assert closed.header == head
    with pytest.raises(ValueError, match="has 5 steps"):
        journal.encode(6, head)


def test_a_full_disk_leaves_the_step_before(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path / "j", header())
    writer.append(steps(1)[0])

    def half(descriptor, data, write=os.write):
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) - 4])

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "write", half)
        with pytest.raises(OSError, match="No space"):
            writer.append(steps(2)[1])
    assert list(read(tmp_path / "j")) == steps(1)
    # Once there is space again the run goes on.
    writer.append(steps(2)[1])
    writer.close()
    assert list(read(tmp_path / "j")) == steps(2)


def test_a_new_journal_does_not_overwrite_one_that_is_there(tmp_path):
    written(tmp_path / "j", steps(1))
    with pytest.raises(FileExistsError):
        JournalWriter(tmp_path / "j", header())
