"""Entries of a task YAML: nodes with their lines, all scalars as text.

Nodes are read directly: constructing them would turn `yes` into True, and aliases may be recursive.
"""

from __future__ import annotations

import yaml

from ..core.formatting import shown
from ..core.suggestion import did_you_mean


def entries_of(
    node: yaml.MappingNode, known: tuple[str, ...] | None, problems: list[str], *, of: str = "", hint: str = ""
) -> dict[str, yaml.Node]:
    """The entries of a mapping by key; unknown, repeated or non-text keys are added to `problems`.

    Args:
        of: what the mapping is, for messages, such as `reward json: `.
        hint: what is said of an unknown key that is close to no known one.
    """
    entries: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{line}: {of}a key must be text")
            continue
        key = key_node.value
        if key in entries:
            problems.append(f"{line}: {of}{shown(key)} is given twice")
        elif known and key not in known:
            near = did_you_mean(key.replace("-", "_"), known) or hint
            problems.append(f"{line}: {of}no such key {shown(key)}{near}")
        else:
            entries[key] = value
    return entries


def text_of(name: str, node: yaml.Node, problems: list[str], *, strip: bool = True) -> str:
    """The text of a node; empty, and a problem, where it has none. The newline that ends a block is no part of it.

    Args:
        name: what the text is, for messages.
        strip: take away the white space around it.
    """
    if not isinstance(node, yaml.ScalarNode):
        problems.append(f"{name} must be text (line {node.start_mark.line + 1})")
        return ""
    value = node.value.removesuffix("\n") if node.style in ("|", ">") else node.value
    if not value.strip():
        problems.append(f"{name} is empty (line {node.start_mark.line + 1})")
        return ""
    return value.strip() if strip else value
