"""train.yaml as it is meant: values, defaults, paths, overrides, JSON there and back, schema."""

from __future__ import annotations

import json
import os.path
import string
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from gpuctl.errors import SpecError
from gpuctl.spec import RunSpec, is_s3, json_schema, load_spec, missing_secrets
from gpuctl.spec.document import Unreadable, parse
from gpuctl.spec.loading import is_verbatim

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*/*.yaml"))
WHOLE = """\
name: sentiment-lora
resources:
  gpu: [A100-40GB, RTX-4090, "24GB+"]
  count: 1
  nodes: 1
  cpus: 8
  memory: 32
  disk: 50
  spot: true
  providers: [vastai, aws]
  regions: []
  image: pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime
  max_price: 2.00
budget: {max_cost: 10.00, max_duration: 4h, deadline: 12h}
workdir: .
data: [{from: "s3://bucket/tokens", to: data/tokens}, {from: ../corpus.jsonl, to: data/}]
env: {WANDB_PROJECT: demo}
secrets: [HF_TOKEN]
preflight: {min_vram: 12, bf16: true, disk_free: 20, run: "python -c 'import torch'"}
setup: pip install -r requirements.txt
run: python train.py --output-dir "$GPUCTL_CHECKPOINT_DIR"
checkpoints: {dir: checkpoints, store: "s3://bucket/ckpt", keep: 3}
outputs: [{from: out/adapter, to: ./artifacts}]
on_interruption: {max_recoveries: 5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a train.yaml, with a name that shows."""
    (tmp_path / "My Demo").mkdir()
    return tmp_path / "My Demo"


def load(folder: Path, text: str, *overrides: str) -> RunSpec:
    """Write a train.yaml and read it."""
    (folder / "train.yaml").write_text(text, encoding="utf-8")
    return load_spec(folder / "train.yaml", overrides=overrides, environ={"HOME": "/home/me"})


def refused(folder: Path, text: str, *overrides: str) -> str:
    """Return what is said about it, without the path of its folder."""
    with pytest.raises(SpecError) as caught:
        load(folder, text, *overrides)
    assert str(caught.value).isprintable()
    return str(caught.value).replace(f"{folder}/", "")


def complaint(folder: Path, content: bytes) -> str | None:
    """Return what is said about a train.yaml, or None when it is good."""
    (folder / "train.yaml").write_bytes(content)
    try:
        load_spec(folder / "train.yaml", environ={})
    except SpecError as error:
        return str(error)
    return None


# ----------------------------------------------------------------------------- what it says


def test_the_whole_example(folder: Path) -> None:
    spec = load(folder, WHOLE)
    assert spec.name == "sentiment-lora"
    resources = spec.resources
    assert resources.gpu == ("A100-40GB", "RTX-4090", "24GB+")
    assert (resources.count, resources.nodes, resources.cpus) == (1, 1, 8)
    assert (resources.memory, resources.disk) == (32.0, 50.0)
    assert resources.spot is True
    assert resources.providers == ("vastai", "aws")
    assert resources.regions == ()
    assert resources.image == "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
    assert resources.max_price == Decimal(2)
    assert spec.budget.max_cost == Decimal(10)
    assert spec.budget.max_duration == timedelta(hours=4)
    assert spec.budget.deadline == timedelta(hours=12)
    assert spec.workdir == str(folder)
    assert [(item.source, item.target) for item in spec.data] == [
        ("s3://bucket/tokens", "data/tokens"),
        (f"{folder}/../corpus.jsonl", "data/"),
    ]
    assert spec.env == {"WANDB_PROJECT": "demo"}
    assert spec.secrets == ("HF_TOKEN",)
    assert (spec.preflight.min_vram, spec.preflight.bf16) == (12.0, True)
    assert (spec.preflight.disk_free, spec.preflight.run) == (20.0, "python -c 'import torch'")
    assert spec.setup == "pip install -r requirements.txt"
    assert (spec.checkpoints.dir, spec.checkpoints.keep) == ("checkpoints", 3)
    assert spec.checkpoints.store == "s3://bucket/ckpt"
    assert spec.checkpoints.settle == timedelta(seconds=2)
    assert [(item.source, item.target) for item in spec.outputs] == [
        ("out/adapter", f"{folder}/artifacts")
    ]
    assert spec.on_interruption.max_recoveries == 5


def test_only_run_is_required(folder: Path) -> None:
    spec = load(folder, "run: python train.py\n")
    assert spec.name == "my-demo"
    assert spec.workdir == str(folder)
    assert spec.resources.gpu == ()
    assert (spec.resources.count, spec.resources.nodes, spec.resources.disk) == (1, 1, 40.0)
    assert spec.resources.spot == "auto"
    assert spec.resources.image is None
    assert spec.budget.max_cost is spec.budget.max_duration is spec.budget.deadline is None
    assert (spec.checkpoints.dir, spec.checkpoints.store) == ("checkpoints", None)
    assert spec.preflight.min_vram is None
    assert spec.preflight.bf16 is False
    assert spec.on_interruption.max_recoveries == 5


def test_a_key_without_a_value_is_a_key_not_given(folder: Path) -> None:
    empty = "".join(f"{key}:\n" for key in RunSpec.model_fields if key != "run")
    assert load(folder, "run: x\n" + empty) == load(folder, "run: x\n")
    assert load(folder, "run: x\nresources: {disk: , gpu: ~}\n") == load(folder, "run: x\n")
    assert "unknown key" in refused(folder, "run: x\nresources: {dsk: }\n")


@pytest.mark.parametrize(
    ("written", "gpu"),
    [
        ("A100-40GB", ("A100-40GB",)),
        ("[A100-40GB]", ("A100-40GB",)),
        ("24GB+", ("24GB+",)),
        ("none", ()),
        ("[]", ()),
        ("[none]", ()),
        ("", ()),
    ],
)
def test_gpu(written: str, gpu: tuple[str, ...], folder: Path) -> None:
    assert load(folder, f"run: x\nresources:\n  gpu: {written}\n").resources.gpu == gpu


@pytest.mark.parametrize(
    ("written", "spot"), [("true", True), ("false", False), ("auto", "auto"), ("Auto", "auto")]
)
def test_spot(written: str, spot: object, folder: Path) -> None:
    assert load(folder, f"run: x\nresources: {{spot: {written}}}\n").resources.spot == spot


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-11-22T18:00:00Z", datetime(2026, 11, 22, 18, tzinfo=UTC)),
        ("2026-11-22 19:30:00+01:30", datetime(2026, 11, 22, 18, tzinfo=UTC)),
        ('"2026-11-22t18:00:00.5z"', datetime(2026, 11, 22, 18, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_deadline_may_be_a_moment(written: str, moment: datetime, folder: Path) -> None:
    deadline = load(folder, f"run: x\nbudget: {{deadline: {written}}}\n").budget.deadline
    assert deadline == moment
    assert isinstance(deadline, datetime)
    assert deadline.tzinfo is UTC


def test_env_values_are_text_as_they_are_written(folder: Path) -> None:
    text = "run: x\nenv: {A: 1e-4, B: 010, C: 1.50, D: true, E: yes, F: '', G: 0x1F, H: 1:30}\n"
    assert load(folder, text).env == {
        **{"A": "1e-4", "B": "010", "C": "1.50", "D": "true"},
        **{"E": "yes", "F": "", "G": "0x1F", "H": "1:30"},
    }


def test_anchors_within_reason_work(folder: Path) -> None:
    text = "run: &c python train.py\nsetup: *c\n"
    assert load(folder, text).setup == "python train.py"


def test_a_utf_8_mark_and_windows_line_ends_are_fine(folder: Path) -> None:
    (folder / "train.yaml").write_bytes(b"\xef\xbb\xbfname: caf\r\nrun: |\r\n  a\r\n  b\r\n")
    spec = load_spec(folder / "train.yaml", environ={})
    assert (spec.name, spec.run) == ("caf", "a\nb\n")


# ------------------------------------------------------------------------------------ paths


def test_local_paths_start_at_the_folder_of_train_yaml(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
run: x
workdir: ../code
data: [{from: /data/x, to: a}, {from: ~/corpus, to: b}, {from: near, to: ./}]
checkpoints: {dir: a/b, store: ../ckpt}
outputs: [{from: ., to: .}, {from: x, to: s3://bucket}]
"""
    (folder / "train.yaml").write_text(text)
    monkeypatch.chdir(folder.parent)
    spec = load_spec(Path(folder.name, "train.yaml"), environ={"HOME": "/home/me"})
    assert spec.workdir == f"{folder}/../code"
    assert [item.source for item in spec.data] == ["/data/x", "/home/me/corpus", f"{folder}/near"]
    assert spec.checkpoints.store == f"{folder}/../ckpt"
    assert [item.target for item in spec.outputs] == [str(folder), "s3://bucket"]
    assert [is_s3(item.target) for item in spec.outputs] == [False, True]


def test_a_home_that_nobody_knows(folder: Path) -> None:
    (folder / "train.yaml").write_text("run: x\nworkdir: ~/code\n")
    with pytest.raises(SpecError, match="HOME is not set"):
        load_spec(folder / "train.yaml", environ={})


PATH_PARTS = st.lists(
    st.sampled_from(["..", ".", "a", "b c", "", "…", "~", "-x", "$A"]), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(path=PATH_PARTS.map("/".join) | st.text(max_size=12))
def test_no_accepted_path_leaves_its_folder(path: str, folder: Path) -> None:
    quoted = json.dumps(path)
    root = Path("/root/of/it")
    for key in (
        "data: [{from: x, to: %s}]",
        "checkpoints: {dir: %s}",
        "outputs: [{from: %s, to: x}]",
    ):
        try:
            spec = load(folder, f"run: x\n{key % quoted}\n")
        except SpecError:
            continue
        landed = [item.target for item in spec.data] + [item.source for item in spec.outputs]
        landed.append(spec.checkpoints.dir)
        for text in landed:
            assert Path(os.path.normpath(root / text)).is_relative_to(root)
            assert not set(text) & set("$`\"'\\;|&<>*?\x00\n")


# --------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("resources.gpu=RTX-4090", lambda spec: spec.resources.gpu == ("RTX-4090",)),
        ("resources.gpu=[A100, 24GB+]", lambda spec: spec.resources.gpu == ("A100", "24GB+")),
        ("budget.max_cost=2.50", lambda spec: spec.budget.max_cost == Decimal("2.5")),
        ("data.0.from=elsewhere", lambda spec: spec.data[0].source.endswith("/elsewhere")),
        ("data.2={from: s3://more, to: more}", lambda spec: len(spec.data) == 3),
        ("env.LR=1e-4", lambda spec: spec.env == {"WANDB_PROJECT": "demo", "LR": "1e-4"}),
        ("checkpoints=", lambda spec: spec.checkpoints.dir == "checkpoints"),
        ("run=python other.py --x=1", lambda spec: spec.run == "python other.py --x=1"),
        ("on_interruption.max_recoveries=0", lambda spec: not spec.on_interruption.max_recoveries),
        (" name =x", lambda spec: spec.name == "x"),
    ],
)
def test_overrides(override: str, read: Any, folder: Path) -> None:
    assert read(load(folder, WHOLE, override))


def test_overrides_make_what_is_not_there_and_the_last_one_counts(folder: Path) -> None:
    spec = load(folder, "run: x\n", "preflight.disk_free=9", "name=a", "name=b")
    assert spec.preflight.disk_free == 9
    assert spec.name == "b"


def test_an_override_can_put_a_mistake_right(folder: Path) -> None:
    assert load(folder, "run: x\nresources: {disk: -1}\n", "resources.disk=5").resources.disk == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resources.gpux=A", "--set resources.gpux=A: unknown key; did you mean 'gpu'?"),
        ("resources={gpux: A}", "--set resources={gpux: A}: resources.gpux: unknown key; did"),
        ("data.7.from=x", "--set data.7.from=x: data: is a list with 2 entries; expected a number"),
        ("data.x.from=x", "--set data.x.from=x: data: is a list with 2 entries"),
        ("name.x=1", "--set name.x=1: name: holds a single value; it has no key 'x'"),
        ("resources.count=two", "--set resources.count=two: expected a whole number"),
        ("run=[unclosed", "--set run=[unclosed: the value is not valid YAML"),
        ("run=!!python/name:os.x", "--set run=!!python/name:os.x: the value the tag"),
        ("run=", "--set run=: is required: the command that trains"),
        ("run", "--set run: expected key=value"),
        ("=x", "--set =x: expected key=value"),
        ("a..b=x", "--set a..b=x: expected key=value"),
        (".".join("a" * 50) + "=x", "expected key=value"),
        ("run=a\x1b[2Jb", r"the value holds the control character '\x1b'"),
        ("secrets=[HF_TOKEN=hf_private]", "--set secrets=…: secrets.0: expected only the name"),
        ("env.2X=private", "--set env.2X=…: expected the name of an environment variable"),
    ],
)
def test_wrong_overrides(override: str, message: str, folder: Path) -> None:
    said = refused(folder, WHOLE, override)
    assert message in said
    assert "private" not in said


def test_the_file_is_blamed_before_the_command_line(folder: Path) -> None:
    said = refused(folder, "run: x\nnme: y\n", "resources.dsk=5")
    assert said == "train.yaml:2: nme: unknown key; did you mean 'name'? (and 1 more)"


# ---------------------------------------------------------------------------- there and back


def test_it_is_frozen(folder: Path) -> None:
    spec = load(folder, WHOLE)
    with pytest.raises(ValidationError):
        spec.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        spec.resources.disk = 1  # type: ignore[misc]


def test_json_there_and_back(folder: Path) -> None:
    spec = load(folder, WHOLE)
    stored = json.loads(json.dumps(spec.to_json()))
    assert RunSpec.from_json(stored) == spec
    assert stored["budget"] == {"max_cost": "10.0", "max_duration": "14400s", "deadline": "43200s"}
    assert stored["data"][0] == {"from": "s3://bucket/tokens", "to": "data/tokens"}


DURATION = st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=366))
MOMENT = st.datetimes(datetime(2001, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
USD = st.decimals(min_value=0, max_value=1_000_000, allow_nan=False, places=8)
GB = st.floats(min_value=1e-6, max_value=1e6)
IDENTIFIER = st.text(string.ascii_uppercase, min_size=1, max_size=8)


@given(
    deadline=DURATION | MOMENT,
    max_duration=DURATION,
    money=USD,
    disk=GB,
    env=st.dictionaries(
        IDENTIFIER, st.text(st.characters(blacklist_characters="\x00"), max_size=9)
    ),
    spot=st.booleans() | st.just("auto"),
)
def test_any_values_survive_the_ledger(
    deadline: timedelta | datetime,
    max_duration: timedelta,
    money: Decimal,
    disk: float,
    env: dict[str, str],
    spot: object,
) -> None:
    written = {
        "run": "x",
        "resources": {"disk": disk, "max_price": money, "spot": spot},
        "budget": {
            "max_duration": max_duration,
            "deadline": deadline.isoformat() if isinstance(deadline, datetime) else deadline,
        },
        "env": env,
    }
    spec = RunSpec.from_json(written)
    assert spec.budget.deadline == deadline
    assert spec.budget.max_duration == max_duration
    assert spec.resources.max_price == money
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"run": "x", "resources": {"providers": ["gone"]}}, "resources.providers.0: .*'gone'"),
        ({"run": "x", "from_the_future": 1}, "from_the_future"),
        ({}, "run"),
    ],
)
def test_a_stored_spec_that_this_version_cannot_use(stored: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=f"^the stored spec cannot be used: {words}"):
        RunSpec.from_json(stored)


def test_what_is_stored_has_the_names_of_secrets_and_no_value(folder: Path) -> None:
    path = folder / "train.yaml"
    path.write_text("run: x\nsecrets: [HF_TOKEN]\n")
    spec = load_spec(path, environ={"HF_TOKEN": "hf_private"})
    assert "hf_private" not in json.dumps(spec.to_json()) + repr(spec)


def test_missing_secrets(folder: Path) -> None:
    spec = load(folder, "run: x\nsecrets: [A, B, C]\n")
    assert missing_secrets(spec, {"A": "1", "B": ""}) == ("B", "C")
    assert missing_secrets(spec, {"A": "1", "B": "2", "C": "3"}) == ()


# -------------------------------------------------------------------------------- the schema

SCHEMA = Draft202012Validator(json_schema())


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())
    json.dumps(json_schema())


def test_every_key_of_the_schema_has_a_description() -> None:
    schema = json_schema()
    for section in (schema, *schema["$defs"].values()):
        for key, described in section["properties"].items():
            assert described.get("description"), key


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_schema_and_the_loader_accept_the_examples(path: Path) -> None:
    SCHEMA.validate(yaml.safe_load(path.read_text()))
    assert load_spec(path, environ={}).run


def test_the_schema_accepts_the_whole_example() -> None:
    SCHEMA.validate(yaml.safe_load(WHOLE))


@pytest.mark.parametrize(
    "text",
    [
        "resources: {disk: 50GB}",
        "resources: {disk: '50'}",
        "resources: {memory: 0.5}",
        "resources: {max_price: $2.50}",
        "resources: {max_price: 3 USD}",
        "resources: {gpu: A100}",
        "resources: {gpu: A100, count: '2'}",
        "budget: {max_duration: 1h 30m}",
        "checkpoints: {dir: c, settle: 0}",
        "resources:",
        "env: {A: 1, B: x, C: true}",
    ],
)
def test_the_schema_accepts_the_forms_people_write(text: str, folder: Path) -> None:
    load(folder, f"run: x\n{text}\n")
    SCHEMA.validate(parse(f"run: x\n{text}\n").value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 60)
    | st.floats(0, 100)
    | st.sampled_from(
        ["50GB", "4h", "auto", "A100", "x", "$5", "../x", "a/b", "s3://bucket/x", ""]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["from", "to", "dir", "keep", "disk", "A"]), inner, max_size=3
        )
    ),
    max_leaves=4,
)
TREES = st.dictionaries(
    st.sampled_from([*RunSpec.model_fields, "gpu", "rum"]), VALUES, max_size=4
).map(lambda tree: {"run": "x"} | tree)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=250)
@given(tree=TREES)
def test_what_the_loader_accepts_the_schema_accepts(tree: dict[str, object], folder: Path) -> None:
    text = yaml.safe_dump(tree)
    if (said := complaint(folder, text.encode())) is None:
        SCHEMA.validate(parse(text, verbatim=is_verbatim).value)
    else:
        assert said.isprintable()
        assert said.startswith(f"{folder}/train.yaml")


# ----------------------------------------------------------------------- any text whatsoever


PIECES = ["a", ": ", "- ", "\n", "  ", "\t", "[", "]", "{", "}", "&x ", "*x", "!!int ", "!y ", "'"]
PIECES += [
    '"',
    "\\",
    "|\n",
    ">\n",
    "#",
    "---\n",
    "...\n",
    "? ",
    "<<: ",
    "%YAML 9\n",
    "0",
    "run",
    ",",
]


@settings(max_examples=500)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_is_a_document_or_unreadable(text: str) -> None:
    start = time.perf_counter()
    line: int | None = None
    try:
        parse(text)
    except Unreadable as error:
        line = error.line
    assert line is None or 1 <= line <= text.count("\n") + text.count("\r") + 2
    assert time.perf_counter() - start < 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(content=st.binary(max_size=80))
def test_any_bytes_give_a_spec_or_one_line(content: bytes, folder: Path) -> None:
    said = complaint(folder, content)
    assert said is None or (said.isprintable() and said.startswith(f"{folder}/train.yaml"))
