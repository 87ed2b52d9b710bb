"""`ChatTemplate`: a text or a pair, and its prompt, as the messages of a chat in one string.

The messages are those of sentence-transformers 6: the text is what the user says, the prompt what
the system says before it; the texts of a pair have the roles `query` and `document`. It knows the
checkpoint's template and no token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidCheckpoint, InvalidText, UnsupportedModel, summary
from ..pair import Pair

__all__ = ["ChatTemplate"]

MessageFormat = Literal["flat", "structured"]
# As `InputFormatter` of sentence-transformers 6 guesses the format that a template expects.
_FLAT_MODELS = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})

_STRUCTURED_SIGNS = (
    "content[0]",
    ".type",
    "'type'",
    '"type"',
    "item.type",
    "message.content[",
)


class ChatTemplate:
    """The chat template of a checkpoint. It never changes, so any thread may use it.

    `restores_suffix` says whether a text that is cut keeps what the template puts at its end.
    `pair_failure` says why it renders no pairs, `text_failure` why no single texts.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        message_format: MessageFormat,
        arguments: Mapping[str, Any],
        restores_suffix: bool,
    ) -> None:
        self.restores_suffix = restores_suffix
        self._tokenizer = tokenizer
        self._format = message_format
        self._arguments = dict(arguments)
        self.text_failure: str | None = None
        self.pair_failure: str | None = None

    def __repr__(self) -> str:
        return f"ChatTemplate(format={self._format!r}, arguments={sorted(self._arguments)})"

    @classmethod
    def load(
        cls,
        tokenizer: Any,
        options: Mapping[str, Any] | None,
        *,
        model_type: str,
        path: Path,
        pairs: bool = False,
    ) -> ChatTemplate | None:
        """The template that texts go through, or None where they are tokenised as they are.

        `options` is what `input_config.chat_options` read. Raises `InvalidCheckpoint` where a
        template is needed and missing, `UnsupportedModel` for one that renders no text and, if
        `pairs` are to be read, none of those either.
        """
        if options is None:
            return None
        own = getattr(tokenizer, "chat_template", None)
        template = options["arguments"].get("chat_template", own)
        if template is None:
            if not options["required"]:
                return None
            raise InvalidCheckpoint(
                f"{path}: its texts go through a chat template, and its tokenizer has none; "
                "add its chat_template.jinja"
            )
        saved = options["format"]
        chat = cls(
            tokenizer,
            message_format=_guessed(template, model_type) if saved == "auto" else saved,
            arguments=options["arguments"],
            restores_suffix=options["restore_suffix"],
        )
        chat.text_failure = _failure(chat._text_probes)
        chat.pair_failure = _failure(chat._pair_probes) if pairs else "pairs are not read"
        if chat.text_failure is not None and chat.pair_failure is not None:
            raise UnsupportedModel(f"{path}: its chat template {chat.text_failure}")
        return chat

    def render(self, texts: Sequence[str], *, prompt: str, task: str | None) -> list[str]:
        """What the tokenizer reads for each text. Raises `InvalidText` with the index."""
        prompted = " with its prompt as the system's message" if prompt else ""
        return _one_named(texts, lambda some: self._rendered(some, prompt, task), prompted)

    def render_pairs(self, pairs: Sequence[Pair], *, prompt: str) -> list[str]:
        """The same of each pair."""
        return _one_named(pairs, lambda some: self._rendered_pairs(some, prompt))

    def _rendered_pairs(self, pairs: Sequence[Pair], prompt: str) -> list[str]:
        system = [self._message("system", prompt)] if prompt else []
        chats = [
            [*system, self._message("query", pair.query), self._message("document", pair.document)]
            for pair in pairs
        ]
        return self._applied(chats, self._arguments) if chats else []

    def _rendered(self, texts: Sequence[str], prompt: str, task: str | None) -> list[str]:
        if not texts:
            return []
        # A template that asks for no task is not disturbed by one.
        arguments = self._arguments if task is None else {"task": task, **self._arguments}
        system = [self._message("system", prompt)] if prompt else []
        return self._applied([[*system, self._message("user", text)] for text in texts], arguments)

    def _applied(self, chats: list[list[dict[str, Any]]], arguments: dict[str, Any]) -> list[str]:
        rendered: list[str] = self._tokenizer.apply_chat_template(
            chats, tokenize=False, **arguments
        )
        return rendered

    def _message(self, role: str, text: str) -> dict[str, Any]:
        flat = self._format == "flat"
        return {"role": role, "content": text if flat else [{"type": "text", "text": text}]}

    def _text_probes(self) -> list[str]:
        return self._rendered(["hello", "mill"], "", None)

    def _pair_probes(self) -> list[str]:
        pairs = [Pair("hello", "mill"), Pair("pond", "mill"), Pair("hello", "pond")]
        return self._rendered_pairs(pairs, "")


def _one_named(
    items: Sequence[Any], render: Callable[[Sequence[Any]], list[str]], prompted: str = ""
) -> list[str]:
    """What `render` makes of them; where it fails, the error names the first that it fails on."""
    try:
        return render(items)
    except Exception:  # a template raises what it likes
        for index, item in enumerate(items):
            try:
                render([item])
            except Exception as error:
                raise InvalidText(
                    f"the chat template does not render it{prompted} ({summary(error)})",
                    index=index,
                ) from error
        raise


def _failure(render: Callable[[], list[str]]) -> str | None:
    """Why the first of the rendered probes is not unlike all the others."""
    try:
        first, *others = render()
    except Exception as error:  # a template raises what it likes
        return f"does not render a text ({summary(error)})"
    if first in others:
        return "renders every text alike; it takes messages of other roles"
    return None


def _guessed(template: Any, model_type: str) -> MessageFormat:
    if model_type in _FLAT_MODELS:
        return "flat"
    if not isinstance(template, str) or not template:
        return "structured"
    return "structured" if any(sign in template for sign in _STRUCTURED_SIGNS) else "flat"
