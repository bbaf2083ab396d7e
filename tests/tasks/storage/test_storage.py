"""Folders in a bucket of moto's S3 server: whole or not there, retried, and checked byte by byte."""

import json
import os
import secrets

import pytest

from models.errors import BadInput, Failed
from tasks.project.progress import Progress
from tasks.storage import s3
from tasks.storage.folders import MANIFEST, PART_BYTES, destination, download, fetched, upload
from tasks.storage.s3 import connect, parse_place, probe
from tests.s3_server import CREDENTIALS, client_of, proxy, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def direct(server):
    return client_of(server)


@pytest.fixture
def faults(server, monkeypatch):
    """The environment of a user of this server, reached through a proxy."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with proxy(server) as (url, found):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield found


@pytest.fixture
def place(faults, direct):
    bucket = f"b-{secrets.token_hex(4)}"
    direct.create_bucket(Bucket=bucket)
    return parse_place(f"s3://{bucket}/a/member")


@pytest.fixture
def folder(tmp_path):
    """A file in three parts, an empty one, and one in a folder."""
    root = tmp_path / "member"
    (root / "below").mkdir(parents=True)
    (root / "model.safetensors").write_bytes(os.urandom(2 * PART_BYTES + 17))
    (root / "below" / "config.json").write_text('{"layers": 3}')
    (root / "empty").touch()
    return root


@pytest.fixture
def small(tmp_path):
    root = tmp_path / "small"
    root.mkdir()
    (root / "a.txt").write_text("one")
    (root / "b.txt").write_text("two")
    return root


def content(root):
    return {one.relative_to(root).as_posix(): one.read_bytes() for one in root.rglob("*") if one.is_file()}


def keys(direct, place):
    found = direct.list_objects_v2(Bucket=place.bucket).get("Contents", [])
    return {one["Key"] for one in found}


class Told(Progress):
    """Keeps what the last bar came to."""

    def show(self, bar, force=False):
        self.completed, self.total = bar.completed, bar.total


def test_a_folder_comes_back_as_it_was_and_its_large_file_went_up_in_parts(faults, place, folder, tmp_path, direct):
    told = Told()
    upload(folder, place, told)
    assert told.completed == told.total == sum(len(one) for one in content(folder).values())
    parts = [path for method, path, _ in faults.seen if method == "PUT" and "partNumber=" in path]
    assert len(parts) == 3
    download(place, tmp_path / "back", told)
    assert told.completed == told.total
    assert content(tmp_path / "back") == content(folder)
    assert keys(direct, place) == {f"a/member/{name}" for name in [*content(folder), MANIFEST]}
    puts = [path.partition("?")[0] for method, path, _ in faults.seen if method == "PUT"]
    assert puts[-1].endswith(MANIFEST), "the manifest is not the last"


def test_checksums_are_compared_without_reading_back(faults, place, small):
    upload(small, place, Progress())
    gets = [path for method, path, _ in faults.seen if method == "GET" and "list-type" not in path]
    assert gets == []


def test_an_upload_that_is_cut_off_leaves_nothing_whole_and_the_next_goes_on(faults, place, folder, tmp_path, direct):
    faults.fault = lambda method, path: "cut" if "partNumber=2" in path else None
    with pytest.raises(Failed, match=rf"{place}: http://127\.0\.0\.1:\d+ does not answer"):
        upload(folder, place, Progress(), connect(attempts=2))
    assert f"a/member/{MANIFEST}" not in keys(direct, place)
    assert "a/member/model.safetensors" not in keys(direct, place)
    assert direct.list_multipart_uploads(Bucket=place.bucket).get("Uploads", []) == []
    with pytest.raises(BadInput, match=f"{place}: no manifest.json, so no whole folder"):
        download(place, tmp_path / "back", Progress())
    assert not (tmp_path / "back").exists()
    faults.fault, faults.seen[:] = (lambda method, path: None), []
    upload(folder, place, Progress())
    assert not any(method == "PUT" and path.endswith("config.json") for method, path, _ in faults.seen)
    download(place, tmp_path / "back", Progress())
    assert content(tmp_path / "back") == content(folder)


def test_server_errors_and_broken_connections_are_tried_again(faults, place, small, tmp_path):
    left = {"PUT": [500, "cut", 503], "GET": [500, "cut"]}
    faults.fault = lambda method, path: left[method].pop(0) if left.get(method) else None
    upload(small, place, Progress())
    download(place, tmp_path / "back", Progress())
    assert left == {"PUT": [], "GET": []}
    assert content(tmp_path / "back") == content(small)


def test_a_server_that_keeps_failing_is_said_in_one_line(faults, place, small, monkeypatch):
    faults.fault = lambda method, path: 500 if method == "PUT" else None
    with pytest.raises(Failed, match=r"s3://.*: http://127\.0\.0\.1:\d+: .*\(500\).*PutObject"):
        upload(small, place, Progress(), connect(attempts=2))


@pytest.mark.parametrize("damaged", [b"ons", b"on", b""])
def test_what_was_changed_in_the_bucket_is_refused(place, small, tmp_path, direct, damaged):
    upload(small, place, Progress())
    direct.put_object(Bucket=place.bucket, Key=place.key("a.txt"), Body=damaged)
    with pytest.raises(Failed, match=rf"{place}/a.txt: not what manifest.json says \(sha256\)"):
        download(place, tmp_path / "back", Progress())
    assert list(tmp_path.glob("*back*")) == []


def test_what_is_lost_in_the_bucket_is_found(place, small, tmp_path, direct):
    upload(small, place, Progress())
    direct.delete_object(Bucket=place.bucket, Key=place.key("b.txt"))
    with pytest.raises(Failed, match=f"{place}/b.txt: in manifest.json, but not there"):
        download(place, tmp_path / "back", Progress())


def test_what_is_damaged_on_its_way_down_is_refused(faults, place, small, tmp_path):
    upload(small, place, Progress())
    faults.fault = lambda method, path: "damage" if method == "GET" and path.endswith("a.txt") else None
    with pytest.raises(Failed, match=r"a\.txt|checksum"):
        download(place, tmp_path / "back", Progress())
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "below/../../outside"])
def test_a_manifest_cannot_lead_out_of_the_folder(place, tmp_path, direct, name):
    manifest = {"files": {name: {"bytes": 1, "sha256": "00"}}}
    direct.put_object(Bucket=place.bucket, Key=place.key(MANIFEST), Body=json.dumps(manifest))
    with pytest.raises(BadInput, match="leads out of the folder"):
        download(place, tmp_path / "back", Progress())


def test_nothing_is_written_over(place, small, tmp_path, direct):
    direct.put_object(Bucket=place.bucket, Key=place.key("other.txt"), Body=b"x")
    with pytest.raises(BadInput, match=r"holds other\.txt, which is no part of this"):
        upload(small, place, Progress())
    direct.delete_object(Bucket=place.bucket, Key=place.key("other.txt"))
    upload(small, place, Progress())
    with pytest.raises(BadInput, match=f"{place}: exists; give another prefix"), destination(str(place), Progress()):
        raise AssertionError("it began")


def test_a_destination_is_uploaded_when_all_went_well_and_only_then(place, tmp_path, direct):
    with pytest.raises(RuntimeError), destination(str(place), Progress(), tmp_path / "state") as folder:
        folder.mkdir()
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert keys(direct, place) == set()
    with destination(str(place), Progress(), tmp_path / "state") as folder:
        folder.mkdir()
        (folder / "a.txt").write_text("one")
    with fetched(str(place), Progress(), tmp_path / "state") as target:
        assert content(tmp_path / "state" / os.path.relpath(target, tmp_path / "state")) == {"a.txt": b"one"}
    assert list((tmp_path / "state").iterdir()) == []


def test_folders_of_this_machine_are_used_as_they_are(tmp_path):
    with destination(str(tmp_path / "out"), Progress()) as folder:
        assert folder == tmp_path / "out"
    with fetched("some/folder", Progress()) as target:
        assert target == "some/folder"


def test_a_probe_leaves_nothing(place, direct):
    probe(place, connect())
    assert keys(direct, place) == set()


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ACCESS_KEY_ID", None), ("AWS_SECRET_ACCESS_KEY", None), ("AWS_PROFILE", "nobody")]
)
def test_missing_credentials_are_said(place, small, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv("HOME", str(tmp_path))  # where no ~/.aws is
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(BadInput, match=r"credentials|profile"):
        upload(small, place, Progress())


def test_a_missing_bucket_is_said(faults):
    with pytest.raises(BadInput, match=r"s3://no-such/x: no such bucket at http://127.*; make it, or mend its name"):
        probe(parse_place("s3://no-such/x"), connect())


def test_denied_is_said(faults, place):
    faults.fault = lambda method, path: 403 if method == "DELETE" else None
    with pytest.raises(BadInput, match="denies DeleteObject with these credentials; grant it"):
        probe(place, connect())


def test_a_server_that_is_not_there_is_said(place, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Failed, match=r"http://127\.0\.0\.1:9 does not answer as it should: .*; check AWS_ENDPOINT_URL"):
        probe(place, connect(attempts=1))


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "http://bucket/x", "s3://bucket/x?y=1", "bucket"])
def test_what_is_no_place_is_refused(url):
    with pytest.raises(BadInput, match="write it as s3://bucket/prefix"):
        parse_place(url)


def test_a_place_reads_as_it_was_written():
    assert str(parse_place("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert str(parse_place("s3://bucket")) == "s3://bucket"
    assert parse_place("s3://bucket").key("x") == "x"
    assert s3.is_remote("s3://bucket/x")
    assert not s3.is_remote("/s3/x")
