"""The pipeline on Kubeflow Pipelines, and on this machine."""
