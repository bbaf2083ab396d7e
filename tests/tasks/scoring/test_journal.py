"""The journal keeps every score once, whole, through kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from models.errors import BadInput, Failed
from tasks.scoring.journal import Entry, Journal, key_of, missing
from tasks.scoring.remote_segments import RemoteSegments
from tests.s3_server import CREDENTIALS, client_of, proxy, s3_server


def entry(key="k", start=0, stop=2, values=(1.0, 0.0), failed=None):
    return Entry(key, start, stop, {"math": values}, failed)


def test_what_was_written_is_read_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append([entry(), entry("other", failed="NaN")])
    journal.append([entry(start=2, stop=4)])
    again = Journal(tmp_path)
    assert again.find("k") == [entry(), entry(start=2, stop=4)]
    assert again.find("other")[0].failed == "NaN"
    assert [path.name[:9] for path in segments(tmp_path)] == ["00000001-", "00000002-"]


def segments(folder):
    return sorted(folder.glob("*.jsonl"))


def test_two_writers_lose_nothing(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.append([entry()])
    second.append([entry("late")])
    second.append([entry("both")])
    first.append([entry("both")])
    again = Journal(tmp_path)
    assert len(again) == 3
    assert [len(again.find(key)) for key in ("k", "late", "both")] == [1, 1, 1]


def test_items_that_two_writers_scored_count_once(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.append([Entry("k", 2, 4, {"math": (1.0, 2.0), "few": (3.0,)})])
    second.append([Entry("k", 0, 6, {"math": (5.0, 6.0, 1.0, 2.0, 7.0, 8.0), "few": (9.0, 9.5, 3.0)})])
    again = Journal(tmp_path).find("k")
    assert sum((one.scores["math"] for one in again), ()) == (5.0, 6.0, 1.0, 2.0, 7.0, 8.0)
    assert sum((one.scores["few"] for one in again), ()) == (9.0, 9.5, 3.0)


def test_damage_is_seen(tmp_path):
    Journal(tmp_path).append([entry()])
    (segment,) = segments(tmp_path)
    segment.write_text(segment.read_text().replace("1.0", "0.0"))
    with pytest.raises(BadInput, match=rf"{segment.name}: damaged .*remove it"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"start": -1},
        {"start": "0"},
        {"scores": {"math": ["1.0", 0.0]}},
        {"scores": {"math": [float("nan"), 0.0]}},
        {"scores": {"math": [float("inf"), 0.0]}},
        {"scores": [1.0]},
        {"key": 7},
        {"other": 1},
    ],
    ids=str,
)
def test_what_is_no_entry_is_refused_in_one_line(tmp_path, change):
    lines = json.dumps({"format": 1}), json.dumps(json.loads(entry().to_json()) | change)
    (tmp_path / "00000001-00000000.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(BadInput, match=r"^00000001-00000000.jsonl: damaged .*remove it[^\n]*$"):
        Journal(tmp_path)


def test_segments_without_a_digest_are_read(tmp_path):
    (tmp_path / "00000007-00000000.jsonl").write_text(json.dumps({"format": 1}) + "\n" + entry().to_json() + "\n")
    journal = Journal(tmp_path)
    assert journal.find("k") == [entry()]
    journal.append([entry("next")])
    assert segments(tmp_path)[1].name.startswith("00000008-")


def test_a_journal_of_another_version_is_refused(tmp_path):
    (tmp_path / "00000001-00000000.jsonl").write_text(json.dumps({"format": 99}) + "\n")
    with pytest.raises(BadInput, match=r"00000001-00000000.jsonl: a journal of another version.*--fresh"):
        Journal(tmp_path)


def test_a_key_depends_on_every_part_and_not_on_their_order():
    assert key_of(a=1, b=2) == key_of(b=2, a=1) != key_of(a=1, b=3)


def test_a_killed_writer_leaves_whole_segments_only(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tasks.scoring.journal import *\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for i in range(10**6):\n"
        "    journal.append([Entry(f'{i}-{j}', 0, 2, {'math': (1.0, 0.0)}) for j in range(50)])\n"
        "    print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 20:
                os.kill(process.pid, signal.SIGKILL)
                break
    journal = Journal(tmp_path)
    assert len(journal) % 50 == 0
    assert len(journal) >= 20 * 50
    journal.append([entry()])
    assert Journal(tmp_path).find("k")


@pytest.mark.parametrize(
    ("entries", "span", "expected"),
    [
        ([], (0, 8), [(0, 8)]),
        ([(0, 8)], (0, 8), []),
        ([(0, 4)], (0, 8), [(4, 8)]),
        ([(2, 4)], (0, 8), [(0, 2), (4, 8)]),
        ([(0, 4), (4, 8)], (2, 6), []),
        ([(0, 2), (6, 9)], (4, 8), [(4, 6)]),
    ],
)
def test_only_what_is_missing_is_scored(entries, span, expected):
    assert missing([entry(start=low, stop=high) for low, high in entries], *span) == expected


def test_a_failed_candidate_is_not_tried_again():
    assert missing([entry(start=0, stop=4, failed="NaN")], 0, 8) == []


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3") / "log") as url:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", url)
        client_of(url).create_bucket(Bucket="state")
        yield url


def there(url, prefix):
    found = client_of(url).list_objects_v2(Bucket="state", Prefix=prefix).get("Contents", [])
    return [one["Key"].rpartition("/")[2] for one in found]


def test_another_machine_goes_on_from_the_bucket(bucket, tmp_path):
    one = Journal(tmp_path / "one", RemoteSegments("s3://state/go-on"))
    one.append([entry()])
    one.append([entry("more")])
    assert there(bucket, "go-on/") == [path.name for path in segments(tmp_path / "one")]
    two = Journal(tmp_path / "two", RemoteSegments("s3://state/go-on"))
    assert two.keys() == {"k", "more"}
    two.append([entry("its own")])
    one.append([entry("at the same time")])
    assert len(Journal(tmp_path / "three", RemoteSegments("s3://state/go-on"))) == 4


def test_a_bucket_that_does_not_answer_gets_its_segments_later(bucket, tmp_path, monkeypatch, caplog):
    now = [0.0]
    with proxy(bucket) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        remote = RemoteSegments("s3://state/later", clock=lambda: now[0])
        journal = Journal(tmp_path / "one", remote)
        faults.fault = lambda method, path: 503 if method == "PUT" else None
        journal.append([entry()])
        asked = len(faults.seen)
        journal.append([entry("more")])
        assert len(faults.seen) == asked  # it is left alone for a while
        assert there(bucket, "later/") == []
        assert "scoring goes on" in caplog.text
        now[0], faults.fault = (
            100.0,
            lambda method, path: "cut" if method == "PUT" and len(faults.seen) % 3 == 0 else None,
        )
        journal.append([entry("last")])
    assert len(there(bucket, "later/")) == 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    assert len(Journal(tmp_path / "two", RemoteSegments("s3://state/later"))) == 3


def test_what_could_not_be_sent_before_is_sent_at_the_next_start(bucket, tmp_path):
    Journal(tmp_path / "one").append([entry()])
    Journal(tmp_path / "one", RemoteSegments("s3://state/start"))
    assert len(there(bucket, "start/")) == 1


def test_damage_on_the_way_from_the_bucket_is_seen(bucket, tmp_path, monkeypatch):
    Journal(tmp_path / "one", RemoteSegments("s3://state/damage")).append([entry()])
    with proxy(bucket) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        faults.fault = lambda method, path: "damage" if path.endswith(".jsonl") else None
        with pytest.raises((BadInput, Failed), match="state/damage"):
            Journal(tmp_path / "two", RemoteSegments("s3://state/damage"))
    assert not segments(tmp_path / "two")


def test_a_fresh_run_leaves_the_buckets_segments_aside(bucket, tmp_path):
    remote = RemoteSegments("s3://state/old")
    Journal(tmp_path / "one", remote).append([entry()])
    remote.set_aside("s3://state/aside")
    assert (there(bucket, "old/"), len(there(bucket, "aside/"))) == ([], 1)
    assert not len(Journal(tmp_path / "two", RemoteSegments("s3://state/old")))


def test_names_in_a_bucket_that_are_no_segments_lead_nowhere(bucket, tmp_path):
    Journal(tmp_path / "own" / "journal", RemoteSegments("s3://state/led")).append([entry()])
    client, content = client_of(bucket), (entry().to_json() + "\n").encode()
    checked = {"Body": content, "Metadata": {"sha256": hashlib.sha256(content).hexdigest()}}
    for name in ("../../evil.jsonl", "00000002-00000000.jsonl/../../evil.jsonl", "00000003.jsonl", "x-00000000.jsonl"):
        client.put_object(Bucket="state", Key=f"led/{name}", **checked)
    there = Journal(tmp_path / "two" / "journal", RemoteSegments("s3://state/led"))
    assert there.keys() == {"k"}
    assert [path.name for path in (tmp_path / "two").rglob("*")] == [
        "journal",
        segments(tmp_path / "own" / "journal")[0].name,
    ]
