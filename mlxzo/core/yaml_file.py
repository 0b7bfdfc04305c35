"""YAML files that users write: plain values, the line of each, and keys that are given twice."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import ConfigError, MlxzoError
from .formatting import brief
from .options import current_name
from .parsing import MOST_LEVELS, parsing, read_bytes, reason_of

# Aliases let a small file expand to a huge one; a thousand runs of thirty options each stay below this.
MOST_VALUES = 100_000
MOST_BYTES = 1 << 20
_LONG = 1 << 16
GIVEN_TWICE = "it is given more than once"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; of its content only repeated keys are checked.

    Raises:
        ConfigError: see `YamlFile`; or a key is given twice.
    """
    file = YamlFile.read(path)
    values = file.values()
    if found := [f"line {line}: {brief(key)}: {GIVEN_TWICE}" for key, line in file.repeated()]:
        details = found if len(found) > 1 else ()
        message = found[0] if len(found) == 1 else f"{len(found)} keys are given more than once"
        raise ConfigError(f"{path}: {message}", "leave one of each", details)
    return values


@dataclass(frozen=True)
class YamlFile:
    """A file of `key: value` lines. Nothing in it is executed.

    Attributes:
        path: as the user gave it.
        root: the mapping as parsed, in which every node has its line.
    """

    path: str
    root: yaml.MappingNode

    @staticmethod
    def read(
        path: str | Path,
        kind: str = "configuration",
        *,
        holds: str = "option: value",
        fix: str = "`mlxzo train --help` lists the options",
        most_bytes: int = MOST_BYTES,
        may_be_empty: bool = True,
    ) -> YamlFile:
        """Parses a file.

        Args:
            kind, holds: what the file describes and what its lines are, for messages.
            fix: the advice for a file of other content.

        Raises:
            ConfigError: the file cannot be read, is too large, is not YAML (with line and column), or holds no mapping;
                it is nested too deeply, or its aliases expand to more than `MOST_VALUES` values.
        """
        root = _read(path, most_bytes, ConfigError, fix)
        if root is None and may_be_empty:
            root = yaml.MappingNode("tag:yaml.org,2002:map", [])
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} must hold `{holds}` lines", fix)
        return YamlFile(str(path), root)

    def values(self) -> dict[str, Any]:
        """The mapping as plain Python values; the last one of a repeated key.

        Raises:
            ConfigError: a value is not plain.
        """
        with _reading(self.path, ConfigError, "correct that value"):
            return yaml.SafeLoader("").construct_document(self.root)

    def line(self, *path: Any) -> int | None:
        """The line, from 1, of the node at a path of keys and positions, or of its nearest ancestor where the path is
        incomplete, as for merged keys. None for an empty file."""
        node: yaml.Node | None = self.root
        mark = node.start_mark
        for part in path:
            found = _inside(node, part)
            if found is None:
                break
            mark, node = found
        return mark.line + 1 if mark else None

    def repeated(self, *path: Any) -> Iterator[tuple[str, int]]:
        """The repeated keys of a mapping, of which YAML silently takes the last, with their lines.

        The former and the present name of an option are one key.
        """
        node: yaml.Node | None = self.root
        for part in path:
            node = (_inside(node, part) or (None, None))[1]
        if not isinstance(node, yaml.MappingNode):
            return
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if current_name(key.value) in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add(current_name(key.value))


def plain_values(path: str | Path, refused: type[MlxzoError], fix: str) -> Any:
    """Whatever a YAML file of at most 1 MB holds, as plain Python values.

    Raises:
        refused: as `YamlFile.read` and `YamlFile.values` do, but for the kind of the content.
    """
    root = _read(path, MOST_BYTES, refused, fix)
    with _reading(path, refused, fix):
        return None if root is None else yaml.SafeLoader("").construct_document(root)


def _read(path: str | Path, most_bytes: int, refused: type[MlxzoError], fix: str) -> yaml.Node | None:
    """The nodes of a file, None if it is empty; of bounded depth and number."""
    with _reading(path, refused, fix):
        root = _composed(read_bytes(path, most_bytes).decode("utf-8-sig"))
        if root is not None and _size(root, {}).values > MOST_VALUES:
            raise refused(f"{path} stands for more than {MOST_VALUES:,} values", "use fewer aliases (`*name`)")
        return root


def _composed(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, None if it is empty."""
    if (fast := getattr(yaml, "CSafeLoader", None)) is not None:
        # libyaml's parser is 25 times as fast; what it refuses is reported in the words of PyYAML's own, below, unless
        # that would take seconds.
        with contextlib.nullcontext() if len(text) > _LONG else contextlib.suppress(yaml.YAMLError):
            return yaml.compose(text, Loader=fast)
    return yaml.compose(text, Loader=yaml.SafeLoader)


@contextlib.contextmanager
def _reading(path: str | Path, refused: type[MlxzoError], fix: str) -> Iterator[None]:
    """Turns the errors of PyYAML into those of a file; it raises others than its own for a date or a number that there
    cannot be."""
    with parsing(path, refused, fix):
        try:
            yield
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            reason = brief(getattr(error, "problem", None) or error)
            raise refused(f"{path} is not valid YAML{where}: {reason}", "correct that line") from None
        except OSError as error:
            raise refused(f"{path} {reason_of(error)}", "check the path") from None


class _Size(NamedTuple):
    """Number of nodes and levels of a node with its aliases expanded."""

    values: float
    levels: int


def _size(node: yaml.Node, known: dict[int, _Size]) -> _Size:
    """The size of a node; infinitely many values where it contains itself.

    Raises:
        RecursionError: it has more than `MOST_LEVELS` levels.
    """
    if isinstance(node, yaml.ScalarNode):
        return _Size(1, 1)
    if id(node) not in known:
        known[id(node)] = _Size(math.inf, 0)
        children = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes = [_size(child, known) for child in children]
        levels = 1 + max((size.levels for size in sizes), default=0)
        if levels > MOST_LEVELS:
            raise RecursionError
        known[id(node)] = _Size(1 + sum(size.values for size in sizes), levels)
    return known[id(node)]


def _inside(node: yaml.Node | None, part: Any) -> tuple[yaml.Mark, yaml.Node] | None:
    """The mark and the node of one key of a mapping, or of one position of a list."""
    if isinstance(node, yaml.MappingNode):
        # The last one counts, as in `values`.
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key.start_mark, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark, node.value[part]
    return None
