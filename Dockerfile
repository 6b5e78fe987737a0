# syntax=docker/dockerfile:1
# Two stages: build the wheel, then a small image with ONNX Runtime and the HTTP server, without torch.
#   docker run --rm --read-only -v "$PWD/bundle:/bundle:ro" -p 127.0.0.1:8000:8000 IMAGE
#   docker run --rm --read-only -v "$PWD/bundle:/bundle:ro" IMAGE verify /bundle
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
# Compile only the imported modules. Byte code of all libraries would be a sixth of the image. The container writes no byte code.
RUN pip install --no-cache-dir --no-compile "$(ls /wheels/edgetl-*.whl)[onnxruntime,serve]" && rm -rf /wheels \
    && python -c "import edgetl.cli.app, edgetl.serve.run, edgetl.serve.workers.worker_process, edgetl.runtime.predictor, onnxruntime"
# A numeric user, as runAsNonRoot of Kubernetes requires.
USER 10001:10001
WORKDIR /home/edgetl
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
# The image has no curl. For another port or TLS, use docker run --health-cmd …
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
# In the exec form, edgetl is process 1 and receives the signals.
ENTRYPOINT ["edgetl"]
# --insecure: the published port and the gateway control the access to the container. With a token:
#   docker run -v "$PWD/token:/run/secrets/token:ro" … IMAGE serve /bundle --host 0.0.0.0 --insecure --token-file /run/secrets/token
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--insecure"]
