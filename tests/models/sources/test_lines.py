"""Lines of files: any of them are read one by one, and too long ones not at all."""

import gzip

import pytest

from models.errors import BadInput
from models.learned.texts import read_texts
from models.sources import lines
from models.sources.lines import lines_of
from tasks.families.finetune import read_rows
from tasks.objectives.task_files import located


def test_lines_come_with_their_numbers_whether_packed_or_not(tmp_path):
    content = "a\n\n\u2028ü\nlast".encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
    for path in tmp_path.iterdir():
        assert list(lines_of(path)) == [(1, "a\n"), (2, "\n"), (3, "\u2028ü\n"), (4, "last")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{}\n\xff\n", "line 2: no UTF-8"),
        ("a.jsonl.gz", b"{}\n", "not readable"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "not readable"),
        ("a.jsonl.gz", gzip.compress(b"{}\n", mtime=0)[:10] + b"\xff" * 40, "not readable"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name}: {message}"):
        list(lines_of(tmp_path / name))


def test_a_line_that_is_too_long_is_refused_by_every_reader_before_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_MEGABYTES", 1)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "w"}\n{"text": "' + b"w" * 2**20 + b'"}\n')
    readers = (read_rows, read_texts, lambda one: located({"test": one.name}, ["test"], tmp_path, "objectives.math"))
    for reader in readers:
        with pytest.raises(BadInput, match=r"a.jsonl: line 2: longer than 1 MiB"):
            reader(path)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(bytes(2**26), mtime=0))  # 64 MB from 64 kB
    with pytest.raises(BadInput, match="line 1: longer than 1 MiB"):
        read_rows(packed)
