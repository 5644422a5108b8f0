"""``fl-sim policy``: the policies that come along, and any policy in plain words."""

from typing import Annotated

import typer

from experiments.cli.program import program

app = program(no_args_is_help=True, help="What a policy for releases asks for, in plain words.")

Policy = Annotated[
    str, typer.Argument(metavar="POLICY", help="cautious, moderate, or a policy file (.toml).")
]


@app.command("list")
def list_policies() -> None:
    """List the policies that come along."""
    from fl_sim.egress.policy import read_policy, shipped

    for name in shipped():
        print(f"{name}: {read_policy(name)[0].about}")


@app.command()
def explain(policy: Policy = "cautious") -> None:
    """Say what a policy asks for, a sentence a criterion."""
    from fl_sim.egress.policy import explained, read_policy
    from fl_sim.errors import printable

    for sentence in explained(read_policy(policy)[0]):
        print(printable(sentence))


@app.command()
def show(policy: Policy = "cautious") -> None:
    """Print a policy's file, to begin one's own with."""
    from fl_sim.egress.policy import read_policy

    print(read_policy(policy)[2].decode(), end="")
