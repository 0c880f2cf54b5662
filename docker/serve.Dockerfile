# Serving: ONNX Runtime behind the Open Inference Protocol, without torch and without a compiler.
#   docker build -f docker/serve.Dockerfile -t mum-serve:0.1.0 .
#   docker run --rm -p 8080:8080 -p 8081:8081 -v "$PWD/outputs/export:/export:ro" mum-serve:0.1.0

# Dependencies before the code, so that a changed line of code does not install them anew.
FROM python:3.11-slim AS dependencies
ENV PATH=/opt/mum/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/mum \
    && touch README.md LICENSE \
    && pip install --no-cache-dir -c constraints.txt ".[serve]" \
    && pip uninstall --yes mum-pipeline

FROM python:3.11-slim AS code
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.11-slim
RUN useradd --uid 1000 --create-home mum
ENV PATH=/opt/mum/bin:$PATH PYTHONUNBUFFERED=1
COPY --from=dependencies /opt/mum /opt/mum
COPY --from=code /dist /dist
RUN pip install --no-cache-dir --no-deps /dist/*.whl
USER 1000
WORKDIR /home/mum
EXPOSE 8080 8081
ENTRYPOINT ["mum", "serve"]
CMD ["paths.export=/export"]
