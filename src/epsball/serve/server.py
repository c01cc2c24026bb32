"""The server: bound to this machine alone, stopped by Ctrl-C."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn

from epsball.common.errors import BadInput
from epsball.serve.guard import Application

HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes any that is free.

    Raises `BadInput` for a port that is in use, or not to be had.
    """
    if not 0 <= port < 1 << 16:
        raise BadInput(f"`--port` must be 0 to 65535, got {port}; 0 takes any that is free")
    # asyncio lets small packets go at once (TCP_NODELAY) where a socket says that it is TCP's; else the body of an
    # answer waits for the browser to acknowledge its head, which it does after 40 ms.
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just been stopped
    try:
        place.bind((HOST, port))
        place.listen(128)
    except OSError as error:
        place.close()
        why = "which another program uses" if error.errno == errno.EADDRINUSE else f"which is not to be had ({error})"
        raise BadInput(f"`--port` must be free, got {port}, {why}; choose another, or --port 0 for any") from error
    return place


def server(app: Application) -> uvicorn.Server:
    """A server of the page that says nothing of itself, and nothing but errors on the terminal."""
    return uvicorn.Server(
        uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType] - uvicorn's types and ours say the same of ASGI
            lifespan="off",
            ws="none",
            access_log=False,
            log_level="error",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
    )


def run(app: Application, place: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until it is interrupted; `ready` is told the address first. Closes the socket."""
    try:
        ready(f"http://{HOST}:{place.getsockname()[1]}/")
        server(app).run(sockets=[place])
    except KeyboardInterrupt:  # uvicorn raises it again when it has stopped
        pass
    finally:
        place.close()
