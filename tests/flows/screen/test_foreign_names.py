"""Names that strangers chose are text in everything that hm3 shows: nothing of them acts, and nothing is swallowed."""

import io
import itertools
import json
import re
import shutil
import sys

import pytest
import yaml
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from flows.cli import app, main
from flows.screen.artifacts import code, escaped
from flows.screen.watch import Screen, Terminal
from flows.screen.watch import shown as bars_on
from models.merge.card import model_card
from models.merge.recipe import Recipe
from models.sources.vocabulary import Vocabulary
from models.text import line, plain
from tasks.bench.markdown import Sheet, render
from tasks.doctor.diagnosis import Check
from tasks.front.composition import Composition
from tasks.front.front import Front
from tasks.front.table import markdown
from tasks.project.workspace import open_workspace
from tasks.registry.gates import Check as Gate
from tasks.registry.gates import gate_markdown, gate_table
from tasks.registry.publish import described
from tasks.report.report import write_report
from tasks.scoring.evaluation import Evaluation
from tasks.tracking.messages import plain_values
from tests.servers import missing

NAMES = {
    "closing tag": "x[/]",
    "style": "[bold]x",
    "link of a terminal": "\x1b]8;;http://example.org\x1b\\y\x1b]8;;\x1b\\",
    "clears the screen": "\x1b[2Jx",
    "eight-bit control": "\x9b2Jx",
    "element": "<script>document.title = 'ran'</script>",
    "attribute": '"><img src=x onerror="document.title = \'ran\'">',
    "code": "a`b`",
    "cell": "a|b",
    "link": "[x](javascript:alert(1))",
    "lines": "a\nb\r\n# c",
    "direction": "\u202egpj.x",
    "half a character": "x\ud800",
    "formula": "a$x^$b",
    "template": "{{ 7 * 7 }}",
}
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
RICH = re.compile(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]|\x1b\[\d?[AKG]|\r")
"""Codes that rich itself writes: colours, the cursor, and what redraws a bar."""


def squeezed(text):
    """Without white space, which tables fold."""
    return "".join(text.split())


def seen(name):
    """What there is to see of a name: of several lines the longest, for a table sets them below each other."""
    return squeezed(max(plain(name).split("\n"), key=len))


def shown(show):
    """What a terminal gets, without rich's own codes; and nothing else in it acts."""
    console = Terminal(file=io.StringIO(), width=400, force_terminal=True, color_system="truecolor")
    show(console)
    text = RICH.sub("", console.file.getvalue())
    assert not ACTING.search(text), repr(text)
    return text


@pytest.fixture(scope="module")
def hostile(done, tmp_path_factory):
    """A finished project whose members, references and description have such names, as far as a file may hold them."""
    names = [name for what, name in NAMES.items() if what != "half a character"]
    root = tmp_path_factory.mktemp("hostile") / "project"
    shutil.copytree(done.parents[1], root)
    path = root / "runs" / "tiny" / "front.json"
    front = json.loads(path.read_text())
    kept = front["references"][0]
    kinds = itertools.cycle(["expert", "baseline"])
    front["references"] += [{**kept, "name": name, "kind": kind} for name, kind in zip(names, kinds, strict=False)]
    for member, name in zip(front["members"], names * 2, strict=False):
        member["name"] = name
    path.write_text(json.dumps(front))
    path = root / "profiles" / "tiny.yaml"
    profile = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(profile | {"description": NAMES["element"]}))
    return open_workspace("tiny", root)


@pytest.fixture
def command(hostile, monkeypatch):
    """Runs a command in that project; what it says."""
    monkeypatch.chdir(hostile.root)
    for name in ("MLFLOW_TRACKING_URI", "HM3_STATE"):
        monkeypatch.delenv(name, raising=False)

    def run(*words):
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        assert not ACTING.search(done.output)
        return done.output

    return run


def test_the_commands_that_show_a_front_show_names_as_they_are(command):
    text = squeezed(command("front", "--split", "test"))
    for name in NAMES.values():
        assert seen(name) in text
    assert command("choose")
    assert json.loads(command("front", "--json"))["references"][-1]["name"] == NAMES["template"]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_lines_bars_and_tables_of_a_terminal_show_names_as_they_are(name):
    def screen(console):
        with Screen(console) as one:
            one.line(name)
            one.line(name, "bold")
            one.event(name, {"event": "message", "text": name})
            one.event(
                name, {"event": "bar", "description": name, "completed": 1, "total": 2, "unit": name, "note": name}
            )

    def progress(console):
        with bars_on(console) as bars, bars.bar(name, 2, name) as bar:
            bar.advance(1, name)
            bars.message(name)

    results = {name: {name: {f"{name},{name}": 0.5}}}
    evaluation = Evaluation(name, "test", 3, {name: 0.5}, {name: 4}, results)
    checks = [Gate("gate", name, name, name, True, name), Gate("gate", name, name, name, None, name)]
    for show, times in (
        (screen, 4),
        (progress, 3),
        (lambda console: Check(name, "bad", name).show(console), 2),
        (lambda console: console.print(evaluation.shown()), 5),
        (lambda console: console.print(gate_table(name, checks)), 7),
        (lambda console: console.print(Sheet(name, name, (name,), ((name,),)).rich()), 2),
        (lambda console: console.print(name), 1),
    ):
        assert squeezed(shown(show)).count(seen(name)) >= times


@pytest.mark.parametrize("name", [one for one in NAMES.values() if "\ud800" not in one])
def test_an_error_that_quotes_a_name_is_one_line_of_text(name, tmp_path, monkeypatch, capsys):
    recipe = {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 1}}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", ["hm3", "merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert not ACTING.search(said)


def cells(text):
    """Cells of the rows of Markdown's tables: a bar that is escaped separates none."""
    return [len(re.split(r"(?<!\\)\|", row)) for row in text.splitlines() if row.startswith("|")]


def quoted(text):
    """Markdown without what is escaped: what is left of markup acts."""
    return re.sub(r"\\.|&\w+;", "", text)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_markdown_shows_names_as_they_are(name, hostile):
    for text in (escaped(name), code(name)):
        assert not ACTING.search(text)
        assert "\n" not in text
        assert not re.search(r"[<>|]|\]\(", quoted(text))
        assert quoted(text).count("`") in (0, 2)
        unescaped = re.sub(r"\\(.)", r"\1", text[1:-1] if text[0] == "`" else text)
        back = unescaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert back == line(name)
    front = Front.read(hostile.run)
    composition = Composition.read(hostile, front)
    pages = [
        markdown(front, "test"),
        gate_markdown(name, [Gate("gate", name, name, name, True, name)] * 2),
        *(described(front, one, composition) for one in front.members),
        card(name),
        render("headroom.md.j2", sheets=[Sheet(name, name, (name, "b"), ((name, "c"),))], arms=[], notes=""),
    ]
    for page in pages:
        assert not ACTING.search(page)
    for page in pages[:-1]:
        assert "<script" not in page and "<img" not in page
        assert "](javascript" not in quoted(page)
    for page in (pages[0], pages[1], pages[-1]):
        assert len(set(cells(page)[:3])) == 1
    assert plain_values({"tag": name}) == {"tag": plain(name)}


def card(name):
    """A model card in which everything is called so."""
    models = [{"model": name, "parameters": {"weight": 0.5}}]
    recipe = Recipe.model_validate({"merge_method": "linear", "base_model": name, "models": models})
    return model_card(name, [recipe], Vocabulary(1, extra=(name,)), {name: [name, name]})


def test_the_header_of_a_model_card_is_yaml():
    _, header, _ = card("x: [").split("---\n", 2)
    assert yaml.safe_load(header) == {"library_name": "transformers", "tags": ["merge", "hm3", "linear"]}


def test_no_name_runs_in_the_report(hostile):
    path = write_report(hostile)
    text = path.read_text()
    assert not ACTING.search(text)
    assert "49" not in re.findall(r"<small>([^<]*)</small>", text)
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("Chromium (Debian's package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(path.as_uri())
        assert page.title() == "hm3: front of tiny"
        assert page.locator("script").count() == page.locator("img").count() == 0
        words = squeezed(page.locator("body").inner_text())
        for name in NAMES.values():
            assert seen(name) in words
        browser.close()
