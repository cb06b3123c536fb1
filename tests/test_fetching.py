"""Where a download may lead: every hop of it, against a host that means harm."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from middleware_api.fetching import Fetcher
from middleware_api.remote_files import (
    AddressRefused,
    FetchInterrupted,
    FetchRefused,
    UrlRefused,
    parse_url,
)
from tests.hostile_host import (
    ALSO_PUBLIC,
    ETAG,
    FILE,
    HERE,
    INSIDE,
    PATH,
    POLICY,
    PUBLIC,
    TOKEN,
    TRUSTED,
    Host,
    World,
    answer,
    hostile_world,
    redirect,
)


@pytest.fixture
def world() -> Iterator[World]:
    with hostile_world() as made:
        yield made


def test_a_file_arrives_whole_with_name_size_and_validator(world: World) -> None:
    world.host.answers[PATH] = answer(ETag=ETAG)
    download, content = world.fetch(HERE)
    assert content == FILE
    assert download.file_name == "model.safetensors"
    assert (download.size, download.validator, download.offset) == (len(FILE), ETAG, 0)
    (request,) = world.host.requests
    assert request.target == PATH + TOKEN
    assert request.headers["host"] == "weights.example"
    assert request.headers["accept-encoding"] == "identity"


def test_a_redirect_is_followed_without_cookies_and_without_where_it_came_from(
    world: World,
) -> None:
    world.names["store.example"] = [ALSO_PUBLIC]
    world.host.answers[PATH] = redirect("//store.example/b1?a=1", Set_Cookie="id=7")
    world.host.answers["/b1"] = answer()
    assert world.fetch(HERE)[1] == FILE
    assert world.internet.called == [PUBLIC, ALSO_PUBLIC]
    second = world.host.requests[1]
    assert second.target == "/b1?a=1"
    assert second.headers["host"] == "store.example"
    assert not {"cookie", "referer", "authorization"} & set(second.headers)


@pytest.mark.parametrize("status", ["301 Moved", "303 See", "307 Temporary", "308 Permanent"])
def test_every_kind_of_redirect_is_followed(world: World, status: str) -> None:
    world.host.answers[PATH] = redirect("/b", status)
    world.host.answers["/b"] = answer()
    assert world.fetch(HERE)[1] == FILE


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/" + TOKEN,
        "http://[::1]/" + TOKEN,
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00:ec2::254]/latest/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://127.0.0.1:8210/",
        "//inside.example/",
        "https://inside.example/",
    ],
)
def test_a_redirect_to_an_address_that_is_not_public_is_not_followed(
    world: World, target: str
) -> None:
    world.names["inside.example"] = [INSIDE]
    world.host.answers[PATH] = redirect(target)
    message = world.refusal(AddressRefused, HERE)
    assert "public" in message
    assert INSIDE not in message
    assert world.internet.called == [PUBLIC]


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://weights.example/model",
        "gopher://weights.example/",
        "http://me:secret@weights.example/",
        "http://weights.example:0/",
        "http://weights.example:65536/",
        "http://[::1/secret",
        "http://weights.example:secret/",
    ],
)
def test_what_is_not_a_url_of_the_web_is_neither_fetched_nor_followed(
    world: World, target: str
) -> None:
    world.host.answers[PATH] = redirect(target)
    assert world.refusal(UrlRefused, HERE)
    assert world.internet.called == [PUBLIC]
    assert world.refusal(UrlRefused, target + TOKEN)
    with pytest.raises(UrlRefused):
        parse_url(target)
    assert world.internet.called == [PUBLIC]


@pytest.mark.parametrize("text", ["", "model.safetensors", "http:", "http:///x", "http://./x"])
def test_a_url_without_a_host_is_refused(text: str) -> None:
    with pytest.raises(UrlRefused):
        parse_url(text)


def test_a_redirect_to_nowhere_is_refused(world: World) -> None:
    world.host.answers[PATH] = answer(b"", "302 Found")
    assert "redirect" in world.refusal(FetchRefused, HERE)
    assert world.host.asked() == [PATH]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://①②⑦.0.0.1/",
        "http://[::]/",
        "http://[0:0:0:0:0:ffff:7f00:1]/",
        "http://[fe80::1]/",
        "http://localhost./",
        "HTTP://LOCALHOST/",
    ],
)
def test_no_spelling_of_an_inner_address_is_called(world: World, url: str) -> None:
    world.names["localhost"] = ["127.0.0.1"]
    with pytest.raises((AddressRefused, UrlRefused)):
        world.fetch(url)
    assert world.internet.called == []


@pytest.mark.parametrize("url", ["http://2130706433/", "http://0x7f.1/", "http://127.0.0.1./"])
def test_an_odd_spelling_is_refused_for_the_address_that_it_means(world: World, url: str) -> None:
    assert "public internet" in world.refusal(AddressRefused, url)


def test_a_name_with_one_private_address_among_public_ones_is_not_called(world: World) -> None:
    world.names["weights.example"] = [PUBLIC, "::1", ALSO_PUBLIC]
    world.refusal(AddressRefused, HERE)
    assert world.internet.called == []


class Rebinding(World):
    """The name server turns hostile after `honest` answers."""

    honest = 1

    def resolve(self, host: str, port: int) -> list[tuple[Any, Any, Any, Any, tuple[Any, ...]]]:
        address = PUBLIC if self.honest > 0 else "127.0.0.1"
        self.honest -= 1
        return [(0, 0, 0, "", (address, port))]


def test_the_judged_address_is_called_even_if_the_name_means_another_by_then(world: World) -> None:
    rebinding = Rebinding(world.host, world.internet)
    world.host.answers[PATH] = answer()
    assert rebinding.fetch(HERE)[1] == FILE
    assert world.internet.called == [PUBLIC]


def test_a_name_is_judged_again_at_each_hop(world: World) -> None:
    rebinding = Rebinding(world.host, world.internet)
    world.host.answers[PATH] = redirect("/again")
    world.host.answers["/again"] = answer()
    rebinding.refusal(AddressRefused, HERE)
    assert world.internet.called == [PUBLIC]


def test_the_next_address_is_tried_when_one_is_dead(world: World) -> None:
    world.names["weights.example"] = [PUBLIC, PUBLIC, ALSO_PUBLIC]
    world.internet.dead = {PUBLIC}
    world.host.answers[PATH] = answer()
    assert world.fetch(HERE)[1] == FILE
    assert world.internet.called == [PUBLIC, ALSO_PUBLIC]


def test_a_host_that_takes_no_connection_may_take_one_later(world: World) -> None:
    world.internet.dead = {PUBLIC}
    assert "takes no connection" in world.refusal(FetchInterrupted, HERE)


@pytest.mark.parametrize("host", ["nowhere.example", "a..b", "a" * 64 + ".example"])
def test_a_host_that_does_not_exist_is_a_wrong_link(world: World, host: str) -> None:
    assert "spelling" in world.refusal(AddressRefused, f"http://{host}/x{TOKEN}")


def test_a_name_without_addresses_does_not_exist(world: World) -> None:
    world.names["weights.example"] = []
    assert "spelling" in world.refusal(AddressRefused, HERE)


def test_a_name_server_that_does_not_answer_may_answer_later(world: World) -> None:
    def busy(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    with pytest.raises(FetchInterrupted), Fetcher(POLICY, busy).open(HERE):
        pass


def test_this_machine_is_fetched_from_only_when_the_policy_names_it(world: World) -> None:
    world.host.answers["/nas.safetensors"] = answer()
    url = f"http://127.0.0.1:{world.host.port}/nas.safetensors"
    with pytest.raises(AddressRefused), Fetcher(POLICY).open(url):
        pass
    assert world.host.requests == []
    named = Fetcher(replace(POLICY, allowed_hosts=frozenset({"127.0.0.1"})))
    with named.open(url) as download:
        assert b"".join(download.chunks()) == FILE


def test_an_allowed_name_has_many_spellings_and_opens_no_other_host(world: World) -> None:
    world.names |= {"nas.local": [INSIDE], "nas.local.evil.example": [INSIDE]}
    world.allow(allowed_hosts=frozenset({"NAS.local."}))
    world.host.answers[PATH] = answer()
    assert world.fetch(f"http://Nas.Local.{PATH}")[1] == FILE
    assert world.host.requests[0].headers["host"] == "nas.local"
    world.refusal(AddressRefused, f"http://nas.local.evil.example{PATH}")
    world.refusal(AddressRefused, f"http://{INSIDE}{PATH}")
    assert world.internet.called == [INSIDE]


def test_an_allowed_host_opens_nothing_behind_its_redirects(world: World) -> None:
    world.names["nas.local"] = [INSIDE]
    world.allow(allowed_hosts=frozenset({"nas.local"}))
    world.host.answers[PATH] = redirect(f"http://{INSIDE}/admin")
    world.refusal(AddressRefused, f"http://nas.local{PATH}")
    assert world.internet.called == [INSIDE]


def test_a_numeric_ipv6_host_is_called_in_brackets(world: World) -> None:
    world.host.answers[PATH] = answer()
    assert world.fetch(f"http://[2606:4700::1111]:8080{PATH}")[1] == FILE
    assert world.internet.called == ["2606:4700::1111"]
    assert world.host.requests[0].headers["host"] == "[2606:4700::1111]:8080"


def test_a_proxy_of_the_environment_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    world.host.answers[PATH] = answer()
    assert world.fetch(HERE)[1] == FILE
    assert world.internet.called == [PUBLIC]


def test_five_redirects_are_followed_and_a_loop_ends(world: World) -> None:
    for number in range(5):
        world.host.answers[f"/{number}"] = redirect(f"/{number + 1}{TOKEN}")
    world.host.answers["/5"] = answer()
    assert world.fetch("http://weights.example/0")[1] == FILE
    world.host.requests.clear()
    world.host.answers["/5"] = redirect(f"/0{TOKEN}")
    assert "5 times" in world.refusal(FetchRefused, "http://weights.example/0" + TOKEN)
    assert world.host.asked() == ["/0", "/1", "/2", "/3", "/4", "/5"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_tls_verifies_the_name_though_an_address_is_called(world: World, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=weights.example"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=DNS:weights.example"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    host = Host(serving)
    host.answers[PATH] = answer()
    world.internet.port = host.port
    world.names["other.example"] = [PUBLIC]
    world.tls = ssl.create_default_context(cafile=str(certificate))
    try:
        assert world.fetch(f"https://weights.example.{PATH}")[1] == FILE
        assert world.internet.called == [PUBLIC]
        message = world.refusal(FetchRefused, f"https://other.example{PATH}{TOKEN}")
        assert "certificate" in message
        world.tls = TRUSTED
        assert "certificate" in world.refusal(FetchRefused, f"https://weights.example{PATH}")
    finally:
        host.stop()
