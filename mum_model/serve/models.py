"""The models that are served: found in a folder, replaced while the server runs, never by something damaged."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kserve import ModelRepository
from omegaconf import DictConfig

from mum_model.errors import UserError
from mum_model.serve.batching import QueueLimits
from mum_model.serve.encoder import DESCRIPTION_FILE, OnnxEncoder
from mum_model.serve.metrics import LOADS, MODEL
from mum_model.serve.model import EncoderModel
from mum_model.serve.reconstruction import Reconstructor

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[str, int, int], ...]
"""Name, time of change and size of every file of an export: another one means that it was replaced."""


@dataclass(frozen=True)
class Export:
    """A folder that `mum export` wrote, as a model to serve.

    Attributes:
        name: Of the model.
        version: Of it; None takes the first digits of the graph's SHA-256.
        folder: Where it lies.
    """

    name: str
    version: str | None
    folder: Path


class Models(ModelRepository):
    """kserve's registry, filled from a folder: `name` is the newest version of a model, `name:version` one of them."""

    def __init__(self, cfg: DictConfig):
        """Load every model.

        Args:
            cfg: Reads `paths.export`, `serve` and `machine.threads`.

        Raises:
            UserError: There is none, or one of them cannot be used.
        """
        super().__init__()
        self._settings, self._threads, self._export = cfg.serve, cfg.machine.threads, Path(cfg.paths.export)
        self._limits = QueueLimits(cfg.serve.queued_images, cfg.serve.wait_seconds, cfg.serve.batch_images)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="infer")
        self._served: dict[Export, tuple[Stamp, EncoderModel]] = {}
        self._refused: dict[Export, tuple[Stamp, str]] = {}
        self._stopping = threading.Event()
        for export in self._exports():
            self._served[export] = (_stamp(export.folder), self._load(export))
        if not self._served:
            raise UserError(
                f"serve.models={cfg.serve.models}: no model there; expected NAME/VERSION/{DESCRIPTION_FILE}"
            )
        self._publish()

    @property
    def is_open(self) -> bool:
        """Whether requests are welcome: every model is warm and nobody asked the server to stop."""
        return not self._stopping.is_set() and all(model.ready for model in self.models.values())

    @property
    def newest(self) -> list[EncoderModel]:
        """The newest version of each model."""
        return [model for name, model in self.models.items() if ":" not in name]

    @property
    def problems(self) -> dict[str, str]:
        """Folder -> why what lies there is not served."""
        return {str(export.folder): reason for export, (_, reason) in self._refused.items()}

    def close(self) -> None:
        """Say "not ready" and look for no more models; whoever asks all the same is answered."""
        self._stopping.set()

    def unload(self, name: str) -> None:
        """Called by kserve when it stops; what is in flight still needs its model."""
        self.close()

    def watch(self) -> None:
        """Look for changes from now on, in a thread of its own."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def refresh(self) -> None:
        """Load what is new or replaced and drop what was taken away; what is damaged leaves the old one serving."""
        found = {export: _stamp(export.folder) for export in self._exports()}
        for export, stamp in found.items():
            seen = self._refused.get(export) or self._served.get(export)
            if seen is None or seen[0] != stamp:
                self._replace(export, stamp)
        self._refused = {export: problem for export, problem in self._refused.items() if export in found}
        gone = self._served.keys() - found.keys()
        if gone and self._served.keys() & found.keys():  # a folder that is empty for a moment takes nothing away
            for export in gone:
                logger.info("%s: taken away, no longer served", export.folder)
                del self._served[export]
        self._publish()

    def _watch(self) -> None:
        while not self._stopping.wait(self._settings.reload_seconds):
            try:
                self.refresh()
            except OSError as error:  # a share that is away for a moment; the next look may find it again
                logger.error("looking for models: %s", error)

    def _exports(self) -> Iterator[Export]:
        if self._settings.models is None:
            yield Export(self._settings.name, None, self._export)
            return
        for description in sorted(Path(self._settings.models).glob(f"*/*/{DESCRIPTION_FILE}")):
            folder = description.parent
            if not folder.name.startswith("."):  # one that is being written
                yield Export(folder.parent.name, folder.name, folder)

    def _replace(self, export: Export, stamp: Stamp) -> None:
        try:
            model = self._load(export)
        except UserError as error:
            LOADS.labels("refused").inc()
            self._refused[export] = (stamp, str(error))
            still = "the version loaded before goes on serving" if export in self._served else "not served"
            logger.error("%s; %s", error, still)
            return
        self._refused.pop(export, None)
        self._served[export] = (stamp, model)

    def _load(self, export: Export) -> EncoderModel:
        encoder = OnnxEncoder(export.folder, self._settings.variant, self._threads)
        version = export.version or encoder.digest[:8]
        whole = Reconstructor.beside(encoder, export.folder, self._threads)
        limits, max_pixels = self._limits, self._settings.max_pixels
        model = EncoderModel(export.name, version, encoder, whole, self._executor, limits, max_pixels)
        self._executor.submit(model.load).result()
        LOADS.labels("loaded").inc()
        logger.info("serving %s version %s from %s", export.name, version, export.folder)
        return model

    def _publish(self) -> None:
        models: dict[str, EncoderModel] = {}
        MODEL.clear()
        for export, (_, model) in sorted(self._served.items(), key=lambda item: _order(item[0])):
            models[export.name] = models[f"{export.name}:{model.version}"] = model
            MODEL.labels(export.name, model.version, model.digest).set(1)
        self.models = models  # at once: whoever looks up a model meanwhile gets the old or the new one


def _order(export: Export) -> tuple[str, int, str]:
    """By name, then version: 10 comes after 9."""
    version = export.version or ""
    return export.name, int(version) if version.isdecimal() else -1, version


def _stamp(folder: Path) -> Stamp:
    if not folder.is_dir():
        return ()
    stats = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
