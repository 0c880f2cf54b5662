# Serving: ONNX Runtime behind the Open Inference Protocol, without torch and without a compiler.
#   docker build -f docker/serve.Dockerfile -t mum-serve:0.1.0 .
#   docker run --rm --read-only --tmpfs /tmp -p 8080:8080 -p 8081:8081 -v "$PWD/outputs/export:/export:ro" mum-serve:0.1.0

# Python 3.11.16 of 2026-08-25, as https://github.com/docker-library/repo-info lists it.
ARG BASE=python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

FROM ${BASE} AS venv
RUN python -m venv --without-pip /opt/mum
WORKDIR /src

# Dependencies are a layer of their own, so that a changed line of code neither installs nor ships them anew.
FROM venv AS dependencies
COPY pyproject.toml constraints.txt ./
RUN touch README.md LICENSE \
    && pip --python /opt/mum/bin/python install --no-cache-dir -c constraints.txt ".[serve]" \
    && pip --python /opt/mum/bin/python uninstall --yes mum-pipeline

FROM venv AS code
COPY . .
RUN pip --python /opt/mum/bin/python install --no-cache-dir --no-deps .

FROM ${BASE}
RUN useradd --uid 1000 --no-create-home --home-dir /tmp mum
COPY --from=dependencies /opt/mum /opt/mum
COPY --from=code /opt/mum /opt/mum
# What libraries keep goes below HOME: /tmp is all that may be written where the root file system is read-only.
ENV PATH=/opt/mum/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready')"]
ENTRYPOINT ["mum", "serve"]
CMD ["paths.export=/export"]

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="MuM serving" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.source=${SOURCE} \
      org.opencontainers.image.licenses=Apache-2.0
