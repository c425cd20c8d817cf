"""What a field allows, in words, from the JSON schema: one source for errors, editors and docs."""

from __future__ import annotations

from typing import Any, cast

from lorafusion.jobs.schema import RunSpec

Schema = dict[str, Any]

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}


def run_schema() -> Schema:
    """The JSON schema of a :class:`RunSpec`, in which jobs are complete."""
    return RunSpec.model_json_schema()


class Fields:
    """Finds a field's schema by its path. ``Fields(run_schema())`` starts at the top of a file."""

    def __init__(self, root: Schema) -> None:
        self._root = root

    def at(self, path: tuple[str | int, ...]) -> Schema:
        """The schema at a path such as ``("jobs", 0, "adapter", "r")``; empty where none is."""
        schema = self.resolve(self._root)
        for key in path:
            branches = [self.resolve(branch) for branch in variants(schema)]
            steps = [self._step(branch, key) for branch in branches]
            schema = next(filter(None, steps), cast(Schema, {}))
        return schema

    def names(self, path: tuple[str | int, ...]) -> tuple[str, ...]:
        """The fields that a mapping at ``path`` may have."""
        branches = [self.resolve(branch) for branch in variants(self.at(path))]
        return tuple(dict.fromkeys(name for b in branches for name in b.get("properties", ())))

    def allowed(self, path: tuple[str | int, ...]) -> str:
        """What may stand at ``path``, in words."""
        return self.words(self.at(path))

    def options(self, path: tuple[str | int, ...]) -> list[str]:
        """The words that may stand at ``path``, where it is a choice."""
        branches = [self.resolve(branch) for branch in variants(self.at(path))]
        return [
            str(value)
            for branch in branches
            for value in (
                *branch.get("enum", ()),
                *([branch["const"]] if "const" in branch else ()),
            )
        ]

    def resolve(self, schema: Schema) -> Schema:
        """``schema`` with its ``$ref`` followed (its own entries win)."""
        if "$ref" not in schema:
            return schema
        target = self._root["$defs"][cast(str, schema["$ref"]).rpartition("/")[2]]
        return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}

    def words(self, schema: Schema) -> str:
        """``schema`` in words, such as ``a number >= 0 and < 1``."""
        schema = self.resolve(schema)
        if "x-allowed" in schema:
            return schema["x-allowed"]
        if "const" in schema:
            return str(schema["const"])
        if "enum" in schema:
            return _either([str(value) for value in schema["enum"]])
        if len(variants(schema)) > 1:
            return _either([word for s in variants(schema) for word in self._options(s)])
        kind = schema.get("type", "")
        if kind == "array":
            least = "at least one" if schema.get("minItems") else ""
            item = self.resolve(schema["items"]).get("type", "")
            noun = {"object": "mapping", "string": "text"}.get(item, item)
            return f"a list of {least} {noun}".replace("  ", " ")
        if kind == "object" and "properties" in schema:
            names = list(schema["properties"])
            return f"a mapping with {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        if kind == "object" and self._values(schema):
            return f"a mapping from text to {self.words(self._values(schema))}"
        if kind == "string" and schema.get("minLength"):
            return "text that is not empty"
        return " ".join(filter(None, [_TYPES.get(kind, kind), _bounds(schema)]))

    def _options(self, schema: Schema) -> list[str]:
        return [str(value) for value in schema.get("enum", ())] or [self.words(schema)]

    def _step(self, schema: Schema, key: str | int) -> Schema:
        if isinstance(key, int):
            return self.resolve(schema.get("items", {}))
        named = schema.get("properties", {}).get(key)
        return self.resolve(named or self._values(schema))

    def _values(self, schema: Schema) -> Schema:
        """What the values of a mapping with free keys are; empty for other mappings."""
        values = schema.get("additionalProperties")
        return cast(Schema, values) if isinstance(values, dict) else {}


def variants(schema: Schema) -> list[Schema]:
    """The branches of a union; a schema that is none is its own only branch."""
    return schema.get("anyOf") or schema.get("oneOf") or [schema]


def _bounds(schema: Schema) -> str:
    bounds = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "exclusiveMaximum": "<",
    }
    return " and ".join(f"{word} {schema[key]}" for key, word in bounds.items() if key in schema)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
