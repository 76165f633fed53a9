"""The errors that users meet. Each text says what came, which rule it breaks and what cures it, in one line."""


class PromptTuneError(Exception):
    """Base of every error that the command line turns into one line and exit status 1."""


class VocabularyError(PromptTuneError):
    """A vocabulary file, a class name or a list of them breaks a rule."""


class DataError(PromptTuneError):
    """A data set, its labels or an image cannot be used."""


class ModelError(PromptTuneError):
    """A detector checkpoint or a text tower cannot be used."""


class GraphError(PromptTuneError):
    """An ONNX graph or a bundle is damaged, incomplete, or not ours."""


class ProviderError(PromptTuneError):
    """The execution provider that was asked for is not really there."""


class RunError(PromptTuneError):
    """A run folder is incomplete, belongs to other settings, or is in the way."""
