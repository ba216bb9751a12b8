"""Text to text: translation, summarisation, answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft_rag.records import Record, name_field, text_field
from peft_rag.tasks.appending import check_prompt
from peft_rag.tasks.base import Example
from peft_rag.tasks.generation import Generation, answers_field, documents_field


@dataclass(frozen=True)
class Text2Text(Generation):
    """A target text for each source text, written by an encoder-decoder, or by a decoder after the source.

    p(y|x) = Π_t p(y_t | x, y_<t) over the target's tokens and its end. A decoder reads the source through ``prompt``.

    Attributes:
        source_field, target_field: fields of a record that hold the text, and what is to be written; a list of
            targets, or SQuAD's ``answers``, are several right ones, of which the first is learned.
        prompt: how the source is put to the backbone, with ``{source}`` in it; for a decoder it should end where the
            answer begins.
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        document_field: field with the id, or a list of ids, of the documents that answer; only what is retrieved is
            measured by it.
        target_length: tokens of an answer at most, its end included.
        scored: how many texts of a split are written and scored; 0 for none. Likelihood is measured on all.
        decoding: any of `transformers.GenerationConfig`'s names, such as ``num_beams``, or ``json_schema``; greedy if
            empty.
        choices: if there are any, the answer is one of these.
        tokenizer: the backbone's; no setting.
    """

    source_field: str = "source"
    target_field: str = "target"
    prompt: str = "{source}"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt, "source")

    @property
    def text_metrics(self) -> tuple[str, ...]:
        return ("bleu", "chrf", "rougeL", "exact_match", "f1")

    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        examples = []
        for number, record in enumerate(records, start=1):
            source = text_field(record, self.source_field, "--task.source_field")
            targets = answers_field(record, self.target_field, "--task.target_field") if labelled else None
            named = name_field(record, self.id_field) or str(number)
            group = name_field(record, self.group_field)
            documents = documents_field(record, self.document_field)
            text = self.put(source)
            examples.append(Example(named, text, targets, record.where, group, documents=documents, source=source))
        return examples

    def put(self, text: str) -> str:
        return self.prompt.replace("{source}", text)

    def as_example(self, text: str, identity: str) -> Example:
        return Example(identity, self.put(text), source=text)
