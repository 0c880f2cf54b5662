"""KFP component around `mum_model.prepare`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(
    overrides: list,
    dataset_revision: str,
    workspace: str,
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Write the dataset: raw captures, or rendered scenes, indexed, sharded and split.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["data.source=/workspace/captures"]`.
        dataset_revision: A version of a dataset that the run is to use; then nothing is prepared. Empty: none.
        workspace: Where the workspace volume is mounted.
        dataset: The dataset's card. Its folder is on the workspace: `index.arrow`, sequences, shards, `dataset.json`.
        metrics: Counts of frames and scenes, in all and by split, from the card.
    """
    from pathlib import Path

    from components.metrics import log_numbers
    from components.workspace import describe, own_folder, read_json
    from mum_model.config import compose
    from mum_model.files import write_json
    from mum_model.prepare import prepare

    if dataset_revision:
        write_json(Path(dataset.path), {})
        log_numbers(metrics, {})
        return
    cfg = compose(overrides)
    cfg.paths.dataset = str(own_folder(dataset, f"{workspace}/datasets"))
    folder = prepare(cfg)
    card = read_json(folder / "dataset.json")
    describe(
        dataset, folder, "dataset.json", **{key: card[key] for key in ("content_sha256", "frames", "scenes", "splits")}
    )
    log_numbers(metrics, card)
