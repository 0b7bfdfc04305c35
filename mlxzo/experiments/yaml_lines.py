"""Where in a YAML file a key or an item stands, so that a problem can be told with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class Lines:
    """The lines of a file that `RunConfig.read_yaml` has read. Looks only where it is asked to, so that a small file
    whose aliases stand for a huge one costs nothing."""

    def __init__(self, path: str | Path):
        self._root = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)

    def line(self, *path: Any) -> int | None:
        """The line, from 1, of what a path of keys and positions leads to; of the nearest above it where that is all
        there is, as with keys that were merged in. None for an empty file."""
        node, mark = self._root, self._root and self._root.start_mark
        for part in path:
            found = _inside(node, part)
            if found is None:
                break
            mark, node = found
        return mark.line + 1 if mark else None

    def repeated(self, *path: Any) -> list[tuple[str, int]]:
        """Keys that a mapping has more than once, of which YAML would silently take the last; with their lines."""
        node = self._root
        for part in path:
            node = (_inside(node, part) or (None, None))[1]
        if not isinstance(node, yaml.MappingNode):
            return []
        keys = [(key.value, key.start_mark.line + 1) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        return [(key, line) for number, (key, line) in enumerate(keys) if key in dict(keys[:number])]


def _inside(node: yaml.Node | None, part: Any) -> tuple[yaml.Mark, yaml.Node] | None:
    """The mark and the node of one key of a mapping, or of one position of a list."""
    if isinstance(node, yaml.MappingNode):
        # The last one counts, as it does for its value.
        for key, value in reversed(node.value):
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key.start_mark, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark, node.value[part]
    return None
