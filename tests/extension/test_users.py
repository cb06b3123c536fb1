"""Users of a shared host are told apart, and the cloud is told for whom each call is."""

from __future__ import annotations

import re

import gradio as gr
import pytest

from aws_extension import access as access_module
from aws_extension.access import CloudAccess
from aws_extension.errors import CloudError
from aws_extension.fake_transport import FakeAnswer, FakeTransport
from aws_extension.pages.common import BROWSER_COOKIE, user_of
from aws_extension.settings import SettingsStore
from middleware_api.contract import ON_BEHALF_HEADER
from tests.extension.conftest import TOKEN, URL

KEY = "0123456789abcdef" * 2
ALLOWED = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def queued(cookie: str | None = None, username: str | None = None) -> gr.Request:
    """A request as gradio's queue hands it to a page."""
    return gr.Request(username=username, headers={"cookie": cookie} if cookie else {})


def access_of(tmp_path, transport: FakeTransport) -> CloudAccess:
    environ = {"SDAWS_API_URL": URL, "SDAWS_API_TOKEN": TOKEN}
    return CloudAccess(SettingsStore(environ, tmp_path / "connection.json"), transport)


def test_a_login_wins_over_the_browsers_cookie():
    assert user_of(queued(f"{BROWSER_COOKIE}={KEY}", "alice")) == "user-alice"


def test_names_that_the_cloud_does_not_take_become_a_hash():
    made = [user_of(queued(username=name)) for name in ("Łucja Nowak", "a" * 70, "x\ny")]
    assert all(ALLOWED.fullmatch(name) for name in made)
    assert len(set(made)) == 3


def test_a_browser_is_known_by_a_hash_of_its_cookie():
    mine = user_of(queued(f"theme=dark; {BROWSER_COOKIE}={KEY}; x=1"))
    assert mine == user_of(queued(f"{BROWSER_COOKIE}={KEY}"))
    assert mine != user_of(queued(f"{BROWSER_COOKIE}={KEY[::-1]}"))
    assert ALLOWED.fullmatch(mine)
    assert KEY not in mine


@pytest.mark.parametrize(
    "cookie", [None, "other=1", f"{BROWSER_COOKIE}=short", f"x{BROWSER_COOKIE}={KEY}"]
)
def test_a_browser_that_cannot_be_told_apart_is_refused(cookie):
    with pytest.raises(CloudError, match="Allow cookies"):
        user_of(queued(cookie))


def test_each_users_client_says_for_whom_it_calls(tmp_path):
    transport = FakeTransport(lambda sent: FakeAnswer(body=[]))
    access = access_of(tmp_path, transport)
    for user in ("user-alice", "user-bob", ""):
        access.client(user).list_jobs()
    told = [sent.headers.get(ON_BEHALF_HEADER) for sent in transport.sent]
    assert told == ["user-alice", "user-bob", None]
    assert access.client("user-alice") is access.client("user-alice")


def test_clients_of_users_long_gone_are_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(access_module, "CLIENTS_KEPT", 2)
    access = access_of(tmp_path, FakeTransport(lambda sent: FakeAnswer(body=[])))
    first = access.client("user-1")
    access.client("user-2")
    access.client("user-3")
    assert access.client("user-1") is not first
