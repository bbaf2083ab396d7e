"""The made family's items: held out, disjoint, stable, and right."""

import json

import numpy as np
import pytest

from models.errors import BadInput, Failed
from tasks.families.tiny import arithmetic, code, translation
from tasks.families.tiny.examples import Example, Kind, divide, is_held_out, mix
from tasks.families.tiny.make import check_disjoint, write_items, write_training
from tasks.families.tiny.splits import TASKS, TaskExamples, make_splits
from tasks.families.tiny.tokenizer import train_tokenizer
from tasks.families.tiny.train import tokenize
from tasks.objectives.items import SPLITS
from tasks.schema.params import ZooParams
from tasks.schema.profile import Items

FEW = dict.fromkeys(TASKS, Items(search=24, selection=16, test=32))
SMALL = ZooParams(translation_examples=300, math_examples=300, code_examples=300)


@pytest.fixture(scope="module")
def made():
    return make_splits(FEW, SMALL, 0)


def prompts(examples):
    return [example.prompt for example in examples]


def test_every_split_has_its_size_and_no_prompt_is_anywhere_twice(made):
    for task, own in made.items():
        assert {split: len(items) for split, items in own.items.items()} == FEW[task].model_dump()
        everything = prompts(own.training) + [prompt for items in own.items.values() for prompt in prompts(items)]
        assert len(set(everything)) == len(everything)
    check_disjoint(made)


def test_a_prompt_in_two_splits_is_refused():
    same = Example("1 + 1 =", " 2\n")
    with pytest.raises(Failed, match=r"math: prompt '1 \+ 1 =' is in training and in test"):
        check_disjoint({"math": TaskExamples([same], {"search": [], "selection": [], "test": [same]})})


def test_a_seed_gives_the_same_items_and_another_seed_others(made):
    again, other = make_splits(FEW, SMALL, 0), make_splits(FEW, SMALL, 1)
    assert again == made
    for task in TASKS:
        shared = set(prompts(made[task].items["test"])) & set(prompts(other[task].items["test"]))
        assert len(shared) < 16


def test_a_prompt_is_held_out_by_its_hash_whatever_is_asked_for(made):
    more = make_splits(dict.fromkeys(TASKS, Items(search=60, selection=60, test=60)), ZooParams(), 0)
    for family in (made, more):
        for own in family.values():
            assert all(is_held_out(prompt, 0) for items in own.items.values() for prompt in prompts(items))
            assert not any(is_held_out(e.prompt, 0) and not e.prompt.endswith("=") for e in own.training)


def test_bare_facts_are_for_training_alone(made):
    assert any(prompt.endswith("=") for prompt in prompts(made["math"].training))
    assert not any(prompt.endswith("=") for split in SPLITS for prompt in prompts(made["math"].items[split]))


def test_splits_are_shuffled_and_mixed_alike():
    sizes = dict.fromkeys(TASKS, Items(search=128, selection=128, test=128))
    for own in make_splits(sizes, SMALL, 3).values():
        lengths = [np.mean([len(e.prompt + e.answer) for e in own.items[split]]) for split in SPLITS]
        assert max(lengths) - min(lengths) < 0.12 * np.mean(lengths)


def test_more_items_than_there_are_is_bad_input():
    with pytest.raises(BadInput, match="items of code: 9000 asked for, the made family has"):
        make_splits(FEW | {"code": Items(search=3000, selection=3000, test=3000)}, SMALL, 0)
    with pytest.raises(BadInput, match=r"zoo.code_examples: 99999 asked for"):
        make_splits(FEW, SMALL.model_copy(update={"code_examples": 99999}), 0)


def test_mixing_keeps_the_shares_in_every_prefix():
    kinds = [
        Kind(0.75, [Example(f"a{n}", "") for n in range(300)]),
        Kind(0.25, [Example(f"b{n}", "") for n in range(100)]),
    ]
    mixed = prompts(mix(kinds, np.random.default_rng(0)))
    for length in (4, 40, 200):
        assert sum(prompt[0] == "a" for prompt in mixed[:length]) == pytest.approx(0.75 * length, abs=1)


def test_a_kind_for_training_alone_is_never_divided():
    kinds = [
        Kind(1, [Example(f"{n}", "") for n in range(50)], held_out=False),
        Kind(1, [Example(f"x{n}", "") for n in range(50)]),
    ]
    training, held_out = divide(kinds, 0, np.random.default_rng(0))
    assert {f"{n}" for n in range(50)} <= set(prompts(training))
    assert held_out and all(prompt.startswith("x") for prompt in prompts(held_out))


@pytest.mark.parametrize("grammar", [translation, arithmetic, code])
def test_answers_are_one_line_that_starts_with_a_space(grammar):
    for kind in grammar.kinds():
        for example in kind.examples:
            assert example.answer[0] == " " and example.answer[1:].strip() + "\n" == example.answer[1:]
            assert example.prompt == example.prompt.strip()


@pytest.mark.parametrize(
    ("grammar", "prompt", "answer"),
    [
        (translation, "In German, forty-two:", " zweiundvierzig\n"),
        (translation, "In German, 1 hour:", " 1 Stunde\n"),
        (translation, "In German, March 5, 2021:", " 5. März 2021\n"),
        (translation, "In German, Iceland and Spain:", " Island und Spanien\n"),
        (arithmetic, "7 * 8 =", " 56\n"),
        (arithmetic, "Tom has 3 apples and buys 4 more. How many apples?", " 7\n"),
        (code, "In Python, x plus 3, times 4:", " (x + 3) * 4\n"),
        (code, "In Python, the sum of those of xs above 5:", " sum([v for v in xs if v > 5])\n"),
        (code, "In Python, the first 3 letters of s in upper case:", " s[:3].upper()\n"),
    ],
)
def test_the_grammars_hold(grammar, prompt, answer):
    assert answer in [e.answer for kind in grammar.kinds() for e in kind.examples if e.prompt == prompt]


def test_word_problems_have_the_right_result():
    signs = {"more": "+", "before": "+", "there": "+", "left": "-", "now": "-", "each": "*", "boxes": "*"}
    for kind in arithmetic.kinds()[1:]:
        for example in kind.examples[::97]:
            a, b = (int(word.strip(".")) for word in example.prompt.split() if word.strip(".").isdigit())
            sign = next(signs[word.strip(".?")] for word in example.prompt.split()[::-1] if word.strip(".?") in signs)
            assert int(example.answer) == {"+": a + b, "-": a - b, "*": a * b}[sign], example


def test_item_files_hold_stable_ids_and_programs_with_their_values(made, tmp_path):
    write_items(made, tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"tiny_{t}.{s}.jsonl" for t in TASKS for s in SPLITS
    )
    for path in tmp_path.iterdir():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            plain = Example(record["prompt"], record["answer"])
            extra = {key: record[key] for key in ("inputs", "outputs") if key in record}
            assert plain.record(**extra) == record
            for variables, value in zip(*(json.loads(extra[key]) for key in extra), strict=True) if extra else ():
                assert eval(record["answer"].strip(), dict(variables)) == value
    assert "inputs" in json.loads((tmp_path / "tiny_code.test.jsonl").read_text().splitlines()[0])


def test_training_rows_have_the_fields_of_the_items_and_none_of_their_prompts(made, tmp_path):
    write_items(made, tmp_path, 0)
    write_training(made, tmp_path, 0)
    for task in TASKS:
        files = {split: (tmp_path / f"tiny_{task}.{split}.jsonl").read_text() for split in (*SPLITS, "train")}
        records = {split: [json.loads(line) for line in text.splitlines()] for split, text in files.items()}
        assert [record["prompt"] for record in records["train"]] == prompts(made[task].training)
        assert {tuple(record) for own in records.values() for record in own} == {tuple(records["test"][0])}
        assert not {r["prompt"] for r in records["train"]} & {r["prompt"] for s in SPLITS for r in records[s]}


def test_prompt_and_answer_are_split_as_lm_eval_splits_them(made):
    from lm_eval.api.model import TemplateLM

    pairs = [(e.prompt, e.answer) for own in made.values() for e in own.items["test"]]
    tokenizer = train_tokenizer([e.prompt + e.answer for own in made.values() for e in own.training], 600)
    splitter = type("Splitter", (), {"backend": "causal", "tok_encode": lambda self, text: tokenizer.encode(text)})()
    for row, pair in zip(tokenize(pairs, tokenizer), pairs, strict=True):
        context, continuation = TemplateLM._encode_pair(splitter, *pair)
        assert (row.ids[: row.start], row.ids[row.start :]) == (context, continuation)


def test_the_tokenizer_gives_back_every_text_and_splits_digits(made):
    tokenizer = train_tokenizer([e.prompt + e.answer for own in made.values() for e in own.training], 600)
    assert len(tokenizer) == 600 and (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
    for text in [e.prompt + e.answer for own in made.values() for e in own.items["test"]] + ["Straße, 12 345 €\n"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.decode([token]) for token in tokenizer.encode("2047")] == ["2", "0", "4", "7"]
