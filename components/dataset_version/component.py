"""KFP component around `components.versions`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def dataset_version(
    revision: str,
    repository: str,
    remote: str,
    workspace: str,
    prepared: dsl.Input[dsl.Dataset],
    versioned: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Bring a version of a dataset onto the workspace volume, or make one of what `prepare` wrote.

    Args:
        revision: Version to bring: a tag, branch or commit of `repository`; without one, the hash of a dataset in
            `remote` (`0123...cdef.dir`). Empty: a version is made of what `prepare` wrote.
        repository: Address of the git repository whose `dvc.lock` names the dataset, or empty.
        remote: DVC remote, an `s3://` URL or a folder. Empty: the default remote of `repository`; without a
            `revision`, one is computed and nothing is sent.
        workspace: Folder of the workspace volume; the dataset comes to lie under `datasets/` in it.
        prepared: The dataset folder that `prepare` wrote, to be versioned and pushed where it lies.
        versioned: The dataset folder, by its card; `revision` finds it again.
        metrics: Counts of frames and scenes, in all and by split, from the card.
    """
    from pathlib import Path

    from components.metrics import log_numbers
    from components.versions import pull, push
    from components.workspace import describe, folder_of, own_folder, read_json

    if revision:
        folder = own_folder(versioned, Path(workspace) / "datasets")
        facts = pull(revision, repository, remote, folder)
    else:
        folder = folder_of(prepared)
        facts = push(folder, remote)
    card = read_json(folder / "dataset.json")
    shown = {key: card[key] for key in ("content_sha256", "frames", "scenes", "splits")}
    describe(versioned, folder, "dataset.json", **facts, **shown)
    log_numbers(metrics, card)
