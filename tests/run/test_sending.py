"""What goes to the machine and what comes back: workdir, data, environment, outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import Ended, run

LISTING = "run: 'mkdir -p out; find . -mindepth 1 -not -path \"./out*\" | sort > out/there'\n"
OUTPUT = "outputs: [{from: out, to: ./artifacts}]\n"
NOT_OURS = {"./checkpoints"}  # made for the job


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def there(rehearsal: Rehearsal) -> set[str]:
    listed = (rehearsal.folder / "job/artifacts/there").read_text(errors="surrogateescape")
    return set(listed.splitlines()) - NOT_OURS


def test_the_workdir_without_what_is_ignored(rehearsal: Rehearsal) -> None:
    job = rehearsal.folder / "job"
    write(
        job,
        {
            "train.py": "",
            "pkg/model.py": "",
            "pkg/data.bin": "",
            "pkg/keep.bin": "",
            "venv/lib/x.py": "",
            "notes.txt": "",
            ".env": "SECRET=1",
            ".gitignore": "*.bin\n!keep.bin\nvenv/\n",
            ".gpuctlignore": "notes.txt\n",
            ".git/config": "",
        },
    )
    ended = run(rehearsal, LISTING + OUTPUT)
    assert ended.code == 0, ended.err
    found = there(rehearsal)
    assert {"./train.py", "./pkg", "./pkg/model.py", "./pkg/keep.bin", "./train.yaml"} <= found
    assert not {"./pkg/data.bin", "./venv", "./venv/lib/x.py", "./notes.txt"} & found
    assert not any(name.startswith("./.git/") for name in found)


def test_a_home_inside_the_workdir_is_not_sent(rehearsal: Rehearsal) -> None:
    job = rehearsal.folder / "job"
    write(job, {"train.py": ""})
    inside = Rehearsal(job, {"GPUCTL_HOME": str(job / "deep/home")})
    rehearsal.write_spec(f"{LISTING}{OUTPUT}")
    code, document, err = inside.gpuctl("run", job / "train.yaml", "--provider", "local", "--yes")
    assert code == 0, err
    assert document["run"]["state"] == "succeeded"
    found = there(rehearsal)
    assert "./train.py" in found
    # Not its ledger, keys, store or the machine's own folder (which would never end).
    assert not any("ledger" in name or "local" in name or "store" in name for name in found)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{from: ../corpus.jsonl, to: data/}", {"./data", "./data/corpus.jsonl"}),
        ("{from: ../corpus.jsonl, to: data/tokens.jsonl}", {"./data", "./data/tokens.jsonl"}),
        ("{from: ../corpus.jsonl, to: tokens}", {"./tokens"}),
        ("{from: ../set, to: data}", {"./data", "./data/a", "./data/sub", "./data/sub/b"}),
        ("{from: ../set, to: data/}", {"./data", "./data/a", "./data/sub", "./data/sub/b"}),
        ("{from: ../set/, to: data/set}", {"./data", "./data/set", "./data/set/a"}),
    ],
)
def test_data(rehearsal: Rehearsal, entry: str, expected: set[str]) -> None:
    write(rehearsal.folder, {"corpus.jsonl": "{}\n", "set/a": "a", "set/sub/b": "b"})
    ended = run(rehearsal, f"{LISTING}data: [{entry}]\n{OUTPUT}")
    assert ended.code == 0, ended.err
    assert expected <= there(rehearsal)
    unexpected = {name for name in there(rehearsal) if "corpus" in name} - expected
    assert unexpected == set()


def test_data_that_is_not_there_rents_nothing(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, "run: echo never\ndata: [{from: ../nothing, to: data}]\n")
    assert ended.code == 2, ended.err
    assert "data.0.from" in ended.error["message"]
    assert rehearsal.kinds() == []


ODD = ["with space", "-rf", "naïve-ü", "quote'\"s", "$(touch pwned)", "star*", "new\nline", "#x"]


def test_odd_names_and_modes_arrive_as_they_are(rehearsal: Rehearsal) -> None:
    job = rehearsal.folder / "job"
    write(job, {f"names/{name}": name for name in ODD})
    write(job, {"tool.sh": "#!/bin/sh\necho it runs\n", "empty": ""})
    (job / "tool.sh").chmod(0o755)
    (job / "hollow").mkdir()
    (job / "link").symlink_to("tool.sh")
    (job / "dangling").symlink_to("nowhere")
    spec = "run: './link && mkdir out && cp -r names out/ && test -d hollow && test -f empty'\n"
    ended = run(rehearsal, spec + OUTPUT)
    assert ended.code == 0, ended.err
    assert "it runs" in ended.err
    back = job / "artifacts/names"
    assert {path.name: path.read_text() for path in back.iterdir()} == {name: name for name in ODD}
    assert not list(rehearsal.folder.rglob("pwned"))


def test_the_environment(rehearsal: Rehearsal) -> None:
    values = {
        "PLAIN": "demo",
        "SPACED": "two  words ",
        "SHELL_CHARS": "$HOME `id` $(id) \"' \\ ;",
        "NUMBER": "3",
        "EMPTY": "",
        "LINES": "one\ntwo",
        "UNICODE": "grün",
    }
    quoted = "".join(
        f"  {name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()
    )
    spec = f"env:\n{quoted}run: mkdir out; env -0 > out/env\n{OUTPUT}checkpoints: {{dir: ckpt}}\n"
    ended = run(rehearsal, spec)
    assert ended.code == 0, ended.err
    content = (rehearsal.folder / "job/artifacts/env").read_bytes()
    env = dict(item.decode().split("=", 1) for item in content.split(b"\0") if item)
    assert {name: env.get(name) for name in values} == values
    assert env["GPUCTL_RUN_ID"] == ended.run["id"]
    assert env["GPUCTL_ATTEMPT"] == "1"
    assert env["GPUCTL_RESUME_FROM"] == ""
    assert (env["GPUCTL_NODE_RANK"], env["GPUCTL_NODES"]) == ("0", "1")
    assert env["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 < int(env["MASTER_PORT"]) < 65536
    directory = Path(env["GPUCTL_CHECKPOINT_DIR"])
    assert directory.is_absolute()
    assert directory == Path(env["PWD"]) / "ckpt"
    # What the caller has in its own environment is not the job's, unless the spec says so.
    assert "GPUCTL_HOME" not in env
    assert "/local/machines/" in env["HOME"]


def test_the_resumed_job_is_told_where(rehearsal: Rehearsal) -> None:
    spec = """
run: |
  echo "[$GPUCTL_ATTEMPT] [$GPUCTL_RESUME_FROM]"
  [ "$GPUCTL_ATTEMPT" = 2 ] && { cat "$GPUCTL_RESUME_FROM/w"; exit 0; }
  mkdir "$GPUCTL_CHECKPOINT_DIR/.e"; echo weights > "$GPUCTL_CHECKPOINT_DIR/.e/w"
  mv "$GPUCTL_CHECKPOINT_DIR/.e" "$GPUCTL_CHECKPOINT_DIR/epoch 5"
  sleep 60
"""
    ended = run(rehearsal, spec, "--rehearse-interruption", "2s")
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), ended.err
    assert "[1] []" in ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("[2] [")]
    path = line.removeprefix("[2] [").removesuffix("]")
    assert path.startswith("/")
    assert path.endswith("/checkpoints/epoch 5")
    assert "weights" in ended.err.splitlines()


def delivered(rehearsal: Rehearsal, outputs: str) -> Ended:
    spec = (
        "run: 'mkdir -p out/sub; echo a > out/a; echo b > out/sub/b; echo model > model.bin'\n"
        f"outputs: [{outputs}]\n"
    )
    return run(rehearsal, spec)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("{from: model.bin, to: ./artifacts}", ["artifacts/model.bin"]),
        ("{from: model.bin, to: ./artifacts/}", ["artifacts/model.bin"]),
        ("{from: model.bin, to: ./artifacts/best.bin}", ["artifacts/best.bin"]),
        ("{from: out, to: ./artifacts}", ["artifacts/a", "artifacts/sub/b"]),
        ("{from: out/, to: ./artifacts/}", ["artifacts/a", "artifacts/sub/b"]),
        ("{from: out/sub, to: ./x.y}", ["x.y/b"]),
    ],
)
def test_outputs(rehearsal: Rehearsal, output: str, expected: list[str]) -> None:
    ended = delivered(rehearsal, output)
    assert ended.code == 0, ended.err
    for name in expected:
        assert (rehearsal.folder / "job" / name).is_file(), ended.run["outputs"]
    assert len(ended.run["outputs"]) == 1
    assert ended.run["outputs"][0]["bytes"] > 0


def test_an_output_does_not_climb(rehearsal: Rehearsal) -> None:
    ended = delivered(rehearsal, "{from: out/a, to: ..}")
    assert ended.code == 2, ended.err
    assert "outputs.0.to" in ended.error["message"]
    assert rehearsal.kinds() == []


def test_an_output_leaves_alone_what_is_there(rehearsal: Rehearsal) -> None:
    write(rehearsal.folder / "job", {"artifacts/old": "old", "artifacts/a": "before"})
    ended = delivered(rehearsal, "{from: out, to: ./artifacts}")
    assert ended.code == 0, ended.err
    artifacts = rehearsal.folder / "job/artifacts"
    assert (artifacts / "old").read_text() == "old"
    assert (artifacts / "a").read_text() == "a\n"


def test_a_missing_output_is_said_and_the_others_come(rehearsal: Rehearsal) -> None:
    ended = delivered(rehearsal, "{from: nothing, to: ./x}, {from: model.bin, to: ./artifacts}")
    assert (ended.code, ended.run["state"]) == (0, "succeeded"), ended.err
    assert "warning: the output nothing was not there" in ended.err
    assert "nothing" in ended.run["reason"]
    assert (rehearsal.folder / "job/artifacts/model.bin").is_file()
    assert [one["from"] for one in ended.run["outputs"]] == ["model.bin"]
