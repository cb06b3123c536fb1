"""Reading JSON bodies: what Python's parser lets pass and JSON does not is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """A request whose `json()` refuses NaN, infinities and nesting without end."""

    async def json(self) -> Any:
        """The body's value. Raises RequestValidationError."""
        if not hasattr(self, "_value"):
            self._value = parse_json(await self.body())
        return self._value


class StrictRoute(APIRoute):
    """A route that reads its body by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            strict_request = StrictRequest(request.scope, request.receive)
            # Here, because FastAPI turns whatever is raised while it reads a body into a 400.
            if await strict_request.body():
                await strict_request.json()
            return await handler(strict_request)

        return strict


def parse_json(body: bytes) -> Any:
    """The value of a JSON document. Raises RequestValidationError, which says where it fails."""
    try:
        value = json.loads(body, parse_constant=_refuse, parse_float=_finite)
        if b"\\u" in body or b"\xed" in body:  # else it can hold no half of a character
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        raise _invalid("half of a surrogate pair is no character") from error
    except RecursionError as error:
        raise _invalid("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise _invalid(str(error)) from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond a number's range")
    return number


def _invalid(message: str) -> RequestValidationError:
    error = {"loc": ("body",), "msg": f"Not JSON: {message}", "type": "json_invalid"}
    return RequestValidationError([error])
