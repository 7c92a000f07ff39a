"""What is in a repository: lines by language and the largest files, counted over the blobs of a commit."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from languages import language_of
from repository import CHUNK_BYTES, Damaged, fields, piped, shown

# Git's own rule: a file is binary when a NUL is among its first bytes.
BINARY_LOOK_BYTES = 8000
REGULAR = (b"100644", b"100755", b"100664")


@dataclass(frozen=True)
class Entry:
    """A tracked file, link or submodule. `size` is None for submodules."""

    mode: bytes
    id: bytes
    size: int | None
    path: bytes

    @property
    def is_regular(self) -> bool:
        """A file with content of its own: neither a link nor a submodule."""
        return self.mode in REGULAR


def tracked(root: str, head: str) -> list[Entry]:
    """All that a commit tracks, by path."""
    return [entry_of(field) for field in fields(root, "ls-tree", "-r", "-l", "-z", "--full-tree", head)]


def entry_of(field: bytes) -> Entry:
    head, path = field.split(b"\t", 1)
    mode, _, id, size = head.split()
    if size == b"BAD":
        raise Damaged(f"The object {id.decode()} of {shown(path)!r} is missing or broken.")
    return Entry(mode, id, int(size) if size != b"-" else None, path)


def largest(entries: list[Entry]) -> list[Entry]:
    """The ten largest files by bytes, then by path."""
    return sorted((e for e in entries if e.size is not None), key=lambda e: (-(e.size or 0), e.path))[:10]


def languages(root: str, entries: list[Entry]) -> tuple[list[dict[str, object]], int]:
    """Files and lines of each language, most lines first, and how many regular files are binary."""
    files = [entry for entry in entries if entry.is_regular]
    lines = dict(zip({e.id: None for e in files}, lines_of(root, list({e.id: None for e in files})), strict=True))
    counts: dict[str, list[int]] = {}
    for entry in files:
        count = lines[entry.id]
        if count is not None:
            known = counts.setdefault(language_of(shown(entry.path)), [0, 0])
            known[0] += 1
            known[1] += count
    ordered = sorted(counts.items(), key=lambda item: (-item[1][1], item[0]))
    found = [{"language": name, "files": files, "lines": lines} for name, (files, lines) in ordered]
    return found, sum(lines[entry.id] is None for entry in files)


def lines_of(root: str, ids: list[bytes]) -> Iterator[int | None]:
    """The lines of each blob, None for a binary one. A last line without an end counts."""
    with piped(root, "cat-file", "--batch", "--buffer", given=b"".join(id + b"\n" for id in ids)) as process:
        for id in ids:
            header = process.stdout.readline().split()
            if len(header) != 3:
                raise Damaged(f"The object {id.decode()} is missing or broken.")
            yield count_lines(process.stdout, int(header[2]))
            process.stdout.read(1)


def count_lines(stream, size: int) -> int | None:
    """Reads `size` bytes and counts their lines."""
    left, lines, last, binary = size, 0, b"\n", False
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        binary = binary or (left == size and b"\0" in chunk[:BINARY_LOOK_BYTES])
        lines += chunk.count(b"\n")
        last, left = chunk[-1:], left - len(chunk)
    return None if binary else lines + (last != b"\n")


def directories(entries: list[Entry]) -> dict[str, set[str]]:
    """Every tracked folder ('' is the root) with the names in it, by size of the tree below. Only names that are UTF-8."""
    children: dict[str, set[str]] = {"": set()}
    weight: dict[str, int] = {"": len(entries)}
    for entry in entries:
        try:
            path = entry.path.decode()
        except UnicodeDecodeError:
            continue
        while path:
            path, name = os.path.split(path)
            children.setdefault(path, set()).add(name)
            weight[path] = weight.get(path, 0) + 1
    return dict(sorted(children.items(), key=lambda item: (-weight[item[0]], item[0])))
