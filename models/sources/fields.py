"""What is read of the files beside a model's weights: a schema for each kind of file. All are written by others."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from models.files import Foreign

Size = Annotated[int, Field(ge=1, le=10**9)]
TokenId = Annotated[int, Field(ge=-1, le=10**9)]
Number = int | float

LABELS = 10**6
"""Classes at most; transformers makes a name for each that the config counts."""


class Config(Foreign):
    """``config.json`` of a model: what hm3 reads of it, and what makes transformers work without a bound."""

    architectures: Annotated[list[str], Field(min_length=1)] | None = None
    model_type: str | None = None
    auto_map: dict[str, Any] | None = None
    vocab_size: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_hidden_layers: Size | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    n_layer: Size | None = None
    n_embd: Size | None = None
    n_head: Size | None = None
    n_inner: Size | None = None
    tie_word_embeddings: bool | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    num_labels: Annotated[int, Field(ge=0, le=LABELS)] | None = None
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None
    projection_dim: Size | None = None
    vision_config: Config | None = None

    @model_validator(mode="after")
    def _numbers_rows(self) -> Config:
        if any(not row.isdecimal() for row in self.id2label or {}):
            raise ValueError("id2label: its keys are no numbers of rows")
        return self


class Index(Foreign):
    """The index of a checkpoint in several files."""

    weight_map: dict[str, str]


class TokenizerModel(Foreign):
    """The part of a tokenizer that knows the tokens."""

    type: str | None = None
    vocab: dict[str, TokenId] | list[Any] | None = None

    @model_validator(mode="after")
    def _lists_pieces(self) -> TokenizerModel:
        pieces = self.vocab if isinstance(self.vocab, list) else []
        if not all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in pieces):
            raise ValueError("vocab: its pieces are no pairs of text and score")
        return self


class AddedToken(Foreign):
    """A token that is looked for in the text before it is split."""

    id: TokenId
    content: str
    special: bool = False


class TokenizerFile(Foreign):
    """``tokenizer.json``."""

    model: TokenizerModel
    added_tokens: list[AddedToken] | None = None


class NamedTemplate(Foreign):
    """One of several chat templates."""

    name: str
    template: str


class TokenText(Foreign):
    """A special token that is described."""

    content: str


class TokenizerConfig(Foreign):
    """``tokenizer_config.json``."""

    chat_template: str | list[NamedTemplate] | None = None
    eos_token: str | TokenText | None = None
    added_tokens_decoder: dict[str, TokenText] | None = None


class TokenIds(Foreign):
    """``added_tokens.json``: the id of each token."""

    __pydantic_extra__: dict[str, TokenId]
    most: ClassVar[int] = 10**7


class GenerationConfig(Foreign):
    """``generation_config.json``: transformers looks at most of these when it generates, and not before."""

    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    num_beams: Size | None = None
    num_return_sequences: Size | None = None
    temperature: Number | None = None
    top_k: int | None = None
    top_p: Number | None = None
    repetition_penalty: Number | None = None
    length_penalty: Number | None = None
    no_repeat_ngram_size: int | None = None
    use_cache: bool | None = None


class AdapterConfig(Foreign):
    """``adapter_config.json`` of peft."""

    peft_type: str | None = None
    r: Annotated[int, Field(ge=1, le=10**6)] | None = None
    lora_alpha: Number | None = None
    alpha_pattern: dict[str, Number] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=10**6)]] | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = None


COMPANIONS: dict[str, type[Foreign]] = {
    "tokenizer.json": TokenizerFile,
    "tokenizer_config.json": TokenizerConfig,
    "added_tokens.json": TokenIds,
    "vocab.json": TokenIds,
    "generation_config.json": GenerationConfig,
}
"""Of the files that lie beside a model's weights; of any other no more is asked than that it has few fields."""
