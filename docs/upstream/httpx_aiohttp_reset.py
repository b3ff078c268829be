"""httpx-aiohttp: a connection that is reset after the request was sent is reported as a failed connect."""

import asyncio
import socket
import struct

import httpx
import httpx_aiohttp


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the whole request, then reset the connection without a response."""
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(b'{"pay": 100}'))
    print("server: received the whole request")
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main() -> None:
    """Send the same request over both transports."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    for name, transport in (("httpx", None), ("httpx-aiohttp", httpx_aiohttp.AiohttpTransport())):
        async with httpx.AsyncClient(transport=transport) as client:
            try:
                await client.post(url, content=b'{"pay": 100}')
            except httpx.HTTPError as error:
                connects = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                print(f"{name}: {type(error).__name__}; says that nothing was sent: {connects}")


asyncio.run(main())
