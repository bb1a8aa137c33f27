"""Everything that can be known to be wrong before a server serves; all of it is told at once."""

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app import models, selftest, server, system
from app.devices import discovery
from app.errors import Problems, SettingsError
from app.models import Catalogue
from app.settings import Reading, Settings, variable

OF_MODELS = {"model", "labels", "model_cpu", "extra_models", "models_dir", "only_labels"}


@dataclass(frozen=True)
class Start:
    """What a server is started with."""

    settings: Settings
    catalogue: Catalogue
    listener: socket.socket
    heartbeat: Path
    """A folder for the file by which gunicorn's worker says that it lives."""


def prepare(reading: Reading, folders: Callable[[Settings], None]) -> Start:
    """Check everything, and take the address. `folders` sees to those that are written to.

    Raises StartError with every problem; its class, and so the exit status, is the first one's.
    """
    settings, problems = reading.settings, Problems()
    with contextlib.ExitStack() as undo:
        with problems.collecting():
            if reading.problems:
                raise SettingsError(*reading.problems)
        with problems.collecting():
            discovery.choose(settings.devices)
        with problems.collecting():
            folders(settings)
        with problems.collecting():
            heartbeat = system.heartbeat_folder(settings)
        if not reading.wrong & OF_MODELS:
            with problems.collecting():
                catalogue = load_models(settings)
        if not reading.wrong & {"host", "port"}:
            with problems.collecting():
                listener = undo.enter_context(server.listen(settings))
        problems.raise_all()
        undo.pop_all()
        return Start(settings, catalogue, listener, heartbeat)


def check_folders(settings: Settings) -> None:
    """Raise SettingsError for folders that a server could not write to; nothing is made."""
    problems = Problems()
    for name, folder in (("run_dir", settings.run_dir), ("log_dir", settings.log_dir)):
        if folder:
            with problems.collecting():
                system.require_folder(variable(name), folder, system.may_write)
    problems.raise_all()


def unusable_run_folder(settings: Settings) -> str:
    """Why no lock of a device can be made; empty where it can. The CPU needs none."""
    try:
        system.require_folder(variable("run_dir"), settings.run_dir, system.may_write)
    except SettingsError as error:
        return str(error)
    return ""


def load_models(settings: Settings) -> Catalogue:
    """The models, each of which has its self-test. Raises ModelError or SettingsError."""
    catalogue, problems = models.load(settings), Problems()
    for model in catalogue.all:
        for variant in model.variants.values():
            with problems.collecting():
                selftest.prepare(model, variant)
    problems.raise_all()
    return catalogue
