"""pyarrow, imported when it is needed."""

from types import ModuleType

from prompt_tune.errors import PromptTuneError
from prompt_tune.version import install


def arrow_module() -> ModuleType:
    """The module `pyarrow`.

    Raises:
        PromptTuneError: It is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise PromptTuneError(f"pyarrow is not installed, and Parquet needs it: {install('label')}") from error
    return pyarrow


def parquet_module() -> ModuleType:
    """The module `pyarrow.parquet`.

    Raises:
        PromptTuneError: pyarrow is not installed.
    """
    arrow_module()
    from pyarrow import parquet

    return parquet
