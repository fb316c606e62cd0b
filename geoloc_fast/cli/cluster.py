"""Commands on a Ray cluster: start, status, stop."""

from __future__ import annotations

from typing import Annotated

import typer

from geoloc_fast.cli.app import cluster_app
from geoloc_fast.cli.options import JsonOption, arguments
from geoloc_fast.cli.output import say


@cluster_app.command("start")
def cluster_start(
    join: Annotated[str | None, typer.Option(help="HOST:PORT of the head to join; default: start a head here.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address at which other machines reach this one; default: loopback.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the head.")] = 6379,
    label: Annotated[str | None, typer.Option(help="This machine searches the shards with this label.")] = None,
    cpus: Annotated[int | None, typer.Option(min=0, help="CPU cores for encoding; default: all.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs for encoding; default: all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the head of a Ray cluster on this machine, or join one with --join.

    Example: geoloc-fast cluster start
    """
    from geoloc_fast.cluster import operate

    with arguments():
        node = operate.start(host=host or operate.LOOPBACK, port=port, join=join, label=label, cpus=cpus, gpus=gpus)
    what = "joined" if join else "started"
    text = f"{what} ray://{node['address']}; the token is {operate.token_file()}; `geoloc-fast cluster stop` ends it"
    say(
        {"cluster": f"ray://{node['address']}", "node": node["name"], "token": str(operate.token_file())}, text, as_json
    )


@cluster_app.command("status")
def cluster_status(
    address: Annotated[
        str | None, typer.Argument(help="HOST:PORT of the head; default: the one on this machine.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the machines of a Ray cluster.

    Example: geoloc-fast cluster status
    """
    from geoloc_fast.cluster import operate

    with arguments():
        found = operate.status(address)
    lines = [f"ray://{found['address']}, started here: {', '.join(found['here']) or 'nothing'}"]
    for node in found["nodes"]:
        state, label = "alive" if node["alive"] else "lost", node["label"] or "-"
        lines.append(f"  {node['address']:16} {state:6} label {label}, {node['cpus']:g} CPUs, {node['gpus']:g} GPUs")
    say(found, "\n".join(lines), as_json)


@cluster_app.command("stop")
def cluster_stop(as_json: JsonOption = False) -> None:
    """Stop the Ray nodes that `geoloc-fast` started on this machine. Other Ray processes keep running.

    Example: geoloc-fast cluster stop
    """
    from geoloc_fast.cluster import operate

    names = operate.stop()
    say({"stopped": names}, f"stopped {', '.join(names)}" if names else "no cluster node was running here", as_json)
