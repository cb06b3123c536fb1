"""What a host may answer to a download: its bytes, its pace, its parts and its names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from middleware_api.remote_files import FetchError, FetchInterrupted, FetchRefused, FileTooLarge
from tests.hostile_host import (
    DATE,
    ETAG,
    FILE,
    HERE,
    PATH,
    POLICY,
    Answer,
    Request,
    Wire,
    World,
    answer,
    head,
    hostile_world,
    redirect,
)


@pytest.fixture
def world() -> Iterator[World]:
    with hostile_world() as made:
        yield made


def bytes_until_the_end(world: World) -> tuple[list[bytes], FetchError]:
    """The chunks that came before the error."""
    chunks: list[bytes] = []
    try:
        with world.open(HERE) as download:
            chunks.extend(download.chunks())
    except FetchError as error:
        return chunks, error
    pytest.fail("the download came to an end")


@pytest.mark.parametrize("framing", ["none", "chunked"])
def test_a_body_that_never_ends_is_stopped_at_the_cap(world: World, framing: str) -> None:
    def endless(_: Request, wire: Wire) -> None:
        block = bytes(60_000)
        if framing == "chunked":
            wire.send(head(Transfer_Encoding="chunked"))
            wire.send_for_ever(b"%x\r\n%b\r\n" % (len(block), block))
        wire.send(head())
        wire.send_for_ever(block)

    world.host.answers[PATH] = endless
    chunks, error = bytes_until_the_end(world)
    assert isinstance(error, FileTooLarge)
    assert error.status == 413
    assert POLICY.max_bytes - 65_536 < sum(map(len, chunks)) <= POLICY.max_bytes
    assert max(map(len, chunks)) <= 65_536


def test_a_file_announced_above_the_cap_is_refused_before_its_first_byte(world: World) -> None:
    world.allow(max_bytes=len(FILE))
    world.host.answers[PATH] = answer()
    assert world.fetch(HERE)[1] == FILE
    world.allow(max_bytes=len(FILE) - 1)
    with pytest.raises(FileTooLarge, match=str(len(FILE) - 1)), world.open(HERE):
        pytest.fail("the download was opened")


def test_a_body_shorter_than_announced_is_no_finished_file(world: World) -> None:
    world.host.answers[PATH] = answer(FILE, Content_Length=len(FILE) + 1)
    chunks, error = bytes_until_the_end(world)
    assert isinstance(error, FetchInterrupted)
    assert b"".join(chunks) == FILE


def test_no_more_bytes_than_announced_are_handed_out(world: World) -> None:
    world.host.answers[PATH] = answer(FILE, Content_Length=1000)
    download, content = world.fetch(HERE)
    assert download.size == 1000
    assert content == FILE[:1000]


def chunked(body: bytes, **headers: Any) -> Answer:
    parts = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return lambda _, wire: wire.send(head(Transfer_Encoding="chunked", **headers), parts)


def test_chunks_are_held_against_an_announced_length_too(world: World) -> None:
    world.host.answers[PATH] = chunked(b"12345")
    download, content = world.fetch(HERE)
    assert (download.size, content) == (None, b"12345")
    world.host.answers[PATH] = chunked(b"12345", Content_Length=4)
    assert "more than the 4 bytes" in world.refusal(FetchRefused, HERE)
    world.host.answers[PATH] = chunked(b"12345", Content_Length=6)
    assert "5 of 6 bytes" in world.refusal(FetchInterrupted, HERE)


def test_a_connection_that_breaks_off_is_no_finished_file(world: World) -> None:
    def breaking(_: Request, wire: Wire) -> None:
        wire.send(head(Transfer_Encoding="chunked"), b"5\r\n12345\r\n")

    def resetting(_: Request, wire: Wire) -> None:
        wire.send(head(Content_Length=10), b"12345")
        wire.reset()

    def wordless(_: Request, wire: Wire) -> None:
        pass

    def babbling(_: Request, wire: Wire) -> None:
        wire.send(b"SSH-2.0-OpenSSH_9.2 secret\r\n\r\n")

    for hostile in (breaking, resetting, wordless, babbling):
        world.host.answers[PATH] = hostile
        assert "Try again" in world.refusal(FetchInterrupted, HERE)


def quick(world: World, read_seconds: float = 5, rate: int = 10_000) -> None:
    world.allow(read_seconds=read_seconds, slow_seconds=0.4, least_bytes_per_second=rate)


def test_a_slow_drip_ends(world: World) -> None:
    def dripping(_: Request, wire: Wire) -> None:
        wire.send(head(Content_Length=900_000))
        wire.send_for_ever(b"x", every=0.01)

    quick(world)
    world.host.answers[PATH] = dripping
    assert "too slow" in world.refusal(FetchInterrupted, HERE)


def test_a_fast_beginning_does_not_pay_for_a_drip(world: World) -> None:
    def slowing(_: Request, wire: Wire) -> None:
        wire.send(head(Content_Length=900_000), FILE)
        wire.send_for_ever(b"x", every=0.01)

    quick(world)
    world.host.answers[PATH] = slowing
    assert "too slow" in world.refusal(FetchInterrupted, HERE)


def test_headers_that_drip_end_too(world: World) -> None:
    def dripping(_: Request, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 200 OK\r\nX: ")
        wire.send_for_ever(b"x", every=0.01)

    quick(world)
    world.host.answers[PATH] = dripping
    assert "too slow" in world.refusal(FetchInterrupted, HERE)


def test_a_frame_that_drips_around_no_byte_ends_too(world: World) -> None:
    def dripping(_: Request, wire: Wire) -> None:
        wire.send(head(Transfer_Encoding="chunked"), b"5;extension=")
        wire.send_for_ever(b"x", every=0.01)

    quick(world)
    world.host.answers[PATH] = dripping
    assert "too slow" in world.refusal(FetchInterrupted, HERE)


def test_answers_before_the_answer_do_not_go_on_for_ever(world: World) -> None:
    quick(world)
    world.host.answers[PATH] = lambda _, wire: wire.send_for_ever(b"HTTP/1.1 100 Wait\r\n\r\n")
    assert "too slow" in world.refusal(FetchInterrupted, HERE)


def test_a_slow_host_that_is_fast_enough_is_waited_for(world: World) -> None:
    def steady(_: Request, wire: Wire) -> None:
        wire.send(head(Content_Length=6_000))
        for _turn in range(60):
            wire.closing.wait(0.01)
            wire.send(bytes(100))

    quick(world, rate=1_000)
    world.host.answers[PATH] = steady
    assert len(world.fetch(HERE)[1]) == 6_000


@pytest.mark.parametrize("beginning", [b"", head(Content_Length=10) + b"12345"])
def test_a_silent_host_is_not_waited_for(world: World, beginning: bytes) -> None:
    def silent(_: Request, wire: Wire) -> None:
        wire.send(beginning)
        wire.say_nothing()

    world.allow(read_seconds=0.1)
    world.host.answers[PATH] = silent
    assert "does not answer" in world.refusal(FetchInterrupted, HERE)


def test_the_time_that_the_caller_takes_is_not_the_hosts_delay(world: World) -> None:
    now = [0.0]
    world.clock = lambda: now[0]
    world.host.answers[PATH] = answer()
    with world.open(HERE) as download:
        now[0] += 1_000
        for _ in download.chunks():
            now[0] += 1_000
    assert now[0] > 2_000


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        ("204 No Content", FetchRefused, "HTTP 204"),
        ("206 Partial Content", FetchRefused, "HTTP 206"),
        ("400 Bad Request", FetchRefused, "HTTP 400"),
        ("401 Unauthorized", FetchRefused, "login or a token"),
        ("403 Forbidden", FetchRefused, "login or a token"),
        ("404 Not Found", FetchRefused, "no file"),
        ("410 Gone", FetchRefused, "no file"),
        ("408 Request Timeout", FetchInterrupted, "later"),
        ("416 Range", FetchRefused, "HTTP 416"),
        ("429 Too Many Requests", FetchInterrupted, "no more requests for now"),
        ("500 Internal Server Error", FetchInterrupted, "fault of its own"),
        ("503 Service Unavailable", FetchInterrupted, "later"),
    ],
)
def test_an_answer_without_the_file_says_what_to_do(
    world: World, status: str, kind: type[FetchError], advice: str
) -> None:
    world.host.answers[PATH] = answer(b"", status)
    message = world.refusal(kind, HERE)
    assert advice in message
    assert "http://weights.example/model.safetensors" in message


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml"])
def test_a_web_page_is_not_a_file(world: World, kind: str) -> None:
    world.host.answers[PATH] = answer(b"<html>Log in", Content_Type=kind)
    assert "login page" in world.refusal(FetchRefused, HERE)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_answer_is_refused_not_decoded(world: World, encoding: str) -> None:
    world.host.answers[PATH] = answer(Content_Encoding=encoding)
    assert "compressed" in world.refusal(FetchRefused, HERE)


def test_an_answer_that_says_it_is_not_compressed_is_taken(world: World) -> None:
    world.host.answers[PATH] = answer(Content_Encoding="identity", Content_Type="text/plain")
    assert world.fetch(HERE)[1] == FILE


def ranged(**headers: Any) -> Answer:
    """A host that resumes: the rest for the right validator, else the whole file."""

    def give(request: Request, wire: Wire) -> None:
        if request.headers.get("if-range") in (ETAG, DATE):
            begin = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {begin}-{len(FILE) - 1}/{len(FILE)}"
            body = FILE[begin:]
            answer(body, "206 Partial Content", Content_Range=span, **headers)(request, wire)
        else:
            answer(**headers)(request, wire)

    return give


def test_a_download_goes_on_where_it_stopped(world: World) -> None:
    world.host.answers["/start"] = redirect(PATH)
    world.host.answers[PATH] = ranged(ETag=ETAG)
    download, content = world.fetch("http://weights.example/start", 100_000, ETAG)
    assert content == FILE[100_000:]
    assert (download.offset, download.size, download.validator) == (100_000, len(FILE), ETAG)


def test_a_date_resumes_where_there_is_no_strong_etag(world: World) -> None:
    world.host.answers[PATH] = ranged(ETag='W/"v1"', Last_Modified=DATE)
    download, _ = world.fetch(HERE)
    assert download.validator == DATE
    world.host.answers[PATH] = ranged()
    download, content = world.fetch(HERE, 5, download.validator)
    assert (content, download.offset, download.validator) == (FILE[5:], 5, DATE)


@pytest.mark.parametrize("etag", ['"é"', '"' + "x" * 5_000 + '"', 'W/"weak"', ""])
def test_what_cannot_be_sent_back_is_no_validator(world: World, etag: str) -> None:
    world.host.answers[PATH] = answer(ETag=etag)
    assert world.fetch(HERE)[0].validator is None


def test_without_a_validator_the_download_starts_over(world: World) -> None:
    world.host.answers[PATH] = ranged()
    download, content = world.fetch(HERE, 100, None)
    assert (content, download.offset, download.validator) == (FILE, 0, None)
    assert "range" not in world.host.requests[0].headers


@pytest.mark.parametrize("etag", [ETAG, '"v2"'])
def test_a_host_that_ignores_the_range_gives_the_whole_file(world: World, etag: str) -> None:
    world.host.answers[PATH] = answer(ETag=etag)
    download, content = world.fetch(HERE, 100, ETAG)
    assert (content, download.offset, download.validator) == (FILE, 0, etag)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("206 Partial", {"ETag": '"v2"', "Content_Range": "bytes 100-255999/256000"}),
        ("206 Partial", {"Content_Range": "bytes 100-255999/256000"}),
        ("206 Partial", {"ETag": ETAG, "Content_Range": "bytes 0-255999/256000"}),
        ("206 Partial", {"ETag": ETAG, "Content_Range": "bytes 100-256000/256000"}),
        ("206 Partial", {"ETag": ETAG, "Content_Range": "bytes 100-99/256000"}),
        ("206 Partial", {"ETag": ETAG, "Content_Range": "bytes 100-255999/*"}),
        ("206 Partial", {"ETag": ETAG, "Content_Type": "multipart/byteranges"}),
        ("416 Range Not Satisfiable", {"Content_Range": "bytes */50"}),
    ],
)
def test_a_part_that_does_not_fit_is_not_joined(
    world: World, status: str, headers: dict[str, Any]
) -> None:
    def misfit(request: Request, wire: Wire) -> None:
        give = answer(FILE[100:], status, **headers) if "range" in request.headers else answer()
        give(request, wire)

    world.host.answers[PATH] = misfit
    download, content = world.fetch(HERE, 100, ETAG)
    assert (content, download.offset, download.size) == (FILE, 0, len(FILE))
    assert len(world.host.requests) == 2


def test_a_part_of_another_day_is_not_joined(world: World) -> None:
    def misfit(request: Request, wire: Wire) -> None:
        part: dict[str, Any] = {
            "Last_Modified": "today",
            "Content_Range": "bytes 100-255999/256000",
        }
        give = answer(FILE[100:], "206 Partial", **part) if "range" in request.headers else answer()
        give(request, wire)

    world.host.answers[PATH] = misfit
    assert world.fetch(HERE, 100, DATE)[1] == FILE


def test_a_part_that_ends_early_is_no_finished_file(world: World) -> None:
    part: dict[str, Any] = {"ETag": ETAG, "Content_Range": "bytes 100-199/256000"}
    world.host.answers[PATH] = answer(FILE[100:200], "206 Partial", **part)
    assert "200 of 256000" in world.refusal(FetchInterrupted, HERE, 100, ETAG)


def test_the_cap_counts_what_is_there_already(world: World) -> None:
    world.allow(max_bytes=len(FILE) - 1)
    world.host.answers[PATH] = ranged(ETag=ETAG)
    world.refusal(FileTooLarge, HERE, len(FILE) - 10, ETAG)


def named(world: World, disposition: str | None, *targets: str) -> str:
    """The name of a file reached by `targets`, one redirecting to the next."""
    for here, there in pairwise(targets):
        world.host.answers[here.partition("?")[0]] = redirect(there)
    headers: dict[str, Any] = {} if disposition is None else {"Content_Disposition": disposition}
    world.host.answers[targets[-1].partition("?")[0]] = answer(**headers)
    return world.fetch(f"http://weights.example{targets[0]}")[0].file_name


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="cute panda (v2).safetensors"', "cute panda (v2).safetensors"),
        ("attachment; FileName=panda.safetensors", "panda.safetensors"),
        ("attachment; filename*=UTF-8''%e7%86%8a%E7%8C%AB.safetensors", "熊猫.safetensors"),
        (
            "attachment; filename=\"plain.pt\"; filename*=utf-8''better.safetensors",
            "better.safetensors",
        ),
        ("attachment; filename*=iso-8859-1'en'caf%E9.pt; filename=plain.pt", "café.pt"),
        ('attachment; filename="熊猫.safetensors"', "熊猫.safetensors"),
        ("attachment", "download"),
    ],
)
def test_the_hosts_own_name_wins(world: World, disposition: str, name: str) -> None:
    assert named(world, disposition, "/download") == name


@pytest.mark.parametrize(
    "disposition",
    [
        'attachment; filename="../x"',
        'attachment; filename="..\\\\x"',
        'attachment; filename="/etc/passwd"',
        'attachment; filename="$(x)"',
        'attachment; filename="<img src=x>"',
        'attachment; filename=".bashrc"',
        'attachment; filename=" x"',
        'attachment; filename=""',
        "attachment; filename*=UTF-8''x%0Ay",
        "attachment; filename*=UTF-8''..%2Fx",
        "attachment; filename*=UTF-8''x%00",
        "attachment; filename*=UTF-8''%ff",
        "attachment; filename*=no-such-charset''..%2Fx",
        "attachment; filename*0=../; filename*1=x",
        f'attachment; filename="{"x" * 300}"',
        f'attachment; filename="{"熊" * 100}"',
    ],
)
def test_a_hostile_name_is_refused_not_mended(world: World, disposition: str) -> None:
    with pytest.raises(FetchRefused, match="no name that can be used"):
        named(world, disposition, "/model.safetensors")


def test_a_header_too_long_to_be_a_name_is_not_even_read(world: World) -> None:
    disposition = 'attachment; filename="' + ";" * 60_000
    began = time.monotonic()
    assert named(world, disposition, "/model.safetensors") == "model.safetensors"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        (("/a/model.safetensors",), "model.safetensors"),
        (("/a/my%20model.safetensors?x=y/z.pt",), "my model.safetensors"),
        (("/get?id=3", "/files/model.safetensors"), "model.safetensors"),
        (("/a/model.safetensors", "/blobs/0a1b2c"), "model.safetensors"),
        (("/first.pt", "/last.pt"), "last.pt"),
        (("/model.pt", "/blobs/%24(x).pt"), "model.pt"),
        (("/resolve/main", "/blobs/0a1b2c"), "0a1b2c"),
    ],
)
def test_without_the_hosts_own_name_the_path_gives_it(
    world: World, targets: tuple[str, ...], name: str
) -> None:
    assert named(world, None, *targets) == name


@pytest.mark.parametrize("target", ["/", "/a/", "/..%2Fx", "/x%0Ay", "/" + "x" * 300, "/%24(x)"])
def test_a_path_that_gives_no_name_is_refused(world: World, target: str) -> None:
    with pytest.raises(FetchRefused, match="no name that can be used"):
        named(world, None, target)
