"""The command `geoloc-fast`. Results go to stdout, progress and complaints to stderr.

Exit codes: 0 done, 1 it failed (of several photos or places: some), 2 a wrong argument, 3 an index is damaged,
130 interrupted.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

# typer brings its own click in newer releases and the click package in older ones; both derive from this.
_ClickException: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Where was this photo taken, and which way was it looking?",
)


@contextmanager
def _arguments() -> Iterator[None]:
    """What a library finds wrong with values that come straight from the command line is a wrong argument."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def info() -> None:
    """What was built and what can run here, as JSON.

    Example: geoloc-fast info
    """
    from geoloc_fast import build_info

    typer.echo(json.dumps(build_info(), indent=1))


city_app = typer.Typer(help="Synthetic cities, to train, test and demonstrate without any data.")
app.add_typer(city_app, name="city")


@city_app.command("make")
def city_make(
    out: Annotated[Path, typer.Argument(help="Folder to write to; an interrupted run goes on where it stopped.")],
    places: Annotated[int, typer.Option(min=1, help="Places in each city.")] = 100,
    cities: Annotated[int, typer.Option(min=1, max=1000, help="How many; styles take turns.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make synthetic cities and write them as a manifest folder like that of any other region.

    Example: geoloc-fast city make cities/ --places 100 --cities 12 --seed 7
    """
    from tqdm import tqdm

    from geoloc_fast.city.write import write_city

    with tqdm(total=places * cities, desc="places", unit="", leave=False, disable=None) as bar:
        manifest = write_city(
            out, seed=seed, cities=cities, places=places, jobs=jobs, progress=lambda done, _: bar.update(done - bar.n)
        )
    typer.echo(f"{manifest.places.num_rows} places and {manifest.photos.num_rows} photos of {cities} cities in {out}")


@app.command()
def read(
    kind: Annotated[str, typer.Argument(help="cvusa, cvact, vigor, msgd, utm-names, photos, or manifest.")],
    path: Annotated[Path, typer.Argument(help="Folder of the data set; of a manifest also one of its tables.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for the tables: PATH (the default) or one above it.")
    ] = None,
    format: Annotated[str, typer.Option(help="parquet or csv.")] = "parquet",
    assign: Annotated[
        float | None, typer.Option(min=0, help="Give photos of unknown place the nearest within so many metres.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace tables that are there; they are kept as .old.")] = False,
    zone: Annotated[int | None, typer.Option(help="UTM zone (msgd, utm-names).")] = None,
    south: Annotated[bool | None, typer.Option("--south", help="The zone is a southern one (msgd, utm-names).")] = None,
    city: Annotated[str | None, typer.Option(help="Of all entries (msgd).")] = None,
    mat: Annotated[str | None, typer.Option(help="Name of the MATLAB file, if there are several (msgd).")] = None,
    street_column0_deg: Annotated[
        float | None, typer.Option(help="Heading of the panoramas' left edge, if known (msgd).")
    ] = None,
    panoramas: Annotated[
        bool | None, typer.Option("--panoramas", help="Images in folders `database` are places (utm-names).")
    ] = None,
) -> None:
    """Make a manifest of a published data set or a folder of photos, or convert one between CSV and Parquet.

    Images stay where they are; docs/data.md shows the layouts.

    Example: geoloc-fast read photos region/photos region --assign 25
    """
    import warnings

    from geoloc_fast.data import readers
    from geoloc_fast.data.readers.write import write_tables

    given = {
        "zone": zone,
        "south": south,
        "city": city,
        "mat": mat,
        "street_column0_deg": street_column0_deg,
        "panoramas": panoramas,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if kind != "manifest" and kind not in readers.READERS:
        raise typer.BadParameter(f"KIND: expected manifest, {', '.join(readers.READERS)}, got {kind!r}")
    if format not in ("parquet", "csv"):
        raise typer.BadParameter(f"--format: expected parquet or csv, got {format!r}")
    reader = None if kind == "manifest" else inspect.signature(readers.READERS[kind]).parameters
    for name in options:
        if reader is None or name not in reader:
            raise typer.BadParameter(f"--{name.replace('_', '-')} means nothing to {kind}")
    if reader is not None and any(p.default is p.empty and n not in options for n, p in reader.items() if n != "path"):
        raise typer.BadParameter(f"{kind} needs --zone, the UTM zone of its coordinates")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = readers.read(kind, path, **options)
    for warning in caught:
        typer.echo(f"geoloc-fast read: {warning.message}", err=True)
    folder = found.root if out is None else out
    made = write_tables(found, folder, format=format, assign_m=assign, replace=replace)
    without = made.photos["place"].null_count
    about = f", {without} of them of no place" if len(made.places) and without else ""
    typer.echo(f"{len(made.places)} places and {len(made.photos)} photos{about} in {folder}")


@app.command()
def prepare(
    manifest: Annotated[Path, typer.Argument(help="Folder with places and photos tables, or one of the tables.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to; an interrupted run goes on where it stopped.")],
    rows: Annotated[int, typer.Option(help="Rows of polar images and panoramas.")] = 128,
    columns: Annotated[int, typer.Option(help="Columns of polar images and panoramas.")] = 512,
    method: Annotated[str, typer.Option(help="Calibration of street views of unknown heading.")] = "azimuth",
    assumed_fov_deg: Annotated[float, typer.Option(help="Field of view of photos that do not say theirs.")] = 90.0,
    zoom: Annotated[
        float | None, typer.Option(help="Web-Mercator zoom of satellite tiles without a resolution.")
    ] = None,
    image_format: Annotated[str, typer.Option(help="jpeg or png.")] = "jpeg",
    cache: Annotated[bool, typer.Option(help="Write the packed, memory-mapped cache too.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a core.")] = None,
) -> None:
    """Make polar images, calibrate street views, reproject photos: everything encoding needs.

    Example: geoloc-fast prepare region/ ready/ --zoom 20
    """
    from geoloc_fast.region.prepare import Settings
    from geoloc_fast.region.prepare import prepare as run

    with _arguments():
        settings = Settings(
            size=(rows, columns),
            method=method,
            assumed_fov_deg=assumed_fov_deg,
            zoom=zoom,
            image_format=image_format,
            cache=cache,
        )
    typer.echo(run(manifest, out, settings=settings, workers=workers).summary())


@app.command()
def show(
    manifest: Annotated[Path, typer.Argument(help="Folder with places and photos tables, or one of the tables.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png or .jpg.")] = Path("sheet.png"),
    places: Annotated[int, typer.Option(min=1, max=100, help="How many places, spread over the manifest.")] = 6,
    ids: Annotated[list[str] | None, typer.Option("--id", help="These places instead; may be repeated.")] = None,
) -> None:
    """Draw a contact sheet: photo, street view, satellite and polar image of places, with headings.

    Example: geoloc-fast show ready/ --out sheet.png
    """
    from geoloc_fast.region.show import SUFFIXES
    from geoloc_fast.region.show import show as run

    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"--out: expected a .png or .jpg file, got {str(out)!r}")
    for problem in run(manifest, out, places=ids or places):
        typer.echo(problem, err=True)
    typer.echo(f"Written to {out}")


@app.command()
def synthesize(
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table; it is completed in place.")],
    model: Annotated[Path, typer.Option(help="A bundle of train/panogan.py.")],
    date: Annotated[
        str | None, typer.Option(help="2024-05-31: street views a year away from it are replaced too.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default one a core.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make street views of satellite images where there is no real one that counts, and mark them as synthetic.

    Example: geoloc-fast synthesize region/ --model panogan.safetensors --date 2024-05-31
    """
    import dataclasses
    import datetime

    from geoloc_fast.models import PanoGAN
    from geoloc_fast.region.synthesize import synthesize as run

    with _arguments():
        when = None if date is None else datetime.date.fromisoformat(date)
    network = PanoGAN.load(model, device=device)
    with _bar(None, "street views") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = run(manifest, network, date=when, workers=workers, progress=progress)
    for problem in found.problems:
        typer.echo(problem, err=True)
    _say(dataclasses.asdict(found), found.summary(), as_json)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write predictions.geojson, metrics.json, report.html to.")
    ] = Path("demo"),
    places: Annotated[int, typer.Option(min=2, max=20_000, help="Places in the city.")] = 400,
    photos: Annotated[int, typer.Option(min=1, max=20_000, help="Photos to locate.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which city. The shipped model was trained on others.")] = 20_000,
    model: Annotated[Path | None, typer.Option(help="A model bundle; default the small one that ships.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Make an unseen synthetic city, index it, and locate photos of unknown heading.

    Example: geoloc-fast demo --out demo --places 400 --photos 200
    """
    from geoloc_fast.demo import default_model, run_demo, summary

    metrics = run_demo(out, model_path=model or default_model(), places=places, photos=photos, seed=seed)
    typer.echo(json.dumps(metrics, indent=1) if as_json else summary(metrics))
    if not as_json:
        typer.echo(f"Written to {out}: predictions.geojson, metrics.json, report.html")


ModelOption = Annotated[Path | None, typer.Option(help="A model bundle; default the small one that ships.")]
BoxOption = Annotated[
    str | None, typer.Option("--box", help="south=…,west=…,north=…,east=… in degrees; west > east crosses 180.")
]
NearOption = Annotated[str | None, typer.Option("--near", help="lat=…,lon=…,metres=…")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IndexArgument = Annotated[Path, typer.Argument(help="Folder of the index.")]

index_app = typer.Typer(help="The reference database: places and their strips.")
app.add_typer(index_app, name="index")


@index_app.command("build")
def index_build(
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table, or the table.")],
    index: IndexArgument,
    model: ModelOption = None,
    dtype: Annotated[str, typer.Option(help="Of the stored values: bf16 or fp32.")] = "bf16",
    as_json: JsonOption = False,
) -> None:
    """Make an index of the places of a manifest. An interrupted run goes on where it stopped.

    Example: geoloc-fast index build ready/ region.index
    """
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.index import PlaceIndex

    places, network = Manifest.load(manifest), _model(model)
    if not (index / "index.sqlite").exists():
        config = network.config
        PlaceIndex.create(
            index, model=str(network.fingerprint), shape=config.strip, dtype=dtype, column0_deg=config.column0_deg
        ).close()
    _add(places, index, network, as_json)


@index_app.command("add")
def index_add(
    manifest: Annotated[Path, typer.Argument(help="Folder with a places table, or the table.")],
    index: IndexArgument,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the places of a manifest that are not in an index yet, by their ids in the manifest.

    Example: geoloc-fast index add more/ region.index
    """
    from geoloc_fast.data.manifest import Manifest

    _add(Manifest.load(manifest), index, _model(model), as_json)


@index_app.command("remove")
def index_remove(
    index: IndexArgument,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Id in the index; may be repeated.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="Id in the manifest; may be repeated.")] = None,
    box: BoxOption = None,
    near: NearOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take places out of an index: by id, by key, or all of a region.

    Example: geoloc-fast index remove region.index --near lat=48.137,lon=11.575,metres=200
    """
    from geoloc_fast.index import PlaceIndex

    region = _region(box, near)
    if not ids and not keys and region is None:
        raise typer.BadParameter("say which places: --id, --key, --box or --near")
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
        _say({"removed": removed, "places": len(opened)}, f"{removed} places removed, {len(opened)} left", as_json)


@index_app.command("slice")
def index_slice(
    index: IndexArgument,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    box: BoxOption = None,
    near: NearOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the places of a region into an index of their own. They keep their ids.

    Example: geoloc-fast index slice region.index centre.index --near lat=48.137,lon=11.575,metres=2000
    """
    from geoloc_fast.index import PlaceIndex

    region = _region(box, near)
    if region is None:
        raise typer.BadParameter("say which region: --box or --near")
    whole = PlaceIndex.open(index)
    with _bar(len(whole.ids(region)), "places") as bar:
        part = whole.slice(out, region, bar.update)
    _say({"places": len(part), "path": str(out)}, f"{len(part)} of {len(whole)} places in {out}", as_json)


@index_app.command("compact")
def index_compact(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Rewrite an index as one segment, without what was removed. No answer changes.

    Example: geoloc-fast index compact region.index
    """
    from geoloc_fast.index import PlaceIndex

    with PlaceIndex.open(index, "write") as opened, _bar(len(opened), "places") as bar:
        changed = opened.compact(bar.update)
        text = "rewritten as one segment" if changed else "nothing to do"
        _say({"changed": changed, "places": len(opened)}, f"{len(opened)} places: {text}", as_json)


@index_app.command("verify")
def index_verify(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Read every byte of an index and check it. Exit code 3 if something is wrong.

    Example: geoloc-fast index verify region.index
    """
    from geoloc_fast.index import PlaceIndex

    size = sum(path.stat().st_size for path in index.iterdir() if path.is_file()) if index.is_dir() else 0
    with _bar(size, "bytes", unit="B", unit_scale=True) as bar:
        problems = PlaceIndex.verify(index, bar.update)
    _say({"problems": problems}, "\n".join(problems) or f"{index}: every byte is as it was written", as_json)
    if problems:
        raise typer.Exit(3)


@index_app.command("info")
def index_info(index: IndexArgument, as_json: JsonOption = False) -> None:
    """What an index holds.

    Example: geoloc-fast index info region.index --json
    """
    from geoloc_fast.index import PlaceIndex

    said = PlaceIndex.open(index).info()
    _say(said, "\n".join(f"{name:12} {value}" for name, value in said.items()), as_json)


@index_app.command("export")
def index_export(
    index: IndexArgument,
    out: Annotated[Path, typer.Argument(help="The GeoParquet file to write.")],
    box: BoxOption = None,
    near: NearOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the place table, without strips, as GeoParquet.

    Example: geoloc-fast index export region.index places.parquet
    """
    from geoloc_fast.index import PlaceIndex

    count = PlaceIndex.open(index).export(out, _region(box, near))
    _say({"places": count, "path": str(out)}, f"{count} places written to {out}", as_json)


@app.command()
def locate(
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos.")] = None,
    index: Annotated[Path, typer.Option(help="Folder of the index to search.")] = Path("index"),
    model: ModelOption = None,
    box: BoxOption = None,
    near: NearOption = None,
    fov_deg: Annotated[
        float | None, typer.Option(help="Horizontal field of view; default what the photo says, else assumed.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, max=64, help="At most this many a photo.")] = 5,
    least_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help='Below it the answer is "unknown".')
    ] = None,
    output: Annotated[str, typer.Option("--format", help="table, json, jsonl or geojson.")] = "table",
    as_json: JsonOption = False,
    folder: Annotated[Path | None, typer.Option("--photos", help="All photos below this folder; needs --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file for --photos; a run goes on with it.")] = None,
) -> None:
    """Where were these photos taken, which way did they look, and how sure is that?

    Example: geoloc-fast locate photo.jpg --index region.index --near lat=48.137,lon=11.575,metres=5000
    """
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate import answers
    from geoloc_fast.locate.locator import Locator

    output = "json" if as_json else output
    if output not in answers.FORMATS:
        raise typer.BadParameter(f"--format: expected one of {', '.join(answers.FORMATS)}, got {output}")
    if bool(photos) == (folder is not None):
        raise typer.BadParameter("give photos, or a folder of them with --photos")
    if (folder is None) != (out is None):
        raise typer.BadParameter("--photos and --out belong together")
    region = _region(box, near)
    opened, network = PlaceIndex.open(index), _model(model)
    opened.check_model(network.fingerprint)
    confidence = _confidence(model, network)
    locator = Locator(opened, network, confidence=confidence, within=region, least_probability=least_probability)
    if folder is not None and out is not None:
        with _bar(None, "photos") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            counts = answers.locate_folder(
                locator, folder, out, fov_deg=fov_deg, candidates=candidates, progress=progress
            )
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        _say({**counts, "path": str(out)}, f"{said}; written to {out}", as_json)
        raise typer.Exit(1 if counts["unreadable"] else 0)
    found = []
    if output == "table":
        typer.echo(answers.TABLE_HEAD)
    for answer in locator.locate(photos or [], fov_deg=fov_deg, candidates=candidates):
        found.append(answer)
        if output == "table":
            typer.echo(answers.as_line(answer))
        elif output == "jsonl":
            typer.echo(json.dumps(answers.as_dict(answer)))
    if output == "json":
        typer.echo(json.dumps([answers.as_dict(answer) for answer in found], indent=1))
    elif output == "geojson":
        typer.echo(answers.geojson(found))
    raise typer.Exit(1 if any(answer.status == "unreadable" for answer in found) else 0)


SplitOption = Annotated[str | None, typer.Option(help="Only photos of this split: train, val or test.")]
UseFovOption = Annotated[
    bool, typer.Option("--use-fov/--assume-fov", help="Whether the table's field of view is used.")
]


@app.command("evaluate")
def evaluate_photos(
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table whose positions are known.")],
    index: Annotated[Path, typer.Option(help="Folder of the index to search.")] = Path("index"),
    model: ModelOption = None,
    box: BoxOption = None,
    near: NearOption = None,
    split: SplitOption = None,
    crop_fov: Annotated[
        list[float] | None,
        typer.Option(
            min=10, max=360, help="Of photos that go all the way round, a cut of this many degrees; repeatable."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with map, figures and pictures; it opens with the network off.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How often is the index right about photos of known position? Recall with intervals, headings, confidence, time.

    Photos are located twice: as if nobody knew their field of view, and, where the table has it, with it. Those that go
    all the way round are located as they are, or cut, each somewhere, with their field of view and as if nobody knew
    it: --crop-fov 180 --crop-fov 90.

    Example: geoloc-fast evaluate region/ --index region.index --split test --report report.html
    """
    from geoloc_fast.evaluation.evaluate import Evaluation, evaluate, fov_label, neighbours_for, summary, views_of
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.locator import Answer, Locator

    photos, known = _known_photos(manifest, split)
    opened, network, within = PlaceIndex.open(index), _model(model), _region(box, near)
    locator = Locator(
        opened,
        network,
        confidence=_confidence(model, network),
        within=within,
        neighbours=neighbours_for(len(opened)),
    )
    views = views_of(photos, known, network.config, crop_fov or [])
    found: dict[str, Evaluation] = {}
    answers: list[Answer] = []
    with _bar(sum(len(way.rows) for way in views.values()), "photos") as bar:
        for title, way in views.items():
            found[title] = evaluate(
                locator,
                _counted(way.images(), bar),
                **way.truth,
                fov_deg=way.fov_deg,
                groups={
                    "city": [row["city"] or "unknown" for row in way.rows],
                    "field of view": [fov_label(row["fov_deg"]) for row in way.rows],
                },
                keep=None if report is None or found else answers,
            )
    metrics = {title: result.metrics() for title, result in found.items()}
    if report is not None:
        from geoloc_fast.evaluation.report import ManifestPictures, write_report

        title, first = next(iter(views.items()))
        write_report(
            report,
            title="Where were these photos taken, and which way were they looking?",
            about=f"{len(first.rows)} photos of known position, located in the index {opened.path.name} with the model "
            f"{opened.model[:12]}; their headings were not told: {title}.",
            index=opened,
            within=within,
            names=[row["id"] for row in first.rows],
            **first.truth,
            answers=answers,
            evaluations=found,
            pictures=ManifestPictures(
                photos, [row["image"] for row in first.rows], {number: key for key, number in opened.keys().items()}
            ),
        )
    said = [f"{title}: {summary(values)}" for title, values in metrics.items()]
    if report is not None:
        said.append(f"Written to {report}")
    _say({title.replace(" ", "_"): values for title, values in metrics.items()}, "\n\n".join(said), as_json)


@app.command("fit-confidence")
def fit_confidence_of_model(
    manifest: Annotated[Path, typer.Argument(help="Folder with a photos table whose positions are known.")],
    model: Annotated[Path, typer.Option(help="The model bundle; its confidence is written beside it.")],
    index: Annotated[Path, typer.Option(help="Folder of an index of that model.")] = Path("index"),
    split: SplitOption = None,
    use_fov: UseFovOption = False,
    precision: Annotated[float, typer.Option(min=0.01, max=0.999, help="Of the answers to be given.")] = 0.9,
    as_json: JsonOption = False,
) -> None:
    """Learn how sure a model of your own is, from some hundred photos of known position it was not trained on.

    Afterwards `locate` gives probabilities and says "unknown"; `evaluate`, on other photos, says how well they hold.

    Example: geoloc-fast fit-confidence region/ --model model.safetensors --index region.index --split val
    """
    import numpy as np

    from geoloc_fast.evaluation.evaluate import contents, fit_confidence
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.confidence import Confidence

    photos, known = _known_photos(manifest, split)
    opened, network = PlaceIndex.open(index), _model(model)
    opened.check_model(network.fingerprint)
    with _bar(None, "photos") as bar:
        confidence = fit_confidence(
            opened,
            network,
            lambda rows: _counted(contents(photos, [known[row] for row in rows]), bar),
            lat=np.array([row["lat"] for row in known]),
            lon=np.array([row["lon"] for row in known]),
            fov_deg=[row["fov_deg"] for row in known] if use_fov else network.config.assumed_fov_deg,
            precision=precision,
        )
    path = Confidence.path_for(model)
    confidence.save(path)
    said = {"path": str(path), "photos": len(known), "threshold": confidence.threshold}
    never = 'no probability is high enough for that: every answer will be "unknown"'
    found = never if confidence.threshold >= 1 else f"answers are given from {100 * confidence.threshold:.0f} % on"
    _say(said, f"{len(known)} photos, {100 * precision:g} % precision: {found}; written to {path}", as_json)


def _known_photos(manifest: Path, split: str | None) -> tuple[Any, list[dict[str, Any]]]:
    """The manifest, and the rows of its photos whose position is known."""
    from geoloc_fast.data.manifest import Manifest

    photos = Manifest.load(manifest)
    rows = [row for row in photos.photos.to_pylist() if split is None or row["split"] == split]
    if any(row.get("projection") == "cylindrical" for row in rows):
        raise ValueError(f"{manifest}: its photos are prepared; take the manifest that they were made from")
    known = [row for row in rows if row["lat"] is not None]
    if len(known) < len(rows):
        typer.echo(f"geoloc-fast: {len(rows) - len(known)} photos have no position and are left out", err=True)
    if not known:
        raise ValueError(f"{manifest}: there are no photos of known position")
    return photos, known


def _counted(images: Iterable[Any], bar: Any) -> Iterator[Any]:
    for image in images:
        yield image
        bar.update(1)


def _model(path: Path | None) -> Any:
    from geoloc_fast.demo import default_model
    from geoloc_fast.models import Geolocalizer

    return Geolocalizer.load(path or default_model())


def _confidence(path: Path | None, network: Any) -> Any:
    from geoloc_fast.demo import default_model
    from geoloc_fast.locate.confidence import Confidence

    beside = Confidence.path_for(path or default_model())
    if not beside.exists():
        typer.echo(f"geoloc-fast: {beside} is missing, so answers have no probability", err=True)
        return None
    return Confidence.load(beside, model=network.fingerprint)


def _region(box: str | None, near: str | None) -> Any:
    from geoloc_fast.geo.regions import parse_box, parse_circle

    if box is not None and near is not None:
        raise typer.BadParameter("--box and --near: give one of them")
    try:
        return parse_box(box) if box is not None else parse_circle(near) if near is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"{'--box' if box is not None else '--near'}: {error}") from error


def _add(places: Any, index: Path, network: Any, as_json: bool) -> None:
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.region.encode import add_places

    with PlaceIndex.open(index, "write", model=network.fingerprint) as opened:
        with _bar(places.places.num_rows, "places") as bar:
            done = add_places(opened, network, places, progress=bar.update)
        for problem in done.problems:
            typer.echo(problem, err=True)
        said = {
            "added": done.added,
            "synthetic": done.synthetic,
            "there_already": done.there_already,
            "left_out": done.problems,
        }
        _say({**said, "places": len(opened)}, f"{done.summary()}; {index} holds {len(opened)} places", as_json)
    if done.problems:
        raise typer.Exit(1)


def _say(values: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(values, indent=1) if as_json else text)


def _bar(total: int | None, title: str, **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=title, leave=False, disable=None, **{"unit": "", **options})


def main() -> None:
    """Runs the command; a mistake is one line on stderr, not a traceback."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
    except typer.Exit as error:
        code = error.exit_code
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "geoloc-fast"
        message = " ".join(error.format_message().split())
        print(f"{command}: {message} (see {command} --help)", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        # Problems of a manifest are a list, and stay one.
        text = str(error) if hasattr(error, "problems") else " ".join(str(error).split())
        print(f"geoloc-fast: {text}", file=sys.stderr)
        code = 3 if type(error).__name__ == "DamagedIndexError" else 1  # not imported for the commands without an index
    if code == 130:  # also what typer itself makes of Ctrl-C
        print("geoloc-fast: interrupted; nothing half-written was left", file=sys.stderr)
    sys.exit(code or 0)
