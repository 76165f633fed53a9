# A bundle behind HTTP: `prompt-tune serve`, without PyTorch.
#
#   docker build --tag prompt-tune .                                     for CPUs
#   docker build --tag prompt-tune:cuda --build-arg VARIANT=cuda .       for NVIDIA GPUs
#   docker run --read-only --tmpfs /tmp --env PROMPT_TUNE_API_KEY --publish 8000:8000 \
#       --volume "$PWD/bundle:/bundle:ro" prompt-tune [--batch-sizes 8 ...]
#
# With a GPU, add `--gpus all`. The driver comes from the host, CUDA and cuDNN from pip. Arguments at the end of the
# line are options of `prompt-tune serve`; on the CUDA image they take the place of `--device cuda`.
# tests/test_dockerfile.py runs the steps of the CPU image in a clean virtual environment.

ARG VARIANT=cpu

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY prompt_tune prompt_tune
COPY prompts prompts
COPY export export
RUN pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS base
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin serve
RUN python -m venv /opt/prompt-tune
ENV PATH=/opt/prompt-tune/bin:$PATH PYTHONUNBUFFERED=1
COPY --from=wheel /wheels /wheels
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["prompt-tune", "serve", "/bundle", "--host", "0.0.0.0", "--port", "8000"]

# the small `onnxruntime` in place of `onnxruntime-gpu`; the rest is the base install and the extra `serve` of setup.cfg
FROM base AS cpu
RUN pip install --quiet --no-cache-dir \
        "numpy>=2.0,<3" "click>=8.2,<9" "safetensors>=0.4.3,<1" "pillow>=11.1,<14" "rich>=13.9,<16" \
        "jinja2>=3.1,<4" "onnxruntime>=1.27,<2" \
        "starlette>=1.10,<2" "uvicorn>=0.54,<1" "h11>=0.16,<1" "prometheus-client>=0.26,<1" \
    && pip install --quiet --no-cache-dir --no-deps /wheels/*.whl
CMD []

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --quiet --no-cache-dir "$(ls /wheels/*.whl)[serve,cuda]"
CMD ["--device", "cuda"]

FROM ${VARIANT} AS final
USER 10001
