"""Settings of the embedded server, read once and passed in."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from middleware_api.services.imports import FILE_MAX_BYTES

TOKEN_MIN_LENGTH = 20
IMPORT_MAX_BYTES = 32 * 1024**3
# Each takes its libraries' memory (0.4 GB) before any weights.
MAX_WORKERS = 12
# The bound of SageMaker's training jobs too.
TRAIN_SECONDS = 24 * 3600
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class SettingsError(Exception):
    """A setting that cannot work; the message says which and what to do."""


@dataclass(frozen=True)
class Settings:
    """What `python -m middleware_api serve` runs with.

    `token_path` is where the token was read from or written to; None when it came from the
    environment. `port` 0 picks a free one. All endpoints together have at most `max_workers`
    instances. Checkpoints may be imported from public hosts and from
    `import_hosts`, wherever those are, in files of up to `import_max_bytes`. `max_trainings`
    training jobs run at once, each for `train_seconds` at most.
    """

    host: str
    port: int
    data_dir: Path
    api_token: str
    token_path: Path | None
    job_seconds: float
    max_workers: int = MAX_WORKERS
    import_hosts: frozenset[str] = frozenset()
    import_max_bytes: int = IMPORT_MAX_BYTES
    train_seconds: float = TRAIN_SECONDS
    max_trainings: int = 1

    @property
    def signing_key_path(self) -> Path:
        """Secret that signs object URLs."""
        return self.data_dir / "url_signing_key"


def read_settings(environment: Mapping[str, str], **options: str | None) -> Settings:
    """Options win over `SDAWS_*` variables, those over defaults. Raises SettingsError.

    Makes the data directory (mode 0700), and a token in it when none is given.
    """

    def value(name: str, default: str) -> str:
        return options.get(name) or environment.get(f"SDAWS_{name.upper()}") or default

    host = value("host", "127.0.0.1")
    port = _number("SDAWS_PORT", value("port", "8210"), 0, 65535)
    data_dir = Path(value("data_dir", "var")).absolute()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The data directory {data_dir} cannot be made ({error.strerror}). Choose another "
            "with --data-dir or SDAWS_DATA_DIR."
        ) from error
    token = environment.get("SDAWS_API_TOKEN", "")
    token_path = None
    if not token:
        token_path = data_dir / "api_token"
        token = secret_in_file(token_path)
    if not is_loopback(host) and len(token) < TOKEN_MIN_LENGTH:
        raise SettingsError(
            f"Binding to {host} lets other machines in, and the token has only {len(token)} "
            f"characters. Set SDAWS_API_TOKEN to at least {TOKEN_MIN_LENGTH} characters, or "
            "leave it unset and one is made."
        )
    return Settings(
        host=host,
        port=port,
        data_dir=data_dir,
        api_token=token,
        token_path=token_path,
        job_seconds=float(_number("SDAWS_JOB_SECONDS", value("job_seconds", "3600"), 1, 86400)),
        max_workers=_number("SDAWS_MAX_WORKERS", value("max_workers", str(MAX_WORKERS)), 1, 1000),
        import_hosts=_hosts("SDAWS_IMPORT_HOSTS", value("import_hosts", "")),
        import_max_bytes=_number(
            "SDAWS_IMPORT_MAX_BYTES",
            value("import_max_bytes", str(IMPORT_MAX_BYTES)),
            1,
            FILE_MAX_BYTES,
        ),
        train_seconds=float(
            _number(
                "SDAWS_TRAIN_SECONDS", value("train_seconds", str(TRAIN_SECONDS)), 1, 30 * 86400
            )
        ),
        max_trainings=_number("SDAWS_MAX_TRAININGS", value("max_trainings", "1"), 1, 100),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def secret_in_file(path: Path) -> str:
    """The secret kept in `path`; a new one, readable by its owner alone, when there is none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        kept = path.read_text().strip()
        if kept:
            return kept
        # Killed between making the file and writing it.
        path.unlink()
        return secret_in_file(path)
    secret = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
    return secret


def _number(name: str, text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise SettingsError(f"{name} must be a whole number, not '{text}'.") from error
    if not least <= number <= most:
        raise SettingsError(f"{name} must be from {least} to {most}, not {number}.")
    return number


def _hosts(name: str, text: str) -> frozenset[str]:
    hosts = frozenset(host.strip().lower() for host in text.split(",") if host.strip())
    for host in sorted(hosts):
        if not _HOST_NAME.fullmatch(host) and not _is_address(host):
            raise SettingsError(
                f"{name} lists host names or addresses, with commas between them and without "
                f"scheme, port or path; '{host}' is none."
            )
    return hosts


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
