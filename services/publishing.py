"""From a trained run to an immutable version: export, index, publish."""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING

from services.controller.indexing import IndexSettings, add_index
from services.registry.contract import Registry, RegistryError

if TYPE_CHECKING:
    from forward_ofa.data import SequenceDataset
    from forward_ofa.runs import Run

_QUERIES = 256
"""Users whose queries the recall of an approximate index is measured on."""


def publish_run(
    run: Run,
    data: SequenceDataset,
    registry: Registry,
    indexing: IndexSettings | None = None,
    version: str = "",
) -> str:
    """The version's id. It appears whole or not at all.

    version: the id that it must have; if the registry has it already, nothing happens: with an
    id that belongs to the run, publishing twice is the same as once. "": a new one.

    Raises RegistryError, RunError if `data` is not the run's, Fault, OSError.
    """
    # Torch is loaded by who publishes, not by who only serves.
    from forward_ofa.export import export_version, retrieval_queries
    from forward_ofa.runs import RunError

    if data.fingerprint() != run.data_card["fingerprint"]:
        raise RunError(
            f"this log is not the one that {run.folder} was trained on "
            f"({run.data_card['source']}): give the same --data"
        )
    if version and registry.exists(version):
        return version
    indexing = indexing or IndexSettings()
    staging = registry.staging()
    try:
        with warnings.catch_warnings():
            # PyTorch warns of batches when it traces a GRU; these programs serve one device.
            warnings.simplefilter("ignore", UserWarning)
            export_version(run, data, staging, version)
        if indexing.is_approximate(data.num_items):
            add_index(staging, retrieval_queries(run, data, _QUERIES), indexing)
        return registry.publish(staging)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        # Somebody else may have been faster with the same.
        if isinstance(error, RegistryError) and version and registry.exists(version):
            return version
        raise
