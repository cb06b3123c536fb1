"""`aws s3 cp`, as it comes and tuned."""

from __future__ import annotations

from pathlib import Path

from benchmarks.timing import Took, run

# The best that was found for it: no signature of the body, no checksum, large parts.
TUNED = """[default]
s3 =
  max_concurrent_requests = 4
  multipart_chunksize = 64MB
  multipart_threshold = 64MB
  payload_signing_enabled = false
request_checksum_calculation = when_required
"""


class Aws:
    """The AWS CLI against the sink, or another store."""

    def __init__(self, url: str, folder: Path, target: str = "s3://b/k") -> None:
        self._url = url
        self._target = target
        self._config = folder / "aws.conf"

    def copy(self, source: Path, config: str = "", *options: str) -> Took:
        """`aws s3 cp` with a configuration."""
        self._config.write_text(config or "[default]\n")
        return run(
            ["aws", "s3", "cp", *options, "--endpoint-url", self._url, "--only-show-errors",
             str(source), self._target],
            AWS_CONFIG_FILE=str(self._config), AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
        )  # fmt: skip
