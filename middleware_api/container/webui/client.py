"""The WebUI's HTTP API (1.10.1, `/sdapi/v1`) as the engine calls it, its errors in our words."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from middleware_api.container.errors import BadRequest, EngineDown, EngineFailed

ANSWER_SECONDS = 5.0
"""What any short question may take; the WebUI answers most in milliseconds."""

HUNG_SECONDS = 90.0
"""So long may it answer nothing at all while it works: loading a checkpoint can hold it up."""

WATCH_SECONDS = 0.5
END_SECONDS = 3.0
"""A connection breaks before the process behind it has ended."""

_PROBE = "/sdapi/v1/latent-upscale-modes"  # short, and asks nothing of the GPU


class Hung(EngineFailed):
    """It has taken work, and answers nothing any more."""


class NoSuchRoute(EngineFailed):
    """It answers, and has nothing there."""


class WebUiClient:
    """One WebUI. `credentials` are those of its `--api-auth`, "" without one.

    `why_gone` says more of one that does not answer, where we know more; it may wait some seconds
    for that.
    """

    def __init__(
        self, url: str, credentials: str = "", why_gone: Callable[[float], str] = lambda seconds: ""
    ) -> None:
        self.url = url
        user, _, password = credentials.partition(":")
        self._auth = httpx.BasicAuth(user, password) if credentials else None
        self._why_gone = why_gone
        self._answered = time.monotonic()
        # Reading the system's authorities takes longer than a short answer: once, if at all.
        self._tls = (
            httpx.create_ssl_context()
            if url.startswith("https:")
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )
        self._http = httpx.Client(
            base_url=url,
            auth=self._auth,
            timeout=ANSWER_SECONDS,
            verify=self._tls,
            trust_env=False,
        )

    def close(self) -> None:
        """Whatever still waits for an answer gets none."""
        self._http.close()

    def get(self, path: str) -> Any:
        """Raises BadRequest, EngineFailed, EngineDown."""
        return self._short("GET", path)

    def post(self, path: str, body: object = None) -> Any:
        """A question that is answered at once; raises what `get` does."""
        return self._short("POST", path, body)

    def probe(self, seconds: float | None = None) -> None:
        """Raises EngineDown when it cannot take work: nobody answers, or refuses us."""
        try:
            self._read("GET", _PROBE, self._http.get(_PROBE, timeout=seconds or ANSWER_SECONDS))
        except (httpx.HTTPError, BadRequest, EngineFailed) as error:
            if isinstance(error, httpx.HTTPError):
                raise self._gone(error) from error
            raise EngineDown(str(error)) from error

    def silent_seconds(self) -> float:
        """How long ago it last answered anything."""
        return time.monotonic() - self._answered

    def work(self, path: str, body: object, watch: Callable[[], None], method: str = "POST") -> Any:
        """A call that takes as long as it takes, behind whatever else the WebUI is doing.

        `watch` is called twice a second and may raise to give up, which hangs up. Raises what
        `get` does; EngineFailed too when the WebUI ends over it or answers nothing any more.
        """
        return asyncio.run(self._work(method, path, body, watch))

    async def _work(self, method: str, path: str, body: object, watch: Callable[[], None]) -> Any:
        timeout = httpx.Timeout(None, connect=ANSWER_SECONDS)
        async with httpx.AsyncClient(
            base_url=self.url,
            auth=self._auth,
            timeout=timeout,
            verify=self._tls,
            trust_env=False,
        ) as http:
            call = asyncio.ensure_future(http.request(method, path, json=body))
            try:
                self._answered = time.monotonic()  # it may have had nothing to answer for hours
                while not (await asyncio.wait({call}, timeout=WATCH_SECONDS))[0]:
                    watch()
                    self._expect_life()
                answer = call.result()
            except httpx.HTTPError as error:
                gone = self._gone(error, END_SECONDS)
                raise EngineFailed(f"{gone} It was at work on this job.") from error
            finally:
                call.cancel()
        return self._read(method, path, answer)

    def _expect_life(self) -> None:
        if self.silent_seconds() > HUNG_SECONDS / 2:
            with suppress(EngineDown):
                self.probe()
        if self.silent_seconds() > HUNG_SECONDS:
            raise Hung(
                f"The WebUI at {self.url} has answered nothing for {HUNG_SECONDS:.0f} s: it hangs. "
                "Restart it if it is not this worker's own, then run the job again."
            )

    def _short(self, method: str, path: str, body: object = None) -> Any:
        try:
            return self._read(method, path, self._http.request(method, path, json=body))
        except httpx.HTTPError as error:
            raise self._gone(error) from error

    def _gone(self, error: httpx.HTTPError, seconds: float = 0.0) -> EngineDown:
        why = self._why_gone(seconds) or f"{type(error).__name__}: {error}".rstrip(": ")
        return EngineDown(f"The WebUI at {self.url} does not answer ({why}).")

    def _read(self, method: str, path: str, answer: httpx.Response) -> Any:
        self._answered = time.monotonic()
        if answer.is_success:
            try:
                return answer.json()
            except ValueError as error:
                raise EngineFailed(
                    f"{method} {path} at {self.url} did not answer JSON. Is it a WebUI?"
                ) from error
        status, reason = answer.status_code, _reason(answer)
        if status in (401, 403):
            raise EngineFailed(
                f"The WebUI at {self.url} refuses our credentials ({status}). Put those of its "
                "--api-auth into SDAWS_WEBUI_AUTH, as user:password."
            )
        if status == 404 and reason == "Not Found":
            raise NoSuchRoute(
                f"The WebUI at {self.url} has no {path}. Start it with --api; it must be 1.10.1 "
                "or as good, with the extension that this belongs to."
            )
        if status < 500 and not answer.is_redirect:
            raise BadRequest(f"The WebUI refuses this ({status}): {reason}", "webui_refused")
        raise EngineFailed(f"The WebUI failed at this ({status}): {reason}")


def _reason(answer: httpx.Response) -> str:
    """What its error bodies say, in a line; those of FastAPI list the fields that do not fit."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text[:500] or answer.reason_phrase
    if not isinstance(body, dict):
        return json.dumps(body)[:500]
    detail = body.get("detail")
    if isinstance(detail, list):
        return "; ".join(_field(entry) for entry in detail)
    if detail:
        return str(detail)
    kind, words = str(body.get("error") or ""), str(body.get("errors") or "")
    return ": ".join(part for part in (kind, words) if part) or answer.reason_phrase


def _field(entry: object) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    where = ".".join(str(part) for part in entry.get("loc", ()) if part != "body")
    return f"{where}: {entry.get('msg', '')}"
