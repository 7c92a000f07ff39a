"""The report as Markdown. Knows the form of the parts' results; escapes every name that comes from the repository."""

import re
from collections.abc import Iterable
from typing import Any

Part = dict[str, Any]


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    repository = report["repository"]
    lines = [f"# {text(repository['name'])}", "", f"The repository {code(repository['root'])} at commit `{repository['head'][:12]}`."]
    lines += [line for note in report["notes"] for line in ("", text(note))]
    sections = {"history": history, "survey": survey}
    for part in report["parts"]:
        lines += ["", f"## {part['title']}", ""]
        lines += sections[part["part"]](part["output"]) if part["status"] == "completed" else failed(part)
    lines += ["", "## How this report came about", "", f"Run `{report['run_id']}`.", ""]
    for part in report["parts"]:
        lines += provenance(part)
    return "\n".join([*lines, *signature(report["editor"])]) + "\n"


def history(output: Part) -> list[str]:
    """Commits, authors, months, changed files."""
    return [
        f"**{output['commits']} commits** by {output['authors_total']} authors.", "",
        *table(("commits", "author"), ((a["commits"], f"{text(a['name'])} {text('<' + a['email'] + '>')}") for a in output["authors"])), "",
        *table(("month (UTC)", "commits"), ((m["month"], m["commits"]) for m in output["months"])), "",
        "Files that most commits changed, merges left out:", "",
        *table(("commits", "file"), ((f["commits"], code(f["path"])) for f in output["changed_files"])), "",
        mailmap(output["mailmap"]), log(output),
        *(text(note) for note in output["notes"]),
    ]  # fmt: skip


def mailmap(found: Part | None) -> str:
    if not found:
        return "There is no working tree to read `.mailmap` from through the server."
    if not found["present"]:
        return "There is no `.mailmap`."
    return (
        f"`.mailmap` has {found['entries']} entries."
        if "entries" in found
        else "`.mailmap` is there and could not be read through the server."
    )


def log(output: Part) -> str:
    asked, agreed = output["git_log"]["asked"], output["git_log"]["agreed"]
    rest = output["commits"] - agreed
    told = f"`git_log` was asked for {asked} of the commits and told {agreed} as git does"
    return told + (f"; the other {rest} come from git." if rest else ".")


def survey(output: Part) -> list[str]:
    """Languages, largest files, the working tree."""
    rows = ((text(row["language"]), row["files"], row["lines"]) for row in output["languages"])
    largest = ((f["bytes"], same(f), code(f["path"])) for f in output["largest_files"])
    return [
        f"**{output['tracked']} tracked entries**: {output['binary']} binary files, {output['links']} links, {output['submodules']} submodules.", "",
        *table(("language", "text files", "lines"), rows), "",
        "Largest tracked files:", "",
        *table(("bytes", "in the working tree", "file"), largest), "",
        working_tree(output["folders"]),
        *(text(note) for note in output["notes"]),
    ]  # fmt: skip


def same(file: Part) -> str:
    size = file["working_tree_bytes"]
    return "?" if size is None else "the same" if size == file["bytes"] else str(size)


def working_tree(found: Part | None) -> str:
    if not found:
        return "There is no working tree."
    return (
        f"In {found['listed']} of {found['of']} tracked folders, listed through the filesystem server, "
        f"{found['missing']} tracked names are missing and {found['untracked']} names are not tracked."
    )


def failed(part: Part) -> list[str]:
    error = part["error"] or {"code": part["status"].upper(), "message": "no reason was given"}
    return [f"**This part failed**: {text(error['code'])}: {text(error['message'])}"]


def provenance(part: Part) -> list[str]:
    """Which agent, which task, which calls, and where the log and the journal have them."""
    positions = (
        ", ".join(f"{name} {listed(found)}" for name, found in sorted(part["positions"].items(), key=lambda item: item[1])) or "none"
    )
    head = f"- **{part['title']}**: agent `{part['agent']}`, task `{part['task_id']}`, log positions: {positions}."
    calls = [
        f"  - {call['count']} × `{call['tool']}`" + (f" ({call['errors']} said that they failed)" if call["errors"] else "")
        + f": calls {listed(call['ids'], '`')}; journal positions {listed(call['journal'])}"
        for call in part["calls"]
    ]  # fmt: skip
    return [head, *(calls or ["  - no tool calls"])]


def signature(editor: Part) -> list[str]:
    positions = listed(editor["positions"]["claimed"])
    return [f"- **This report**: agent `{editor['agent']}`, task `{editor['task_id']}`, log positions: claimed {positions}; no tool calls."]


def listed(items: list[Any], quote: str = "", most: int = 4) -> str:
    """A list, shortened in the middle when it is long."""
    words = [f"{quote}{item}{quote}" for item in items]
    if len(words) > most:
        words = [*words[: most - 1], "…", words[-1]]
    return ", ".join(words) or "none"


def table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """A Markdown table; numbers stand on the right."""
    rows = list(rows)
    if not rows:
        return ["(none)"]
    rule = ["---:" if isinstance(cell, int) else "---" for cell in rows[0]]
    return ["| " + " | ".join(map(str, row)) + " |" for row in (heads, rule, *rows)]


def visible(name: str) -> str:
    """A name on one line: control characters as they are written in programs."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def text(name: str) -> str:
    """Words of others, without effect in Markdown and HTML."""
    safe = visible(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", safe)


def code(name: str) -> str:
    """A path, as code, in a table cell too."""
    shown = visible(name).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"
