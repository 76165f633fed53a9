"""Options that several commands share."""

import click

from prompt_tune.runtime.providers import DEVICES

DEVICE_HELP = (
    "cpu; cuda: an NVIDIA GPU, or an error that says what is missing; auto: cuda if it works, otherwise cpu, with a "
    "message; tensorrt: experimental."
)

device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    type=click.Choice(DEVICES),
    help=f"Where ONNX Runtime runs. {DEVICE_HELP}",
)
