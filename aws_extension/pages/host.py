"""What a host does for the pages: it knows where, and under which names, pictures are saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aws_extension.answers import InferenceJob, InferenceOutput


class Host(Protocol):
    """The program that shows the pages."""

    def save_pictures(
        self, job: InferenceJob, pictures: Sequence[bytes], output: InferenceOutput
    ) -> list[str]:
        """Save a finished job's files by the host's own rules; the paths that they got.

        `pictures` are the files as the cloud made them, in the order of `output.infotexts`.
        Raises CloudError with what to do, or OSError.
        """


@dataclass(frozen=True)
class FolderHost:
    """The stand-alone app: files go into one folder, named by their job."""

    folder: Path

    def save_pictures(
        self, job: InferenceJob, pictures: Sequence[bytes], output: InferenceOutput
    ) -> list[str]:
        """As they came, with the metadata that is in them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for number, content in enumerate(pictures):
            name = Path(job.image_names[number] if number < len(job.image_names) else "")
            path = self.folder / f"{job.id}-{number}{name.suffix or '.png'}"
            path.write_bytes(content)
            saved.append(str(path))
        return saved
