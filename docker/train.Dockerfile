# The stages prepare, pretrain, evaluate and export, and the KFP components around them (named in components/__init__.py):
#   docker build -f docker/train.Dockerfile -t mum-train:0.1.0 --build-arg REVISION=$(git rev-parse HEAD) .
#   docker run --rm --read-only --tmpfs /tmp --shm-size 1g --gpus all -v "$PWD/outputs:/workspace/outputs" \
#     mum-train:0.1.0 mum pretrain machine=gpu
# For machines without a GPU, without CUDA's libraries:
#   docker build -f docker/train.Dockerfile -t mum-train:0.1.0 --build-arg PACKAGES=git \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .

# Python 3.11.16 of 2026-08-25, as https://github.com/docker-library/repo-info lists it.
ARG BASE=python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

FROM ${BASE} AS venv
RUN python -m venv --without-pip /opt/mum
WORKDIR /src

# Dependencies are a layer of their own, so that a changed line of code neither installs nor ships them anew. The wheels
# of torch on PyPI bring CUDA's libraries along; TORCH_INDEX names another index to look into.
FROM venv AS dependencies
ARG TORCH_INDEX
COPY pyproject.toml constraints.txt ./
RUN touch README.md LICENSE \
    && pip --python /opt/mum/bin/python install --no-cache-dir -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      ".[prepare,cluster,pretrain,evaluate,export,pipelines,dvc,trackers]" \
    && pip --python /opt/mum/bin/python uninstall --yes mum-pipeline

FROM venv AS code
COPY . .
RUN pip --python /opt/mum/bin/python install --no-cache-dir --no-deps .

FROM ${BASE}
# git: DVC's revisions are git's. gcc: torch.compile (machine=gpu) has Triton build its launchers when it first runs on a
# GPU. DeepSpeed compiles nothing: its own optimisers and its shared-memory communication are not used.
# Their versions are those of the base image's Debian, which drops older ones.
ARG PACKAGES="git gcc libc6-dev"
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ${PACKAGES} \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-create-home --home-dir /tmp mum
COPY --from=dependencies /opt/mum /opt/mum
COPY --from=code /opt/mum /opt/mum
# What libraries keep goes below HOME: besides volumes, /tmp is all that may be written where the root file system is
# read-only. torch asks for the user's name, which a user id without an entry in /etc/passwd has not.
ENV PATH=/opt/mum/bin:$PATH HOME=/tmp USER=mum PYTHONUNBUFFERED=1 DVC_SITE_CACHE_DIR=/tmp/dvc DVC_NO_ANALYTICS=1
USER 1000:1000
WORKDIR /workspace
# A step ends with a status of its own; there is nothing to ask meanwhile.
HEALTHCHECK NONE
# No entry point: KFP's DockerRunner gives a whole command.
CMD ["mum", "--help"]

ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=unknown
# Exported files say which code made them.
ENV MUM_REVISION=${REVISION}
LABEL org.opencontainers.image.title="MuM training" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.source=${SOURCE} \
      org.opencontainers.image.licenses=Apache-2.0
