"""The command `geoloc-fast` itself, which the modules of this room add their commands to."""

from __future__ import annotations

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Where was this photo taken, and which way was it looking?",
)


city_app = typer.Typer(help="Make synthetic cities, to train, test and demonstrate without data.")
app.add_typer(city_app, name="city")


index_app = typer.Typer(help="Build and maintain an index: places and their strips.")
app.add_typer(index_app, name="index")


cluster_app = typer.Typer(help="Ray clusters, which build and search indexes larger than a machine.")
app.add_typer(cluster_app, name="cluster")
