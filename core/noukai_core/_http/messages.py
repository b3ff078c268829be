"""One request and its answer, as they travel: what the transports of both shells have in common. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from noukai_core._api.parsing import HttpResponse

_GZIP = zlib.MAX_WBITS | 16


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, with the seconds that it may take."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = field(repr=False)  # a traceback with local variables must not show it
    timeout: float


class TooLarge(Exception):
    """The body of an answer is larger than allowed; `head` is the answer without it."""

    def __init__(self, head: HttpResponse) -> None:
        super().__init__(head.status_code)
        self.head = head


class ResponseReader:
    """An answer that arrives in pieces, and is never unpacked beyond what is allowed.

    The libraries would unpack each piece whole: one that was packed twice grows a million times. An encoding
    that was not asked for is left as it is.

    Args:
        status_code: The status.
        headers: The headers, as bytes.
        most: How many bytes the body may have.
        unpacked: Whether the transport has unpacked the body already; also an attribute.
    """

    def __init__(
        self, status_code: int, headers: Iterable[tuple[bytes, bytes]], most: int, *, unpacked: bool = False
    ) -> None:
        self._status_code = status_code
        self._headers = _joined(headers)
        packed = self._headers.get("content-encoding", "").strip().lower() == "gzip"
        self.unpacked = unpacked
        self._unpacker = zlib.decompressobj(_GZIP) if packed and not unpacked else None
        self._most = most
        self._body = bytearray()

    def take(self, chunk: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            TooLarge: The body has become larger than allowed.
        """
        if self._unpacker is not None:
            chunk = self._unpacker.decompress(chunk, self._most + 1 - len(self._body))
        self._body += chunk
        if len(self._body) > self._most:
            raise TooLarge(HttpResponse(self._status_code, self._headers, b""))

    def response(self) -> HttpResponse:
        """Return the answer, once all of it was taken."""
        return HttpResponse(self._status_code, self._headers, bytes(self._body))


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = _text(raw_name).lower(), _text(raw_value)
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _text(header: bytes) -> str:
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError:
        return header.decode("latin-1")
