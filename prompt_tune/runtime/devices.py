"""Names of devices as people write them, and whether the environment shows the GPU that they mean."""

import os
import re

from prompt_tune.errors import ProviderError
from prompt_tune.wording import counted

VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPU = re.compile(r"(?:cuda:)?([0-9]{1,3})")
_ENTRY = re.compile(r"\d+|(?:GPU|MIG)-\S+")


def named(device: str | int) -> str:
    """The name of a device in full: a number, as ultralytics takes it, is that GPU ("0" is "cuda:0")."""
    text = str(device)
    return text if gpu_index(text) is None or text.startswith("cuda") else f"cuda:{int(text)}"


def gpu_index(device: str | int) -> int | None:
    """The number of the GPU that a name means ("cuda" is the first one), or None for any other device."""
    if device == "cuda":
        return 0
    found = _GPU.fullmatch(str(device))
    return int(found[1]) if found else None


def check_visible(device: str | int) -> None:
    """Refuse a GPU that the environment hides from this process, before a library says so in its own words.

    Args:
        device: Any name; only GPUs are looked at.

    Raises:
        ProviderError: `CUDA_VISIBLE_DEVICES` is set, and shows fewer GPUs.

    Source: NVIDIA's CUDA C++ Programming Guide, "CUDA Environment Variables": only the entries before the first invalid
    one are visible, in their order.
    """
    value, index = os.environ.get(VISIBLE), gpu_index(device)
    if value is None or index is None:
        return
    shown = 0
    for entry in value.split(","):
        if not _ENTRY.fullmatch(entry.strip()):
            break
        shown += 1
    if index >= shown:
        raise ProviderError(
            f"`device='{device}'`: the environment variable {VISIBLE} is '{value}', which shows "
            f"{counted(shown, 'GPU') if shown else 'no GPU'} to this process. Change or unset it, or use `cpu`."
        )
