"""Who the client is: an API key, or a login whose tokens are renewed. Owns the tokens, never sends a request by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .errors import Unauthenticated

# A token is renewed when less than this share of its life is left.
RENEW_SHARE = 0.2

Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class ApiKey:
    """A key, sent with every request."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def headers(self, post: Post) -> dict[str, str]:
        """What identifies the caller."""
        return {"X-API-Key": self._key}

    def renew(self) -> bool:
        """A refused key stays refused."""
        return False


@dataclass
class Login:
    """A user's name and password; logs in when first needed, refreshes, and logs in again when the session has ended."""

    username: str
    password: str = field(repr=False)
    tenant: str | None = None
    _access: str = field(default="", repr=False)
    _refresh: str = field(default="", repr=False)
    _renew_at: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def headers(self, post: Post) -> dict[str, str]:
        """What identifies the caller, with a token that still holds for a while."""
        async with self._lock:
            if time.monotonic() >= self._renew_at:
                self._keep(await self._tokens(post))
        return {"Authorization": f"Bearer {self._access}"}

    def renew(self) -> bool:
        """The token was refused: the next request gets a new one."""
        self._renew_at = 0.0
        return True

    async def _tokens(self, post: Post) -> dict[str, Any]:
        if self._refresh:
            try:
                return await post("/auth/refresh", {"refresh_token": self._refresh})
            except Unauthenticated:
                self._refresh = ""
        body = {"username": self.username, "password": self.password}
        return await post("/auth/login", {**body, "tenant": self.tenant} if self.tenant else body)

    def _keep(self, tokens: dict[str, Any]) -> None:
        self._access, self._refresh = tokens["access_token"], tokens["refresh_token"]
        self._renew_at = time.monotonic() + float(tokens["expires_in"]) * (1 - RENEW_SHARE)
