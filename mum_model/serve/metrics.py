"""What the server counts, beside kserve's own series on the same `/metrics` page."""

from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from mum_model.serve.contract import Problem

Stage = Literal["check", "decode", "wait", "infer", "answer"]
Outcome = Literal["loaded", "refused"]

STAGE_SECONDS = Histogram(
    "mum_request_stage_seconds",
    "Seconds that a request spends being checked, its files decoded, waiting its turn, in the model, and answered.",
    ["stage"],
)

REQUEST_IMAGES = Histogram(
    "mum_request_images", "Images in a request that passed the checks.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)

BATCH_IMAGES = Histogram(
    "mum_batch_images", "Images that the model computed at once.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)

QUEUED_IMAGES = Gauge("mum_queued_images", "Images that wait for their turn.")

ERRORS = Counter(
    "mum_request_errors", "Requests without an answer: what was wrong with them, overloaded, or internal.", ["kind"]
)

MODEL = Gauge("mum_model_info", "1 for each model version that is served.", ["model", "version", "sha256"])

LOADS = Counter("mum_model_loads", "Model versions found: loaded, or refused because they are damaged.", ["outcome"])

for _stage in get_args(Stage):
    STAGE_SECONDS.labels(_stage)
for _kind in (*get_args(Problem), "overloaded", "internal"):  # a series that is there from the start can be alerted on
    ERRORS.labels(_kind)
for _outcome in get_args(Outcome):
    LOADS.labels(_outcome)
