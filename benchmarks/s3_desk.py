"""`python -m benchmarks.s3_desk <url of an S3-compatible store> crc32|md5`: an upload's desk in
front of it, which asks for that checksum of each part.

The middleware's own adapter for S3 presigns the parts and puts them together, as it does on AWS;
the records, which would be DynamoDB's, are left out. Prints its own address, then serves.
"""

from __future__ import annotations

import json
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from botocore.config import Config

from middleware_api.aws.objects import S3Objects
from middleware_api.services.uploads import cut_into_parts

BUCKET = "weights"
URL_SECONDS = 3600


def s3_client(store_url: str) -> Any:
    """For a store on this machine, that takes any key."""
    return boto3.client(
        "s3",
        endpoint_url=store_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


class Desk:
    """One upload after the other; its key and id are the checkpoint's."""

    def __init__(self, store_url: str, checksum: str) -> None:
        self._objects = S3Objects(s3_client(store_url), BUCKET)
        self._checksum = checksum

    def begin(self, asked: Any) -> Any:
        """POST /checkpoint."""
        (file,) = asked["filenames"]
        count, part_size = cut_into_parts(file["size"], file["parts_number"])
        key = f"checkpoint/{uuid.uuid4()}"
        upload_id = self._objects.start_multipart(key)
        parts = [
            {"PartNumber": n, "url": self._objects.presigned_part(key, upload_id, n, URL_SECONDS)}
            for n in range(1, count + 1)
        ]
        plan = {"filename": file["filename"], "part_size": part_size, "parts": parts}
        return _answer(f"{key} {upload_id}", "Initial", [{**plan, "checksum": self._checksum}])

    def complete(self, asked: Any) -> Any:
        """PUT /checkpoint; the object goes at once, so that the store's memory does not grow."""
        key, upload_id = asked["checkpoint_id"].split(" ")
        (tags,) = asked["multi_parts_tags"].values()
        self._objects.complete_multipart(key, upload_id, tags)
        self._objects.delete(key)
        return _answer(asked["checkpoint_id"], "Active", [])


def _answer(checkpoint_id: str, state: str, plans: list[Any]) -> Any:
    checkpoint = {"id": checkpoint_id, "type": "VAE", "name": [], "status": state}
    return {"checkpoint": checkpoint, "s3PresignUrl": plans}


def main() -> None:
    """Prints the address, then serves until it is ended."""
    desk = Desk(*sys.argv[1:])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._send(desk.begin(self._asked()))

        def do_PUT(self) -> None:
            self._send(desk.complete(self._asked()))

        def _asked(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _send(self, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing is written per request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
