"""The demonstration fleet (demo): its counting against git itself, on small odd repositories, and whole runs against the real server."""

import collections
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ADMIN_PASSWORD, REPO, clean_env, until

DEMO = REPO / "demo"
sys.path.insert(0, str(DEMO))

import history  # noqa: E402
import languages  # noqa: E402
import render  # noqa: E402
import repository  # noqa: E402
import survey  # noqa: E402

LATIN = "Jürgen Müller"
FAKE_ENTRY = "lies\n\nCommit: {id}\nAuthor: Nobody\nDate: 1999-01-01 00:00:00+00:00\nMessage: never happened\n"


class Sandbox:
    """A small repository that is built commit by commit."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.clock = 1_700_000_000

    def git(self, *args, given=None, **env):
        base = {"PATH": os.environ["PATH"], "HOME": str(self.path.parent), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8"}
        command = ["git", "-c", "protocol.file.allow=always", "-C", str(self.path), *args]
        return subprocess.run(command, input=given, capture_output=True, check=True, env={**base, **env}).stdout

    def write(self, name, content=b"one\n"):
        path = os.path.join(os.fsencode(self.path), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(content)

    def commit(self, message="change", author="Ada", email="ada@example.org", time=None, zone="+0000", encoding="UTF-8"):
        self.clock += 3600
        when = f"{time or self.clock} {zone}"
        who = {"GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": email, "GIT_COMMITTER_NAME": "C", "GIT_COMMITTER_EMAIL": "c@example.org"}
        dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        self.git("add", "-A", **who)
        given = message.encode(encoding)
        self.git(
            "-c",
            f"i18n.commitEncoding={encoding}",
            "commit",
            "-q",
            "--allow-empty",
            "--allow-empty-message",
            "-F",
            "-",
            given=given,
            **who,
            **dates,
        )
        return self.git("rev-parse", "HEAD").decode().strip()

    def head(self):
        return self.git("rev-parse", "HEAD").decode().strip()


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A repository with much that is unusual and allowed."""
    box = Sandbox(tmp_path_factory.mktemp("odd") / "with space & ümlaut")
    for name in (
        "plain.py",
        "with space.md",
        "ümlaut.rs",
        'quote".c',
        "new\nline.go",
        "tab\t.js",
        "pi|pe `tick`.sh",
        b"latin-\xe4.txt",
        "a/b/c/deep.py",
    ):
        box.write(name)
    box.write("empty.py", b"")
    box.write("unfinished.py", b"one\ntwo")
    box.write("binary.py", b"\0\1\2" * 500)
    box.write("late-nul.txt", b"x\n" * 5000 + b"\0")
    first = box.commit("first")
    (box.path / "link.py").symlink_to("plain.py")
    (box.path / "dangling").symlink_to("/nowhere/at all")
    box.commit("links", author="Ben", email="ben@example.org")
    box.commit(FAKE_ENTRY.format(id=first), author="Ben", email="ben@example.org")
    box.commit("", author="ada", email="ada@old.example.org", time=1_704_067_199, zone="-0800")  # another month than in UTC
    box.commit("same second", author=LATIN, email="j@example.org", time=1_704_067_200)
    box.commit("same second again", author=LATIN, email="j@example.org", time=1_704_067_200)
    box.commit("the clock goes back", author="Zoë <z>", email="", time=1_000_000_000, zone="+1345")
    box.git("mv", "plain.py", "renamed.py")
    box.commit("rename", author="Ada")
    box.git("checkout", "-q", "-b", "side", "HEAD~2")
    box.write("side.py", b"s\n" * 40)
    box.commit("side", author="Cy", email="cy@example.org")
    box.git("checkout", "-q", "main")
    env = {
        "GIT_AUTHOR_NAME": "Ben",
        "GIT_AUTHOR_EMAIL": "ben@example.org",
        "GIT_COMMITTER_NAME": "C",
        "GIT_COMMITTER_EMAIL": "c@example.org",
    }
    box.git("merge", "-q", "--no-ff", "-m", "merge", "side", **env)
    box.git("update-index", "--add", "--cacheinfo", f"160000,{first},module")
    (box.path / "module").mkdir()
    box.write(".mailmap", b"# people\nAda Lovelace <ada@example.org>\nAda Lovelace <ada@example.org> <ada@old.example.org>\n")
    (box.path / "with space.md").unlink()
    box.commit("mailmap")
    return box


@pytest.fixture(scope="module")
def merged_names(tmp_path_factory):
    """A repository without .mailmap, with many ties."""
    box = Sandbox(tmp_path_factory.mktemp("ties") / "ties")
    for n in range(24):
        box.write(f"f{n % 12}.py", b"x\n" * (n + 1))
        box.commit(f"{n}", author=f"A{n % 8}", email=f"{n % 3}@example.org")
    return box


@pytest.fixture(params=["odd", "merged_names"])
def box(request):
    return request.getfixturevalue(request.param)


# Counting


def test_commits_and_authors_are_those_of_git(box):
    commits = history.commits(str(box.path), box.head())
    assert len(commits) == int(box.git("rev-list", "--count", "HEAD"))
    listed = [f"{a['commits']}\t{a['name']} <{a['email']}>" for a in history.authors(commits)]
    assert listed == [line.strip() for line in box.git("shortlog", "-sne", "HEAD").decode().splitlines()]


def test_months_are_those_of_git_in_utc(box):
    months = box.git("log", "--format=%ad", "--date=format-local:%Y-%m", "HEAD", TZ="UTC0").decode().split()
    counted = {m["month"]: m["commits"] for m in history.months(history.commits(str(box.path), box.head()))}
    assert counted == collections.Counter(months)


def test_changed_files_are_those_of_git(box):
    names = box.git("log", "--no-merges", "--name-only", "--format=", "-z", "HEAD").split(b"\0")
    counts = collections.Counter(name for name in names if name)
    wanted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert history.changed_files(str(box.path), box.head()) == [{"path": repository.shown(p), "commits": c} for p, c in wanted]


def test_largest_files_are_those_of_git(box):
    paths = [path for path in box.git("ls-tree", "-r", "-z", "--name-only", "HEAD").split(b"\0") if path not in (b"", b"module")]
    sizes = {path: int(box.git("cat-file", "-s", b"HEAD:" + path)) for path in paths}
    wanted = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:10]
    entries = survey.tracked(str(box.path), box.head())
    assert [(entry.path, entry.size) for entry in survey.largest(entries)] == wanted


def test_lines_are_those_of_git(box):
    empty = box.git("hash-object", "-t", "tree", "/dev/null").decode().strip()
    wanted, binary = collections.Counter(), 0
    links = {
        line.split(b"\t")[1] for line in box.git("ls-tree", "-r", "-z", "HEAD").split(b"\0") if line.startswith((b"120000", b"160000"))
    }
    for row in box.git("diff", "--numstat", "--no-renames", "-z", empty, "HEAD").split(b"\0")[:-1]:
        added, _, path = row.split(b"\t", 2)
        if path in links:
            continue
        if added == b"-":
            binary += 1
        else:
            wanted[languages.language_of(repository.shown(path))] += int(added)
    found, found_binary = survey.languages(str(box.path), survey.tracked(str(box.path), box.head()))
    assert {row["language"]: row["lines"] for row in found} == dict(wanted)
    assert found_binary == binary


def test_windows_ask_for_every_commit_once_and_stay_small(box, monkeypatch):
    monkeypatch.setattr(history, "WINDOW_COMMITS_MAX", 3)
    commits = history.commits(str(box.path), box.head())
    windows = history.windows(str(box.path), commits)
    asked = [commit.id for window in windows for commit in window.commits]
    assert sorted(asked) == sorted(commit.id for commit in commits)
    assert max(len(window.commits) for window in windows) == 3
    for window in windows:
        arguments = window.arguments
        since, until_ = (f"--{name}={arguments[key]}" for name, key in (("since", "start_timestamp"), ("until", "end_timestamp")))
        told = box.git("rev-list", since, until_, f"--max-count={arguments['max_count']}", "HEAD").decode().split()
        assert set(told) <= {commit.id for commit in window.commits}, "nothing else lies in the window"


def test_an_answer_that_lies_confirms_nothing():
    commit = history.Commit("a" * 40, 1_700_000_000, 1_700_000_000, "Ada", b"Ada", b"a@example.org")
    window = history.Window((commit,))
    entry = "Commit history:\nCommit: {}\nAuthor: {}\nDate: {}\nMessage: x\n"
    assert history.confirmed(window, entry.format("a" * 40, "Ada", "2023-11-14 22:13:20+00:00")) == 1
    assert history.confirmed(window, entry.format("a" * 40, "Ada", "2023-11-14 23:13:20+01:00")) == 1
    assert history.confirmed(window, entry.format("a" * 40, "Eve", "2023-11-14 22:13:20+00:00")) == 0
    assert history.confirmed(window, entry.format("a" * 40, "Ada", "2023-11-15 22:13:20+00:00")) == 0
    assert history.confirmed(window, entry.format("b" * 40, "Ada", "no date at all")) == 0


def test_names_have_no_effect_in_the_report():
    assert render.text("<b>|*x*\n") == r"&lt;b&gt;\|\*x\*\\n"
    assert render.code("a|b\n`c`") == "`` a\\|b\\n`c` ``"


def test_the_table_of_languages_is_in_the_readme():
    readme = (DEMO / "README.md").read_text()
    for language, extensions in languages.EXTENSIONS.items():
        assert f"| {language} | {' '.join(f'`.{e}`' for e in extensions.split())}" in readme, language


@pytest.mark.parametrize("kind", ["missing", "plain", "empty"])
def test_where_there_is_nothing_to_report_it_says_so(tmp_path, kind):
    path = tmp_path / kind
    if kind == "plain":
        path.mkdir()
    if kind == "empty":
        Sandbox(path)
    with pytest.raises(repository.NoReport, match={"missing": "not a folder", "plain": "not a Git repository", "empty": "no commit"}[kind]):
        repository.opened(str(path))


# Whole runs


def start(keiko, *args):
    """`report.py` as a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("KEIKO_DEMO_")}
    env = clean_env(keiko.home, {**kept, "KEIKO_SERVER": keiko.url, "KEIKO_USERNAME": "admin", "KEIKO_PASSWORD": ADMIN_PASSWORD})
    return subprocess.Popen(
        [sys.executable, str(DEMO / "report.py"), *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(keiko, *args):
    process = start(keiko, *args)
    out, err = process.communicate(timeout=100)
    return process.returncode, out.decode(), err.decode()


def agents_of(keiko):
    """The agents' processes that work with this server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"--agent" in (folder / "cmdline").read_bytes()
                and f"KEIKO_SERVER={keiko.url}\0".encode() in (folder / "environ").read_bytes()
            ):
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_a_whole_report_is_right_and_says_how_it_came_about(keiko, admin, odd, tmp_path):
    code, printed, said = run(keiko, "--repo", odd.path, "--markdown", tmp_path / "r.md")
    assert code == 0, said
    report = json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.md").read_text() == printed
    told, looked = (part["output"] for part in report["parts"])
    assert told["commits"] == int(odd.git("rev-list", "--count", "HEAD"))
    shortlog = [line.strip() for line in odd.git("shortlog", "-sne", "HEAD").decode().splitlines()]
    assert [f"{a['commits']}\t{a['name']} <{a['email']}>" for a in told["authors"]] == shortlog[:5]
    assert told["mailmap"] == {"present": True, "entries": 2}
    assert told["git_log"]["asked"] == told["commits"]
    assert looked["submodules"] == 1 and looked["links"] == 2 and not told["notes"] and not looked["notes"]
    assert re.search(r"(?m)^historian +\d+% .*git_log", said) and re.search(r"(?m)^editor +100% completed$", said)
    for part in report["parts"]:
        events = {e["position"]: e for e in admin.get(f"/tasks/{part['task_id']}/events").json()["data"]}
        assert [events[p]["type"] for p in part["positions"]["claimed"]] == ["tasks.task.claimed"]
        assert [events[p]["type"] for p in part["positions"]["completed"]] == ["tasks.task.completed"]
        made = {call["id"] for call in part["output"]["calls"]}
        assert made and made == {id for call in part["calls"] for id in call["ids"]}
        for call in part["calls"]:
            for id, position in zip(call["ids"], call["journal"], strict=True):
                entry = admin.get(f"/journal/{position}").json()["data"]["attributes"]["data"]
                assert (entry["call_id"], entry["tool"], entry["task_id"]) == (id, call["tool"], part["task_id"])
    assert agents_of(keiko) == []


def test_another_run_on_the_same_data_is_new_work(keiko, admin, merged_names, tmp_path):
    reports = []
    for n in range(2):
        code, _, said = run(keiko, "--repo", merged_names.path, "--json", tmp_path / f"{n}.json")
        assert code == 0, said
        reports.append(json.loads((tmp_path / f"{n}.json").read_text()))
    for one, other in zip(*(report["parts"] for report in reports), strict=True):
        assert one["task_id"] != other["task_id"]
        assert {**one["output"], "calls": None} == {**other["output"], "calls": None}
    told = reports[0]["parts"][0]["output"]
    assert told["git_log"] == {"asked": 24, "agreed": 24}
    assert told["mailmap"] == {"present": False}
    assert len(admin.get("/mcp-servers").json()["data"]) == 2


def test_a_part_that_failed_is_shown_and_the_rest_goes_on(keiko, tmp_path):
    box = Sandbox(tmp_path / "broken")
    box.write("a.py", b"lost\n")
    box.commit()
    lost = box.git("rev-parse", "HEAD:a.py").decode().strip()
    (box.path / ".git/objects" / lost[:2] / lost[2:]).unlink()
    code, printed, said = run(keiko, "--repo", box.path)
    assert code == 1, said
    assert "**1 commits**" in printed
    assert "**This part failed**: REPOSITORY\\_DAMAGED" in printed and lost in printed


def test_bad_input_ends_with_2_and_a_word(keiko, tmp_path):
    code, printed, said = run(keiko, "--repo", tmp_path)
    assert (code, printed) == (2, "") and "not a Git repository" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running(keiko, merged_names, number, monkeypatch):
    # A tool server that never gets ready: the run cannot be over before the signal.
    monkeypatch.setenv("KEIKO_DEMO_MCP_GIT", "/bin/false")
    process = start(keiko, "--repo", merged_names.path)
    until(lambda: len(agents_of(keiko)) == 3, "the agents run")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 2), err
    assert out == b""
    until(lambda: agents_of(keiko) == [], "the agents have ended")
