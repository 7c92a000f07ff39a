"""The historian: who changed what and when. Asks `git_log` through Keiko and checks each commit of its answers against git."""

import asyncio
import os

import history
from toolkit import Toolkit

from keiko import Agent, Task

agent = Agent("historian", description="Tells a repository's history: commits, authors, months, files that change most")


@agent.capability("repository-history", domains=["git"], description="Commits, authors, months and the files that change most")
async def tell(task: Task, root: str, head: str, bare: bool = False) -> dict:
    tools = Toolkit(task)
    await task.progress(5, "reading the commits")
    commits = await asyncio.to_thread(history.commits, root, head)
    await task.progress(15, f"{len(commits)} commits")
    mailmap = None if bare else await read_mailmap(tools, root)
    log = await ask_log(task, tools, root, commits)
    await task.progress(85, "counting changed files")
    files = await asyncio.to_thread(history.changed_files, root, head)
    authors = history.authors(commits)
    return {
        "commits": len(commits), "authors": authors[:5], "authors_total": len(authors), "months": history.months(commits),
        "changed_files": files, "mailmap": mailmap, "git_log": log, "notes": tools.notes, "calls": tools.calls,
    }  # fmt: skip


async def read_mailmap(tools: Toolkit, root: str) -> dict[str, object]:
    """What the filesystem server says about .mailmap. Git itself ignores one that is a link."""
    path = os.path.join(root, ".mailmap")
    if os.path.islink(path) or not os.path.isfile(path):
        return {"present": False}
    text = await tools.ask("files__read_text_file", {"path": path})
    if text is None:
        return {"present": True}
    lines = [line.split("#", 1)[0].strip() for line in text.splitlines()]
    return {"present": True, "entries": sum(bool(line) for line in lines)}


async def ask_log(task: Task, tools: Toolkit, root: str, commits: list[history.Commit]) -> dict[str, int]:
    """Asks for the commits window by window, and counts those that git_log tells as git does."""
    windows = await asyncio.to_thread(history.windows, root, commits)
    asked = agreed = 0
    for done, window in enumerate(windows, 1):
        text = await tools.ask("git__git_log", {"repo_path": root, **window.arguments})
        if text is not None:
            asked += len(window.commits)
            agreed += history.confirmed(window, text)
        await task.progress(15 + 70 * done // len(windows), f"git_log: window {done} of {len(windows)}")
    return {"asked": asked, "agreed": agreed}
