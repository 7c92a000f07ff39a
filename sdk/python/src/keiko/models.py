"""What the server tells, as typed values. A resource's `id` and its attributes stand side by side; unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """Base of all: a newer server may say more."""

    model_config = ConfigDict(extra="ignore")


class Claim(Model):
    """A claim in force. `token` and `expires_at` are shown to its holder only."""

    id: str
    agent_id: str
    token: str | None = None
    expires_at: datetime | None = None


class Progress(Model):
    """The latest word of an agent on a task."""

    percent: float | None = None
    message: str | None = None


class TaskError(Model):
    """Why a task failed last."""

    code: str
    message: str


class Message(Model):
    """Something that was said about a task. `parts` are those of A2A: `{"text": …}`, `{"data": …}`, `{"url": …}` or `{"raw": …}`."""

    id: str
    by: str
    at: datetime
    parts: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """Its words."""
        return "\n".join(part["text"] for part in self.parts if "text" in part)


class TaskInfo(Model):
    """A task."""

    id: str
    description: str
    capability: str
    input: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    status: str
    priority: int
    queue: str
    collision: str
    attempt: int
    max_attempts: int
    output: Any = None
    learned_patterns: list[Any] = Field(default_factory=list)
    metrics: dict[str, Any] | None = None
    error: TaskError | None = None
    claim: Claim | None = None
    progress: Progress | None = None
    agent_id: str | None = None
    assigned_to: str | None = None
    conversation: str | None = None
    messages: list[Message] = Field(default_factory=list)
    is_input_wanted: bool = False
    created_by: str
    task_hash: str
    not_before: datetime | None = None
    deadline: datetime | None = None
    created_at: datetime
    updated_at: datetime
    version: int

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more, unless somebody retries it."""
        return self.status in ("completed", "failed", "cancelled", "dead")


class CapabilityInfo(Model):
    """Something an agent can do."""

    name: str
    version: str = "1.0.0"
    description: str = ""
    domains: list[str] = Field(default_factory=list)
    tags: list[str] = Field(default_factory=list)
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None


class AgentInfo(Model):
    """An agent in the registry."""

    id: str
    name: str
    agent_type: str
    description: str
    status: str
    status_reason: str | None = None
    capabilities: list[CapabilityInfo]
    max_concurrency: int
    cost_per_task: float
    labels: dict[str, str]
    restart_requested: bool = False
    created_at: datetime
    updated_at: datetime
    version: int


class DiscoveredAgent(AgentInfo):
    """An agent that was found, and why."""

    score: float
    rank: int
    reasons: list[str]
    success_rate: float | None = None
    latency_ms: float | None = None


class IssuedKey(Model):
    """A new API key. `key` is shown this once."""

    id: str
    name: str
    prefix: str
    owner: str
    key: str


class Me(Model):
    """Who the caller is."""

    id: str
    kind: str
    name: str
    tenant: str
    roles: list[str]
    permissions: list[str]


class Event(Model):
    """An event of the log. `position` is its place, from 1, without a gap."""

    id: str
    type: str
    timestamp: datetime
    source: str
    stream: str
    version: int
    position: int
    data: dict[str, Any] | None = None
    metadata: dict[str, Any]


class ServerInfo(Model):
    """An MCP server. `status` is `starting`, `ready` or `failed`; `reason` says why it failed."""

    id: str
    name: str
    transport: dict[str, Any]
    status: str
    reason: str | None = None
    tools: int
    server_info: dict[str, Any] | None = None
    protocol_version: str | None = None
    created_at: datetime
    updated_at: datetime
    version: int


class ToolInfo(Model):
    """A tool of an MCP server. `name` (`server__tool`) is what it is called by."""

    id: str
    name: str
    tool: str
    server: str
    mcp_server_id: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    status: str
    hash: str
    version: int


class ToolCall(Model):
    """A call that was answered. With `is_error` the tool itself says that it failed."""

    id: str
    tool: str
    tool_id: str
    server: str
    task_id: str | None = None
    is_error: bool
    content: list[dict[str, Any]]
    structured_content: dict[str, Any] | None = None
    duration_ms: int

    @property
    def text(self) -> str:
        """The text blocks of the answer, joined."""
        return "\n".join(block["text"] for block in self.content if isinstance(block.get("text"), str))


class JournalEntry(Model):
    """An entry of the journal. `position` is its place in the tenant's journal."""

    id: str
    position: int
    entry_class: str = Field(alias="class")
    kind: str
    recorded_at: datetime
    actor: dict[str, str]
    correlation_id: str
    data: dict[str, Any] | None = None


T = TypeVar("T", bound=Model)


class Page(Model, Generic[T]):
    """A part of a list. `next_cursor` is None at its end; `position` is what the answer reflects, where that applies."""

    items: list[T]
    next_cursor: str | None = None
    position: int | None = None

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
