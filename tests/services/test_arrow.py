"""pyarrow where it is missing."""

import sys

import pytest

from prompt_tune.errors import PromptTuneError
from prompt_tune.services import arrow


@pytest.mark.parametrize("module", [arrow.arrow_module, arrow.parquet_module])
def test_missing_pyarrow_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PromptTuneError, match=r"^pyarrow is not installed, .*pip install '.*\[label\]'"):
        module()  # type: ignore[operator]
