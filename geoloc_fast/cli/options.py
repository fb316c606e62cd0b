"""Options that several commands share, and the functions that read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

ModelOption = Annotated[
    Path | None,
    typer.Option(
        help="A model file, or the name of a model in the package. Default: the one the index was built with."
    ),
]


DeviceOption = Annotated[str, typer.Option("--device", help="Device to compute on: cpu, cuda, cuda:1.")]


ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", help="local:N for N processes on this machine, or ray://HOST:PORT for a Ray cluster."),
]


PartialOption = Annotated[
    bool, typer.Option("--partial", help="If shards do not answer, answer from the others and say so.")
]


BoxOption = Annotated[
    str | None,
    typer.Option(
        "--box", help="Search inside south=…,west=…,north=…,east=… in degrees; west > east crosses the 180th meridian."
    ),
]


NearOption = Annotated[str | None, typer.Option("--near", help="Search inside a circle: lat=…,lon=…,metres=…")]


WithinOption = Annotated[Path | None, typer.Option("--within", help="Search inside the polygons of a GeoJSON file.")]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


IndexArgument = Annotated[Path, typer.Argument(help="Folder of the index.")]


SharpnessOption = Annotated[
    float | None,
    typer.Option(min=0.01, help="How sharply places share the probability of a spot, as CoarseToFine.fit gives it."),
]


SplitOption = Annotated[str | None, typer.Option(help="Only photos of this split: train, val or test.")]


UseFovOption = Annotated[
    bool, typer.Option("--use-fov/--assume-fov", help="Use the table's field of view, or assume one.")
]


@contextmanager
def arguments() -> Iterator[None]:
    """Errors about values that come directly from the command line become wrong-argument errors."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def model_at(path: Path | None, device: str = "cpu", *, of: Any = None) -> Any:
    """The model of a bundle on a device; None: of those that ship, that of the index `of`, else the first."""
    from geoloc_fast.models.contract import load_model, model_path

    found = model_path(path, fingerprint=None if of is None else of.model)
    return load_model(found, device_named(device))


def index_at(command: typer.Context, path: Path, device: str, cluster: str | None = None, partial: bool = False) -> Any:
    """An index, or shards of one, which workers of the cluster search; default processes of this machine. They end
    with the command."""
    from geoloc_fast.index import PlaceIndex

    if not any(path.glob("*.shards")):
        if cluster is not None:
            raise typer.BadParameter(
                f"--cluster: expected shards, made with `geoloc-fast index shard`, but {path} holds none"
            )
        return PlaceIndex.open(path, device=device)
    from geoloc_fast.cluster import ShardedIndex

    missing = "partial" if partial else "error"
    opened = ShardedIndex.open(path, cluster or "local", device=device, on_missing=missing)
    command.call_on_close(opened.close)
    return opened


def confidence_of(path: Path | None, model: Any) -> Any:
    """The confidence beside a model; None, with a line on stderr, where there is none."""
    from geoloc_fast.locate.confidence import Confidence
    from geoloc_fast.models.contract import model_path

    beside = Confidence.path_for(model_path(path, fingerprint=model.fingerprint))
    if not beside.exists():
        typer.echo(
            f"geoloc-fast: {beside} is missing, so answers have no probability and are unverified; `geoloc-fast "
            "fit-confidence`, on photos whose place is known, makes it",
            err=True,
        )
        return None
    return Confidence.load(beside, model=model.fingerprint)


def device_named(device: str) -> str:
    """The device, if torch can use it here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device: expected cpu, cuda or cuda:N that is here, got {device!r}") from error
    return device


def region_of(box: str | None, near: str | None, within: Path | None = None) -> Any:
    """The region that at most one of three options gives."""
    from geoloc_fast.geo.regions import load_polygon, parse_box, parse_circle

    options = (("--box", box), ("--near", near), ("--within", within))
    given = [name for name, value in options if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)}: give one of them")
    try:
        if within is not None:
            return load_polygon(within)
        return parse_box(box) if box is not None else parse_circle(near) if near is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"{given[0]}: {error}") from error


def named(path: Path | None, option: str, suffix: str) -> None:
    """Refuses a file name whose ending does not fit."""
    if path is not None and path.suffix.lower() != suffix:
        raise typer.BadParameter(f"{option}: expected a name that ends in {suffix}, got {str(path)!r}")
