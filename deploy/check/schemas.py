"""Each object against the schema of its kind. A kind without a schema is an error."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from deploy.check.objects import Object, name_of

KUBERNETES = "1.37"
_CRDS = Path(__file__).with_name("crds.yaml")


@functools.cache
def _crds() -> Any:
    return yaml.safe_load(_CRDS.read_text(encoding="utf-8"))


def _crd(kind: str) -> dict[str, Any] | None:
    spec = _crds()["kinds"].get(kind)
    if spec is None:
        return None
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": "#/definitions/metadata"},
            "spec": {"type": "object", **spec},
        },
        "definitions": _crds()["definitions"],
    }


def problems(item: Object) -> list[str]:
    """What the schema has against an object; empty: nothing."""
    kind = f"{item['apiVersion']}/{item['kind']}"
    schema = _crd(kind)
    if schema is not None:
        errors = jsonschema.Draft202012Validator(schema).iter_errors(item)
        return [f"{name_of(item)}: {error.json_path}: {error.message}" for error in errors]
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(map(str, error.path))
        return [f"{name_of(item)}: {path}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{name_of(item)}: no schema for {kind}: add one to {_CRDS.name}"]
    return []
