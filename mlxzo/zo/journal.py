"""The journal of a MeZO run: with the base weights it determines every later state of the weights, bit for bit.

A step of MeZO is w -= sum_i c_i z_i, and z_i can be generated again from the seed, the step and i, so only the factors
c_i need to be stored (Malladi et al. 2023, section 2.1: "storage efficiency").

Format 1, all numbers little-endian
    magic    8 bytes ``MLXZO-J1``
    size     uint32: bytes of the header that follows
    header   zlib-compressed JSON in UTF-8 (see `Header`)
    check    uint32: CRC-32 of everything before it
    records  16 bytes each, a fixed number a step: one per direction, then one for weight decay if the run has it, and
             one for the state of RSGN or ES
        float32  derivative g_i of the estimator (0 in a decay record)
        float32  factor c_i of the step's update (learning rate times weight decay in a decay record)
        float32  loss of the batch
                 (in a state record of RSGN: the curvature along the move, and the two parts of the damping of the next
                 step; in one of ES: eps, the pull, and 0)
        uint32   CRC-32 of the record's number (uint64) and the 12 bytes before, begun with the header's check

Loss and derivative are rounded to float32 when they are measured, and the factor before it is applied, so the file has
the values that the run used. The factor follows from the derivatives, but is stored so that it does not depend on the
rounding of a machine's mathematical library. A record is written before the weights change.

An interrupted write leaves a tail without a correct record: a killed process a part of one step, a power failure the
steps of `SYNC_SECONDS`, in place of which some file systems keep zero bytes. Such a tail is cut off. A wrong record
with a correct one behind it is damage, and the file is refused.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import append, sync_to_disk, write_atomic
from ..core.parsing import read_bytes

FORMAT = 1
RECORD_BYTES = 16
# A power failure loses at most the steps of these seconds, which a resumed run repeats.
SYNC_SECONDS = 5.0

_MAGIC = b"MLXZO-J1"
_RECORD = np.dtype([("derivative", "<f4"), ("factor", "<f4"), ("loss", "<f4"), ("check", "<u4")])
# A header has a few kilobytes; a file with a larger one is no journal, and must not be read into memory.
_LARGEST_HEADER = 1 << 24
# Some 4 million records of a step of 16 directions.
_LARGEST = 1 << 30


class JournalError(ValueError):
    """A journal that cannot be used; the text is one sentence.

    Attributes:
        fix: the advice that goes with it; empty where the file is damaged, and its reader knows best what to do.
    """

    def __init__(self, text: str, fix: str = ""):
        super().__init__(text)
        self.fix = fix


@dataclass(frozen=True)
class Parameter:
    """A tensor that the run trains: its dotted name, dtype, shape, and the length of one entry of its direction."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: float


@dataclass(frozen=True)
class Header:
    """The header of a journal.

    Attributes:
        config: the run's resolved configuration; seed, kind of directions, queries and weight decay are read from it.
        base_sha256: fingerprint of the base weights.
        parameters: trained parameters, sorted by name.
        noise: version of the noise definition.
        sha256: in an exported journal, fingerprint of the trained parameters after the last record.
        card: in an exported journal, the model card in Markdown.
    """

    config: dict[str, Any]
    base_sha256: str
    parameters: tuple[Parameter, ...]
    noise: int
    sha256: str | None = None
    card: str | None = None
    format: int = FORMAT

    @property
    def directions(self) -> int:
        """Random directions per step."""
        return int(self.config["queries"])

    @property
    def decays(self) -> bool:
        """True if each step has a record of weight decay."""
        return bool(self.config["weight_decay"])

    @property
    def has_state(self) -> bool:
        """True if each step has a record of the method's state."""
        return self.pulls or self.config.get("estimator") == "rsgn"

    @property
    def pulls(self) -> bool:
        """True if a step may pull the weights towards their start."""
        return self.config.get("estimator") == "es"

    @property
    def records_a_step(self) -> int:
        return self.directions + self.decays + self.has_state

    def encode(self) -> bytes:
        """Everything before the records."""
        text = json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)
        body = zlib.compress(text.encode(), 9)
        head = _MAGIC + struct.pack("<I", len(body)) + body
        return head + struct.pack("<I", zlib.crc32(head))


@dataclass(frozen=True)
class JournalStep:
    """One recorded step.

    Attributes:
        derivatives, factors: of each direction.
        decay: learning rate times weight decay.
        state: of RSGN: the curvature a.A a along the move, and `trust` and `noise` of the damping of the next step; of
            ES: eps and the pull towards the start, and 0.
    """

    derivatives: tuple[float, ...]
    factors: tuple[float, ...]
    loss: float
    decay: float = 0.0
    state: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Journal:
    """The header and the complete steps of a journal that was read.

    Attributes:
        start: bytes before the first record.
        check: CRC-32 of the header's bytes, with which the check of each record begins.
        torn_bytes: bytes after the last complete step, left by an interrupted write.
    """

    header: Header
    start: int
    check: int
    torn_bytes: int
    _records: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        """Steps."""
        return len(self._records)

    def __getitem__(self, step: int) -> JournalStep:
        """The step numbered from 0."""
        records = self._records[step]
        directions = self.header.directions
        first, second, third = (float(number) for number in records[-1].tolist()[:3])
        return JournalStep(
            tuple(records["derivative"][:directions].tolist()),
            tuple(records["factor"][:directions].tolist()),
            float(records["loss"][0]),
            float(records["factor"][directions]) if self.header.decays else 0.0,
            (first, second, third) if self.header.has_state else (0.0, 0.0, 0.0),
        )

    def __iter__(self) -> Iterator[JournalStep]:
        return (self[step] for step in range(len(self)))

    @property
    def end(self) -> int:
        """Bytes up to the end of the last complete step."""
        return self.start + self._records.nbytes

    def encode(self, steps: int, header: Header) -> bytes:
        """The bytes of a journal of the first `steps` steps that begins with `header`.

        Raises:
            ValueError: there are fewer steps.
        """
        if steps > len(self):
            raise ValueError(f"the journal has {len(self)} steps, not {steps}")
        head = header.encode()
        records = self._records[:steps].reshape(-1).copy()
        records["check"] = _checks(records, _header_check(head))
        return head + records.tobytes()


def read(path: Path) -> Journal:
    """Reads a journal and checks every byte of it.

    Raises:
        JournalError: the file is no journal, of another version, or damaged before its last step; it holds factors
            that are not finite; or its run had momentum.
        OSError: the file cannot be read.
    """
    data = read_bytes(path, _LARGEST)
    header, start = _read_header(data, path.name)
    # An option of version 0.1: its updates do not follow from the factors of one step alone.
    if momentum := header.config.get("momentum"):
        raise JournalError(
            f"{path.name} is of a run with momentum {momentum}: this mlxzo has no momentum, and version 0.1 replays it",
            "use mlxzo 0.1 for this journal",
        )
    whole = (len(data) - start) // RECORD_BYTES
    records = np.frombuffer(data, _RECORD, whole, start)
    check = _header_check(data[:start])
    wrong = np.flatnonzero(records["check"] != _checks(records, check))
    good = whole if not len(wrong) else int(wrong[0])
    a_step = header.records_a_step
    if len(wrong) != whole - good:
        raise JournalError(
            f"{path.name} is damaged in record {good + 1} of {whole} (step {good // a_step + 1}, "
            f"byte {start + good * RECORD_BYTES})"
        )
    steps = good // a_step
    kept = records[: steps * a_step].reshape(steps, a_step)
    moves = kept["factor"][:, : header.directions + header.decays]
    if len(wrong := np.flatnonzero(~np.isfinite(moves).all(axis=1))):
        raise JournalError(f"{path.name} has a factor in step {wrong[0] + 1} that is no finite number")
    return Journal(header, start, check, len(data) - start - kept.nbytes, kept)


def steps_in(path: Path) -> int:
    """Number of complete steps in a journal; only `read` checks the records before the last correct one.

    Raises:
        JournalError: the file is no journal, of another version, or has a damaged header.
        OSError: the file cannot be read.
    """
    data = read_bytes(path, _LARGEST)
    header, start = _read_header(data, path.name)
    check, count = _header_check(data[:start]), (len(data) - start) // RECORD_BYTES
    records = np.frombuffer(data, _RECORD, count, start)
    while count and records["check"][count - 1] != _checks(records[count - 1 : count], check, count - 1)[0]:
        count -= 1
    return count // header.records_a_step


class JournalWriter:
    """Appends the steps of a run to its journal.

    Every step is written to the file before `append` returns, so that the end of the process loses none; it is flushed
    to the disk within `SYNC_SECONDS`.
    """

    def __init__(self, path: Path, header: Header, after: Journal | None = None):
        """Creates a journal, or continues one that was read (`after`) behind its last complete step.

        Raises:
            OSError: the file cannot be written, or a new one exists already.
        """
        self._decays, self._has_state = header.decays, header.has_state
        if after is not None:
            # Not that of the header encoded again: another version of zlib may compress it to other bytes.
            self._check = after.check
            self._count, end = len(after) * header.records_a_step, after.end
        elif path.exists():
            raise FileExistsError(f"{path} exists already")
        else:
            head = header.encode()
            self._check = _header_check(head)
            self._count, end = 0, len(head)
            # Atomically: a journal without its header is useless.
            write_atomic(path, head)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self._file, end)
        self.sync()

    def append(self, step: JournalStep) -> None:
        """Writes one step.

        Raises:
            OSError: the disk is full or failing; the file ends with the step before.
        """
        rows = [*zip(step.derivatives, step.factors, strict=True)]
        if self._decays:
            rows.append((0.0, step.decay))
        if self._has_state:
            rows.append(step.state[:2])
        records = np.zeros(len(rows), _RECORD)
        records["derivative"], records["factor"] = np.array(rows, np.float32).T
        records["loss"] = step.loss
        if self._has_state:
            records["loss"][-1] = step.state[2]
        records["check"] = _checks(records, self._check, self._count)
        append(self._file, records.tobytes())
        self._count += len(rows)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Flushes all writes to the disk."""
        sync_to_disk(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        os.close(self._file)


def _header_check(head: bytes) -> int:
    """The checksum at the end of a header."""
    return int.from_bytes(head[-4:], "little")


def _checks(records: np.ndarray, check: int, first: int = 0) -> np.ndarray:
    """Checksums of records, the first of which is record number `first` of a journal whose header has `check`."""
    data = records.tobytes()
    return np.array(
        [
            zlib.crc32(data[i * RECORD_BYTES : (i + 1) * RECORD_BYTES - 4], zlib.crc32(struct.pack("<Q", n), check))
            for i, n in enumerate(range(first, first + len(records)))
        ],
        np.uint32,
    )


def _read_header(data: bytes, name: str) -> tuple[Header, int]:
    """The header, and the number of bytes up to its end."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise JournalError(f"{name} is not a journal of mlxzo")
    first = len(_MAGIC) + 4
    size = int.from_bytes(data[len(_MAGIC) : first], "little")
    end = first + size + 4
    if (
        size > _LARGEST_HEADER
        or len(data) < end
        or zlib.crc32(data[: end - 4]) != int.from_bytes(data[end - 4 : end], "little")
    ):
        raise JournalError(f"{name} is damaged in its header (the first {min(end, len(data))} bytes)")
    try:
        fields = json.loads(zlib.decompressobj().decompress(data[first : end - 4], _LARGEST_HEADER))
        if fields["format"] != FORMAT:
            raise JournalError(f"{name} has format {fields['format']}, and this mlxzo reads {FORMAT}")
        parameters = tuple(Parameter(**{**p, "shape": tuple(p["shape"])}) for p in fields.pop("parameters"))
        header = Header(parameters=parameters, **fields)
        if header.directions < 1:
            raise ValueError
    except JournalError:
        raise
    except (zlib.error, KeyError, TypeError, ValueError, AttributeError):
        # The checksum was correct, so another program wrote the header.
        raise JournalError(f"{name} has a header that makes no sense") from None
    return header, end


def as_float32(values: Sequence[float]) -> list[float]:
    """Values rounded to float32, as a journal stores them."""
    return np.array(values, np.float32).astype(np.float64).tolist()
