"""Commands on an index: build, add, remove, slice, shard, compact, verify, restore, info, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from geoloc_fast.cli.app import index_app
from geoloc_fast.cli.options import (
    BoxOption,
    ClusterOption,
    DeviceOption,
    IndexArgument,
    JsonOption,
    ModelOption,
    NearOption,
    WithinOption,
    device_named,
    model_at,
    named,
    region_of,
)
from geoloc_fast.cli.output import progress, say


@index_app.command("build")
def index_build(
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table, or the table.")],
    index: IndexArgument,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: Annotated[str, typer.Option(help="How strips are stored: bf16 or fp32.")] = "bf16",
    cluster: ClusterOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --cluster ray://…: number of workers.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="With --cluster: decoding threads per worker.")] = 1,
    unit: Annotated[int, typer.Option(min=1, help="With --cluster: places per unit of work.")] = 2048,
    as_json: JsonOption = False,
) -> None:
    """Build an index of a manifest's places. An interrupted build continues where it stopped.

    With --cluster local:8 eight processes encode, with ray://HOST:PORT the machines of that Ray cluster.

    Example: geoloc-fast index build ready/ region.index
    """
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.region.encode import build_index

    if cluster is not None:
        from geoloc_fast.cluster.encode import build

        with progress("places") as shown:
            done = build(
                index, model, manifest, cluster, dtype=dtype, device=device_named(device), workers=workers,
                threads=threads, unit_places=unit, progress=shown,
            )  # fmt: skip
        _say_added(done, index, as_json)
        return
    places, network = Manifest.load(manifest), model_at(model, device)
    with progress("places") as shown:
        if network.kind == "cells":
            from geoloc_fast.region.cells import build_cell_index

            count = build_cell_index(index, network, places, dtype=dtype, progress=shown)
            say({"places": count}, f"{index} holds {count} cells", as_json)
            return
        done = build_index(index, network, places, dtype=dtype, progress=shown)
    _say_added(done, index, as_json)


@index_app.command("add")
def index_add(
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table, or the table.")],
    index: IndexArgument,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Add those places of a manifest to an index whose ids are not in it yet.

    Example: geoloc-fast index add more/ region.index
    """
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.region.encode import add_places

    places, network = Manifest.load(manifest), model_at(model, device, of=PlaceIndex.open(index))
    with PlaceIndex.open(index, "write", model=network.fingerprint) as opened, progress("places") as shown:
        done = add_places(opened, network, places, progress=shown)
    _say_added(done, index, as_json)


@index_app.command("remove")
def index_remove(
    index: IndexArgument,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Id in the index; may be repeated.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="Id in the manifest; may be repeated.")] = None,
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove places from an index: by id, by key, or everything in a region.

    Example: geoloc-fast index remove region.index --near lat=48.137,lon=11.575,metres=200
    """
    from geoloc_fast.index import PlaceIndex

    region = region_of(box, near, within)
    if not ids and not keys and region is None:
        raise typer.BadParameter("say which places: --id, --key, --box, --near or --within")
    with PlaceIndex.open(index, "write") as opened:
        wanted = list(ids or [])
        if keys:
            known = opened.keys()
            unknown = [key for key in keys if key not in known]
            if unknown:
                raise ValueError(f"{index}: there is no place with key {unknown[0]!r}; nothing was removed")
            wanted += [known[key] for key in keys]
        if region is not None:
            wanted += opened.ids(region).tolist()
        removed = opened.remove(wanted)
        say({"removed": removed, "places": len(opened)}, f"{removed} places removed, {len(opened)} left", as_json)


@index_app.command("slice")
def index_slice(
    index: IndexArgument,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the places of a region into a new index. They keep their ids.

    Example: geoloc-fast index slice region.index centre.index --near lat=48.137,lon=11.575,metres=2000
    """
    from geoloc_fast.index import PlaceIndex

    region = region_of(box, near, within)
    if region is None:
        raise typer.BadParameter("say which region: --box, --near or --within")
    whole = PlaceIndex.open(index)
    with progress("places") as shown:
        part = whole.slice(out, region, shown)
    say({"places": len(part), "path": str(out)}, f"{len(part)} of {len(whole)} places in {out}", as_json)


@index_app.command("shard")
def index_shard(
    index: IndexArgument,
    out: Annotated[Path, typer.Argument(help="A new folder, or one with earlier shards of this index.")],
    shards: Annotated[int, typer.Option(min=1, help="Number of shards; they have about the same size.")],
    replicas: Annotated[int, typer.Option(min=1, help="Copies of each shard that are searched.")] = 1,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="Label of machines that hold one replica; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Divide an index into shards that several workers search. Places keep their ids.

    Example: geoloc-fast index shard region.index shards/ --shards 8
    """
    from geoloc_fast.cluster.shards import cut
    from geoloc_fast.index import PlaceIndex

    with progress("shards") as shown:
        made = cut(PlaceIndex.open(index), out, shards, replicas=replicas, labels=labels or (), progress=shown)
    text = f"{made.places} places of commit {made.index_commit} in {shards} shards, as commit {made.commit} of {out}"
    say({"places": made.places, "shards": shards, "replicas": replicas, "commit": made.commit}, text, as_json)


@index_app.command("compact")
def index_compact(
    index: IndexArgument,
    keep: Annotated[
        int | None,
        typer.Option(min=0, help="Number of older commits to keep; default: eight, and those of the last hour."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rewrite an index as one segment, without removed places. Answers stay the same.

    Example: geoloc-fast index compact region.index --keep 0
    """
    from geoloc_fast.index import PlaceIndex

    with PlaceIndex.open(index, "write") as opened, progress("places") as shown:
        changed = opened.compact(shown, keep=keep)
        text = "rewritten as one segment" if changed else "nothing to do"
        say({"changed": changed, "places": len(opened)}, f"{len(opened)} places: {text}", as_json)


@index_app.command("verify")
def index_verify(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Read every byte of an index and check it. Exit code 3 if something is wrong.

    Example: geoloc-fast index verify region.index
    """
    from geoloc_fast.index import PlaceIndex

    with progress("bytes", unit="B", unit_scale=True) as shown:
        problems = PlaceIndex.verify(index, shown)
    say({"problems": problems}, "\n".join(problems) or f"{index}: every byte is as it was written", as_json)
    if problems:
        raise typer.Exit(3)


@index_app.command("restore")
def index_restore(
    index: IndexArgument,
    commit: Annotated[int, typer.Option(help="Number of the commit to go back to.")],
    as_json: JsonOption = False,
) -> None:
    """Go back to the state of an older commit, even if the last commit is damaged.

    Example: geoloc-fast index restore region.index --commit 12
    """
    from geoloc_fast.index import PlaceIndex

    with PlaceIndex.restore(index, commit) as opened:
        said = {"places": len(opened), "commit": opened.commit, "restored": commit}
        say(said, f"{len(opened)} places: the state of commit {commit} is back, as commit {opened.commit}", as_json)


@index_app.command("info")
def index_info(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Show places, layers, model and size of an index.

    Example: geoloc-fast index info region.index --json
    """
    from geoloc_fast.index import PlaceIndex

    said = PlaceIndex.open(index).info()
    say(said, "\n".join(f"{name:12} {value}" for name, value in said.items()), as_json)


@index_app.command("export")
def index_export(
    index: IndexArgument,
    out: Annotated[Path, typer.Argument(help="The GeoParquet file to write.")],
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the table of places, without strips, as GeoParquet.

    Example: geoloc-fast index export region.index places.parquet
    """
    from geoloc_fast.index import PlaceIndex

    named(out, "OUT", ".parquet")
    count = PlaceIndex.open(index).export(out, region_of(box, near, within))
    say({"places": count, "path": str(out)}, f"{count} places written to {out}", as_json)


def _say_added(done: Any, index: Path, as_json: bool) -> None:
    from geoloc_fast.index import PlaceIndex

    places = len(PlaceIndex.open(index))
    for text in (*done.problems, *(f"{count} {note}" for note, count in done.notes.items())):
        typer.echo(text, err=True)
    said = {
        "added": done.added,
        "synthetic": done.synthetic,
        "there_already": done.there_already,
        "left_out": done.problems,
        "notes": dict(done.notes),
        "places": places,
    }
    say(said, f"{done.summary()}; {index} holds {places} places", as_json)
    if done.problems:
        raise typer.Exit(1)
