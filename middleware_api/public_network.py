"""Connections that lead to public addresses only, and that no host can draw out for ever.

A name is resolved once for each connection, all its addresses are judged, and the connection
goes to a judged address, never to the name: the name server is not asked a second time, so it
cannot give another answer then (DNS rebinding). TLS still verifies the name.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore

# IANA's special-purpose registries, without the blocks that are reachable from everywhere. Our
# own table, because `ipaddress.is_global` differs between patch releases of Python.
_NOT_PUBLIC = tuple(
    ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # public in form, but inside Azure it is the platform's own service
        *("2001::/23", "2001:db8::/32", "3fff::/20"),
    )
)
_IPV6_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")

# `socket.getaddrinfo`, as far as it is used here.
Resolve = Callable[[str, int], Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]]


class NoAddress(Exception):
    """There is no host of this name."""


class NotPublic(Exception):
    """At least one address of the host is private, local or reserved."""


def is_public(address: str) -> bool:
    """Whether a numeric address is global unicast.

    IPv6 forms that carry an IPv4 address (mapped, 6to4, NAT64) are judged by what they carry.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            carried = IPv4Address(int(ip) & 0xFFFF_FFFF)
        if carried is None and ip not in _IPV6_GLOBAL_UNICAST:
            return False
        ip = carried or ip
    return not any(ip in block for block in _NOT_PUBLIC)


class Patience:
    """The seconds that a host has left: at first `most`; what it sends buys more, up to `most`.

    So a host that stays below `least_bytes_per_second` ends after about `most` seconds,
    however fast it was before.
    """

    def __init__(
        self, most: float, least_bytes_per_second: float, clock: Callable[[], float]
    ) -> None:
        self._most = most
        self._rate = least_bytes_per_second
        self._clock = clock
        self._deadline = clock() + most
        self._paused_at = 0.0

    def left(self) -> float:
        """Seconds; not above 0 when patience is at its end."""
        return self._deadline - self._clock()

    def shorten(self, timeout: float | None) -> float:
        """`timeout`, or less when patience ends before it. Raises httpcore.ReadTimeout."""
        left = self.left()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left if timeout is None else min(timeout, left)

    def earn(self, count: int) -> None:
        """Bytes of the file have come."""
        bought = self._deadline + count / self._rate
        self._deadline = min(bought, self._clock() + self._most)

    def pause(self) -> None:
        """From here on it is not the host that is waited for."""
        self._paused_at = self._clock()

    def resume(self) -> None:
        """The host is waited for again."""
        self._deadline += self._clock() - self._paused_at


class PublicNetwork(httpcore.NetworkBackend):
    """Opens one connection, by way of `network`, to a judged address.

    The addresses of `allowed_hosts` are not judged. Raises NoAddress, NotPublic and httpcore's
    errors.
    """

    def __init__(
        self,
        network: httpcore.NetworkBackend,
        resolve: Resolve,
        allowed_hosts: frozenset[str],
        patience: Patience,
    ) -> None:
        self._network = network
        self._resolve = resolve
        self._allowed_hosts = allowed_hosts
        self._patience = patience

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Tries the addresses in the resolver's order."""

        def connect(address: str) -> httpcore.NetworkStream:
            seconds = self._patience.shorten(timeout)
            stream = self._network.connect_tcp(
                address, port, seconds, local_address, socket_options
            )
            return _PatientStream(stream, self._patience)

        *others, last = self._judged_addresses(host, port)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return connect(address)
        return connect(last)

    def _judged_addresses(self, host: str, port: int) -> list[str]:
        try:
            found = self._resolve(host, port)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise httpcore.ConnectError("The name server does not answer.") from error
            raise NoAddress(host) from error
        except UnicodeError as error:  # a label of the name is empty or too long
            raise NoAddress(host) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses:
            raise NoAddress(host)
        if host not in self._allowed_hosts and not all(map(is_public, addresses)):
            raise NotPublic(host)
        return addresses


class _PatientStream(httpcore.NetworkStream):
    """A connection whose every wait, for TLS and headers too, ends with patience."""

    def __init__(self, stream: httpcore.NetworkStream, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._patience.shorten(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._patience.shorten(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        seconds = self._patience.shorten(timeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, seconds)
        return _PatientStream(stream, self._patience)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
