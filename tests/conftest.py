"""Small random models that the tests of several parts use."""

import gc
import os
import sys
import sysconfig

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores, and small sums are quicker so
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import once
from tests.warm import GET_PATH, PYTHON, SHARED, programs, warmed

gc.disable()  # until all tests are collected: a million objects that stay would be gone through again and again
GIVEN = os.environ.get("MLFLOW_TRACKING_URI")


def pytest_configure(config):
    """Start the one server of :mod:`tests.warm` that the workers share."""
    if config.getoption("numprocesses", None):
        os.environ[SHARED] = str(programs())


def pytest_collection_finish():
    """Collect garbage from here on, but leave alone what is there."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


def random_tokenizer(size):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, size)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


@pytest.fixture(scope="session", autouse=True)
def session(tmp_path_factory):
    """Where :mod:`tests.once` keeps what is made once."""
    once.begin(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", autouse=True)
def own_tracking_address():
    """MLflow writes the address that it is given into the environment; no module shall find that of another."""
    forget_tracking_address()
    yield
    forget_tracking_address()


def forget_tracking_address():
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(GIVEN or "")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if GIVEN is not None:
        os.environ["MLFLOW_TRACKING_URI"] = GIVEN


@pytest.fixture(scope="session")
def pipeline(make_family):
    """Root of the project of :func:`tests.real_project.make_pipeline`, made once; to be copied, not written to."""
    from tests.real_project import make_pipeline

    return once.made("pipeline", lambda folder: make_pipeline(folder / "project", make_family)) / "project"


@pytest.fixture(scope="module")
def warm():
    """`hm3`, `dvc` and `python -m`, wherever a module's tests or DVC start them, are those of :mod:`tests.warm`."""
    with warmed():
        yield


@pytest.fixture
def cold(monkeypatch):
    """In a module that has :func:`warm`: this test kills, so all processes are to be under those that start them."""
    monkeypatch.setenv("PATH", os.environ["PATH"].removeprefix(f"{programs()}{os.pathsep}"))
    monkeypatch.setattr(sys, "executable", PYTHON)
    monkeypatch.setattr(sysconfig, "get_path", GET_PATH)


@pytest.fixture(scope="session")
def make_llama():
    """Writes a random Llama of a few thousand parameters with its tokenizer to a folder, which it returns.

    With ``base`` (a folder of such a model) it is a fine-tune of that: its weights plus a little noise.
    """

    def make(folder, seed=0, base=None, noise=0.02, tied=True, layers=3, vocabulary=41, dtype=torch.float32, **sizes):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1} | sizes
        config = LlamaConfig(
            vocab_size=vocabulary,
            num_hidden_layers=layers,
            tie_word_embeddings=tied,
            max_position_embeddings=64,
            initializer_range=0.1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **sizes,
        )
        model = LlamaForCausalLM(config) if base is None else LlamaForCausalLM.from_pretrained(base)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        model.to(dtype).save_pretrained(folder)
        random_tokenizer(vocabulary).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_family(make_llama):
    """Writes ``base`` and fine-tunes ``a``, ``b``, … of it below a folder, and returns their folders by name."""

    def make(folder, experts=2, **options):
        family = {"base": make_llama(folder / "base", seed=0, **options)}
        for number, name in enumerate("abcdefgh"[:experts]):
            family[name] = make_llama(folder / name, seed=number + 1, base=family["base"], **options)
        return family

    return make
