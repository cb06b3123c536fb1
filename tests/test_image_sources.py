"""The inference image is built from some of the repository's files: none that they need is missing.

`make check-deploy` starts its program from them; this only reads what they import.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path

from middleware_api.deploy.package import build_image_sources


def ours(source: str) -> Iterator[str]:
    """The modules of ours, or names in them, that a module's source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("middleware_api"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_everything_that_the_container_imports_of_ours_is_there(tmp_path: Path) -> None:
    build_image_sources(tmp_path)
    sources = zipfile.ZipFile(tmp_path / "image.zip")
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name in sources.namelist()
        if name.endswith(".py")
    }
    missing = {
        f"{module}: {imported}"
        for module, name in modules.items()
        for imported in ours(sources.read(name).decode())
        # Either a module itself, or a name in one.
        if imported not in modules and imported.rpartition(".")[0] not in modules
    }
    assert missing == set()
