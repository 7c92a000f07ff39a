"""The surveyor: what is in a repository. Counts blobs with git, and looks at the working tree through the filesystem server."""

import asyncio
import os

import survey
from repository import Damaged, shown
from toolkit import Toolkit

from keiko import Agent, Task, TaskFailed

FOLDERS_MAX = 20
# A longer listing would say little and weigh much.
NAMES_MAX = 2000

agent = Agent("surveyor", description="Surveys a repository: lines by language, largest files, the working tree")


@agent.capability("repository-survey", domains=["git"], description="Lines by language and the largest files")
async def look(task: Task, root: str, head: str, bare: bool = False) -> dict:
    tools = Toolkit(task)
    await task.progress(5, "listing tracked files")
    try:
        entries = await asyncio.to_thread(survey.tracked, root, head)
        await task.progress(15, f"counting the lines of {len(entries)} files")
        languages, binary = await asyncio.to_thread(survey.languages, root, entries)
    except Damaged as error:
        raise TaskFailed("REPOSITORY_DAMAGED", str(error), retryable=False) from error
    await task.progress(60, "looking at the working tree")
    folders = None if bare else await look_at_folders(task, tools, root, entries)
    largest = [await measured(tools, root, entry, bare) for entry in survey.largest(entries)]
    return {
        "tracked": len(entries), "links": sum(e.mode == b"120000" for e in entries), "submodules": sum(e.size is None for e in entries),
        "binary": binary, "languages": languages, "largest_files": largest, "folders": folders, "notes": tools.notes, "calls": tools.calls,
    }  # fmt: skip


async def look_at_folders(task: Task, tools: Toolkit, root: str, entries: list[survey.Entry]) -> dict[str, int]:
    """Lists the folders with the most tracked files, and compares the names with those that HEAD tracks."""
    seen = missing = untracked = 0
    folders = list(survey.directories(entries).items())[:FOLDERS_MAX]
    for done, (folder, names) in enumerate(folders, 1):
        listed = await names_in(tools, os.path.join(root, folder))
        if listed is not None:
            plain = {name for name in names if "\n" not in name}
            seen += 1
            missing += len(plain - listed)
            untracked += len(listed - names - {".git"})
        await task.progress(60 + 30 * done // len(folders), f"folder {done} of {len(folders)}")
    return {"listed": seen, "of": len(survey.directories(entries)), "missing": missing, "untracked": untracked}


async def names_in(tools: Toolkit, folder: str) -> set[str] | None:
    """The names that the filesystem server lists; None when it cannot, or when they are too many."""
    try:
        if len(os.listdir(folder)) > NAMES_MAX:
            return None
    except OSError:
        return None
    text = await tools.ask("files__list_directory", {"path": folder})
    if text is None:
        return None
    return {line.split("] ", 1)[1] for line in text.split("\n") if line.startswith(("[FILE] ", "[DIR] "))}


async def measured(tools: Toolkit, root: str, entry: survey.Entry, bare: bool) -> dict[str, object]:
    """A large file: its bytes at HEAD and, as the filesystem server says, in the working tree."""
    found: dict[str, object] = {"path": shown(entry.path), "bytes": entry.size, "working_tree_bytes": None}
    try:
        path = os.path.join(root, entry.path.decode())
    except UnicodeDecodeError:
        return found
    if bare or not entry.is_regular or not os.path.lexists(path):
        return found
    text = await tools.ask("files__get_file_info", {"path": path})
    size = (text or "").removeprefix("size: ").split("\n", 1)[0]
    return found | {"working_tree_bytes": int(size) if size.isdigit() else None}
