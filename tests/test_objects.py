"""What any adapter of `ports.Objects` must do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from botocore.stub import Stubber
from fastapi import FastAPI
from fastapi.testclient import TestClient

from middleware_api.aws.clients import Clients
from middleware_api.aws.objects import S3Objects
from middleware_api.contract import PART_MIN_BYTES, PartTag
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.server import objects_router
from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import Objects
from tests.aws import BUCKET, REGION, aws

FULL_PART = b"p" * PART_MIN_BYTES


class Store:
    """An adapter, and a caller who follows the URLs that it signs."""

    def __init__(self, objects: Objects, caller: TestClient | requests.Session) -> None:
        self.objects = objects
        self._caller = caller

    def get(self, url: str) -> tuple[int, bytes]:
        answer = self._caller.get(url)
        return answer.status_code, answer.content

    def put(self, url: str, content: bytes) -> tuple[int, str]:
        body = {"content": content} if isinstance(self._caller, TestClient) else {"data": content}
        answer = self._caller.put(url, **body)
        return answer.status_code, answer.headers.get("ETag", "")


@pytest.fixture(params=["embedded", "aws"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "embedded":
        folder = FolderObjects(tmp_path, b"signing key", "http://testserver", time.time)
        app = FastAPI()
        app.include_router(objects_router(folder))
        yield Store(folder, TestClient(app))
    else:
        with aws() as account, requests.Session() as session:
            yield Store(S3Objects(Clients(account.session).s3, BUCKET), session)


def send(store: Store, key: str, upload_id: str, number: int, content: bytes) -> PartTag:
    status, etag = store.put(store.objects.presigned_part(key, upload_id, number, 60), content)
    assert status == 200
    return PartTag(PartNumber=number, ETag=etag)


def test_an_object_comes_back_as_it_was_written(store: Store) -> None:
    store.objects.write("out/a/picture.png", b"one")
    store.objects.write("out/a/picture.png", b"another")
    assert store.objects.read("out/a/picture.png") == b"another"
    assert store.objects.size("out/a/picture.png") == 7
    assert store.objects.size("out/a/none.png") is None
    with pytest.raises(NotFound):
        store.objects.read("out/a/none.png")


def test_a_piece_of_an_object_is_read_alone(store: Store) -> None:
    store.objects.write("out/a/weights", b"0123456789")
    pieces = [(0, 8), (8, 1), (8, 100), (10, 5), (99, 1), (3, 0)]
    read = [store.objects.read_range("out/a/weights", *piece) for piece in pieces]
    assert read == [b"01234567", b"8", b"89", b"", b"", b""]
    with pytest.raises(NotFound):
        store.objects.read_range("out/a/none", 0, 8)


def test_one_object_is_deleted_and_not_its_neighbour(store: Store) -> None:
    for key in ("out/a/m.pt", "out/a/m.pt.old"):
        store.objects.write(key, b"x")
    store.objects.delete("out/a/m.pt")
    store.objects.delete("out/a/m.pt")
    assert store.objects.keys("out/a/") == ["out/a/m.pt.old"]


def test_names_that_artists_give(store: Store) -> None:
    for name in ("straße é 日本.safetensors", "a+b [1] (c).txt", "b."):
        key = f"dataset/{name}"
        store.objects.write(key, name.encode())
        assert store.get(store.objects.presigned_get(key, 60)) == (200, name.encode())
    sizes = store.objects.sizes("dataset/")
    assert sorted(sizes) == store.objects.keys("dataset/")
    assert len(sizes) == 3
    assert sizes["dataset/b."] == 2


def test_what_is_below_a_prefix_is_listed_and_deleted_and_nothing_else(store: Store) -> None:
    for key in ("out/1/b", "out/1/a", "out/1/deep/c", "out/10/d"):
        store.objects.write(key, b"x")
    assert store.objects.keys("out/1/") == ["out/1/a", "out/1/b", "out/1/deep/c"]
    store.objects.delete_all("out/1/")
    store.objects.delete_all("out/1/")
    assert store.objects.keys("out/") == ["out/10/d"]
    assert store.objects.keys("nothing/") == []


def test_a_signed_url_allows_one_act_on_one_object(store: Store) -> None:
    url = store.objects.presigned_put("dataset/a.png", 60)
    assert store.put(url, b"picture")[0] == 200
    assert store.get(store.objects.presigned_get("dataset/a.png", 60)) == (200, b"picture")


def test_parts_become_an_object(store: Store) -> None:
    objects = store.objects
    upload = objects.start_multipart("Lora/checkpoint/1/a.safetensors")
    key = "Lora/checkpoint/1/a.safetensors"
    second = send(store, key, upload, 2, b"end")
    assert [(p.number, p.size) for p in objects.arrived_parts(key, upload)] == [(2, 3)]
    first = PartTag(PartNumber=1, ETag=objects.write_part(key, upload, 1, FULL_PART))
    assert objects.size(key) is None
    whole = objects.complete_multipart(key, upload, [first, second])
    assert whole.size == PART_MIN_BYTES + 3
    assert objects.read(key) == FULL_PART + b"end"
    # Whoever died before noting it asks again.
    assert objects.complete_multipart(key, upload, [first, second]).size == whole.size
    with pytest.raises(NotFound):
        objects.arrived_parts(key, upload)


def test_an_object_is_made_of_exactly_the_parts_that_are_named(store: Store) -> None:
    objects, key = store.objects, "VAE/checkpoint/1/b.pt"
    upload = objects.start_multipart(key)
    old = send(store, key, upload, 1, FULL_PART)
    new = send(store, key, upload, 1, FULL_PART[:-1] + b"n")
    short = send(store, key, upload, 2, b"short")
    third = send(store, key, upload, 3, b"end")
    with pytest.raises(Conflict, match="Part 1 has the ETag"):
        objects.complete_multipart(key, upload, [old, third])
    with pytest.raises(Conflict, match="Part 4 has not arrived"):
        objects.complete_multipart(key, upload, [new, PartTag(PartNumber=4, ETag="x")])
    with pytest.raises(Conflict, match="Part 2 has 5 bytes"):
        objects.complete_multipart(key, upload, [new, short, third])
    with pytest.raises(Conflict, match="must rise"):
        objects.complete_multipart(key, upload, [third, new])
    assert objects.complete_multipart(key, upload, [new, third]).size == PART_MIN_BYTES + 3


def test_parts_of_a_promised_size_come_in_any_order_and_again(store: Store) -> None:
    objects, key = store.objects, "VAE/checkpoint/1/d.pt"
    upload = objects.start_multipart(key, PART_MIN_BYTES)
    third = send(store, key, upload, 3, b"end")
    first = send(store, key, upload, 1, FULL_PART)
    send(store, key, upload, 2, b"q" * PART_MIN_BYTES)
    second = send(store, key, upload, 2, b"r" * PART_MIN_BYTES)
    whole = objects.complete_multipart(key, upload, [first, second, third])
    content = FULL_PART + b"r" * PART_MIN_BYTES + b"end"
    assert objects.read(key) == content
    assert (whole.size, whole.sha256) in [
        (len(content), sha256) for sha256 in (None, hashlib.sha256(content).hexdigest())
    ]


def test_a_promise_of_size_that_was_not_kept_costs_nothing(store: Store) -> None:
    """Fewer parts than there could be, and all of them where others would lie."""
    objects, key = store.objects, "VAE/checkpoint/1/e.pt"
    upload = objects.start_multipart(key, PART_MIN_BYTES + 1)
    first = send(store, key, upload, 1, FULL_PART)
    third = send(store, key, upload, 3, b"end")
    assert objects.complete_multipart(key, upload, [first, third]).size == PART_MIN_BYTES + 3
    assert objects.read(key) == FULL_PART + b"end"


def test_an_upload_that_was_given_up_is_gone(store: Store) -> None:
    objects, key = store.objects, "VAE/checkpoint/1/c.pt"
    upload = objects.start_multipart(key)
    tag = send(store, key, upload, 1, b"content")
    objects.abort_multipart(key, upload)
    objects.abort_multipart(key, upload)
    with pytest.raises(NotFound):
        objects.complete_multipart(key, upload, [tag])
    assert objects.size(key) is None


def test_a_late_part_is_refused_in_words() -> None:
    """moto answers an unknown upload with a fault of its own."""
    with aws() as account:
        s3 = Clients(account.session).s3
        with Stubber(s3) as stub:
            stub.add_client_error("upload_part", "NoSuchUpload", http_status_code=404)
            with pytest.raises(NotFound, match="has ended"):
                S3Objects(s3, BUCKET).write_part("VAE/checkpoint/1/c.pt", "gone", 1, b"late")


def test_urls_name_the_regions_own_host() -> None:
    with aws() as account:
        url = S3Objects(Clients(account.session).s3, BUCKET).presigned_get("out/a.png", 60)
    assert url.startswith(f"https://{BUCKET}.s3.{REGION}.amazonaws.com/out/a.png?")
