"""The models that Reef knows: `models/manifest.yaml`, and where its files are."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from app.download import Checksum
from app.errors import ModelError
from app.settings import EMBEDDED_MODELS

Kind = Literal["cpu", "edgetpu"]
Resize = Literal["stretch", "letterbox"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestFile(_Strict):
    """One file of a model; `url` is where it can be had when it is not embedded.

    Where nobody has published a SHA-256, the id that git gives the file verifies it.
    """

    path: str
    sha256: str | None = None
    git_blob: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _is_verifiable(self) -> Self:
        if not (self.sha256 or self.git_blob):
            raise ValueError(f"{self.path} has neither sha256 nor git_blob")
        return self

    @property
    def checksum(self) -> Checksum:
        """What its bytes must have."""
        return Checksum(self.sha256, self.git_blob)

    @property
    def checksum_kind(self) -> str:
        """What verifies it, for people."""
        return "sha256" if self.sha256 else "git blob id"


class ManifestInput(_Strict):
    """The input layout that the files must have."""

    width: int
    height: int
    resize: Resize


class ManifestSelfTest(_Strict):
    """A picture beside the manifest and the class that must be found in it."""

    picture: str
    expect: str


class ManifestModel(_Strict):
    """One model of the manifest."""

    about: str
    licence: str
    input: ManifestInput
    labels: str
    selftest: ManifestSelfTest | None = None
    files: Mapping[Kind, ManifestFile]


class Manifest(_Strict):
    """`models/manifest.yaml`."""

    default: Mapping[Kind, str]
    models: Mapping[str, ManifestModel]


def read_manifest(folder: Path = EMBEDDED_MODELS) -> Manifest:
    """The manifest in `folder`. Raises ModelError naming the file and what is wrong with it."""
    path = folder / "manifest.yaml"
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_bytes()))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; restore it from Reef's sources") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ModelError(f"{path}: {' '.join(str(error).split())[:300]}") from error


def locate(name: str, models_dir: Path) -> Path:
    """Where a file of the manifest is: in `models_dir`, else embedded; where it belongs if not."""
    own, embedded = models_dir / name, EMBEDDED_MODELS / name
    return embedded if is_there(embedded) and not is_there(own) else own


def is_there(path: Path) -> bool:
    """Whether a file is there, or may be: in a folder that is closed to this user. Who then reads
    it says why that can't be done."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False
