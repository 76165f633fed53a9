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


def several(device: str | int) -> list[str]:
    """The devices that a name means: those of a list such as "cuda:0,1" or "cpu,cpu", or the one.

    Args:
        device: A list separated by commas: GPUs by number, as ultralytics takes them ("0,1", "cuda:0,1"), or "cpu" as
            often as there are to be processes. Any other name is one device.

    Returns:
        Their names in full.

    Raises:
        ProviderError: Something in a list is neither, or the list has both, or a GPU twice.
    """
    parts = [part.strip() for part in str(device).split(",")]
    if len(parts) == 1:
        return [str(device)]
    indices = [None if part == "cuda" else gpu_index(part) for part in parts]
    gpus = [f"cuda:{index}" for index in indices if index is not None]
    if parts.count("cpu") == len(parts) or len(set(gpus)) == len(parts):
        return gpus or parts
    raise ProviderError(
        "A list of devices names different GPUs by number (cuda:0,1), or the CPU once for each process (cpu,cpu). "
        f"Received: '{device}'."
    )


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
