"""KFP component around `components.versions`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def dataset_version(
    revision: str,
    repository: str,
    remote: str,
    workspace: str,
    versioned: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    prepared: dsl.Input[dsl.Dataset] = None,
) -> None:
    """Bring a version of a dataset onto the workspace volume, or make one of what `prepare` wrote.

    Args:
        revision: Version to bring: the hash of a dataset in `remote` (`0123...cdef.dir`), or a tag, branch or commit of
            `repository`. Empty: `prepared` is versioned.
        repository: Address of the git repository whose `dvc.lock` names the dataset, or empty.
        remote: DVC remote, an `s3://` URL or a folder. Empty: bring from the default remote of `repository`; version
            without sending anything.
        workspace: Folder of the workspace volume; the dataset comes to lie under `datasets/` in it.
        versioned: The dataset folder, by its card; `revision` finds it again.
        metrics: Counts of frames and scenes, in all and by split, from the card.
        prepared: The dataset folder that `prepare` wrote; it is versioned and pushed where it lies.
    """
    import json
    from pathlib import Path

    from components.metrics import log_numbers
    from components.versions import pull, push
    from components.workspace import describe, folder_of, own_folder

    if revision or prepared is None:
        folder = own_folder(versioned, Path(workspace) / "datasets")
        facts = pull(revision, repository, remote, folder)
    else:
        folder = folder_of(prepared)
        facts = push(folder, remote)
    card = json.loads((folder / "dataset.json").read_text())
    shown = {key: card[key] for key in ("content_sha256", "frames", "scenes", "splits")}
    describe(versioned, folder, "dataset.json", **facts, **shown)
    log_numbers(metrics, card)
