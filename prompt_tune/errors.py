"""The errors that users meet. Each message is one line: what came, the rule that it breaks, and the cure."""

from prompt_tune.wording import printable

MAX_CHARACTERS = 2000  # of a message: a name or path in a damaged file may have any length
TAIL = 400  # of them at its end, where the cure stands


class PromptTuneError(Exception):
    """Base of all errors. The command line prints its message and exits with status 1.

    In a message, characters that terminals obey are escapes such as \\n, and one that is too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        message = printable(message)
        if len(message) > MAX_CHARACTERS:
            message = f"{message[: MAX_CHARACTERS - TAIL - 5]} ... {message[-TAIL:]}"
        super().__init__(message)


class VocabularyError(PromptTuneError):
    """A vocabulary file, a class name or a list of class names breaks a rule."""


class DataError(PromptTuneError):
    """A data set, its labels or an image cannot be used."""


class ModelError(PromptTuneError):
    """A detector checkpoint or a text tower cannot be used."""


class GraphError(PromptTuneError):
    """An ONNX graph or a bundle is damaged, incomplete or not from prompt-tune."""


class ProviderError(PromptTuneError):
    """The requested execution provider is not available."""


class RunError(PromptTuneError):
    """A run folder is incomplete, was made with other settings, or is in the way."""
