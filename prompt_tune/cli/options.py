"""Options that several commands share: one wording, one list of choices."""

import click

from prompt_tune.runtime.providers import DEVICES

DEVICE_HELP = (
    "cpu; cuda: an NVIDIA GPU, or an error that says what is missing; auto: cuda where it works, else cpu, and it says "
    "so; tensorrt: experimental."
)

device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    type=click.Choice(DEVICES),
    help=f"Where ONNX Runtime computes: {DEVICE_HELP}",
)
