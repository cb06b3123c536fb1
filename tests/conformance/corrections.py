"""What is changed in the document's examples so that they are programs and JSON at all.

Everything else about them is run as it stands, mistakes in what they ask for included.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """One replacement in one printed block; `printed` must be there."""

    printed: str
    corrected: str
    reason: str

    def apply(self, text: str) -> str:
        """Raises ValueError where there is nothing to correct."""
        if self.printed not in text:
            raise ValueError(f"no longer printed: {self.printed!r}")
        return text.replace(self.printed, self.corrected)


_CONST = Correction("const inputBody", "inputBody", "a JavaScript word in Python")
_JSON_WORDS = Correction(
    "import requests", "import requests; true, false = True, False", "JSON's words in Python"
)

CODE: dict[tuple[str, str], list[Correction]] = {
    ("/inference/v2/{id}/run(PUT)", "python"): [_CONST, _JSON_WORDS],
    ("/dataset(POST)", "python"): [_CONST],
    ("/upload_checkpoint", "python"): [_CONST],
    ("/datasets(GET)", "javascript"): [
        Correction("{basePath}/prod/", "{basePath}/", "the stage twice: {basePath} is `prod`")
    ],
}

ANSWERS: dict[str, Correction] = {
    "/endpoints(DELETE)": Correction(
        "Endpoint deleted", '"Endpoint deleted"', "a JSON string without its quotation marks"
    ),
    "/inference/v2/{id}/run(PUT)": Correction("{ ... }", "{}", "left out, but an object"),
}
