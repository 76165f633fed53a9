"""The torch device that was asked for, or an error: never another one in silence."""

from prompt_tune.errors import ProviderError


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Args:    device: a torch device such as "cpu", "cuda" or "cuda:1".
    Raises:  ProviderError: torch does not know the device or cannot use it.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises, by kind of device
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ProviderError(
            f"torch cannot use the device '{device}': {reason}. Check for a GPU with `nvidia-smi`, or give cpu."
        ) from error
