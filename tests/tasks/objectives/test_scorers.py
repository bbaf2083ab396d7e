"""Tasks whose scorers evaluate what a model wrote are found before anything of them is imported, and need consent."""

import re
import sys
from pathlib import Path

import lm_eval
import pytest
import yaml

from models.candidate import Candidate
from models.errors import BadInput
from tasks.doctor.doctor import task_code
from tasks.objectives.objectives import Objectives
from tasks.objectives.scorers import code_of, evaluation
from tasks.objectives.task_files import TaskFile
from tasks.project.workspace import open_workspace
from tests.bubblewrap import require_bubblewrap
from tests.small_tasks import COUNTS, write_profile, write_task

LM_EVAL = Path(lm_eval.__file__).parent / "tasks"
GENERATE = {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}}
JUDGE = "def judge(doc, results):\n    return {'own': float(len(results[0]))}\n"


def shipped(name):
    path = next(LM_EVAL.glob(f"{name}.yaml"), None) or next(LM_EVAL.glob(f"*/{name}.yaml"))
    return evaluation(TaskFile(name, path))


def test_lm_evals_maths_and_programs_are_found():
    said = {
        name: shipped(name).text
        for name in ("minerva_math_algebra", "leaderboard/math/math_algebra", "putnam_axiom_original")
    }
    assert said == {
        "minerva_math_algebra": "process_results: minerva_math/utils.py (math_verify, sympy)",
        "leaderboard/math/math_algebra": "process_results: math/utils.py (math_verify, sympy)",
        "putnam_axiom_original": "process_results: putnam_axiom/utils.py (sympy)",
    }
    assert not any(shipped(name).confined for name in said)
    assert shipped("humaneval").confined and shipped("mbpp_plus").confined


@pytest.mark.parametrize(
    "name", ["gsm8k", "hendrycks_math_algebra", "ifeval", "drop/default", "arc_easy", "coqa/default"]
)
def test_scorers_that_compare_texts_are_not(name):
    assert shipped(name) is None


def test_every_task_that_lies_beside_a_module_with_a_parser_of_expressions_is_found():
    """By the text of lm-eval's files: what its scorers import, and which tasks name them."""
    parsers = re.compile(r"^\s*(?:import|from) (?:sympy|math_verify|latex2sympy\w*)\b", re.M)
    modules = [path for path in LM_EVAL.rglob("*.py") if parsers.search(path.read_text())]
    assert len(modules) >= 4
    names = {(path.parent, path.stem) for path in modules}
    missed = []
    for folder in {path.parent for path in modules}:
        for path in folder.glob("*.yaml"):
            for module in re.findall(r"process_results: !function (\w+)\.", path.read_text()):
                if (folder, module) in names and evaluation(TaskFile(path.stem, path)) is None:
                    missed.append(path)
    assert not missed


def own_task(folder, text, where="process_results: !function own.judge", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(text)
    (folder / "one.yaml").write_text(yaml.safe_dump({"task": "one", **GENERATE, **changes}) + where + "\n")
    return TaskFile("one", folder / "one.yaml")


EVALUATES = {
    "a parser": "from sympy.parsing.sympy_parser import parse_expr",
    "a parser when it is needed": "def judge(doc, results):\n    import sympy as s\n    return s.sympify(results[0])",
    "a parser if it is there": "try:\n    import math_verify\nexcept ImportError:\n    math_verify = None",
    "eval": "def judge(doc, results):\n    return {'own': eval(results[0])}",
    "exec": "judge = lambda doc, results: exec(results[0])",
    "compile": "judge = lambda doc, results: compile(results[0], 'x', 'eval')",
    "a table's eval": "import pandas as pd\njudge = lambda doc, results: pd.eval(results[0])",
    "numexpr": "import numexpr as ne",
    "a shell": "import os\njudge = lambda doc, results: os.system(results[0])",
    "another program": "from subprocess import run",
    "code_eval": "import evaluate\nown = evaluate.load('code_eval')",
    "a module beside it": "from other import value",
    "a task of lm-eval": "from lm_eval.tasks.minerva_math.utils import is_equiv as judge",
    "a module of a task of lm-eval": "from lm_eval.tasks.minerva_math import utils",
}


@pytest.mark.parametrize("name", EVALUATES)
def test_what_evaluates_is_found_in_a_module_of_ones_own(name, tmp_path):
    (tmp_path / "other.py").write_text("value = lambda text: eval(text)\n")
    found = evaluation(own_task(tmp_path, EVALUATES[name]))
    assert found is not None and found.text.startswith(f"process_results: {tmp_path.name}/own.py (")
    assert found.confined == (name == "code_eval")


@pytest.mark.parametrize(
    "where",
    [
        "metric_list: [{metric: !function own.judge, aggregation: mean}]",
        "metric_list: [{metric: own, aggregation: !function own.judge}]",
        "filter_list: [{name: a, filter: [{function: custom, filter_fn: !function own.judge}]}]",
        "class: !function own.judge",
    ],
)
def test_it_is_found_wherever_a_function_is_given_what_the_model_wrote(where, tmp_path):
    assert evaluation(own_task(tmp_path, EVALUATES["eval"], where)) is not None
    assert evaluation(own_task(tmp_path, JUDGE, where)) is None


def test_metrics_that_lm_eval_lacks_are_scripts(tmp_path):
    listed = [{"metric": "exact_match"}, {"metric": "their/metric"}, {"metric": "bleu", "hf_evaluate": True}]
    where = f"metric_list: {listed}"
    assert code_of(own_task(tmp_path, JUDGE, where)) == [
        "the script of metric their/metric",
        "the script of metric bleu",
    ]
    assert code_of(own_task(tmp_path, JUDGE, f"{where}\nprocess_results: !function own.judge")) == ["own.py"]


def test_a_sandbox_for_one_function_does_not_excuse_another(tmp_path):
    both = own_task(tmp_path, EVALUATES["code_eval"], "process_results: !function own.judge")
    (tmp_path / "other.py").write_text(EVALUATES["eval"])
    with both.path.open("a") as file:
        file.write("metric_list: [{metric: own, aggregation: !function other.judge}]\n")
    found = evaluation(both)
    assert found.text.startswith("metric_list.aggregation: ") and not found.confined


def test_parts_that_a_file_names_many_times_are_looked_at_once(tmp_path):
    bomb = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))
    assert code_of(own_task(tmp_path, JUDGE, f"a0: &a0 [!function own.judge]\n{bomb}")) == ["own.py"]


HARMLESS = {
    "patterns": "import re\nJ = re.compile('x')\n" + JUDGE,
    "literals": "import ast\njudge = lambda doc, results: ast.literal_eval(results[0])",
    "a model": "def judge(doc, results):\n    return MODEL.eval()",
    "a word": "judge = lambda doc, results: {'eval': 'sympy.parse_expr'}",
    "no Python": "def (",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_it_is_not(name, tmp_path):
    assert evaluation(own_task(tmp_path, HARMLESS[name])) is None


def test_functions_that_see_items_or_numbers_alone_are_not(tmp_path):
    data = {"dataset_kwargs": {"data_files": "/data/code.jsonl"}}  # the name of a module, too
    items = own_task(tmp_path, EVALUATES["eval"], "doc_to_text: !function own.judge", **data)
    assert evaluation(items) is None and code_of(items) == ["own.py"]
    assert evaluation(own_task(tmp_path, EVALUATES["eval"], output_type="multiple_choice")) is None


@pytest.mark.parametrize("name", ["one", "one.yaml"])
def test_an_evaluating_scorer_needs_consent_before_it_is_imported(name, root, family, pool, recwarn):
    write_task(root, "one", **GENERATE, metric_list=[{"metric": "own", "aggregation": "mean"}])
    with (root / "profiles/p/one.yaml").open("a") as file:
        file.write("process_results: !function judge.judge\n")
    trace = root / "imported"
    (root / "profiles/p/judge.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n{JUDGE}def never(text):\n    return eval(text)\n"
    )
    asked = [{"name": "maths", "task": name, "metric": "own", "direction": "higher", "items": COUNTS}]
    write_profile(root, asked)
    said = (
        r"profiles/p.yaml: objectives.maths: task one: process_results: p/judge.py \(eval\): evaluates what the model"
    )
    with pytest.raises(BadInput, match=f"^{said} .* no sandbox holds it; set `run_code: true` in the profile .*$"):
        Objectives(open_workspace("p", root), "search", family["base"])
    assert not trace.exists()
    write_profile(root, asked, run_code=True)
    objectives = Objectives(open_workspace("p", root), "search", family["base"])
    (found,) = objectives.item_scores(pool, [Candidate.identity("a", 3)], 0, 14)
    assert all(value > 0 for value in found.items["maths"]) and trace.exists()
    assert [str(one.message) for one in recwarn if re.search(said, str(one.message))]
    assert [one.text for one in task_code(open_workspace("p", root))] == [
        "one.yaml is code: reading it runs judge.py as this user",
        "one.yaml: process_results: p/judge.py (eval): evaluates what the model wrote in hm3's own process, "
        "where no sandbox holds it",
    ]


def test_our_metric_runs_programs_in_the_sandbox_even_where_the_task_is_not_marked(root, family, pool, monkeypatch):
    require_bubblewrap()
    project = str(Path(__file__).parents[3])
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", project)])  # as for `hm3` itself
    write_task(root, "one", **GENERATE, metric_list=None, doc_to_target="import sys; assert 'numpy' not in sys.modules")
    with (root / "profiles/p/one.yaml").open("a") as file:
        file.write("metric_list:\n- {metric: !function tasks.code_metrics.pass_at_k, aggregation: mean}\n")
        file.write("filter_list: [{name: none, filter: [{function: regex, regex_pattern: '$^', fallback: ''}]}]\n")
    asked = [{"name": "code", "task": "one", "metric": "pass@1", "direction": "higher", "items": COUNTS}]
    write_profile(root, asked)
    with pytest.raises(BadInput, match=r"objectives.code: task one: runs programs that the model wrote; set `run_code"):
        Objectives(open_workspace("p", root), "search", family["base"])
    write_profile(root, asked, run_code=True)
    built = Objectives(open_workspace("p", root), "search", family["base"]).composed["code"].parts[0].built
    assert built.task.config.unsafe_code and "bubblewrap" in built.text
    assert list(task_code(open_workspace("p", root))) == []


ESCAPES = [
    "{{{{ cycler.__init__.__globals__.os.system('touch {trace}') }}}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "{{{{ lipsum['__globals__']['os'].system('touch {trace}') }}}}",
    "{{{{ (lipsum | attr('__globals__'))['os'].system('touch {trace}') }}}}",
    "{{{{ '{{0.__class__.__init__.__globals__}}'.format(lipsum) }}}}",
]


@pytest.mark.parametrize("template", ESCAPES)
@pytest.mark.parametrize("field", ["doc_to_text", "doc_to_target"])
def test_a_template_reaches_its_item_alone(template, field, root, family):
    trace = root / "trace"
    write_task(root, "one", **{field: template.format(trace=trace)})
    with pytest.raises(BadInput, match=r"objectives.one: task one: .*(unsafe|SecurityError|undefined|UndefinedError)"):
        Objectives(open_workspace("p", root), "search", family["base"])
    assert not trace.exists()


def test_templates_fill_as_lm_eval_fills_them(root, family):
    """By its own environment, as it is before a task is built."""
    from jinja2 import BaseLoader, Environment, StrictUndefined
    from lm_eval.utils import regex_replace

    own = Environment(loader=BaseLoader, undefined=StrictUndefined, keep_trailing_newline=True)
    own.filters["regex_replace"] = regex_replace
    template = (
        "{% set found = [] %}{% for word in prompt.split(' ') %}{{ found.append(word.upper()) or '' }}{% endfor %}"
        "{{ '{:>5}|{}'.format(id, found[0]) }} {{ prompt | regex_replace('w', 'v') }}{{ found | join('-') }}\n"
    )
    write_task(root, "one", doc_to_text=template)
    part = Objectives(open_workspace("p", root), "search", family["base"]).composed["one"].parts[0]
    docs = part.built.docs
    assert [one[0].arguments[0] for one in part.built.requests] == [own.from_string(template).render(**d) for d in docs]
