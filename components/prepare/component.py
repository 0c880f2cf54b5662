"""KFP component around `mum_model.prepare`."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(overrides: list, dataset: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]) -> None:
    """Write the dataset: raw captures, or rendered scenes, indexed, sharded and split.

    Args:
        overrides: Hydra overrides of the configuration, for instance `["data.source=/captures/kitchen"]`.
        dataset: The dataset folder: `index.arrow`, sequences, shards and the card `dataset.json`.
        metrics: Counts of frames and scenes, in all and by split, from the card.
    """
    import json

    from components.metrics import log_numbers
    from mum_model.config import compose
    from mum_model.prepare import prepare

    cfg = compose(overrides)
    cfg.paths.dataset = dataset.path
    card = json.loads((prepare(cfg) / "dataset.json").read_text())
    dataset.metadata |= {key: card[key] for key in ("content_sha256", "frames", "scenes", "splits")}
    log_numbers(metrics, card)
