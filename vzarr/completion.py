"""What a shell completes: files, refs and paths of arrays; and the verb that prints its script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import click
from click.shell_completion import CompletionItem, get_completion_class

import vzarr
from vzarr.command import output, verb
from vzarr.errors import VzarrError
from vzarr.repository import Repository

_VARIABLE = "_VZARR_COMPLETE"
# Nobody chooses among more.
_MAX_ITEMS = 2000

_COMMITS = {"ref", "refs", "old", "new", "at", "to", "expected", "since", "commit", "good", "bad"}
_BRANCHES = {"branch", "branches", "into", "onto", "on", "reset", "reflog", "delete"}
_NODES = {"path", "source"}


class _Named(click.types.StringParamType):
    """Text that is the name of something in the FILE of the same command."""

    def __init__(self, names: Callable[[Repository, click.Context], Iterable[str]]) -> None:
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """List the names that begin like that; none if the file cannot be read."""
        del param
        file = ctx.params.get("file") or _left_over(ctx)
        if not isinstance(file, str) or not vzarr.exists(file):
            return []
        try:
            with vzarr.open(file, "r") as repo:
                found = (name for name in self._names(repo, ctx) if name.startswith(incomplete))
                return [CompletionItem(name) for name in islice(found, _MAX_ITEMS)]
        except (VzarrError, OSError):
            # A shell has no place for errors: the command itself will tell.
            return []


def _left_over(ctx: click.Context) -> str | None:
    """Find FILE where click has not parsed it, because the value of an option is to follow."""
    names = [param.name for param in ctx.command.params if isinstance(param, click.Argument)]
    given = dict(zip(names, ctx.args, strict=False))
    return given.get("file")


def _nodes(repo: Repository, ctx: click.Context) -> Iterator[str]:
    ref = ctx.params.get("ref")
    session = repo.session(ref if isinstance(ref, str) else "main")
    nodes = islice(session.hierarchy.nodes(), _MAX_ITEMS)
    return (path for path, _, _ in nodes if path)


def complete_names(commands: click.Group) -> None:
    """Let the shell complete the names that verbs take, by what their parameters are called."""
    commits = _Named(lambda repo, _: [*repo.branches, *repo.tags])
    branches = _Named(lambda repo, _: repo.branches)
    kinds = {**dict.fromkeys(_COMMITS, commits), **dict.fromkeys(_BRANCHES, branches)}
    kinds |= dict.fromkeys(_NODES, _Named(_nodes))
    tags = _Named(lambda repo, _: repo.tags)
    for command in commands.commands.values():
        for parameter in command.params:
            # One that is a file, a number or a choice has its own; a date is none of the file's.
            if parameter.type is not click.STRING or parameter.callback is not None:
                continue
            if (command.name, parameter.name) == ("tag", "delete"):
                parameter.type = tags
            # The REF of what is imported is the source's.
            elif parameter.name in kinds and (command.name, parameter.name) != ("import", "ref"):
                parameter.type = kinds[parameter.name]


@verb(
    "vzarr completion bash >> ~/.bashrc",
    "vzarr completion zsh >> ~/.zshrc",
    "vzarr completion fish > ~/.config/fish/completions/vzarr.fish",
    keys="shell script",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which a shell completes verbs, options, files, refs and paths."""
    out = output()
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "vzarr", _VARIABLE).source()
    out.document({"shell": shell, "script": script})
    out.line(script)
