"""Requests to a model service: bounded, limited in rate, and tried again after failures that pass.

A failure that may pass is one of the connection, a timeout, an answer that is cut off or no JSON, and the statuses 408,
425, 429 and 5xx. Waits double from `FIRST_WAIT` to `LONGEST_WAIT` with random parts of them left out, so that many
clients do not come back at once (Brooker, "Exponential backoff and jitter", AWS 2015), and are never shorter than the
service's Retry-After. Redirects are not followed. No address is shown with its user, password or query.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import SystemRandom
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from epsball.common.errors import BadInput
from epsball.common.limits import MIB, parse_json
from epsball.common.printable import printable
from epsball.models.door import missing_library

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

TOKEN = "EPSBALL_HTTP_TOKEN"
"""The environment variable with the bearer token, which is read for each request and kept nowhere."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the first repetition, and at most."""
LONGEST_RETRY_AFTER = 300.0
"""Seconds that a service may ask to wait."""
MOST_ANSWER = 64 * MIB
"""Bytes of an answer."""
PASSING = {408, 425, 429}
"""Statuses, beside 5xx, after which the same request may succeed."""
LOCAL = ("localhost", "127.0.0.1", "::1")
TENSORS = "Inference-Header-Content-Length"
"""The header with the length of the JSON before the numbers of a binary body."""
RESUME = "the same command with --out (`run_dir`) resumes"
RANDOM = SystemRandom()  # no seed of a user's is moved by it


@dataclass
class Client:
    """Requests to the service at `base`, such as https://host: at most `rate` a second, None: without a limit.

    A request may take `timeout` seconds in all, and is repeated up to `retries` times. `requests` counts all that were
    sent, the repeated ones too. A pickle has no open connection.
    """

    base: str
    timeout: float = 60.0
    retries: int = 8
    rate: float | None = None
    requests: int = field(default=0, init=False)
    _next: float = field(default=0.0, init=False, repr=False)
    _http: httpx.Client | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_http": None, "_next": 0.0}

    def __del__(self) -> None:
        if self._http is not None:
            self._http.close()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._asked("GET", path, None, {}, min(self.retries, 2))[0]

    def exists(self, path: str) -> bool:
        """Whether the service answers at a path with a status below 400."""
        try:
            self._asked("GET", path, None, {}, min(self.retries, 2), parse=False)
        except Refused:
            return False
        return True

    def post(self, path: str, body: bytes, header: int | None = None) -> tuple[Any, bytes]:
        """The JSON that answers `body`, and the bytes after it; `header` is the length of the JSON in a binary body."""
        kind = "application/json" if header is None else "application/octet-stream"
        headers = {"Content-Type": kind} | ({} if header is None else {TENSORS: str(header)})
        return self._asked("POST", path, body, headers, self.retries)

    def _asked(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], retries: int, *, parse: bool = True
    ) -> tuple[Any, bytes]:
        for tried in range(retries + 1):
            try:
                return self._once(method, path, body, headers, parse)
            except _Passing as error:
                if tried == retries or error.wait > LONGEST_RETRY_AFTER:
                    times = f"{tried + 1} request{'s' if tried else ''}"
                    asks = f", and asks to wait {error.wait:,.0f} s" if error.wait > LONGEST_RETRY_AFTER else ""
                    raise BadInput(
                        f"`model` must answer, but {self.base}{path} {error} ({times}){asks}; when the service is "
                        f"back, {RESUME}"
                    ) from None
                wait = min(FIRST_WAIT * 2**tried, LONGEST_WAIT) * RANDOM.uniform(0.5, 1)
                log.info("%s%s %s; once more", self.base, path, error)
                time.sleep(max(wait, error.wait))
        raise AssertionError

    def _once(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], parse: bool
    ) -> tuple[Any, bytes]:
        import httpx

        self._wait_for_turn()
        self.requests += 1
        end = time.monotonic() + self.timeout
        headers = {"Accept-Encoding": "identity", **headers} | self._authorization()
        try:
            with self._opened().stream(method, self.base + path, content=body, headers=headers) as answer:
                self._check_status(answer, path, end)
                found = self._read(answer, path, end)
                length = answer.headers.get(TENSORS)
        except httpx.TimeoutException:
            raise _Passing(f"did not answer in {self.timeout:g} s") from None
        except httpx.TransportError as error:
            raise _Passing(f"failed ({type(error).__name__}: {str(error)[:200]})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BadInput(f"`model` must answer in HTTP, but {self.base}{path}: {str(error)[:200]}") from None
        return _parsed(found, length) if parse else (None, b"")

    def _check_status(self, answer: httpx.Response, path: str, end: float) -> None:
        """Raise unless the answer is a success."""
        status = answer.status_code
        if status in PASSING or status >= 500:
            raise _Passing(f"answered {status} {answer.reason_phrase}".rstrip(), _retry_after(answer))
        if 300 <= status < 400:
            there = shown(answer.headers.get("Location", "nowhere"))
            raise BadInput(
                f"`model` must answer itself, but {self.base}{path} redirects to {there} ({status}), which is not "
                "followed; where that is the service, name its address"
            )
        if status in (401, 403):
            known = "was refused" if os.environ.get(TOKEN) else "is not set"
            raise BadInput(
                f"`model` must be one that you may ask, but {self.base}{path} answered {status}; the bearer token is "
                f"read from the environment variable {TOKEN}, which {known}"
            )
        if status >= 400:
            raise Refused(
                f"`model` must be one that the service has, and takes what it is sent, but {self.base}{path} answered "
                f"{status}: {self._reason(answer, end)}"
            )

    def _read(self, answer: httpx.Response, path: str, end: float) -> bytes:
        """The body, up to `MOST_ANSWER`, in the time that the request may take."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise BadInput(
                f"`model` must answer without compression, as it was asked to, but {self.base}{path} does not"
            )
        found = bytearray()
        for part in answer.iter_raw():
            found += part
            if len(found) > MOST_ANSWER:
                raise BadInput(
                    f"`model` must answer with at most {MOST_ANSWER // MIB} MiB, got more from {self.base}{path}; "
                    "where its classes are so many, add ?batch_size=1 to the address"
                )
            if time.monotonic() > end:
                raise _Passing(f"did not answer in {self.timeout:g} s")
        return bytes(found)

    def _reason(self, answer: httpx.Response, end: float) -> str:
        """What the service says of an error, in 300 characters; about 64 KiB of it are read."""
        text = bytearray()
        for part in answer.iter_raw():
            text += part
            if len(text) > 1 << 16 or time.monotonic() > end:
                break
        try:
            found = json.loads(text)
            message = found.get("error", found.get("detail", found))
        except (ValueError, AttributeError, RecursionError):
            message = text.decode(errors="replace")
        return " ".join(printable(str(message)[:300]).split()) or "nothing"

    def _authorization(self) -> dict[str, str]:
        token = os.environ.get(TOKEN)
        if not token:
            return {}
        where = urlsplit(self.base)
        if where.scheme != "https" and where.hostname not in LOCAL:
            raise BadInput(
                f"`model` must be an https:// address for {TOKEN} to be sent to it, got {self.base}; "
                "or unset the variable, where the service asks for no token"
            )
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise BadInput(f"{TOKEN} must be a token of printable ASCII without spaces, got something else")
        return {"Authorization": f"Bearer {token}"}

    def _wait_for_turn(self) -> None:
        if self.rate is not None:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + 1 / self.rate
            time.sleep(start - now)

    def _opened(self) -> httpx.Client:
        if self._http is None:
            try:
                import httpx
            except ImportError as error:
                raise missing_library("httpx", "http", error) from error
            self._http = httpx.Client(timeout=self.timeout, follow_redirects=False)
        return self._http


class Refused(BadInput):
    """The service answered with a status of 400 to 499: the request, sent again, would be refused again."""


class _Passing(Exception):
    """A failure that may pass; `wait` is the number of seconds that the service asks for."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


def shown(url: str) -> str:
    """An address without user, password, query and fragment, for messages.

    >>> shown("https://me:secret@host:8000/v2/models/net?key=secret")
    'https://host:8000/v2/models/net'
    """
    head, _, _ = url.partition("?")
    head, _, _ = head.partition("#")
    scheme, mark, rest = head.partition("//")
    host, slash, path = rest.partition("/")
    text = f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"
    return printable(text[:300], "?")


def _parsed(found: bytes, length: str | None) -> tuple[Any, bytes]:
    """The JSON of a body, and the bytes after it."""
    size = len(found)
    if length is not None:
        if not (length.isascii() and length.isdecimal()) or int(length[:12]) > size:
            raise _Passing(f"answered with a {TENSORS} of {length[:20]!r} for {size:,} bytes")
        size = int(length)
    try:
        return parse_json(found[:size]), found[size:]
    except BadInput as error:
        raise BadInput(f"`model` must answer with JSON of a usual size, but {error}") from None
    except ValueError as error:
        raise _Passing(f"answered with what is no JSON ({str(error)[:100]})") from None


def _retry_after(answer: httpx.Response) -> float:
    """The seconds of the header Retry-After, a number or a date; 0 where there is none."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
