"""Options that several commands share."""

from collections import Counter

import click

from prompt_tune.errors import ProviderError
from prompt_tune.runtime.providers import check_device_name

DEVICE_HELP = (
    "cpu; cuda: an NVIDIA GPU, or an error that says what is missing; cuda:1 or 1: the second GPU; auto: cuda if "
    "it works, otherwise cpu, with a message."
)


def _device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A device that ONNX Runtime knows by name; whether it is there shows when a session is opened."""
    try:
        check_device_name(value)
    except ProviderError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error
    return value


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=_device,
    help=f"Where ONNX Runtime runs. {DEVICE_HELP}",
)


class Command(click.Command):
    """A command that refuses an option given twice. Click would take the last one and drop the others in silence."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse options that were given more often than they can be, then parse as usual."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, count in Counter(part for part in order if isinstance(part, click.Option)).items():
            repeatable = option.multiple or option.count or (option.is_flag and not option.secondary_opts)
            if count > 1 and not repeatable:
                names = "/".join((*option.opts, *option.secondary_opts))
                raise click.UsageError(f"Option '{names}' can be given only once. Received: {count} times.", ctx=ctx)
        return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
