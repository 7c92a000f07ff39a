"""A Git repository on this machine, read with `git` plumbing. Runs git and splits its answers; counts nothing.

Paths and names stay bytes until they are shown, because Git promises no encoding.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
# What a user's settings could change in the answers.
SETTINGS = ("-c", "log.showSignature=false", "-c", "core.quotePath=false", "-c", "i18n.logOutputEncoding=UTF-8", "-c", "diff.orderFile=")


class NoReport(Exception):
    """There can be no report; says why."""


class GitFailed(Exception):
    """A git command failed; says which, and what it said."""

    def __init__(self, args: tuple[str, ...], code: int, errors: bytes) -> None:
        super().__init__(f"git {args[0]}: {shown(errors).strip() or f'ended with {code}'}")


class Damaged(Exception):
    """An object that the repository names is not in it."""


@dataclass(frozen=True)
class Repository:
    """Where it is. `root` is the working tree, or the repository itself when it has none."""

    root: str
    head: str
    is_bare: bool
    is_shallow: bool


def opened(path: str) -> Repository:
    """The repository that a path lies in. Raises NoReport when it is none, or when it has no commit."""
    if not Path(path).is_dir():
        raise NoReport(f"{path!r} is not a folder.")
    try:
        is_bare = line(path, "rev-parse", "--is-bare-repository") == "true"
        inside = line(path, "rev-parse", "--is-inside-work-tree") == "true"
        root = line(path, "rev-parse", "--absolute-git-dir" if is_bare or not inside else "--show-toplevel")
        is_shallow = line(path, "rev-parse", "--is-shallow-repository") == "true"
    except FileNotFoundError:
        raise NoReport("There is no program 'git' in PATH.") from None
    except GitFailed as error:
        raise NoReport(f"{path!r} is not a Git repository that can be read: {error}") from None
    try:
        head = line(path, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except GitFailed:
        raise NoReport(f"The repository {path!r} has no commit on its current branch.") from None
    root = os.path.realpath(root)
    if shown(os.fsencode(root)) != root:
        raise NoReport(f"The path {shown(os.fsencode(root))!r} is not UTF-8, so no tool can be told of it.")
    return Repository(root, head, is_bare or not inside, is_shallow)


def environment() -> dict[str, str]:
    """This process's environment without what would point git elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}


def command(root: str, *args: str) -> list[str]:
    """A git command in a repository."""
    return ["git", "-C", root, "--no-pager", *SETTINGS, *args]


def output(root: str, *args: str, given: bytes = b"") -> bytes:
    """All that a git command writes."""
    done = subprocess.run(command(root, *args), input=given, capture_output=True, env=environment(), check=False)
    if done.returncode:
        raise GitFailed(args, done.returncode, done.stderr)
    return done.stdout


def line(root: str, *args: str) -> str:
    """A git command's only line."""
    return os.fsdecode(output(root, *args)).removesuffix("\n")


def fields(root: str, *args: str, given: bytes = b"") -> Iterator[bytes]:
    """What a git command writes with `-z`, field by field, without holding all of it."""
    with piped(root, *args, given=given) as process:
        rest = b""
        while chunk := process.stdout.read1(CHUNK_BYTES):
            *whole, rest = (rest + chunk).split(b"\0")
            yield from whole


@contextmanager
def piped(root: str, *args: str, given: bytes = b"") -> Iterator[subprocess.Popen[bytes]]:
    """A running git command. Its input comes from a file, so that neither side waits for the other."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as errors:
        source.write(given)
        source.seek(0)
        process = subprocess.Popen(command(root, *args), stdin=source, stdout=subprocess.PIPE, stderr=errors, env=environment())
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            code = process.wait()
        if code:
            errors.seek(0)
            raise GitFailed(args, code, errors.read())


def shown(text: bytes) -> str:
    """Bytes as text; what is not UTF-8 as `\\xNN`."""
    return text.decode("utf-8", "backslashreplace")
