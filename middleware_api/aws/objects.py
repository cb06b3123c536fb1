"""Objects in S3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from botocore.exceptions import ClientError

from middleware_api.aws.faults import error_code
from middleware_api.contract import PartChecksum, PartTag
from middleware_api.errors import NotFound
from middleware_api.multipart import require_parts
from middleware_api.ports import StoredObject, StoredPart

_ABSENT = frozenset({"404", "NoSuchKey"})


class S3Objects:
    """`ports.Objects` in the deployment's bucket, which encrypts by itself.

    A presigned URL ends with the credentials that signed it: on Lambda that may be hours before
    its own time. Whoever is refused asks for a fresh one.
    """

    # The one that S3 takes without having signed it: every x-amz-checksum-* would have to be
    # known when the URL is made.
    part_checksum: PartChecksum = "md5"
    # The event function has 15 minutes, of which it keeps 90 seconds: at 43 MB a second that is
    # so much, and as much as an import may have.
    hash_max_bytes: int | None = 32 * 1024**3

    def __init__(self, s3: Any, bucket: str) -> None:
        """`s3` is a boto3 client that signs by version 4."""
        self._s3 = s3
        self.bucket = bucket

    def write(self, key: str, content: bytes) -> None:
        """See `ports.Objects`."""
        self._s3.put_object(Bucket=self.bucket, Key=key, Body=content)

    def read(self, key: str) -> bytes:
        """See `ports.Objects`."""
        try:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            raise _no_object(error, key) from error
        content: bytes = answer["Body"].read()
        return content

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See `ports.Objects`."""
        if length == 0:  # S3 knows no such range
            return b""
        wanted = f"bytes={start}-{start + length - 1}"
        try:
            answer = self._s3.get_object(Bucket=self.bucket, Key=key, Range=wanted)
        except ClientError as error:
            if error_code(error) == "InvalidRange":  # it begins where the object ends, or behind
                return b""
            raise _no_object(error, key) from error
        content: bytes = answer["Body"].read()
        return content

    def size(self, key: str) -> int | None:
        """See `ports.Objects`."""
        try:
            head = self._s3.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error_code(error) in _ABSENT:
                return None
            raise
        size: int = head["ContentLength"]
        return size

    def delete(self, key: str) -> None:
        """See `ports.Objects`."""
        self._s3.delete_object(Bucket=self.bucket, Key=key)

    def delete_all(self, prefix: str) -> None:
        """See `ports.Objects`."""
        _require_folder(prefix)
        for page in self._pages(prefix):
            doomed = [{"Key": found["Key"]} for found in page]
            answer = self._s3.delete_objects(
                Bucket=self.bucket, Delete={"Objects": doomed, "Quiet": True}
            )
            for refused in answer.get("Errors", ()):
                raise ClientError({"Error": refused}, "DeleteObjects")

    def keys(self, prefix: str) -> list[str]:
        """See `ports.Objects`."""
        return list(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `ports.Objects`."""
        _require_folder(prefix)
        return {found["Key"]: found["Size"] for page in self._pages(prefix) for found in page}

    def presigned_get(self, key: str, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._presigned("get_object", seconds, Key=key)

    def presigned_put(self, key: str, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._presigned("put_object", seconds, Key=key)

    def start_multipart(self, key: str, part_size: int = 0) -> str:
        """See `ports.Objects`. S3 has no use for the promise."""
        upload_id: str = self._s3.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
        return upload_id

    def presigned_part(self, key: str, upload_id: str, number: int, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._presigned(
            "upload_part", seconds, Key=key, UploadId=upload_id, PartNumber=number
        )

    def write_part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        """See `ports.Objects`."""
        try:
            answer = self._s3.upload_part(
                Bucket=self.bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=content
            )
        except ClientError as error:
            raise _no_upload(error, upload_id) from error
        return _bare(answer["ETag"])

    def arrived_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """See `ports.Objects`."""
        pages = self._s3.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key=key, UploadId=upload_id
        )
        try:
            return [
                StoredPart(part["PartNumber"], _bare(part["ETag"]), part["Size"])
                for page in pages
                for part in page.get("Parts", ())
            ]
        except ClientError as error:
            raise _no_upload(error, upload_id) from error

    def complete_multipart(self, key: str, upload_id: str, tags: Iterable[PartTag]) -> StoredObject:
        """See `ports.Objects`. S3 does not hash: the object's sha256 is not known."""
        chosen = list(tags)
        if (size := self.size(key)) is not None:
            # We died between putting the object in place and saying so.
            self.abort_multipart(key, upload_id)
            return StoredObject(size, None)
        arrived = self.arrived_parts(key, upload_id)
        require_parts(arrived, chosen)
        self._s3.complete_multipart_upload(
            Bucket=self.bucket,
            Key=key,
            UploadId=upload_id,
            MultipartUpload={
                "Parts": [{"PartNumber": t["PartNumber"], "ETag": t["ETag"]} for t in chosen]
            },
        )
        numbers = {tag["PartNumber"] for tag in chosen}
        return StoredObject(sum(p.size for p in arrived if p.number in numbers), None)

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """See `ports.Objects`."""
        try:
            self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        except ClientError as error:
            if error_code(error) != "NoSuchUpload":
                raise

    def _presigned(self, operation: str, seconds: int, **parameters: object) -> str:
        url: str = self._s3.generate_presigned_url(
            operation, Params={"Bucket": self.bucket, **parameters}, ExpiresIn=seconds
        )
        return url

    def _pages(self, prefix: str) -> Iterator[list[dict[str, Any]]]:
        """Objects, at most 1,000 at a time, sorted by key as S3 lists them."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        for page in pages:
            if found := page.get("Contents"):
                yield found


def _require_folder(prefix: str) -> None:
    if not prefix.endswith("/"):
        raise ValueError(f"{prefix!r} does not end in '/': it would also match its neighbours")


def _no_object(error: ClientError, key: str) -> ClientError | NotFound:
    if error_code(error) not in _ABSENT:
        return error
    return NotFound(f"There is no object '{key}'.")


def _no_upload(error: ClientError, upload_id: str) -> ClientError | NotFound:
    if error_code(error) != "NoSuchUpload":
        return error
    return NotFound(f"There is no upload '{upload_id}', or it has ended.", "no_such_upload")


def _bare(etag: str) -> str:
    return etag.strip('"')
