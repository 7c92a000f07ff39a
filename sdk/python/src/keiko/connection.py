"""HTTP with one server: identity, repeats with growing pauses, errors by kind. Knows nothing of single resources."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import httpx2

from .errors import Disconnected, KeikoError, Unauthenticated, refusal
from .login import ApiKey, Login

log = logging.getLogger("keiko.http")

PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 5.0
TIMEOUT_S = 30.0
CONNECTIONS_MAX = 100


def pause(attempt: int, at_least: float = 0.0) -> float:
    """Seconds to wait before a further attempt (from 0): doubled each time, half of it random."""
    longest = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(attempt, 16))
    return max(longest * random.uniform(0.5, 1.0), at_least)


def identity(api_key: str | None, username: str | None, password: str | None, tenant: str | None) -> ApiKey | Login:
    """Arguments first, then the environment: a key, or a name and a password."""
    if api_key is None and username is None:
        api_key = os.environ.get("KEIKO_API_KEY") or None
        username = os.environ.get("KEIKO_USERNAME") or None
    if api_key:
        return ApiKey(api_key)
    password = password if password is not None else os.environ.get("KEIKO_PASSWORD")
    if username and password is not None:
        return Login(username, password, tenant or os.environ.get("KEIKO_TENANT") or None)
    raise ValueError("no credentials: pass api_key, or username and password, or set KEIKO_API_KEY, or KEIKO_USERNAME and KEIKO_PASSWORD")


class Connection:
    """Requests to one server as one identity. `retry_for` is for how many seconds a request is repeated."""

    def __init__(self, server: str, who: ApiKey | Login, retry_for: float) -> None:
        self.server = server.rstrip("/")
        self._who = who
        self._retry_for = retry_for
        self._http = httpx2.AsyncClient(
            base_url=self.server + "/api/v1",
            timeout=httpx2.Timeout(TIMEOUT_S, connect=10.0),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX),
            headers={"User-Agent": f"keiko-sdk/{version('keiko-sdk')}"},
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer to a GET."""
        return await self.request("GET", path, params=params)

    async def append(
        self, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None, retry_for: float | None = None
    ) -> dict[str, Any]:
        """A POST that is done once however often it is sent: it carries an `Idempotency-Key`."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return await self.request("POST", path, body or {}, headers=headers, retry_for=retry_for)

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
        repeatable: bool = True,
        retry_for: float | None = None,
    ) -> dict[str, Any]:
        """The whole answer. What is not `repeatable` is only sent again when the server has not carried it out."""
        until = time.monotonic() + (self._retry_for if retry_for is None else retry_for)
        attempt, renewed = 0, False
        while True:
            try:
                return await self._once(method, path, body, params, headers, timeout)
            except Unauthenticated as error:
                if renewed or error.code != "TOKEN_INVALID" or not self._who.renew():
                    raise
                renewed = True
                continue
            except KeikoError as error:
                wait = pause(attempt, error.retry_after or 0.0)
                if not may_repeat(error, repeatable) or time.monotonic() + wait > until:
                    raise
                log.info("%s %s: %s; again in %.1f s", method, path, error, wait)
            attempt += 1
            await asyncio.sleep(wait)

    @asynccontextmanager
    async def stream(self, path: str, params: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """An answer that is read as it comes. A server that says nothing for a minute counts as gone."""
        headers = {**await self._who.headers(self._sign), **headers}
        try:
            async with self._http.stream("GET", path, params=params, headers=headers, timeout=60.0) as response:
                if response.status_code >= 400:
                    await response.aread()
                    self._checked(response)
                yield response
        except httpx2.TransportError as error:
            raise Disconnected(f"GET {path}: {error!r}") from error
        except Unauthenticated as error:
            if error.code == "TOKEN_INVALID":
                self._who.renew()
            raise

    async def _once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        timeout: float,
    ) -> dict[str, Any]:
        who = await self._who.headers(self._sign)
        return self._checked(await self._send(method, path, body, params, {**who, **(headers or {})}, timeout))

    async def _sign(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request of a login: without an identity, and without repeats of its own."""
        try:
            answer = self._checked(await self._send("POST", path, body, None, {}, TIMEOUT_S))
        except Disconnected as error:
            error.details["sent"] = False  # the request that needs the login was not
            raise
        return dict(answer["data"]["attributes"])

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout: float,
    ) -> httpx2.Response:
        try:
            return await self._http.request(method, path, json=body, params=params, headers=headers, timeout=timeout)
        except httpx2.TransportError as error:
            lost = Disconnected(f"{method} {self.server}{path}: {error!r}")
            lost.details["sent"] = not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
            raise lost from error

    def _checked(self, response: httpx2.Response) -> dict[str, Any]:
        if response.status_code == 204:
            return {}
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code < 400 and isinstance(body, dict):
            return body
        raise refusal(response.status_code, body, seconds(response.headers.get("retry-after")))


def may_repeat(error: KeikoError, repeatable: bool) -> bool:
    """Whether sending the same again can help and cannot do harm."""
    if isinstance(error, Disconnected):
        return repeatable or not error.details.get("sent")
    if error.code == "OUTCOME_UNKNOWN":
        return repeatable
    return error.status in (429, 503)


def seconds(header: str | None) -> float | None:
    """The value of `Retry-After`."""
    try:
        return float(header) if header else None
    except ValueError:
        return None
