# syntax=docker/dockerfile:1
# Two stages: build the wheel, then a slim device image with ONNX Runtime, the HTTP libraries, and no torch.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edgetl ./edgetl
COPY models ./models
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 10001 edgetl
COPY --from=build /wheels /wheels
# Byte code only of what is used: that of whole libraries would be a sixth of the image.
RUN pip install --no-cache-dir --no-compile "$(ls /wheels/edgetl-*.whl)[onnxruntime,serve]" && rm -rf /wheels \
    && python -c "import edgetl.cli.app, onnxruntime"
USER edgetl
WORKDIR /home/edgetl
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Mount a bundle there: docker run -v "$PWD/bundle:/bundle:ro" IMAGE predict /bundle photo.jpg
VOLUME /bundle
HEALTHCHECK --interval=60s --timeout=20s --start-period=10s CMD ["edgetl", "verify", "/bundle", "--json"]
ENTRYPOINT ["edgetl"]
CMD ["verify", "/bundle"]
