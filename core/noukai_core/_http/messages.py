"""A request and its response as they are transferred, for the transports of both clients. No I/O."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from noukai_core._api.parsing import HttpResponse

_GZIP = zlib.MAX_WBITS | 16
_GZIP_STEP = 8 * 1024
_GZIP_OVERHEAD = 64 * 1024
_MAX_GZIP_MEMBERS = 10_000
_MOST_OF_ERROR = 64 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, with the seconds that it may take, and how much of its response is wanted at most."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = field(repr=False)  # a traceback with local variables must not show it
    timeout: float
    cut_at: int | None = None


class TooLargeError(Exception):
    """The body of a response is larger than allowed; `head` is the response without it."""

    def __init__(self, head: HttpResponse) -> None:
        super().__init__(head.status_code)
        self.head = head


class ResponseReader:
    """A response that arrives in chunks, and is never decompressed beyond its limit.

    The libraries would decompress each chunk entirely: one that was compressed twice grows a million times.
    An encoding that was not requested is left as it is.

    Args:
        status_code: The status.
        headers: The headers, as bytes.
        most: How many bytes the body may have, compressed or not.
        cut_at: After how many bytes the body is cut instead of refused. The body of an error always is.
        unpacked: Whether the transport has already decompressed the body; also an attribute.
    """

    def __init__(
        self,
        status_code: int,
        headers: Iterable[tuple[bytes, bytes]],
        most: int,
        *,
        cut_at: int | None = None,
        unpacked: bool = False,
    ) -> None:
        self._status_code = status_code
        self._headers = _joined(headers)
        packed = self._headers.get("content-encoding", "").strip().lower() == "gzip"
        self.unpacked = unpacked
        self._gzip = _GzipReader() if packed and not unpacked else None
        self._memory = most
        wanted = cut_at if 200 <= status_code < 300 else _MOST_OF_ERROR
        self._cuts = wanted is not None and wanted < most
        self._most = wanted if wanted is not None and wanted < most else most
        self._received = 0
        self._body = bytearray()

    def take(self, chunk: bytes) -> bool:
        """Take the next chunk of the body.

        Returns:
            Whether more of the body is wanted.

        Raises:
            TooLargeError: The body has become larger than allowed.
            zlib.error: The body is not valid gzip.
        """
        self._received += len(chunk)
        if self._gzip is None:
            self._body += chunk
        else:
            self._gzip.unpack(chunk, self._body, self._most + 1)
        if len(self._body) <= self._most and self._received <= self._most + _GZIP_OVERHEAD:
            return True
        if not self._cuts:
            raise TooLargeError(HttpResponse(self._status_code, self._headers, b""))
        return False

    def response(self) -> HttpResponse:
        """Return the response, once all of it was taken that is wanted.

        Raises:
            zlib.error: The packed body ends too early.
        """
        truncated = len(self._body) > self._most or self._received > self._most + _GZIP_OVERHEAD
        if self._gzip is not None and not truncated:
            self._gzip.check_end()
        del self._body[self._most :]
        return HttpResponse(
            self._status_code, self._headers, bytes(self._body), truncated=truncated, memory=self._memory
        )


class _GzipReader:
    """Decompresses gzip that arrives in chunks: consecutive members, and zeros after the last.

    zlib copies what follows a member, so it gets little at a time. Members are counted: an empty one has
    20 bytes, costs a thousand times as long, and adds nothing to the body.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._members = 1
        self._begun = False

    def unpack(self, chunk: bytes, body: bytearray, most: int) -> None:
        """Decompress a chunk to the end of a body, until the body has this many bytes."""
        for begin in range(0, len(chunk), _GZIP_STEP):
            packed = chunk[begin : begin + _GZIP_STEP]
            while packed and len(body) < most:
                packed = self._unpack_member(packed, body, most)

    def check_end(self) -> None:
        """Raise `zlib.error` unless the last member is complete."""
        if self._begun and not self._member.eof:
            raise zlib.error("the gzip stream ends too early")

    def _unpack_member(self, packed: bytes, body: bytearray, most: int) -> bytes:
        if self._member.eof:
            packed = packed.lstrip(b"\0")
            if not packed:
                return b""
            if self._members == _MAX_GZIP_MEMBERS:
                raise zlib.error(f"more than {_MAX_GZIP_MEMBERS} gzip members")
            self._member = zlib.decompressobj(_GZIP)
            self._members += 1
        self._begun = True
        body += self._member.decompress(packed, min(most - len(body), sys.maxsize))
        return self._member.unused_data


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
