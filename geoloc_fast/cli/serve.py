"""Commands of the web page: serve, tiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from geoloc_fast.cli.app import app
from geoloc_fast.cli.locate import pictures_of
from geoloc_fast.cli.options import ModelOption, SharpnessOption, confidence_of, model_at, named
from geoloc_fast.cli.output import progress

_TOKEN = "GEOLOC_FAST_TOKEN"


@app.command()
def serve(
    index: Annotated[list[Path], typer.Option(help="Folder of an index; may be repeated.")],
    model: ModelOption = None,
    region: Annotated[
        list[Path] | None,
        typer.Option(help="Manifest with the images of an index's places; in the order of --index."),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Folder of an index of cells; it is offered as one more index, and searched before --index."),
    ] = None,
    cells_model: Annotated[Path | None, typer.Option(help="The model bundle of --cells.")] = None,
    sharpness: SharpnessOption = None,
    text_index: Annotated[
        Path | None, typer.Option(help="An index of the same places as the first --index, built with a text model.")
    ] = None,
    text_model: Annotated[Path | None, typer.Option(help="The model that --text-index was built with.")] = None,
    text_weight: Annotated[
        float, typer.Option(min=0, help="Weight of the text's score; the photo's has weight 1. fit_scales computes it.")
    ] = 1.0,
    tiles: Annotated[Path | None, typer.Option(help="Map tiles of the region (.pmtiles), made by `tiles`.")] = None,
    cases: Annotated[Path | None, typer.Option(help="Folder for cases; without it nothing is stored.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="Another host name that the service answers to; may be repeated.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Number of threads that locate photos; default: one per core.")
    ] = len(os.sched_getaffinity(0)),
) -> None:
    """Serve a web page and an HTTP interface for locating photos.

    If --host can be reached from other machines, every request needs the token that is in the environment variable
    GEOLOC_FAST_TOKEN.

    Example: geoloc-fast serve --index demo/index --region demo/region --cases cases/
    """
    import ipaddress
    import logging

    try:
        import uvicorn

        from geoloc_fast.serve.app import Service, create_app
        from geoloc_fast.serve.connection import Connection
    except ImportError as error:
        raise RuntimeError(f"{error.name} is not installed; pip install 'geoloc_fast[serve]' brings it") from error
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.together import Beside
    from geoloc_fast.region.imagery import PmTiles
    from geoloc_fast.serve.engine import Served

    token = os.environ.get(_TOKEN)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not token:
        raise typer.BadParameter(f"--host {host} can be reached from other machines: set a token in {_TOKEN} first")
    if token is not None and len(token) < 16:
        raise typer.BadParameter(f"{_TOKEN}: expected at least 16 characters")
    if region is not None and len(region) > len(index):
        raise typer.BadParameter("--region: expected at most one per --index, in the same order")
    for option, one, two in (("cells", cells, cells_model), ("text-index", text_index, text_model)):
        if (one is None) != (two is None):
            raise typer.BadParameter(f"--{option} and --{option.split('-')[0]}-model: give both, or neither")
    if sharpness is not None and cells is None:
        raise typer.BadParameter("--sharpness: expected with --cells")
    named(tiles, "--tiles", ".pmtiles")
    network = model_at(model, of=PlaceIndex.open(index[0]))
    confidence = confidence_of(model, network)
    served, pictures = {}, {}
    for n, path in enumerate(index):
        opened = PlaceIndex.open(path)
        opened.check_model(network.fingerprint)
        called = path.resolve().name.removesuffix(".index")
        if called in served:
            raise typer.BadParameter(f"--index: two are called {called}")
        beside = None
        if n == 0 and text_index is not None:
            words = model_at(text_model)
            beside = Beside(PlaceIndex.open(text_index), words, opened, ratio=text_weight)
        served[called] = Served(opened, network, confidence, beside)
        if region is not None and n < len(region):
            pictures[called] = pictures_of(region[n], opened)
    if cells is not None:
        called = cells.resolve().name.removesuffix(".index")
        if called in served:
            raise typer.BadParameter(f"--cells: an --index is called {called} too")
        served[called] = Served(PlaceIndex.open(cells), model_at(cells_model), cells=True, sharpness=sharpness)
    names = {"127.0.0.1", "localhost", "[::1]"} if local else {host.lower()}
    service = Service(
        served=served, cases=cases, pictures=pictures, tiles=None if tiles is None else PmTiles(tiles),
        hosts=frozenset(names | {each.lower() for each in name or []}), token=token, workers=workers,
    )  # fmt: skip
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.echo(f"Open http://{host}:{port}/ (ctrl-C ends it)", err=True)
    uvicorn.run(
        create_app(service), host=host, port=port, access_log=False, log_level="warning", server_header=False,
        http=Connection, timeout_keep_alive=15, limit_concurrency=512, h11_max_incomplete_event_size=32 << 10,
    )  # fmt: skip


@app.command("tiles")
def make_tiles(
    region: Annotated[Path, typer.Argument(help="Manifest with satellite images.")],
    out: Annotated[Path, typer.Argument(help="The .pmtiles file to write.")],
) -> None:
    """Make map tiles from a region's own satellite images, for the page of `serve`.

    Example: geoloc-fast tiles demo/region region.pmtiles
    """
    from geoloc_fast.region.tiles import make_tiles as run

    named(out, "OUT", ".pmtiles")
    with progress("tiles") as shown:
        made = run(region, out, progress=shown)
    typer.echo(f"{made} tiles written to {out}")
