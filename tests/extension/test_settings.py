"""Where URL and token come from, and that the token stays there."""

from __future__ import annotations

import pytest

from aws_extension.errors import CloudError, NotConfigured
from aws_extension.settings import (
    Connection,
    SettingsStore,
    checked_url,
    default_store,
    embedded_connection,
)

URL = "https://abc.execute-api.eu-west-1.amazonaws.com/prod"


@pytest.fixture
def store(tmp_path):
    return default_store({}, tmp_path)


def test_what_is_saved_is_read_back_and_readable_by_its_owner_only(store):
    store.write(URL + "/", " secret-token ")
    assert store.read() == Connection(URL, "secret-token", "the saved settings")
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert any(part.startswith(".") for part in store.path.parts)
    assert "secret-token" not in repr(store.read())


def test_an_empty_token_keeps_the_saved_one_but_only_for_its_server(store):
    store.write(URL, "secret-token")
    store.write(URL, "")
    assert store.read().token == "secret-token"
    with pytest.raises(CloudError, match="token is missing"):
        store.write("https://elsewhere.example", "")


def test_the_environment_wins(store):
    store.write(URL, "saved")
    environ = {"SDAWS_API_URL": "http://127.0.0.1:9", "SDAWS_API_TOKEN": "of-the-environment"}
    fixed = SettingsStore(environ, store.path)
    assert fixed.is_fixed
    assert (fixed.read().api_url, fixed.read().token) == (
        "http://127.0.0.1:9",
        "of-the-environment",
    )


def test_a_saved_token_goes_to_no_other_server(store):
    store.write(URL, "saved")
    with pytest.raises(NotConfigured):
        SettingsStore({"SDAWS_API_URL": "http://127.0.0.1:9"}, store.path).read()


def test_nothing_configured_says_the_first_step(store):
    with pytest.raises(NotConfigured, match="Connection page"):
        store.read()


def test_the_embedded_server_is_found_by_its_token_file(tmp_path):
    assert embedded_connection(tmp_path) is None
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "api_token").write_text("made-by-serve\n")
    found = default_store({}, tmp_path / "home", embedded_connection(tmp_path)).read()
    assert (found.api_url, found.token) == ("http://127.0.0.1:8210", "made-by-serve")


def test_a_broken_file_is_named(store):
    store.folder.mkdir(parents=True)
    store.path.write_text("{")
    with pytest.raises(CloudError, match="Delete that file"):
        store.read()


@pytest.mark.parametrize(
    "text",
    ["", "abc", "ftp://host", "http://", "http://u:p@host", "http://host?x=1", "http://host:99999"],
)
def test_what_is_no_url_is_refused(text):
    with pytest.raises(CloudError, match="not a server's URL"):
        checked_url(text)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [(URL, False), ("http://127.0.0.1:8210", False), ("http://192.0.2.7:8210", True)],
)
def test_an_unencrypted_way_is_noticed(url, exposed):
    assert Connection(url, "t").is_exposed is exposed
