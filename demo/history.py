"""Who changed what and when: pure counting over a repository's commits, and the plan and the reading of `git_log` answers."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from repository import fields, output, shown

FORMAT = "%H%x00%at%x00%ct%x00%an%x00%aN%x00%aE"
# A window of git_log holds at most so many commits and so many bytes of commit objects, and so do all windows together.
WINDOW_COMMITS_MAX, WINDOW_BYTES_MAX, ASKED_COMMITS_MAX = 500, 400_000, 20_000
ENTRY = re.compile(r"^Commit: ([0-9a-f]{40,64})\nAuthor: (.*)\nDate: (\S+ \S+)\nMessage: ", re.MULTILINE)


@dataclass(frozen=True)
class Commit:
    """A commit. Times are seconds since 1970, None when Git cannot read them. `name` and `email` went through .mailmap."""

    id: str
    author_time: int | None
    commit_time: int | None
    written_name: str
    name: bytes
    email: bytes


@dataclass(frozen=True)
class Window:
    """Commits that one call of git_log is asked for: all whose commit time lies in between, both ends included."""

    commits: tuple[Commit, ...]

    @property
    def arguments(self) -> dict[str, object]:
        """What git_log is asked, besides the repository."""
        times = [commit.commit_time or 0 for commit in self.commits]
        first, last = (datetime.fromtimestamp(time, UTC).isoformat() for time in (min(times), max(times)))
        return {"max_count": len(self.commits) + 1, "start_timestamp": first, "end_timestamp": last}


def commits(root: str, head: str) -> list[Commit]:
    """All commits reachable from a commit."""
    found = list(fields(root, "log", "-z", f"--format={FORMAT}", head, "--"))
    width = FORMAT.count("%x00") + 1
    return [commit_of(*found[at : at + width]) for at in range(0, len(found) - width + 1, width)]


def commit_of(id: bytes, author_time: bytes, commit_time: bytes, written_name: bytes, name: bytes, email: bytes) -> Commit:
    return Commit(id.decode(), number(author_time), number(commit_time), shown(written_name), name, email)


def number(text: bytes) -> int | None:
    return int(text) if text.isdigit() else None


def authors(found: Iterable[Commit]) -> list[dict[str, object]]:
    """All authors, as `git shortlog -sne HEAD` lists them: most commits first, then by name."""
    counts = Counter((commit.name, commit.email) for commit in found)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], b"%s <%s>" % item[0]))
    return [{"name": shown(name), "email": shown(email), "commits": count} for (name, email), count in ordered]


def months(found: Iterable[Commit]) -> list[dict[str, object]]:
    """Commits by month of their author time in UTC, oldest first. A time that is no date counts as `unknown`."""
    return [{"month": month, "commits": count} for month, count in sorted(Counter(month_of(c.author_time) for c in found).items())]


def month_of(time: int | None) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m") if time is not None else "unknown"
    except (ValueError, OverflowError, OSError):
        return "unknown"


def changed_files(root: str, head: str) -> list[dict[str, object]]:
    """The ten files that most non-merge commits changed, then by path. A renaming commit counts for the new path."""
    ids = output(root, "rev-list", "--no-merges", head, "--")
    counts = Counter(fields(root, "diff-tree", "--stdin", "--root", "-r", "-M", "--no-commit-id", "--name-only", "-z", given=ids))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"path": shown(path), "commits": count} for path, count in ordered[:10]]


def windows(root: str, found: Iterable[Commit]) -> list[Window]:
    """What to ask git_log, newest first, so that no answer grows too long. Commits of the same second stay together."""
    dated = sorted((c for c in found if asks_for(c)), key=lambda c: (-(c.commit_time or 0), c.id))[:ASKED_COMMITS_MAX]
    size = sizes(root, dated)
    planned: list[list[Commit]] = []
    filled = 0
    for second in same_second(dated):
        heavy = sum(size[commit.id] for commit in second)
        fits = planned and filled + heavy <= WINDOW_BYTES_MAX and len(planned[-1]) + len(second) <= WINDOW_COMMITS_MAX
        if heavy > WINDOW_BYTES_MAX:
            planned.append([])  # no window can hold it; git itself answers
        elif fits:
            planned[-1] += second
            filled += heavy
            continue
        else:
            planned.append(second)
        filled = heavy
    return [Window(tuple(window)) for window in planned if window]


def asks_for(commit: Commit) -> bool:
    """Whether git_log can be asked for its time: a year that people write with four digits, after 1970."""
    return commit.commit_time is not None and 86_400 <= commit.commit_time < 4_000_000_000


def same_second(dated: list[Commit]) -> Iterable[list[Commit]]:
    """Commits in order, those of one commit time together."""
    group: list[Commit] = []
    for commit in dated:
        if group and group[-1].commit_time != commit.commit_time:
            yield group
            group = []
        group.append(commit)
    if group:
        yield group


def sizes(root: str, found: Iterable[Commit]) -> dict[str, int]:
    """Bytes of each commit's object, which bound its entry in an answer."""
    ids = "".join(commit.id + "\n" for commit in found).encode()
    lines = output(root, "cat-file", "--batch-check=%(objectname) %(objectsize)", given=ids).decode().splitlines()
    return {id: int(size) for id, size in (line.split() for line in lines)}


def entries(text: str) -> dict[str, tuple[str, int]]:
    """Author and author time of each commit in an answer of git_log. What a message makes up is sorted out by `confirmed`."""
    found: dict[str, tuple[str, int]] = {}
    for id, author, date in ENTRY.findall(text):
        try:
            found.setdefault(id, (author, int(datetime.fromisoformat(date).timestamp())))
        except (ValueError, OverflowError):
            continue
    return found


def confirmed(window: Window, text: str) -> int:
    """How many of the window's commits the answer has, with the author and the time that git has."""
    told = entries(text)
    return sum(told.get(commit.id) == (commit.written_name, commit.author_time) for commit in window.commits)
