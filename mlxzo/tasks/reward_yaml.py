"""The judges that a task YAML names under `reward`; with several, the reward is the weighted mean of their scores.

    reward:
      - kind: json_schema
        schema: order.schema.json      # a file beside the YAML, or the schema itself
        weight: 3                      # 1 if absent
      - kind: length
        most: 12

See docs/tasks.md for all kinds and their settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml

from ..core.formatting import brief, shown
from ..core.parsing import CONTENT_ERRORS, read_json, reason_of
from ..core.suggestion import did_you_mean
from .judges import Contains, Equals, LengthWithin, Matches, Reward, SameNumber, Score, ValidBySchema, is_json
from .metrics import normalised
from .yaml_entries import entries_of, text_of

_COMMON = ("kind", "weight")
_MOST_SCHEMA_BYTES = 1 << 20
# Sums of weights stay finite.
_MOST_WEIGHT = 1_000_000
_MOST_COUNT = 999_999_999


@dataclass(frozen=True)
class _Settings:
    """The settings of one judge; what is wrong with them is added to `problems`."""

    kind: str
    line: int
    entries: Mapping[str, yaml.Node]
    folder: Path
    has_gold: bool
    problems: list[str]

    def refuse(self, name: str, problem: str) -> None:
        line = self.entries[name].start_mark.line + 1 if name in self.entries else self.line
        self.problems.append(f"line {line}: reward {self.kind}: {name}: {problem}")

    def text(self, name: str, *, strip: bool = True) -> str | None:
        """The text of a setting; None without one."""
        if name not in self.entries:
            return None
        return text_of(f"reward {self.kind}: {name}", self.entries[name], self.problems, strip=strip) or None

    def number(self, name: str, default: str, expected: str = "a number of at least 0") -> Decimal:
        """A number of at least 0; `expected` says what it may be."""
        text = self.text(name)
        try:
            value = Decimal(default if text is None else text)
        except InvalidOperation:
            value = Decimal("nan")
        if not value.is_finite() or value < 0:
            self.refuse(name, f"expected {expected}, not {shown(text)}")
            return Decimal(default)
        return value

    def count(self, name: str) -> int | None:
        """A whole number; None without one."""
        text = self.text(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST_COUNT))):
            self.refuse(name, f"expected a whole number from 0 to {_MOST_COUNT:,}, not {shown(text)}")
            return None
        return int(text)

    def choice(self, name: str, *choices: str) -> str:
        """One of the choices, the first by default."""
        text = self.text(name)
        if text is not None and text not in choices:
            self.refuse(name, f"expected {' or '.join(choices)}, not {shown(text)}")
        return text if text in choices else choices[0]


def read_reward(node: yaml.Node, folder: Path, has_gold: bool, problems: list[str]) -> Reward | None:
    """The reward of a task; None, and problems with their lines, where there is none.

    Args:
        folder: of the task file, in which schemas are looked for.
        has_gold: the rows of the task have right answers.
    """
    line, before = node.start_mark.line + 1, len(problems)
    if not (isinstance(node, yaml.SequenceNode) and node.value):
        problems.append(f"line {line}: reward must be a list of judges, each with its kind: {', '.join(KINDS)}")
        return None
    parts = [part for item in node.value if (part := _part(item, folder, has_gold, problems))]
    if len(problems) > before:
        return None
    return Reward(tuple((weight, score) for weight, score, _ in parts), json.dumps([each for *_, each in parts]))


def _part(
    node: yaml.Node, folder: Path, has_gold: bool, problems: list[str]
) -> tuple[float, Score, dict[str, Any]] | None:
    """Weight and score of one judge, and its settings as JSON values."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        problems.append(f"line {line}: reward: expected `kind: ...` and its settings")
        return None
    kinds = [value for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == "kind"]
    kind = text_of("reward: kind", kinds[0], problems) if kinds else ""
    if kind not in KINDS:
        if not kinds:
            problems.append(f"line {line}: reward: kind is missing; there are {', '.join(KINDS)}")
        elif kind:
            near = did_you_mean(kind, KINDS) or f"; there are {', '.join(KINDS)}"
            problems.append(f"line {line}: reward: no such kind {shown(kind)}{near}")
        return None
    names, read = KINDS[kind]
    hint = f"; the judge {kind} has: {', '.join((*names, *_COMMON))}"
    entries = entries_of(node, (*_COMMON, *names), problems, of=f"reward {kind}: ", hint=hint)
    settings = _Settings(kind, line, entries, folder, has_gold, problems)
    weight = float(settings.number("weight", "1", f"a number above 0 and at most {_MOST_WEIGHT:,}"))
    if not weight:
        settings.refuse("weight", "it must be above 0; leave the judge out instead")
    elif weight > _MOST_WEIGHT:
        settings.refuse("weight", f"it must be at most {_MOST_WEIGHT:,}; weights count against each other alone")
    score = read(settings)
    if score is None:
        return None
    record: dict[str, Any] = {name: node.value for name, node in entries.items() if isinstance(node, yaml.ScalarNode)}
    if isinstance(score, ValidBySchema):
        record["schema"] = score.validator.schema
    return weight, score, record


def _json(settings: _Settings) -> Score:
    return is_json


def _json_schema(settings: _Settings) -> Score | None:
    node = settings.entries.get("schema")
    if node is None:
        settings.refuse("schema", "it is missing: a file beside the task file, or the schema itself")
        return None
    try:
        schema = _schema_of(node, settings.folder)
    except (OSError, *CONTENT_ERRORS) as error:
        what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "it"
        settings.refuse("schema", f"{what} {reason_of(error)}")
        return None
    except yaml.YAMLError as error:
        settings.refuse("schema", f"it is not plain YAML: {brief(error)}")
        return None
    try:
        return ValidBySchema(_validator(schema))
    except ValueError as error:
        settings.refuse("schema", str(error))
        return None


def _regex(settings: _Settings) -> Score | None:
    pattern = settings.text("pattern", strip=False)
    anywhere = settings.choice("match", "full", "search") == "search"
    if pattern is None:
        if "pattern" not in settings.entries:
            settings.refuse("pattern", "it is missing")
        return None
    try:
        return Matches(re.compile(pattern), anywhere)
    except (re.error, OverflowError, RecursionError) as error:
        settings.refuse("pattern", f"{shown(pattern)} is no regular expression: {brief(error)}")
        return None


def _length(settings: _Settings) -> Score | None:
    characters = settings.choice("unit", "words", "characters") == "characters"
    least, most = settings.count("least"), settings.count("most")
    if not {"least", "most"} & settings.entries.keys():
        settings.refuse("least", "give least, most or both")
    elif least is not None and most is not None and least > most:
        settings.refuse("least", f"{least} is more than most, {most}")
    return LengthWithin(least or 0, most, characters)


def _text(make: Callable[[str | None], Score], settings: _Settings) -> Score | None:
    """A judge that compares with a given text or with the right answers."""
    text = settings.text("text")
    if text is not None and not normalised(text):
        settings.refuse("text", f"{shown(text)} has punctuation and articles alone, which are not compared")
    elif "text" not in settings.entries and not settings.has_gold:
        settings.refuse("text", "it is missing, and so is answer_field, which would name the right answers")
    return make(text)


def _number(settings: _Settings) -> Score | None:
    tolerance = settings.number("tolerance", "0")
    only = settings.choice("which", "last", "only") == "only"
    if not settings.has_gold:
        settings.problems.append(
            f"line {settings.line}: reward number: it compares with the right answer: name its field by answer_field"
        )
    return SameNumber(tolerance, only)


KINDS: dict[str, tuple[tuple[str, ...], Callable[[_Settings], Score | None]]] = {
    "json": ((), _json),
    "json_schema": (("schema",), _json_schema),
    "regex": (("pattern", "match"), _regex),
    "length": (("unit", "least", "most"), _length),
    "exact": (("text",), partial(_text, Equals)),
    "contains": (("text",), partial(_text, Contains)),
    "number": (("tolerance", "which"), _number),
}
"""Kinds of judges: the names of their settings, and the function that reads them."""


def _schema_of(node: yaml.Node, folder: Path) -> Any:
    """The schema in a file, or in the YAML itself, as JSON values."""
    if isinstance(node, yaml.ScalarNode) and node.value not in ("true", "false"):
        return read_json(folder / node.value, _MOST_SCHEMA_BYTES)
    # Through JSON, which has no dates and no keys but text.
    return json.loads(json.dumps(yaml.SafeLoader("").construct_document(node)))


def _validator(schema: Any) -> Any:
    """The validator of a schema, by the draft that it names or 2020-12.

    Raises:
        ValueError: it is no schema, refers to one that is not part of it, or to itself without end; the message is a
            clause.
    """
    # Half a second, which only those wait for who use a schema.
    import jsonschema
    import referencing
    import referencing.jsonschema
    from jsonschema.validators import validator_for

    draft = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(draft, str | None):
        raise ValueError(f"$schema must be the address of a draft, not {shown(draft)}")
    kind = jsonschema.Draft202012Validator if draft is None else validator_for(schema, default=cast(Any, None))
    if kind is None:
        raise ValueError(f"there is no draft {shown(draft)} of JSON Schema")
    try:
        kind.check_schema(schema)
        resource = referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT202012)
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        raise ValueError(f"it is no JSON Schema{where and f': at {where}'}: {brief(error.message)}") from None
    resolver = referencing.Registry().with_resource(resource.id() or "", resource).crawl().resolver(resource.id() or "")
    parts = list(_parts(resolver, resource))
    if missing := [reference for part in parts if (reference := _unresolved(*part)) is not None]:
        raise ValueError(f"it refers to {shown(missing[0])}, which it does not hold; nothing is fetched")
    seen: dict[int, bool] = {}
    if endless := [reference for part in parts if (reference := _endless(*part, seen)) is not None]:
        raise ValueError(f"the reference {shown(endless[0])} leads back to itself, so that no answer could be checked")
    return kind(schema, registry=referencing.Registry())


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# Keywords whose schemas apply to the same value as the schema that they stand in; those of the second row hold several.
_SAME_VALUE = ("not", "if", "then", "else")
_SAME_VALUE_EACH = ("allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")


def _parts(resolver: Any, resource: Any) -> Iterator[tuple[Any, Any]]:
    """A schema and those in it, each with the resolver of its references."""
    yield resolver, resource.contents
    for part in resource.subresources():
        yield from _parts(resolver.in_subresource(part), part)


def _references(schema: Any) -> list[str]:
    found = [schema.get(name) for name in _REFERENCES] if isinstance(schema, dict) else []
    return [reference for reference in found if isinstance(reference, str)]


def _unresolved(resolver: Any, schema: Any) -> str | None:
    """A reference of a schema that cannot be resolved; None if there is none."""
    import referencing.exceptions

    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            return reference
    return None


def _endless(resolver: Any, schema: Any, seen: dict[int, bool]) -> str | None:
    """A reference by which a schema comes to be applied to the same value again and again; None if there is none.

    A schema may refer to itself for a part of a value, such as the items of a list: that ends with the value.

    Args:
        seen: by identity of the schemas so far, whether they are still being followed.
    """
    import referencing
    import referencing.jsonschema

    if not isinstance(schema, dict) or id(schema) in seen:
        return None
    seen[id(schema)] = True
    nested = [schema[name] for name in _SAME_VALUE if name in schema]
    for name in _SAME_VALUE_EACH:
        found = schema.get(name, ())
        nested += found.values() if isinstance(found, dict) else found
    for part in nested:
        if isinstance(part, dict):
            inside = referencing.Resource.from_contents(part, referencing.jsonschema.DRAFT202012)
            if (endless := _endless(resolver.in_subresource(inside), part, seen)) is not None:
                return endless
    for reference in _references(schema):
        resolved = resolver.lookup(reference)
        if seen.get(id(resolved.contents)):
            return reference
        if (endless := _endless(resolved.resolver, resolved.contents, seen)) is not None:
            return endless
    seen[id(schema)] = False
    return None
