"""A report on a Git repository by a fleet of three agents that work through Keiko.

Needs a Keiko server (KEIKO_SERVER) and somebody who may register agents and MCP servers (KEIKO_USERNAME, KEIKO_PASSWORD).
Ends with 0 when all parts are there, 1 when a part is missing, 2 when there can be no report.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import provenance
import repository as repositories
from fleet import Fleet, servers_ready, transports
from repository import NoReport, Repository
from watch import Watch, say

from keiko import Client, KeikoError, TaskInfo

PARTS = {
    "history": ("historian", "repository-history", "History"),
    "survey": ("surveyor", "repository-survey", "What is in it"),
}
EDITOR = ("editor", "repository-report")
ATTEMPTS_MAX = 2
SERVER_WAIT_S = 5.0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="A report on a Git repository, made by a fleet of agents.")
    parser.add_argument("--repo", metavar="PATH", help="the repository")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the Markdown report here too")
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the report as JSON here; beside the Markdown file when nothing is said"
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=900.0, help="give up on parts that are not ready by then")
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agent:
        return serve(options.agent)
    if not options.repo:
        parser.error("--repo is needed")
    try:
        return asyncio.run(make_report(options))
    except (NoReport, ValueError) as error:
        say(f"No report: {error}")
    except KeikoError as error:
        say(f"No report: {error.code}: {error.message} {error.hint}")
    except TimeoutError:
        say("No report: the agents did not start in time.")
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("No report: interrupted.")
    return 2


def serve(name: str) -> int:
    """Runs one agent of the fleet, until it is told to stop or the process that started it is gone."""
    from agents import AGENTS

    def watch_parent() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch_parent, daemon=True).start()
    AGENTS[name].run()
    return 0


async def make_report(options: argparse.Namespace) -> int:
    """The whole run."""
    repository = repositories.opened(options.repo)
    servers = transports(repository)
    async with Client(retry_for=SERVER_WAIT_S) as probe:
        await probe.me()
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    # Also where a shell in the background had Ctrl-C ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    async with Client() as client, Fleet([*(agent for agent, *_ in PARTS.values()), EDITOR[0]]) as fleet:
        journal_start = await provenance.journal_end(client)
        troubles, _ = await asyncio.gather(servers_ready(client, servers), fleet.up(client))
        for trouble in troubles:
            say(trouble)
        context = {"run_id": uuid.uuid4().hex, "repository": repository.root}
        async with Watch(client, fleet, options.timeout) as watch:
            parts = await make_parts(client, watch, repository, context, journal_start)
            edited = await edit(client, watch, repository, context, parts, [*shallow_note(repository), *troubles])
    if edited.status != "completed":
        say(f"No report: the editor's task is {edited.status}: {edited.error.message if edited.error else 'no reason was given'}")
        return 2
    write(edited.output, options)
    return 0 if not troubles and all(part["status"] == "completed" for part in parts) else 1


def shallow_note(repository: Repository) -> list[str]:
    return ["The repository is shallow: its history is cut off, and counts end there."] if repository.is_shallow else []


async def make_parts(
    client: Client, watch: Watch, repository: Repository, context: dict[str, Any], journal_start: int
) -> list[dict[str, Any]]:
    """Submits the parts side by side and waits for all. Answers them with how they came about."""
    work = {"root": repository.root, "head": repository.head, "bare": repository.is_bare}
    submitted = [
        await client.tasks.submit(capability, work, description=f"{title} of a repository", context=context, max_attempts=ATTEMPTS_MAX)
        for _, capability, title in PARTS.values()
    ]
    agents = [agent for agent, *_ in PARTS.values()]
    tasks = await asyncio.gather(*(watch.ended(agent, task) for agent, task in zip(agents, submitted, strict=True)))
    answered = {call["id"] for task in tasks for call in (task.output or {}).get("calls", [])}
    calls = await provenance.journalled(client, journal_start, [task.id for task in tasks], answered)
    return [
        {
            "part": name, "title": title, "agent": agent, "agent_id": task.agent_id, "task_id": task.id, "status": task.status,
            "attempts": task.attempt, "error": task.error.model_dump() if task.error else None, "output": task.output,
            "positions": await provenance.positions(client, task.id), "calls": provenance.by_tool(calls[task.id]),
        }
        for (name, (agent, _, title)), task in zip(PARTS.items(), tasks, strict=True)
    ]  # fmt: skip


async def edit(
    client: Client, watch: Watch, repository: Repository, context: dict[str, Any], parts: list[dict[str, Any]], notes: list[str]
) -> TaskInfo:
    """Has the report written."""
    agent, capability = EDITOR
    described = {"name": Path(repository.root).name, "root": repository.root, "head": repository.head}
    work = {"run_id": context["run_id"], "repository": described, "parts": parts, "notes": notes}
    task = await client.tasks.submit(capability, work, description="Write the report", context=context, max_attempts=ATTEMPTS_MAX)
    return await watch.ended(agent, task)


def write(output: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints the report and writes the files that were asked for."""
    sys.stdout.write(output["markdown"])
    sys.stdout.flush()
    beside = options.markdown.with_suffix(".json") if options.markdown else None
    if options.markdown:
        options.markdown.write_text(output["markdown"], "utf-8")
    if path := options.json or beside:
        path.write_text(json.dumps(output["report"], indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
