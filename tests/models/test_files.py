"""What may be opened of a stranger's folder, and how JSON and YAML are read: one line for whatever is wrong."""

import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from models.files import (
    DEPTH,
    Foreign,
    find_inside,
    inside,
    parse_json,
    parse_yaml,
    read_object,
    read_text,
    reading,
    validate,
)

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.json").write_text('{"mine": 1}')
    made = tmp_path / "model"
    (made / "part").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "part" / "one").write_text("1")
    return made


def test_files_of_a_folder_are_found_by_plain_names_alone(folder):
    (folder / "again.json").symlink_to("config.json")
    (folder / "below").symlink_to("part/one")
    assert find_inside(folder, "none") is None
    assert inside(folder, "config.json") == inside(folder, "again.json") == (folder / "config.json").resolve()
    assert inside(folder, "part/one") == inside(folder, "below")
    for name in ("../secret.json", "/etc/passwd", "", ".", "part/../../secret.json", "a\\b", "a\nb", "a\0b"):
        with pytest.raises(BadInput, match=r"leads out of the folder|is no regular file"):
            find_inside(folder, name)


def test_a_folder_that_is_a_link_itself_is_the_users_own_word(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert inside(tmp_path / "link", "config.json") == folder.resolve() / "config.json"


def test_links_out_pipes_devices_folders_and_circles_are_not_opened(folder):
    for number, target in enumerate(("../secret.json", "/dev/zero", "/etc/passwd", "..", "part/../../secret.json")):
        (folder / f"link{number}").symlink_to(target)
    (folder / "self").symlink_to("self")
    (folder / "lost").symlink_to("nowhere")
    (folder / "through").symlink_to("..")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder.parent / "pipe")
    for name in [*(f"link{number}" for number in range(5)), "self", "lost", "through/secret.json", "pipe", "part"]:
        with pytest.raises(BadInput, match=r"is a link out of the folder|is no regular file"):
            inside(folder, name)
    for name in ("pipe", "model/pipe"):
        with pytest.raises(BadInput, match="is no regular file"):
            read_text(folder.parent / name, "a file")


def test_the_hubs_own_store_beside_its_snapshots_counts_as_inside(tmp_path):
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "1"
    for path in (snapshot, cache / "blobs", tmp_path / "other"):
        path.mkdir(parents=True)
    (cache / "blobs" / "x").write_text("{}")
    (tmp_path / "other" / "x").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/x")
    (snapshot / "stolen.json").symlink_to(tmp_path / "other" / "x")
    assert inside(snapshot, "config.json").read_text() == "{}"
    with pytest.raises(BadInput, match="link out"):
        inside(snapshot, "stolen.json")
    (cache / "blobs" / "x").unlink()
    (cache / "blobs").rmdir()
    (cache / "blobs").symlink_to(tmp_path / "other")  # a store that is a link leads out, too
    with pytest.raises(BadInput, match="link out"):
        inside(snapshot, "config.json")


def test_a_link_into_dvcs_cache_counts_as_inside(folder, tmp_path):
    stored = tmp_path / "cache" / "files" / "md5" / "ab" / ("0" * 30)
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    (folder / "front.json").symlink_to(stored)
    assert inside(folder, "front.json") == stored.resolve()


NO_JSON = {
    "not a number": '{"a": NaN}',
    "infinite": '{"a": [-Infinity]}',
    "too great": '{"a": 1e999}',
    "digits without end": '{"a": ' + "1" * 5000 + "}",
    "half a character": '{"a": "\\ud800"}',
    "half a character in a key": '{"\\udfff": 1}',
    "depth": "[" * 10**5,
    "depth of a whole text": '{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1),
    "cut": '{"a": [1, 2',
    "no UTF-8": b'{"a": "\xff"}',
    "empty": "",
}


@pytest.mark.parametrize("what", NO_JSON)
def test_what_is_no_json_is_one_line(what):
    with pytest.raises(BadInput, match=r"^f\.json: not readable as JSON .*; fetch or copy it again$"):
        parse_json(NO_JSON[what], "f.json")


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(plain_values)
def test_what_json_and_yaml_can_say_is_read_as_their_own_readers_do(value):
    text = json.dumps(value)
    assert parse_json(text, "f") == json.loads(text)
    printed = yaml.safe_dump(value)
    assert parse_yaml(printed, "f") == [yaml.safe_load(printed)]


NO_YAML = {
    "aliases of aliases": BOMB,
    "an alias within itself": "a: &a [*a]",
    "depth": "[" * 10**5,
    "depth of sequences": "- " * 10**5 + "a",
    "a key given twice": "weight: 1\nweight: 2",
    "a key given twice below": "a:\n- {b: 1, c: 2, b: 3}",
    "a call": "x: !!python/object/apply:os.system ['true']",
    "a date that is none": "x: 2001-99-99",
    "digits without end": "x: " + "1" * 6000,
    "a key that is a list": "? [a]\n: b",
    "a control character": "a: \x00",
}


@pytest.mark.parametrize("what", NO_YAML)
def test_what_is_no_yaml_is_one_line(what):
    with pytest.raises(BadInput, match=r"^f\.yaml: not readable as YAML .*; mend it$"):
        parse_yaml(NO_YAML[what], "f.yaml")


def test_a_few_aliases_and_several_documents_are_read():
    assert parse_yaml("a: &x {b: 1}\nc: [*x, *x]\n---\nd", "f") == [{"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}, "d"]
    assert parse_yaml("", "f") == []


class Sized(Foreign):
    """Two fields of a file."""

    size: int
    names: list[str] | None = None


def test_a_schema_names_each_field_and_takes_no_other_type(folder):
    path = folder / "sized.json"
    path.write_text('{"size": 3, "names": ["a"], "more": 1}')
    assert read_object(folder, "sized.json", Sized) == {"size": 3, "names": ["a"], "more": 1}
    for text, field in (
        ('{"size": "3"}', "size"),
        ('{"size": true}', "size"),
        ('{"size": 3.5}', "size"),
        ('{"names": []}', "size"),
        ('{"size": 1, "names": [1]}', r"names\.0"),
        ("[]", "holds no JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=rf"model: sized\.json: {field}"):
            read_object(folder, "sized.json", Sized)


def test_no_more_than_some_problems_are_told():
    with pytest.raises(BadInput) as error:
        validate(Sized, {"size": 1, "names": [0] * 1000}, "f")
    assert len(str(error.value)) < 2000


def test_whatever_goes_wrong_in_a_file_is_one_line_but_the_users_own_interrupt():
    class PanicException(BaseException):
        """As Rust's libraries raise it."""

    for error in (KeyError("a"), MemoryError(), RecursionError("deep\ndown"), PanicException("panic")):
        with pytest.raises(BadInput, match=r"^f: not readable \(\w+: .*\); fetch or copy it again$"), reading("f"):
            raise error
    with pytest.raises(KeyboardInterrupt), reading("f"):
        raise KeyboardInterrupt
