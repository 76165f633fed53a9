"""Names of devices, and GPUs that the environment hides."""

import pytest

from prompt_tune.errors import ProviderError
from prompt_tune.runtime.devices import check_visible, gpu_index, named, several


@pytest.mark.parametrize(
    ("device", "name", "index"),
    [
        ("cpu", "cpu", None),
        ("auto", "auto", None),
        ("cuda", "cuda", 0),
        ("cuda:0", "cuda:0", 0),
        ("cuda:12", "cuda:12", 12),
        ("0", "cuda:0", 0),
        (0, "cuda:0", 0),
        (3, "cuda:3", 3),
        ("mps", "mps", None),
        ("cuda:x", "cuda:x", None),
        ("\u0663", "\u0663", None),  # an Arabic three
        ("1000", "1000", None),
        (-1, "-1", None),
    ],
)
def test_names(device: str | int, name: str, index: int | None) -> None:
    assert (named(device), gpu_index(device)) == (name, index)


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        (1, ["1"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("0,1", ["cuda:0", "cuda:1"]),
        ("cuda:2, cuda:0", ["cuda:2", "cuda:0"]),
        ("cpu,cpu,cpu", ["cpu", "cpu", "cpu"]),
        ("cuda:0,0", None),
        ("0,cuda:0", None),
        ("cpu,0", None),
        ("cuda,1", None),
        ("0,", None),
        ("mps,mps", None),
    ],
)
def test_lists_of_devices(device: str | int, names: list[str] | None) -> None:
    if names is not None:
        assert several(device) == names
        return
    with pytest.raises(ProviderError, match=f"Received: '{device}'"):
        several(device)


@pytest.mark.parametrize(
    ("visible", "device", "shown"),
    [
        (None, "cuda:9", None),
        ("", "cuda", "no GPU"),
        ("-1", 0, "no GPU"),
        ("NoDevFiles", "cuda", "no GPU"),
        ("0", "cuda:0", None),
        ("2", "cuda", None),  # the first that is visible, whatever its number
        ("2", "cuda:2", "1 GPU"),
        ("0, 1", "1", None),
        ("0,-1,1", "cuda:1", "1 GPU"),
        ("GPU-8932f937-d72c", "cuda", None),
        ("MIG-1a2b,GPU-3c", "cuda:2", "2 GPUs"),
        ("", "cpu", None),
        ("", "auto", None),
    ],
)
def test_only_what_the_environment_shows_is_taken(
    visible: str | None, device: str | int, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if shown is None:
        check_visible(device)
        return
    with pytest.raises(ProviderError) as refusal:
        check_visible(device)
    assert str(refusal.value) == (
        f"`device='{device}'`: the environment variable CUDA_VISIBLE_DEVICES is '{visible}', which shows {shown} to "
        "this process. Change or unset it, or use `cpu`."
    )
