"""The template as data: CloudFormation's short forms (`!Ref X`) as their long ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[1] / "middleware_api" / "deploy" / "template.yaml"

Json = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's tags."""


def _long_form(loader: _Loader, suffix: str, node: yaml.Node) -> Json:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
        return {name: value.split(".") if suffix == "GetAtt" else value}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    raise TypeError(f"!{suffix} of a mapping")


_Loader.add_multi_constructor("!", _long_form)


def load_template() -> Json:
    """The committed template."""
    template: Json = yaml.load(TEMPLATE.read_text(), _Loader)
    return template


def of_type(template: Json, kind: str) -> dict[str, Json]:
    """Its resources of one type: their properties by their logical ids."""
    return {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == kind
    }


def as_list(value: Any) -> list[Any]:
    """What the policy language writes as one or as a list."""
    return value if isinstance(value, list) else [value]


def policies(template: Json) -> dict[str, list[Json]]:
    """Statements that allow something, by the resource that holds them."""
    found = {
        name: [s for p in role.get("Policies", ()) for s in p["PolicyDocument"]["Statement"]]
        for name, role in of_type(template, "AWS::IAM::Role").items()
    }
    for name, policy in of_type(template, "AWS::IAM::ManagedPolicy").items():
        found[name] = policy["PolicyDocument"]["Statement"]
    return found


def statements_of(template: Json, role: str) -> Iterator[Json]:
    """All statements of a role, its managed policies' too."""
    held = policies(template)
    yield from held[role]
    for policy in of_type(template, "AWS::IAM::Role")[role].get("ManagedPolicyArns", ()):
        if "Ref" in policy:
            yield from held[policy["Ref"]]


def actions_of(template: Json, role: str) -> set[str]:
    """What a role may do, as `service:Action`."""
    return {a for s in statements_of(template, role) for a in as_list(s["Action"])}
