"""`fastrl push`: what leaves this machine."""

from fastrl.cli.arguments import parse


def push_command(arguments: list[str]) -> None:
    """Put a checkpoint and its model card on the hub."""
    from fastrl.hub.push import PushCommand, push

    print(f"model: {push(parse(PushCommand, arguments, 'push'))}")
