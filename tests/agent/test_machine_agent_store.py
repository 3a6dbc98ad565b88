"""Shipping into stores that fail: full, gone, slow, refusing, back again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuctl.store.manifest import parse_manifest
from tests.agent.bench import Bench
from tests.agent.post_store import PostStore
from tests.waiting import until

STEPS = (
    "for i in 1 2 3; do echo $i > $CK/.e; mv $CK/.e $CK/e$i; sleep 0.3; done;"
    " while [ ! -e go ]; do sleep 0.05; done"
)


@pytest.fixture
def s3() -> Iterator[PostStore]:
    store = PostStore()
    yield store
    store.close()


def sync_error(bench: Bench) -> str:
    """Wait until shipping is in trouble; return the reason."""

    def trouble() -> str | None:
        error = bench.quick_state().get("sync", {}).get("error")
        return str(error) if error else None

    assert until(trouble, 10), bench.quick_state()
    return trouble() or ""


class TestFolder:
    def test_down_and_up_again(self, every_bench: Bench) -> None:
        away = every_bench.store.with_name("away")
        every_bench.submit(f"echo 0 > $CK/.e; mv $CK/.e $CK/e0; sleep 0.5; {STEPS}")
        every_bench.shipped("e0")
        every_bench.store.rename(away)
        assert "gone" in sync_error(every_bench)
        assert not every_bench.store.exists(), "an unmounted folder is not made anew"
        away.rename(every_bench.store)
        every_bench.shipped("e1", "e2", "e3")
        (every_bench.work / "go").touch()
        state = every_bench.ended()
        assert state["sync"] == {"ok": True, "error": None}
        # What was found first has the lower number, in whatever order it arrived.
        assert [m.name for m in every_bench.manifests()] == ["e0", "e1", "e2", "e3"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")
    def test_a_full_disk(self, bench: Bench) -> None:
        bench.store.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(bench.store)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        try:
            ballast = bench.store / "ballast"
            ballast.write_bytes(bytes(900_000))
            bench.submit(
                "head -c 500000 /dev/urandom > $CK/.e; mv $CK/.e $CK/e1;"
                " while [ ! -e go ]; do sleep 0.05; done"
            )
            assert "No space left" in sync_error(bench)
            assert bench.manifests() == []
            ballast.unlink()
            bench.shipped("e1")
            (bench.work / "go").touch()
            bench.ended()
            assert len(bench.named()["e1"]) == 500_000
            assert list(bench.store.rglob(".*")) == [], "no drafts are left behind"
        finally:
            bench.clear()
            subprocess.run(["umount", "-l", str(bench.store)], check=True)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_folder_that_cannot_be_written(self, bench: Bench) -> None:
        bench.store.mkdir(parents=True)
        bench.store.chmod(0o500)
        bench.submit(STEPS)
        assert "denied" in sync_error(bench)
        bench.store.chmod(0o700)
        bench.shipped("e1", "e2", "e3")

    def test_one_that_never_comes_back_does_not_hold_the_end_for_ever(self, bench: Bench) -> None:
        bench.root.joinpath("store").write_text("a file in the way")
        bench.submit("echo 1 > $CK/e1", sync_seconds=1, outputs=[{"from": "nope"}])
        began = time.monotonic()
        state = bench.ended()
        assert time.monotonic() - began < 8
        assert state["outcome"] == "completed", "the job itself did what it was to do"
        assert state["sync"]["ok"] is False
        assert str(bench.store) in state["sync"]["error"]
        assert [c["shipped"] for c in state["checkpoints"]] == [False]

    def test_one_that_was_removed_while_it_waited(self, bench: Bench) -> None:
        bench.root.joinpath("store").write_text("a file in the way")
        bench.submit(f"{STEPS}; rm $CK/e1")
        sync_error(bench)
        (bench.work / "go").touch()
        assert until(lambda: not (bench.checkpoints / "e1").exists(), 5)
        bench.root.joinpath("store").unlink()
        state = bench.ended()
        assert sorted(m.name for m in bench.manifests()) == ["e2", "e3"]
        assert [item["name"] for item in state["skipped"]] == ["e1"]

    def test_an_outbox_keeps_the_newest(self, every_bench: Bench) -> None:
        outbox = {"kind": "folder", "path": str(every_bench.store), "keep": 2}
        every_bench.submit(
            "mkdir -p out; echo r > out/r; echo same > shared;"
            " for i in 1 2 3 4; do mkdir .e; cp shared .e; echo $i > .e/own; mv .e $CK/e$i;"
            " sleep 0.3; done",
            store=outbox,
            outputs=[{"from": "out"}],
        )
        every_bench.ended()
        assert [m.name for m in every_bench.manifests()] == ["e3", "e4"]
        named = {b.sha256 for kind in ("checkpoint", "output")
                 for m in every_bench.manifests(kind) for b in m.blobs()}  # fmt: skip
        there = {path.name for path in every_bench.store.glob("blobs/*/*")}
        assert there == named

    def test_a_grant_for_another_store(self, bench: Bench) -> None:
        bench.root.joinpath("store").write_text("a file in the way")
        bench.submit(STEPS)
        sync_error(bench)
        bench.store = bench.root / "better" / "demo-1a2b3c"
        bench.verb("grant", stdin={"kind": "folder", "path": str(bench.store)})
        bench.shipped("e1", "e2", "e3", seconds=5)
        assert sorted(bench.named()) == ["e1", "e2", "e3"]


class TestPresignedPost:
    def named(self, s3: PostStore) -> dict[str, bytes]:
        found = {}
        for key, content in sorted(s3.objects.items()):
            if key.startswith("manifests/"):
                manifest = parse_manifest(content)
                found[manifest.name] = b"".join(s3.objects[b.key] for b in manifest.blobs())
        return found

    def test_everything_arrives(self, every_bench: Bench, s3: PostStore) -> None:
        every_bench.submit(
            "mkdir $CK/e; printf 'a\\0\\r\\n--b' > $CK/e/bin; : > $CK/e/empty; echo r > out",
            store=s3.grant(),
            outputs=[{"from": "out"}],
        )
        state = every_bench.ended()
        assert state["sync"]["ok"], state
        assert self.named(s3) == {"e": b"a\0\r\n--b", "out": b"r\n"}
        assert [key.rpartition("/")[0].split("/")[2] for key in s3.order] == [
            "blobs", "manifests", "blobs", "manifests", "ends",
        ]  # fmt: skip

    def test_drops_and_errors_are_tried_again(self, every_bench: Bench, s3: PostStore) -> None:
        s3.faults = ["drop", 503, 307, 301]
        s3.objects["elsewhere"] = b"a page that answers 200 to whoever follows a redirect"
        every_bench.submit("echo 1 > $CK/e1", store=s3.grant(), sync_seconds=30)
        state = every_bench.ended(40)
        assert state["sync"]["ok"]
        assert s3.faults == []
        assert self.named(s3) == {"e1": b"1\n"}

    def test_a_new_grant_for_one_that_was_refused(self, bench: Bench, s3: PostStore) -> None:
        old = s3.grant()
        s3.policy = "policy-2"
        bench.submit(STEPS, store=old)
        assert "403 (AccessDenied)" in sync_error(bench)
        bench.verb("grant", stdin=s3.grant())
        bench.shipped("e1", "e2", "e3", seconds=5)

    def test_an_expired_grant_is_not_even_tried(self, bench: Bench, s3: PostStore) -> None:
        bench.submit(STEPS, store=s3.grant(expires=time.time() - 1))
        assert "expired" in sync_error(bench)
        assert s3.order == []
        bench.verb("grant", stdin=s3.grant())
        bench.shipped("e1", "e2", "e3", seconds=5)
        for path in [*bench.dir.iterdir(), *bench.dir.glob("log/*")]:
            if path.is_file():
                assert b"canary-signature" not in path.read_bytes()

    def test_the_newest_goes_first(self, bench: Bench, s3: PostStore) -> None:
        s3.policy = "policy-2"
        bench.submit(STEPS, store=s3.grant(fields={"policy": "old"}))
        assert until(lambda: len(bench.quick_state().get("checkpoints", [])) == 3, 10)
        bench.verb("grant", stdin=s3.grant())
        bench.shipped("e1", "e2", "e3")
        manifests = [key for key in s3.order if "/manifests/" in key]
        assert manifests[0].endswith("a0001-000003.json")


class TestRestore:
    def shipped(self, bench: Bench) -> dict[str, object]:
        """Ship one folder; return its manifest."""
        bench.submit(
            "umask 022; mkdir -p $CK/.e/sub; cd $CK/.e; head -c 100000 /dev/urandom > w; : > empty;"
            " echo x > sub/x; ln -s sub/x l; chmod 750 sub; mv $CK/.e $CK/e"
        )
        bench.ended()
        (path,) = (bench.store / "manifests").iterdir()
        manifest = json.loads(path.read_bytes())
        assert isinstance(manifest, dict)
        return manifest

    def test_a_round_trip(self, every_bench: Bench) -> None:
        manifest = self.shipped(every_bench)
        dest = every_bench.root / "elsewhere" / "e"
        orders = {
            "manifest": manifest,
            "dest": str(dest),
            "source": {"folder": str(every_bench.store)},
        }
        every_bench.verb("restore", stdin=orders)
        before = every_bench.checkpoints / "e"
        for path in before.rglob("*"):
            there = dest / path.relative_to(before)
            if path.is_symlink():
                assert there.readlink() == path.readlink()
            elif path.is_file():
                assert there.read_bytes() == path.read_bytes()
                assert there.stat().st_mtime == pytest.approx(path.stat().st_mtime, abs=1e-5)
            assert there.lstat().st_mode == path.lstat().st_mode
        assert [p.name for p in dest.parent.iterdir()] == ["e"]
        # Again, over what is there: it is replaced whole.
        (dest / "surplus").touch()
        every_bench.verb("restore", stdin=orders)
        assert not (dest / "surplus").exists()

    def test_a_single_file(self, bench: Bench) -> None:
        bench.submit("echo one > $CK/e1")
        bench.ended()
        manifest = json.loads(bench.manifests()[0].to_json())
        dest = bench.root / "e1"
        source = {"folder": str(bench.store)}
        bench.verb("restore", stdin={"manifest": manifest, "dest": str(dest), "source": source})
        assert dest.read_text() == "one\n"

    def test_through_presigned_urls(self, every_bench: Bench, s3: PostStore) -> None:
        manifest = self.shipped(every_bench)
        for path in every_bench.store.glob("blobs/*/*"):
            s3.objects[path.name] = path.read_bytes()
        urls = {name: f"{s3.url}/{name}?X-Amz-Signature=canary" for name in s3.objects}
        s3.faults = ["drop", 503]
        dest = every_bench.root / "e"
        every_bench.verb(
            "restore", stdin={"manifest": manifest, "dest": str(dest), "source": {"urls": urls}}
        )
        assert (dest / "w").read_bytes() == (every_bench.checkpoints / "e/w").read_bytes()

    def refusal(self, bench: Bench, manifest: object, **changes: object) -> dict[str, str]:
        dest = bench.root / "restored" / "e"
        source = {"folder": str(bench.store)}
        orders = {"manifest": manifest, "dest": str(dest), "source": source, **changes}
        error = bench.refused("restore", stdin=orders)
        assert not dest.exists()
        left = list(dest.parent.iterdir()) if dest.parent.exists() else []
        assert left == [], "nothing half restored is left"
        return error

    @pytest.mark.parametrize("harm", ["flip", "cut", "grow", "remove"])
    def test_a_corrupt_blob(self, every_bench: Bench, harm: str) -> None:
        manifest = self.shipped(every_bench)
        blob = max(every_bench.store.glob("blobs/*/*"), key=lambda path: path.stat().st_size)
        content = blob.read_bytes()
        if harm == "remove":
            blob.unlink()
        else:
            harmed = {
                "flip": bytes([content[0] ^ 1]) + content[1:],
                "cut": content[:-1],
                "grow": content + b"x",
            }
            blob.write_bytes(harmed[harm])
        assert self.refusal(every_bench, manifest)["kind"] == "Corrupt"

    def test_a_blob_that_is_missing_behind_its_url(self, bench: Bench, s3: PostStore) -> None:
        manifest = self.shipped(bench)
        urls = {path.name: f"{s3.url}/{path.name}" for path in bench.store.glob("blobs/*/*")}
        error = self.refusal(bench, manifest, source={"urls": urls})
        assert error["kind"] == "Corrupt"
        error = self.refusal(bench, manifest, source={"urls": {}})
        assert error["kind"] == "Corrupt"

    @pytest.mark.parametrize(
        "path", ["../out", "/etc/x", "a/../../out", "l/x", "a//b", ".", "sub/./x", "", "gone/x"]
    )
    def test_hostile_paths(self, bench: Bench, path: str) -> None:
        manifest = self.shipped(bench)
        files = manifest["files"]
        assert isinstance(files, list)
        files[-1]["path"] = path
        error = self.refusal(bench, resealed(manifest))
        assert error["kind"] == "Corrupt"
        assert not (bench.root / "out").exists()

    @pytest.mark.parametrize(
        "harm",
        [
            {"format": 2},
            {"files": 5},
            {"files": [{}]},
            {"dirs": []},
            {"links": [{"path": "l", "target": ""}]},
            {"dirs": [{"path": "", "mode": 448}, {"path": "", "mode": 448}]},
            {"dirs": [{"path": "", "mode": "0700"}, {"path": "sub", "mode": 448}]},
            {"files": [{"path": "x", "mode": 420, "mtime": "now", "size": 0, "blobs": []}]},
            {"files": [{"path": "x", "mode": 420, "mtime": 1, "size": 1, "blobs": [{}]}]},
        ],
    )
    def test_manifests_that_are_malformed(self, bench: Bench, harm: dict[str, object]) -> None:
        manifest = self.shipped(bench)
        assert self.refusal(bench, resealed({**manifest, **harm}))["kind"] == "Corrupt"

    def test_a_manifest_that_was_changed(self, bench: Bench) -> None:
        manifest = self.shipped(bench)
        assert "hash" in self.refusal(bench, {**manifest, "step": 9})["message"]

    def test_a_store_that_does_not_answer_is_not_corrupt(self, bench: Bench, s3: PostStore) -> None:
        manifest = self.shipped(bench)
        s3.policy = "x"
        urls = {
            path.name: f"{s3.url}/{path.name}?secret-query"
            for path in bench.store.glob("blobs/*/*")
        }
        s3.faults = [403]
        error = self.refusal(bench, manifest, source={"urls": urls})
        assert error["kind"] == "Store"
        assert "secret-query" not in error["message"]

    @pytest.mark.parametrize("dest", ["relative", "/", "", "/tmp/.."])
    def test_a_dest_that_is_none(self, bench: Bench, dest: str) -> None:
        manifest = self.shipped(bench)
        orders = {"manifest": manifest, "dest": dest, "source": {"folder": str(bench.store)}}
        assert bench.refused("restore", stdin=orders)["kind"] == "Usage"


def resealed(manifest: dict[str, object]) -> dict[str, object]:
    """Give a manifest a hash of its own that is right, as an attacker would."""
    from gpuctl.agent.machine_agent import canonical, sha256_of

    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**body, "sha256": sha256_of(canonical(body))}


def test_the_store_of_a_run_is_the_controllers_too(bench: Bench, tmp_path: Path) -> None:
    """What the agent ships, `gpuctl.store` restores."""
    from gpuctl.store import open_store

    bench.submit("mkdir $CK/e; echo 1 > $CK/e/f")
    bench.ended()
    store = open_store(str(bench.store.parent), "demo-1a2b3c", environ={})
    (manifest,) = store.manifests()
    assert store.is_whole(manifest)
    assert store.verify(manifest) == []
    store.fetch(manifest, tmp_path / "back")
    assert (tmp_path / "back" / "f").read_text() == "1\n"
