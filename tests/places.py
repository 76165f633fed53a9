"""Where things lie in the checkout, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
WEIGHTS = ROOT / "prompt_tune" / "tiny" / "weights"
# labelled photos and a detector that knows photographs; tests that use them skip where they are absent
SHARED = ROOT / "shared" if (ROOT / "shared").is_dir() else ROOT.parent / "shared"
