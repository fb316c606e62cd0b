"""A model in one file, a bundle: config, weights and a fingerprint of both, as safetensors.

The fingerprint is the sha256 of the format's name, the config and every tensor's bytes. An index, a confidence file or
a synthetic street view names by it the model that it belongs to.

A tensor that a model keeps in 8 bits lies in the file as int8 NAME and float32 NAME.scale, the step of all values that
differ in the first index alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from geoloc_fast.errors import BundleError
from geoloc_fast.files import write_atomically

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BundleConfig", "BundledModel", "fingerprint_of", "kind_of", "load_bundle", "write_bundle"]

_FORMAT = "geoloc_fast."  # then the kind of the model
_VERSION = "1"
_SCALE = ".scale"
_STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class BundleConfig:
    """Base of a model's config: a frozen dataclass whose fields are JSON values, with `name` and `trained_on`.

    A tuple comes back from a file as a list: `__post_init__` of the subclass makes a tuple of it again.
    """

    def to_json(self) -> str:
        """Canonical JSON: equal configs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config of `to_json`'s text. ValueError or TypeError if it is none."""
        return cls(**json.loads(text))


class BundledModel(nn.Module):
    """Base of a model that is kept in a bundle.

    A subclass sets `kind` and `config_class`. Its `__init__` takes the config alone, and keeps it as `config`.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[BundleConfig]]
    stored_dtype: ClassVar[torch.dtype] = torch.float32
    """What `save` stores floating-point weights as by default."""
    stored_in_8_bits: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of weights that `save` stores in 8 bits by default."""
    config: Any
    fingerprint: str | None = None
    """sha256 of the bundle that the model was loaded from; None for a new model."""

    @property
    def name(self) -> str:
        """The name that answers give the model."""
        return str(self.config.name)

    @property
    def trained_on(self) -> str:
        """A word or two that answers repeat."""
        return str(self.config.trained_on)

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> str:
        """Writes config and weights to one safetensors file, which is complete or absent. Returns its fingerprint.

        Args:
            dtype: of all stored floating-point weights: float32, float16 or bfloat16. Default: `stored_dtype`, and
                `stored_in_8_bits`.
        """
        rough = self.stored_in_8_bits if dtype is None else ()
        config = self.config.to_json()
        return write_bundle(path, self.kind, config, self.state_dict(), dtype or self.stored_dtype, in_8_bits=rough)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """The model of a bundle, in float32 and eval mode.

        BundleError if the file is not a whole, unaltered bundle of this kind and version; OSError if it cannot be read.
        """
        model = load_bundle(path, cls.kind, lambda config: cls(cls.config_class.from_json(config)))
        return model.to(device).eval()


def write_bundle(
    path: str | os.PathLike[str], kind: str, config: str, state: Mapping[str, Tensor], dtype: torch.dtype,
    *, in_8_bits: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """Writes config and weights to one file, complete or not at all, and returns its fingerprint.

    Args:
        kind: of the model, "geolocalizer" for instance: `load_model` finds by it what loads the file.
        config: canonical JSON.
        dtype: what floating-point weights are stored as: float32, float16 or bfloat16.
        in_8_bits: beginnings of the names of weights that are stored in 8 bits.
    """
    if dtype not in _STORED_DTYPES:
        raise ValueError(f"dtype: expected one of {_STORED_DTYPES}, got {dtype}")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim > 1 and value.is_floating_point() and name.startswith(in_8_bits):
            scale = value.float().abs().amax(0, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
            tensors[name], tensors[name + _SCALE] = (value.float() / scale).round().to(torch.int8), scale
        else:
            tensors[name] = value.to(dtype) if value.is_floating_point() else value
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    fingerprint = _fingerprint(kind, config, tensors)
    metadata = {"format": _FORMAT + kind, "version": _VERSION, "config": config, "fingerprint": fingerprint}
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return fingerprint


def load_bundle(path: str | os.PathLike[str], kind: str, build: Callable[[str], M]) -> M:
    """The model that `build` makes from the config, with the file's weights in float32 and its `fingerprint` set.

    BundleError if the file is not a whole, unaltered bundle of this kind and version; OSError if it cannot be read.
    """
    config, fingerprint, tensors = _read(Path(path), kind)
    try:
        model = build(config)
    except Exception as error:  # a stranger's config can fail anywhere in the network's constructors
        raise BundleError(f"{path}: expected a usable config, got {type(error).__name__}: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise BundleError(
            f"{path}: expected the weights of its config, got {wrong} with shape "
            f"{found.get(wrong)} instead of {expected.get(wrong)}"
        )
    model.load_state_dict(tensors)
    model.fingerprint = fingerprint  # type: ignore[assignment]
    return model


def _fingerprint(kind: str, config: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{_FORMAT}{kind} {_VERSION}\n{config}\n".encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with open(path, "rb"):  # a missing or unreadable file is an OSError, not a bad bundle
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as bundle:
            yield bundle
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path}: expected a safetensors file, got {error}") from error


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of model that a bundle states. BundleError if it states none; OSError if it cannot be read."""
    with _opened(Path(path)) as bundle:
        form = (bundle.metadata() or {}).get("format", "")
    if not form.startswith(_FORMAT):
        raise BundleError(f"{path}: expected a model bundle of this package, got format {form!r}")
    return str(form.removeprefix(_FORMAT))


def fingerprint_of(path: str | os.PathLike[str]) -> str:
    """The fingerprint that a bundle states; `load_bundle` checks it. Raises the errors of `kind_of`."""
    with _opened(Path(path)) as bundle:
        return str((bundle.metadata() or {}).get("fingerprint", ""))


def _read(path: Path, kind: str) -> tuple[str, str, dict[str, Tensor]]:
    with _opened(path) as bundle:
        metadata = bundle.metadata() or {}
        tensors = {name: bundle.get_tensor(name) for name in bundle.keys()}  # noqa: SIM118
    found = (metadata.get("format"), metadata.get("version"))
    if found != (_FORMAT + kind, _VERSION):
        raise BundleError(f"{path}: expected {_FORMAT}{kind} version {_VERSION}, got {found[0]} {found[1]}")
    config, fingerprint = metadata.get("config", ""), metadata.get("fingerprint", "")
    actual = _fingerprint(kind, config, tensors)
    if actual != fingerprint:
        raise BundleError(f"{path}: expected fingerprint {fingerprint}, got {actual}: the file was altered")
    for name in [name for name in tensors if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors]:
        scale, value = tensors.pop(name), tensors[name.removesuffix(_SCALE)]
        if value.dtype != torch.int8 or scale.shape != (1, *value.shape[1:]):
            raise BundleError(f"{path}: expected {name} to be the steps of 8-bit values, got {list(scale.shape)}")
        tensors[name.removesuffix(_SCALE)] = value * scale
    return config, fingerprint, tensors
