"""Agents for Keiko, and a client of its server. `keiko.sync` has the same for programs without asyncio."""

from .agent import Agent
from .client import Client
from .errors import (
    ClaimStale,
    Conflict,
    Disconnected,
    Forbidden,
    Invalid,
    KeikoError,
    Limited,
    NotFound,
    Refused,
    TaskFailed,
    Unauthenticated,
    Unavailable,
)
from .models import AgentInfo, DiscoveredAgent, Event, IssuedKey, JournalEntry, Me, Message, Page, ServerInfo, TaskInfo, ToolCall, ToolInfo
from .tools import http, stdio
from .work import Task

__all__ = [
    "Agent", "AgentInfo", "ClaimStale", "Client", "Conflict", "Disconnected", "DiscoveredAgent", "Event", "Forbidden", "Invalid",
    "IssuedKey", "JournalEntry", "KeikoError", "Limited", "Me", "NotFound", "Page", "Refused", "ServerInfo", "Task", "TaskFailed",
    "TaskInfo", "ToolCall", "ToolInfo", "Unauthenticated", "Unavailable", "http", "stdio",
]  # fmt: skip
