"""`python -m middleware_api.deploy.routes` writes the routes of template.yaml.

They come from the service's own OpenAPI document; a test fails when they are stale.
API Gateway refuses what its definition does not name, and a path with `ANY` is dropped by some
tools that read templates: each route stands there with its methods.
"""

from __future__ import annotations

import re
from typing import Any

from middleware_api.api.reference import service_description
from middleware_api.deploy.package import TEMPLATE

# The two routes that describe the API and are not in its own description.
_DESCRIPTION = {"/docs": ["get"], "/openapi.json": ["get"]}

_BEGIN, _END = "        # routes: begin\n", "        # routes: end\n"
_PATH_PARAMETER = re.compile(r"\{(\w+)\}")
_INTEGRATION = """\
              x-amazon-apigateway-integration:
                type: aws_proxy
                httpMethod: POST
                uri: !Sub >-
                  arn:${AWS::Partition}:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/${ApiFunction.Arn}/invocations
"""


def routes(description: dict[str, Any]) -> dict[str, list[str]]:
    """Paths and their methods: all that the gateway has to know."""
    described = {path: sorted(methods) for path, methods in description["paths"].items()}
    return dict(sorted({**described, **_DESCRIPTION}.items()))


def with_routes(template: str, description: dict[str, Any]) -> str:
    """The template's text with its routes written anew."""
    before, rest = template.split(_BEGIN)
    _, after = rest.split(_END)
    lines = ["        paths:\n"]
    for path, methods in routes(description).items():
        lines.append(f"          {path}:\n")
        if names := _PATH_PARAMETER.findall(path):
            lines.append("            parameters:\n")
            lines += [
                f"              - {{name: {name}, in: path, required: true, "
                "schema: {type: string}}\n"
                for name in names
            ]
        for method in methods:
            lines += [f"            {method}:\n", "              responses: {}\n", _INTEGRATION]
    return before + _BEGIN + "".join(lines) + _END + after


if __name__ == "__main__":
    TEMPLATE.write_text(with_routes(TEMPLATE.read_text(), service_description()))
