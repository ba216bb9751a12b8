"""Text that a decoder goes on writing: responses to prompts and dialogues, or plain language modelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from typing_extensions import Self

from peft_rag.errors import ConfigError, DataError
from peft_rag.records import Record, name_field, text_field
from peft_rag.tasks.appending import check_prompt
from peft_rag.tasks.base import Example
from peft_rag.tasks.generation import Generation, answers_field, documents_field

if TYPE_CHECKING:
    from peft_rag.corpus import Document

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class TextGeneration(Generation):
    """A response to a prompt, the last turn of a dialogue, or all of a text; the loss is on that alone.

    Records hold ``prompt`` and ``response``; or ``messages``, a list of ``role`` and ``content`` whose last is the
    assistant's, written by the tokenizer's chat template or else by a plain one (a line ``Role: content`` a turn); or a
    ``text`` alone, which is language modelling: p(y) = Π_t p(y_t | y_<t) over all its tokens, cut at ``target_length``.

    Attributes:
        prompt_field, response_field: fields of a record that hold the prompt and what is to be written.
        messages_field: field that holds a dialogue.
        text_field: field that holds a text without a prompt.
        prompt: how a prompt is put to the backbone, with ``{prompt}`` in it.
        chat_template: ``tokenizer`` writes dialogues by the tokenizer's own template where it has one; ``plain`` never.
        form: how a bare text is put to the backbone: as a ``prompt``, or as a user's turn (``messages``); ``text``
            where the training data has no prompts.
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

    prompt_field: str = "prompt"
    response_field: str = "response"
    messages_field: str = "messages"
    text_field: str = "text"
    prompt: str = "{prompt}"
    chat_template: Literal["tokenizer", "plain"] = "tokenizer"
    form: Literal["", "prompt", "messages", "text"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt, "prompt")
        if self.chat_template not in ("tokenizer", "plain"):
            raise ConfigError(f"task.chat_template is '{self.chat_template}'. Choose tokenizer or plain.")

    @property
    def text_metrics(self) -> tuple[str, ...]:
        return () if self.form == "text" else ("exact_match", "f1", "rougeL", "chrf")

    @property
    def goes_on(self) -> bool:
        return True

    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        return [self._read(number, record, labelled) for number, record in enumerate(records, start=1)]

    def _read(self, number: int, record: Record, labelled: bool) -> Example:
        named = name_field(record, self.id_field) or str(number)
        group = name_field(record, self.group_field)
        form = self._form_of(record)
        if form == "text":
            text = text_field(record, self.text_field, "--text_field")
            return Example(named, "" if labelled else text, (text,) if labelled else None, record.where, group)
        if form == "messages":
            turns = self._turns(record, labelled)
            spoken = (turns.pop()["content"],) if labelled else None
            documents = documents_field(record, self.document_field)
            return Example(named, self._dialogue(turns), spoken, record.where, group, documents=documents)
        source = text_field(record, self.prompt_field, "--task.prompt_field")
        prompt = self.prompt.replace("{prompt}", source)
        response = answers_field(record, self.response_field, "--task.response_field") if labelled else None
        documents = documents_field(record, self.document_field)
        return Example(named, prompt, response, record.where, group, documents=documents, source=source)

    def _form_of(self, record: Record) -> str:
        fields = {self.prompt_field: "prompt", self.messages_field: "messages", self.text_field: "text"}
        for name, form in fields.items():
            if name in record.fields:
                return form
        raise DataError(
            f"{record.where}: has none of the fields {', '.join(fields)} (found: {', '.join(record.fields) or 'none'})."
            " Name them with --task.prompt_field, --task.messages_field or --text_field."
        )

    def _turns(self, record: Record, labelled: bool) -> list[dict[str, str]]:
        """Return the turns of a dialogue; without the assistant's last where that is not wanted."""
        given = record.fields[self.messages_field]
        where = f"{record.where}: field '{self.messages_field}'"
        if not isinstance(given, (list, tuple)) or not given:
            raise DataError(f'{where} must be a list of turns like {{"role": "user", "content": "…"}}.')
        turns = []
        for place, turn in enumerate(given, start=1):
            role = turn.get("role") if isinstance(turn, Mapping) else None
            content = turn.get("content") if isinstance(turn, Mapping) else None
            if role not in _ROLES or not isinstance(content, str) or not content.strip():
                raise DataError(f"{where}: turn {place} is {turn!r}. Give a role ({', '.join(_ROLES)}) and a content.")
            turns.append({"role": str(role), "content": content})
        if labelled and (turns[-1]["role"] != "assistant" or len(turns) < 2):
            raise DataError(
                f"{where}: ends with a turn of '{turns[-1]['role']}', but what is learned is the assistant's."
            )
        return turns if labelled or turns[-1]["role"] != "assistant" else turns[:-1]

    def _dialogue(self, turns: Sequence[Mapping[str, str]]) -> str:
        """Write turns up to where the assistant speaks."""
        if self.chat_template == "tokenizer" and getattr(self.tokenizer, "chat_template", None):
            written: str = self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
            begin = self.tokenizer.bos_token
            return written.removeprefix(begin) if begin else written
        lines = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns]
        return "\n".join([*lines, "Assistant:"])

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        return replace(self, form="text" if all(not example.text for example in examples) else self.form or "prompt")

    def document_of(self, example: Example) -> Document:
        """Return a training example as a document; a text that is learned as a whole is one without an answer."""
        if example.text or not example.labels:
            return super().document_of(example)
        return super().document_of(replace(example, text=example.labels[0], labels=None))

    def example_of(self, document: Document, where: str) -> Example:
        """Return a document as an example; one without an answer is a text to be written from its first token on."""
        if document.labels:
            return super().example_of(document, where)
        return Example(document.id, "", (document.text,), where, document.group)

    def as_example(self, text: str, identity: str) -> Example:
        return Example(identity, self._asked(text), source=text)

    def put(self, text: str) -> str:
        """Return a text as it is put to the backbone; a dialogue up to where the assistant speaks is so already."""
        return text if text.endswith(self._turn_to_speak) else self._asked(text)

    def _asked(self, text: str) -> str:
        if self.form == "messages":
            return self._dialogue([{"role": "user", "content": text}])
        return self.prompt.replace("{prompt}", text)

    @cached_property
    def _turn_to_speak(self) -> str:
        """What every dialogue ends with before the assistant speaks."""
        return self._dialogue([{"role": "user", "content": "§"}]).rpartition("§")[2]
