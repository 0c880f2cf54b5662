# The stages prepare, pretrain, evaluate and export, and the KFP components around them (named in components/__init__.py):
#   docker build -f docker/train.Dockerfile -t mum-train:0.1.0 .
#   docker run --rm --shm-size 1g -v "$PWD/outputs:/home/mum/outputs" mum-train:0.1.0 prepare

# Dependencies before the code, so that a changed line of code does not install them anew.
FROM python:3.11-slim AS dependencies
ENV PATH=/opt/mum/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/mum \
    && touch README.md LICENSE \
    && pip install --no-cache-dir -c constraints.txt ".[prepare,pretrain,evaluate,export,pipelines]" \
    && pip uninstall --yes mum-pipeline

FROM python:3.11-slim AS code
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11-slim
# DeepSpeed compiles its shared-memory communication when it first runs on a CPU.
# The version of g++ is that of the base image's Debian, which drops older ones.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home mum
ENV PATH=/opt/mum/bin:$PATH PYTHONUNBUFFERED=1
COPY --from=dependencies /opt/mum /opt/mum
COPY --from=code /dist /dist
RUN pip install --no-cache-dir --no-deps /dist/*.whl
USER 1000
WORKDIR /home/mum
ENTRYPOINT ["mum"]
CMD ["--help"]
