"""YAML files that users write: plain values, the line of each, and keys that are given twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError
from .options import current_name

# Aliases let a small file expand to a huge one; a thousand runs of thirty options each stay below this.
MOST_VALUES = 100_000
GIVEN_TWICE = "it is given more than once"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; of its content only repeated keys are checked.

    Raises:
        ConfigError: see `YamlFile`; or a key is given twice.
    """
    file = YamlFile.read(path)
    values = file.values()
    if found := [f"line {line}: {key}: {GIVEN_TWICE}" for key, line in file.repeated()]:
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
        most_bytes: int = 2**20,
        may_be_empty: bool = True,
    ) -> YamlFile:
        """Parses a file.

        Args:
            kind, holds: what the file describes and what its lines are, for messages.
            fix: the advice for a file of other content.

        Raises:
            ConfigError: the file cannot be read, is too large, is not YAML (with line and column), or holds no mapping.
        """
        text = _text(path, kind, most_bytes)
        try:
            root = _composed(text)
        except yaml.YAMLError as error:
            raise _not_yaml(path, error) from None
        except RecursionError:
            raise ConfigError(f"{path} is nested too deeply for a {kind}", fix) from None
        if root is None and may_be_empty:
            root = yaml.MappingNode("tag:yaml.org,2002:map", [])
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} must hold `{holds}` lines", fix)
        return YamlFile(str(path), root)

    def values(self) -> dict[str, Any]:
        """The mapping as plain Python values; the last one of a repeated key.

        Raises:
            ConfigError: a value is not plain, or aliases expand to more than `MOST_VALUES` values.
        """
        if _count(self.root, {}) > MOST_VALUES:
            raise ConfigError(f"{self.path} stands for more than {MOST_VALUES:,} values", "use fewer aliases (`*name`)")
        try:
            return yaml.SafeLoader("").construct_document(self.root)
        except yaml.YAMLError as error:
            raise _not_yaml(self.path, error) from None

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


def _text(path: str | Path, kind: str, most_bytes: int) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}", "check the path") from None
    if len(content) > most_bytes:
        raise ConfigError(f"{path} is larger than {most_bytes // 1024:,} KB, which no {kind} is", "check the path")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "save it as UTF-8") from None


def _composed(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, None if it is empty."""
    if (fast := getattr(yaml, "CSafeLoader", None)) is not None:
        # libyaml's parser is 25 times as fast; what it refuses is reported in the words of PyYAML's own, below.
        with contextlib.suppress(yaml.YAMLError):
            return yaml.compose(text, Loader=fast)
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _not_yaml(path: str | Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return ConfigError(f"{path} is not valid YAML{where}: {reason}", "correct that line")


def _count(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of scalars in a node with its aliases expanded; infinite where it contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
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
