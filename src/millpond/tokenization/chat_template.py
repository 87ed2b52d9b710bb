"""`ChatTemplate`: a text and its prompt as the messages of a chat, rendered into one string.

The messages are those of sentence-transformers 6: the text is what the user says, the prompt what
the system says before it. It knows the checkpoint's template and no token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidCheckpoint, InvalidText, UnsupportedModel, summary

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

    def __repr__(self) -> str:
        return f"ChatTemplate(format={self._format!r}, arguments={sorted(self._arguments)})"

    @classmethod
    def load(
        cls, tokenizer: Any, options: Mapping[str, Any] | None, *, model_type: str, path: Path
    ) -> ChatTemplate | None:
        """The template that texts go through, or None where they are tokenised as they are.

        `options` is what `input_options.chat_options` read. Raises `InvalidCheckpoint` where a
        template is needed and missing, `UnsupportedModel` for one that renders no text.
        """
        if options is None:
            return None
        template = getattr(tokenizer, "chat_template", None)
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
        chat._require_text(path)
        return chat

    def render(self, texts: Sequence[str], *, prompt: str, task: str | None) -> list[str]:
        """What the tokenizer reads for each text. Raises `InvalidText` with the index."""
        try:
            return self._rendered(texts, prompt, task)
        except Exception:  # a template raises what it likes
            for index, text in enumerate(texts):
                try:
                    self._rendered([text], prompt, task)
                except Exception as error:
                    prompted = " with its prompt as the system's message" if prompt else ""
                    raise InvalidText(
                        f"the chat template does not render it{prompted} ({summary(error)})",
                        index=index,
                    ) from error
            raise

    def _rendered(self, texts: Sequence[str], prompt: str, task: str | None) -> list[str]:
        if not texts:
            return []
        # A template that asks for no task is not disturbed by one.
        arguments = self._arguments if task is None else {"task": task, **self._arguments}
        system = [self._message("system", prompt)] if prompt else []
        rendered: list[str] = self._tokenizer.apply_chat_template(
            [[*system, self._message("user", text)] for text in texts], tokenize=False, **arguments
        )
        return rendered

    def _message(self, role: str, text: str) -> dict[str, Any]:
        flat = self._format == "flat"
        return {"role": role, "content": text if flat else [{"type": "text", "text": text}]}

    def _require_text(self, path: Path) -> None:
        try:
            one, other = self._rendered(["hello", "mill"], "", None)
        except Exception as error:
            raise UnsupportedModel(
                f"{path}: its chat template does not render a text ({summary(error)})"
            ) from error
        if one == other:
            raise UnsupportedModel(
                f"{path}: its chat template renders every text alike; it takes something other "
                "than the message of a user"
            )


def _guessed(template: Any, model_type: str) -> MessageFormat:
    if model_type in _FLAT_MODELS:
        return "flat"
    if not isinstance(template, str) or not template:
        return "structured"
    return "structured" if any(sign in template for sign in _STRUCTURED_SIGNS) else "flat"
