"""Commands that locate photos: locate, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from geoloc_fast.cli.app import app
from geoloc_fast.cli.options import (
    BoxOption,
    ClusterOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NearOption,
    PartialOption,
    SharpnessOption,
    WithinOption,
    confidence_of,
    device_named,
    index_at,
    model_at,
    named,
    region_of,
)
from geoloc_fast.cli.output import bar, progress, say


@app.command()
def locate(
    command: typer.Context,
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos, or folders of photos.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A description of the place, instead of photos or together with one.")
    ] = None,
    text_file: Annotated[
        Path | None, typer.Option(help="A UTF-8 file with one description per line, instead of photos.")
    ] = None,
    indexes: Annotated[
        list[Path] | None,
        typer.Option(
            "--index", help='Folder of the index to search, default "index"; may be repeated to search several.'
        ),
    ] = None,
    model: ModelOption = None,
    text_index: Annotated[
        Path | None, typer.Option(help="With photos and --text: an index of the same places, built with a text model.")
    ] = None,
    text_model: Annotated[Path | None, typer.Option(help="The model that --text-index was built with.")] = None,
    text_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the text's score; the photo's has weight 1. fit_scales computes it."),
    ] = None,
    device: DeviceOption = "cpu",
    box: BoxOption = None,
    near: NearOption = None,
    within: WithinOption = None,
    fov_deg: Annotated[
        float | None, typer.Option(help="Horizontal field of view; default: from EXIF, else assumed or tried.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, max=64, help="Largest number of candidates per photo.")] = 5,
    least_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help='An answer with a lower probability is "unknown".')
    ] = None,
    output: Annotated[
        str | None, typer.Option("--format", help="table (the default), json, jsonl, csv, geojson or kml.")
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the answers: .csv, .json, .jsonl, .geojson, .kml; "
            ".parquet, of one folder, continues where it stopped."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write an HTML page with photos and candidates; it opens offline."),
    ] = None,
    region: Annotated[
        Path | None, typer.Option(help="Manifest that the index was built from, for the images in --report.")
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Folder of an index of cells: searched first, then --index inside the best cells."),
    ] = None,
    cells_model: Annotated[Path | None, typer.Option(help="The model bundle of --cells.")] = None,
    sharpness: SharpnessOption = None,
    cluster: ClusterOption = None,
    partial: PartialOption = False,
) -> None:
    """Locate photos, or the place that a text describes: position, heading and probability.

    Example: geoloc-fast locate photo.jpg --index region.index --near lat=48.137,lon=11.575,metres=5000

    Example: geoloc-fast locate --text "a white church on a corner, trees" --index text.index --model text.safetensors
    """
    from geoloc_fast.index import PlaceIndex, Several
    from geoloc_fast.locate import answers
    from geoloc_fast.locate.locator import Locator
    from geoloc_fast.models.contract import Text

    given = "json" if as_json else output
    if given is not None and given not in answers.FORMATS:
        raise typer.BadParameter(f"--format: expected one of {', '.join(answers.FORMATS)}, got {given}")
    output = given or "table"
    texts = _texts_of(text, text_file)
    together = bool(photos and texts)
    if not photos and not texts:
        raise typer.BadParameter("give photos, folders of photos, or --text")
    if together and (len(texts) != 1 or text_file is not None or None in (text_index, text_model, text_weight)):
        raise typer.BadParameter(
            "photos and --text together: expected one --text, --text-index, --text-model, --text-weight"
        )
    if not together and (text_index, text_model, text_weight) != (None, None, None):
        raise typer.BadParameter("--text-index, --text-model, --text-weight: expected with photos and --text together")
    if not photos and (report is not None or fov_deg is not None):
        raise typer.BadParameter("--report, --fov-deg: expected photos, got descriptions alone")
    if region is not None and report is None:
        raise typer.BadParameter("--region says what the page of --report shows; give that too")
    named(report, "--report", ".html")
    table = out is not None and out.suffix.lower() == ".parquet"
    if out is not None:
        kind = "parquet" if table else answers.SUFFIX_OF.get(out.suffix.lower())
        if kind is None:
            known = ", ".join((*answers.SUFFIX_OF, ".parquet"))
            raise typer.BadParameter(f"--out: expected a name that ends in {known}, got {str(out)!r}")
        if output != kind and output != "table":
            raise typer.BadParameter(f"--out {out} is a file of {kind}, --format says {output}; give one of them")
        output = kind
        if table and (photos is None or len(photos) != 1 or not photos[0].is_dir() or together or report is not None):
            raise typer.BadParameter(f"--out {out}: expected one folder of photos, and no --report")
    area = region_of(box, near, within)
    if (cells is None) != (cells_model is None):
        raise typer.BadParameter("--cells and --cells-model: give both, or neither")
    if sharpness is not None and cells is None:
        raise typer.BadParameter("--sharpness: expected with --cells")
    if cells is not None and cells_model is not None:
        if not photos or area is not None or report is not None or output not in ("table", "json", "jsonl") or partial:
            raise typer.BadParameter(
                "--cells: expected photos, --format table, json or jsonl, no --report, no --partial and no region"
            )
        found, left_out = _photos_of(photos, answers)
        fine = indexes or [], model
        lines = _coarse_to_fine(
            command, found, (cells, cells_model), fine, sharpness, device, cluster, candidates, output
        )
        _write(lines, out)
        raise typer.Exit(1 if left_out else 0)
    many = [index_at(command, path, device, cluster, partial) for path in indexes or [Path("index")]]
    if len(many) > 1 and (together or region is not None):
        raise typer.BadParameter(f"--text-index, --region: expected one --index with it, got {len(many)}")
    opened = Several(many) if len(many) > 1 else many[0]
    network = model_at(model, device, of=many[0])
    opened.check_model(network.fingerprint)
    confidence = confidence_of(model, network)
    beside = None
    if together and text_index is not None and text_model is not None and text_weight is not None:
        from geoloc_fast.locate.together import Beside

        words = PlaceIndex.open(text_index, device=device)
        beside = Beside(words, model_at(text_model, device), many[0], ratio=text_weight)
    locator = Locator(
        opened, network, confidence=confidence, within=area, least_probability=least_probability, beside=beside
    )
    if "synthetic" in network.trained_on and "real" not in network.trained_on:
        typer.echo(
            f"geoloc-fast locate: model {network.name} was trained on {network.trained_on} only; its answers say "
            "nothing about real places",
            err=True,
        )
    found, left_out = _photos_of(photos, answers) if photos else ([], [])
    if left_out:
        names = ", ".join(answers.printable(name) for name in left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        typer.echo(
            f"geoloc-fast locate: {len(left_out)} files are passed over, since their kind is not read: {names} "
            "(JPEG, PNG, WebP and TIFF are)",
            err=True,
        )
    options: dict[str, Any] = {"fov_deg": fov_deg, "candidates": candidates}
    if together:
        options["text"] = texts[0]
    if table and out is not None and photos:
        with progress("photos") as shown:
            counts = answers.locate_folder(locator, photos[0], out, progress=shown, **options)
        counts["passed_over"] = len(left_out)
        said = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
        say({**counts, "path": str(out)}, f"{said}; written to {answers.printable(str(out))}", as_json)
        raise typer.Exit(1 if counts["unreadable"] or left_out else 0)
    done = []
    if out is None and output == "table":
        typer.echo(answers.TABLE_HEAD)
    queries: list[Any] = found if photos else [Text(line) for line in texts]
    with bar(len(queries), "photos" if photos else "texts", disable=True if out is None else None) as shown_bar:
        for answer in locator.locate(queries, **options):
            done.append(answer)
            shown_bar.update(1)
            if out is not None:
                continue
            if output == "table":
                typer.echo("\n".join(answers.as_lines(answer)))
            elif output == "jsonl":
                typer.echo(json.dumps(answers.as_dict(answer)))
    said = ""
    if out is not None:
        from geoloc_fast.files import write_atomically

        write_atomically(out, answers.as_text(done, output))
        said = f"Written to {out}"
    elif output not in ("table", "jsonl"):
        typer.echo(answers.as_text(done, output), nl=False)
    if report is not None:
        from geoloc_fast.evaluation.report import PhotoPictures, write_located

        about = {
            "index": "; ".join(f"{one.path.name}, commit {one.commit}, {len(one)} places" for one in many),
            "model": opened.model[:12],
        }
        if area is not None:
            about["searched"] = str(area)
        pictures = PhotoPictures([str(path) for path in found], pictures_of(region, opened))
        write_located(report, done, about=about, pictures=pictures)
        typer.echo(f"Written to {report}", err=True)
    if said:
        typer.echo(said, err=True)
    raise typer.Exit(1 if left_out or any(answer.status == "unreadable" for answer in done) else 0)


def _texts_of(texts: list[str] | None, path: Path | None) -> list[str]:
    """The descriptions given, and those in a file, one per line."""
    if path is None:
        return list(texts or [])
    if texts:
        raise typer.BadParameter("--text and --text-file: give one of them")
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"--text-file: expected UTF-8, got {error}") from error
    if not lines:
        raise typer.BadParameter(f"--text-file: expected descriptions, got none in {path}")
    return lines


def _coarse_to_fine(
    command: typer.Context,
    photos: list[Path],
    cells: tuple[Path, Path],
    fine: tuple[list[Path], Path | None],
    sharpness: float | None,
    device: str,
    cluster: str | None,
    candidates: int,
    output: str,
) -> list[str]:
    """Lines of the answers; what each index covers of the best cells is among them. The cluster searches the cells."""
    from geoloc_fast.locate.coarse_to_fine import CoarseToFine
    from geoloc_fast.locate.locator import Locator

    coarse = Locator(index_at(command, cells[0], device, cluster), model_at(cells[1], device))
    locators = []
    if fine[0]:
        network = model_at(fine[1], device)
        locators = [Locator(index_at(command, path, device), network) for path in fine[0]]
    finder = CoarseToFine(coarse, locators, sharpness=sharpness)
    found = list(finder.locate(photos, candidates=candidates))
    if output == "json":
        return [json.dumps([answer.as_dict() for answer in found], indent=1)]
    if output == "jsonl":
        return [json.dumps(answer.as_dict()) for answer in found]
    return [line for answer in found for line in answer.as_lines()]


def _write(lines: list[str], out: Path | None) -> None:
    if out is None:
        typer.echo("\n".join(lines))
        return
    from geoloc_fast.files import write_atomically

    write_atomically(out, "\n".join(lines) + "\n")
    typer.echo(f"Written to {out}", err=True)


def _photos_of(given: list[Path], answers: Any) -> tuple[list[Path], list[str]]:
    """Every photo named, or in a named folder; and the files there that are of no readable kind."""
    found: list[Path] = []
    left_out: list[str] = []
    for path in given:
        if path.is_dir():
            found += [path / name for name in answers.find_photos(path)]
            left_out += [str(path / name) for name in answers.passed_over(path)]
        else:
            found.append(path)
    if not found and not left_out:
        raise ValueError(f"{', '.join(map(str, given))}: there are no photos in it")
    return found, left_out


def pictures_of(region: Path | None, index: Any) -> Any:
    """Images of an index's places, from the manifest it was built from."""
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.evaluation.report import ManifestPictures

    if region is None:
        return None
    keys = {number: key for key, number in index.keys().items()}
    return ManifestPictures(Manifest.load(region), [], keys)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for predictions.geojson, metrics.json, report.html.")] = Path(
        "demo"
    ),
    places: Annotated[int, typer.Option(min=2, max=20_000, help="Places in the city.")] = 200,
    photos: Annotated[int, typer.Option(min=1, max=20_000, help="Photos to locate.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the city. The models in the package were trained on others.")
    ] = 20_000,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> None:
    """Make a synthetic city, index it, and locate its photos.

    Example: geoloc-fast demo --out demo --places 200 --photos 100
    """
    from geoloc_fast.demo import run_demo, summary
    from geoloc_fast.models.contract import model_path

    metrics = run_demo(
        out, model_path=model_path(model), places=places, photos=photos, seed=seed, device=device_named(device),
        bar=progress,
    )  # fmt: skip
    typer.echo(json.dumps(metrics, indent=1) if as_json else summary(metrics))
    if not as_json:
        typer.echo(f"Written to {out}: predictions.geojson, metrics.json, report.html, index, region")
        typer.echo(f"\nNext: geoloc-fast locate {out / 'region' / metrics['photo_to_try']} --index {out / 'index'}")
