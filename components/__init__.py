"""One KFP component for each stage of `mum_model`: thin bodies around the stage functions, no machine learning."""

# The image of every component: `docker/train.Dockerfile`, built and pushed under this name. Renamed here for a registry
# of one's own, and nowhere else; `mum-pipeline compile` then renews the pipeline.
IMAGE = "mum-train:0.1.0"
SERVE_IMAGE = "mum-serve:0.1.0"
