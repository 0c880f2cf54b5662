"""What the server counts, beside kserve's own series on the same `/metrics` page."""

from typing import get_args

from prometheus_client import Counter, Histogram

from mum_model.serve.contract import Problem

STAGE_SECONDS = Histogram(
    "mum_request_stage_seconds",
    "Seconds a request spends being checked, waiting its turn, in the model (infer), and being answered.",
    ["stage"],
)

REQUEST_IMAGES = Histogram(
    "mum_request_images", "Images in a request that passed the checks.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)

ERRORS = Counter("mum_request_errors", "Requests without an answer: what was wrong with them, or internal.", ["kind"])

for _stage in ("check", "wait", "infer", "answer"):
    STAGE_SECONDS.labels(_stage)
for _kind in (*get_args(Problem), "internal"):  # a series that is there from the start can be alerted on
    ERRORS.labels(_kind)
